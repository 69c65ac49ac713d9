"""Interrupted runs: bit for bit the same when seeded, and never a release too few."""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dpaudit.runs import directory
from dpaudit.runs.directory import RunDirectory, create_run
from dpaudit.runs.file_io import read_arrays, sha256, write_arrays
from dpaudit.trainer import run as runs
from dpaudit.trainer.canaries.run_canaries import Observation, RunCanaries
from dpaudit.trainer.engine import Flat
from dpaudit.trainer.models import factories
from dpaudit.trainer.noise.gradient_noise import Independent
from dpaudit.trainer.session import training_session
from dpaudit.vocabulary.errors import DpauditError, IntegrityError, RunExists
from dpaudit.vocabulary.ledger import (
    GRADIENT_SUM,
    RECORD_COUNT,
    BeginEntry,
    CheckpointEntry,
    EndEntry,
    PrivacyLedger,
    Randomness,
    ResumeEntry,
    Seal,
)
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)

STEPS, EVERY = 9, 3
CHECKPOINT = ["model.safetensors", "optimizer.safetensors", "progress.json", "observations.npz"]
NOTHING: runs.StepCallback = lambda done, seen: None  # noqa: E731


class Interrupted(Exception):
    """What ends a run in the middle."""


def interrupt_at(step: int) -> runs.StepCallback:
    def on_step(done: int, seen: Observation) -> None:
        if done == step:
            raise Interrupted

    return on_step


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    random = np.random.default_rng(1)
    labels = np.arange(60) % 3
    source = tmp_path / "data.npz"
    np.savez(source, x=random.normal(size=(60, 4)) + labels[:, None], y=labels)
    return RunConfig(
        DataSettings(str(source)),
        PrivacySettings(
            sampling_rate=0.3, noise_multiplier=1.0, clip_norm=0.5, steps=STEPS, delta=1e-5, seed=3
        ),
        ModelSettings("linear"),
        CanarySettings(gradient=8, inputs=2),
        SpeedSettings(physical_batch_size=8, checkpoint_every=EVERY),
    )


def changed(config: RunConfig, part: str, **values: object) -> RunConfig:
    return msgspec.structs.replace(
        config, **{part: msgspec.structs.replace(getattr(config, part), **values)}
    )


def train(config: RunConfig, out: Path) -> RunDirectory:
    return runs.train_run(runs.prepare_run(config), out, NOTHING)


def interrupted(config: RunConfig, out: Path, step: int) -> RunDirectory:
    with pytest.raises(Interrupted):
        runs.train_run(runs.prepare_run(config), out, interrupt_at(step))
    return RunDirectory(out)


def resume(out: Path, on_step: runs.StepCallback = NOTHING) -> RunDirectory:
    return runs.resume_run(runs.prepare_resume(out), out, on_step)


def recorded_steps(ledger: PrivacyLedger) -> list[int]:
    return [line.step for line in ledger.releases if line.what == GRADIENT_SUM]


def require_same_result(one: RunDirectory, other: RunDirectory) -> None:
    weights, others = load_file(one.model), load_file(other.model)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, others[name])
    rows = [read_arrays(run.observations)["rows"] for run in (one, other)]
    assert np.array_equal(*rows)
    assert rows[0].shape == (STEPS, 8)


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def with_dropout(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(shape[0], classes))


# The same result.


@pytest.mark.parametrize(
    ("optimizer", "step"), [("sgd", 1), ("sgd", 3), ("sgd", 5), ("sgd", STEPS), ("adam", 4)]
)
def test_a_seeded_run_resumed_is_the_run_uninterrupted(
    tmp_path: Path, config: RunConfig, optimizer: str, step: int
) -> None:
    asked = changed(config, "model", optimizer=optimizer)
    whole = train(asked, tmp_path / "whole")
    interrupted(asked, tmp_path / "run", step)
    require_same_result(resume(tmp_path / "run"), whole)


def test_a_run_resumed_again_and_again_is_the_run_uninterrupted(
    tmp_path: Path, config: RunConfig
) -> None:
    whole = train(config, tmp_path / "whole")
    run = interrupted(config, tmp_path / "run", 2)
    for step in (2, 4, 5, 5, 8):
        with pytest.raises(Interrupted):
            resume(run.path, interrupt_at(step))
    require_same_result(resume(run.path), whole)
    lines = run.read_finished().lines
    assert [line.step for line in lines if isinstance(line, ResumeEntry)] == [0, 0, 3, 3, 3, 6]


@pytest.mark.parametrize("model", ["linear", "mlp", "with dropout"])
def test_two_seeded_runs_are_equal(
    tmp_path: Path, config: RunConfig, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(factories.BUILT_IN_MODELS, "with dropout", with_dropout)
    asked = changed(config, "model", model=model)
    require_same_result(train(asked, tmp_path / "one"), train(asked, tmp_path / "other"))


def test_a_seeded_run_with_dropout_resumed_is_the_run_uninterrupted(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(factories.BUILT_IN_MODELS, "with dropout", with_dropout)
    asked = changed(config, "model", model="with dropout")
    whole = train(asked, tmp_path / "whole")
    interrupted(asked, tmp_path / "run", 5)
    require_same_result(resume(tmp_path / "run"), whole)


def test_a_given_normaliser_and_no_canaries_resume_too(tmp_path: Path, config: RunConfig) -> None:
    asked = changed(config, "privacy", expected_batch_size=20.0)
    asked = changed(asked, "canaries", gradient=0, inputs=0)
    whole = train(asked, tmp_path / "whole")
    interrupted(asked, tmp_path / "run", 5)
    run = resume(tmp_path / "run")
    weights, others = load_file(run.model), load_file(whole.model)
    assert all(torch.equal(weights[name], others[name]) for name in others)
    assert {line.what for line in run.read_finished().releases} == {GRADIENT_SUM}


# What the ledger says of it.


@pytest.mark.parametrize("step", [1, 3, 5, 8, STEPS])
def test_the_ledger_counts_every_step_and_repeated_ones_again(
    tmp_path: Path, config: RunConfig, step: int
) -> None:
    interrupted(config, tmp_path / "run", step)
    ledger = resume(tmp_path / "run").read_finished()
    times = Counter(recorded_steps(ledger))
    since = step // EVERY * EVERY  # the newest checkpoint
    assert set(times) == set(range(STEPS))
    assert {number for number, count in times.items() if count > 1} == set(range(since, step))
    assert len(recorded_steps(ledger)) - STEPS <= EVERY
    assert [line.what for line in ledger.releases].count(RECORD_COUNT) == 1


def test_what_was_recorded_before_the_interruption_stays(tmp_path: Path, config: RunConfig) -> None:
    run = interrupted(config, tmp_path / "run", 5)
    before = run.ledger.read_bytes()
    resume(run.path)
    assert run.ledger.read_bytes().startswith(before)


def test_a_step_whose_noise_was_never_drawn_is_recorded_all_the_same(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(Independent, "add_noise", die)
    with pytest.raises(Interrupted):
        runs.train_run(runs.prepare_run(config), tmp_path / "run", NOTHING)
    assert recorded_steps(RunDirectory(tmp_path / "run").read_ledger()) == [0]


def test_step_that_is_refused_before_its_noise_records_nothing(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Interrupted

    monkeypatch.setattr(Flat, "factors", die)
    with pytest.raises(Interrupted):
        runs.train_run(runs.prepare_run(config), tmp_path / "run", NOTHING)
    assert recorded_steps(RunDirectory(tmp_path / "run").read_ledger()) == []


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, config: RunConfig) -> None:
    run = train(config, tmp_path / "run")
    before = files_in(run.path)
    with pytest.raises(RunExists, match="finished"):
        resume(run.path)
    assert files_in(run.path) == before


def test_the_ledger_is_the_same_for_one_record_more(tmp_path: Path, config: RunConfig) -> None:
    """Nothing but noise tells neighbors apart: no count, no digest, no size."""
    arrays = dict(np.load(config.data.source))
    more = tmp_path / "more.npz"
    np.savez(more, x=np.vstack([arrays["x"], [[9.0] * 4]]), y=np.append(arrays["y"], 1))
    ledgers = []
    for name, source in (("one", config.data.source), ("more", str(more))):
        run = train(changed(config, "data", source=source), tmp_path / name)
        ledger = run.read_ledger()
        # The digests left out are of the data's path, of files with a fresh salt, and of
        # weights, which noise makes different.
        digests = BeginEntry | CheckpointEntry | EndEntry | Seal
        lines = [line for line in ledger.lines if not isinstance(line, digests)]
        ledgers.append((msgspec.structs.replace(ledger.header, run=""), lines))
    assert ledgers[0] == ledgers[1]


def test_the_seal_gives_away_neither_records_nor_coins_to_one_who_guesses(
    tmp_path: Path, config: RunConfig
) -> None:
    """An unkeyed digest of few unknown bits, or of records that may be known, is a release."""
    asked = changed(config, "privacy", seed=None)
    run = train(changed(asked, "canaries", gradient=4), tmp_path / "run")
    seal = run.read_finished().seal
    assert seal is not None
    guess, known = create_run(tmp_path / "guess"), RunCanaries.read(run)
    for bits in itertools.product([False, True], repeat=6):
        RunCanaries(np.array(bits[:4]), known.inputs, np.array(bits[4:])).write(guess)
        assert sha256(guess.canaries) != seal.files["canaries.npz"]
        assert sha256(guess.secret_canaries) != seal.files["canaries.secret.npz"]


# Secure runs.


def test_a_secure_run_resumed_draws_fresh_noise(tmp_path: Path, config: RunConfig) -> None:
    asked = changed(config, "privacy", seed=None)
    run = interrupted(asked, tmp_path / "run", 5)
    kept = tmp_path / "copy"
    shutil.copytree(run.path, kept)
    rows = [read_arrays(resume(path).observations)["rows"] for path in (run.path, kept)]
    assert np.array_equal(rows[0][:3], rows[1][:3])  # what the checkpoint held
    assert not np.any(rows[0][3:] == rows[1][3:])  # every noise since is new
    ledger = run.read_finished()
    assert ledger.header.randomness is Randomness.SECURE
    assert ResumeEntry(3, Randomness.SECURE) in ledger.lines


def test_no_key_is_ever_written(tmp_path: Path, config: RunConfig) -> None:
    prepared = runs.prepare_run(changed(config, "privacy", seed=None))
    key = prepared.stream._key
    with pytest.raises(Interrupted):
        runs.train_run(prepared, tmp_path / "run", interrupt_at(5))
    for content in files_in(tmp_path / "run").values():
        assert key not in content
        assert key.hex().encode() not in content


# Where it died.


def test_a_run_that_died_before_its_first_checkpoint_starts_again(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config, tmp_path / "whole")

    def die(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(training_session, "write_checkpoint", die)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    run = resume(tmp_path / "run")
    require_same_result(run, whole)
    releases = [line.what for line in run.read_finished().releases]
    assert releases.count(RECORD_COUNT) == 2  # both counts were released
    assert releases.count(GRADIENT_SUM) == STEPS


@pytest.mark.parametrize("name", CHECKPOINT)
def test_a_checkpoint_without_its_marker_is_ignored(
    tmp_path: Path, config: RunConfig, name: str
) -> None:
    whole = train(config, tmp_path / "whole")
    run = interrupted(config, tmp_path / "run", 7)
    (run.checkpoints / "step-6" / "COMPLETE").unlink()
    (run.checkpoints / "step-6" / name).write_bytes(b"half")
    require_same_result(resume(run.path), whole)
    assert ResumeEntry(3, Randomness.SEEDED) in run.read_finished().lines


@pytest.mark.parametrize("name", CHECKPOINT)
@pytest.mark.parametrize("content", [b"", b"half", None])
def test_a_damaged_checkpoint_is_an_integrity_error(
    tmp_path: Path, config: RunConfig, name: str, content: bytes | None
) -> None:
    run = interrupted(config, tmp_path / "run", 7)
    damaged = run.checkpoints / "step-6" / name
    damaged.unlink()
    if content is not None:
        damaged.write_bytes(content)
    with pytest.raises(IntegrityError):
        resume(run.path)


def synced_files(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return a set that will hold the inode of every file that is synced from now on."""
    synced: set[int] = set()
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return synced


def test_a_checkpoint_is_on_the_disk_before_its_marker(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = synced_files(monkeypatch)
    run = interrupted(config, tmp_path / "run", 4)
    files = list((run.checkpoints / "step-3").iterdir())
    assert [file.name for file in files if file.stat().st_ino not in synced] == []


def test_what_is_sealed_is_on_the_disk_before_the_seal(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = synced_files(monkeypatch)
    files = train(config, tmp_path / "run").sealed_files
    assert [file.name for file in files if file.stat().st_ino not in synced] == []


# What a run that goes on must not accept.


def test_ledger_with_fewer_steps_than_taken_is_refused(tmp_path: Path, config: RunConfig) -> None:
    """A ledger put back from an old copy, or cut off at a line's end, under-counts."""
    run = interrupted(config, tmp_path / "run", 7)
    lines = run.ledger.read_bytes().splitlines(keepends=True)
    run.ledger.write_bytes(b"".join(lines[:4]))  # header, count and two of seven steps
    with pytest.raises(IntegrityError):
        resume(run.path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("noise_multiplier = 1.0", "noise_multiplier = 0.1"),
        ("clip_norm = 0.5", "clip_norm = 50.0"),
        ("sampling_rate = 0.3", "sampling_rate = 1.0"),
        ("steps = 9", "steps = 12"),
        ("seed = 3", ""),
        ("split_seed = 0", "split_seed = 1"),
    ],
)
def test_altered_settings_are_an_integrity_error(
    tmp_path: Path, config: RunConfig, old: str, new: str
) -> None:
    run = interrupted(config, tmp_path / "run", 5)
    content = run.config.read_text()
    assert content.count(f"\n{old}\n") == 1
    run.config.write_text(content.replace(f"\n{old}\n", f"\n{new}\n"))
    with pytest.raises(IntegrityError):
        resume(run.path)


def test_altered_canaries_are_an_integrity_error(tmp_path: Path, config: RunConfig) -> None:
    """Bits that are not those of the first steps would hide what these steps showed."""
    run = interrupted(config, tmp_path / "run", 5)
    arrays = read_arrays(run.secret_canaries)
    arrays["gradient_included"] = ~arrays["gradient_included"]
    write_arrays(run.secret_canaries, **arrays)
    with pytest.raises(IntegrityError):
        resume(run.path)


def test_data_of_another_shape_are_refused_in_words(tmp_path: Path, config: RunConfig) -> None:
    run = interrupted(config, tmp_path / "run", 5)
    np.savez(config.data.source, x=np.random.default_rng(1).normal(size=(60, 5)), y=[0, 1, 2] * 20)
    with pytest.raises(DpauditError):
        resume(run.path)


# What a run must not take away.


def test_a_run_is_never_trained_over_another(tmp_path: Path, config: RunConfig) -> None:
    for step in (2, STEPS):
        out = tmp_path / str(step)
        interrupted(config, out, step)
        before = files_in(out)
        with pytest.raises(RunExists):
            train(config, out)
        assert files_in(out) == before


def test_one_of_two_concurrent_runs_in_one_folder_is_refused(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run begins between our look at the place and our first file."""
    look, out = directory.require_absent, tmp_path / "run"
    asked = changed(config, "privacy", seed=None)
    theirs: dict[str, bytes] = {}

    def look_and_be_overtaken(path: Path) -> None:
        look(path)
        monkeypatch.setattr(directory, "require_absent", look)
        interrupted(asked, out, 1)
        theirs.update(files_in(out))

    monkeypatch.setattr(directory, "require_absent", look_and_be_overtaken)
    with pytest.raises(RunExists):
        train(asked, out)
    assert theirs
    assert files_in(out) == theirs


@pytest.mark.parametrize("where", ["write_toml", "Canaries.write", "LedgerWriter.create"])
def test_a_run_that_died_before_its_ledger_can_be_trained_over(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def die(*_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        owner: object = training_session
        if "." in where:
            owner = RunCanaries if where.startswith("Canaries") else training_session.LedgerWriter
        patch.setattr(owner, where.rsplit(".", maxsplit=1)[-1], die)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    runs.replace_run(runs.prepare_run(config), tmp_path / "run", NOTHING).read_finished()


def test_training_over_a_run_removes_it_whole(tmp_path: Path, config: RunConfig) -> None:
    interrupted(config, tmp_path / "run", 5)
    run = runs.replace_run(runs.prepare_run(config), tmp_path / "run", NOTHING)
    whole = train(config, tmp_path / "whole")
    assert set(files_in(run.path)) == set(files_in(whole.path))
    assert len(run.read_finished().releases) == STEPS + 1


def test_a_refused_run_leaves_the_earlier_one(tmp_path: Path, config: RunConfig) -> None:
    run = train(config, tmp_path / "run")
    before = files_in(run.path)
    with pytest.raises(DpauditError, match="input_canaries"):
        runs.replace_run(
            runs.prepare_run(changed(config, "canaries", inputs=50)), run.path, NOTHING
        )
    assert files_in(run.path) == before
