"""Faults of a session, planted whole: each is refused, and would pass were its guard off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpaudit.cli.entry_point import _run
from dpaudit.runs import checkpoints, consistency
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json, write_json
from dpaudit.trainer import make_private
from dpaudit.trainer import run as runs
from dpaudit.trainer.noise.gradient_noise import GradientNoise, Independent, OnGrid, Prefetched
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.trainer.private import Private
from dpaudit.trainer.session import checkpoint
from dpaudit.trainer.session.change_detection import ChangeDetector
from dpaudit.vocabulary.errors import ExitCode, IntegrityError, UnrecordedChange
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)

STEPS, WIDTH = 12, 20
Gate = Callable[[Path], int]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gate:
    """Return the exit code of ``dpaudit gate`` under a policy that an honest run passes."""
    policy = tmp_path / "policy.toml"
    policy.write_text("[claim]\nmax_epsilon = 3.0\ndelta = 1e-5\n")

    def code(run: Path) -> int:
        monkeypatch.setattr("sys.argv", ["dpaudit", "gate", str(run), "--policy", str(policy)])
        return _run()

    return code


# A checkpoint of another run.


def config(noise: float) -> RunConfig:
    return RunConfig(
        DataSettings(),
        PrivacySettings(0.02, noise, 1.0, STEPS, 1e-5, expected_batch_size=30.0),
        ModelSettings("linear"),
        CanarySettings(),
        SpeedSettings(checkpoint_every=4),
    )


class Killed(Exception):
    pass


def killed(out: Path, noise: float, at: int = 9) -> RunDirectory:
    def on_step(done: int, seen: object) -> None:
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        runs.train_run(runs.prepare_run(config(noise)), out, on_step)
    return RunDirectory(out)


def whole_folder(foreign: Path, own: Path) -> None:
    shutil.rmtree(own)
    shutil.copytree(foreign, own)


def weights_alone(foreign: Path, own: Path) -> None:
    shutil.copy(foreign / "step-8" / "model.safetensors", own / "step-8" / "model.safetensors")


def whole_folder_under_the_own_name(foreign: Path, own: Path) -> None:
    name = read_json(own / "step-8" / "progress.json", checkpoints.Progress).run
    whole_folder(foreign, own)
    for folder in own.iterdir():
        progress = read_json(folder / "progress.json", checkpoints.Progress)
        write_json(folder / "progress.json", msgspec.structs.replace(progress, run=name))


@pytest.mark.parametrize("plant", [whole_folder, weights_alone, whole_folder_under_the_own_name])
def test_foreign_checkpoint_is_refused(
    tmp_path: Path, plant: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """Steps without noise, of another run, would ship as the first steps of this one."""
    foreign, own = killed(tmp_path / "foreign", 0.01), killed(tmp_path / "own", 1.0)
    plant(foreign.checkpoints, own.checkpoints)
    before = own.ledger.read_bytes()
    monkeypatch.setattr("sys.argv", ["dpaudit", "train", "--resume", "--out", str(own.path)])
    assert _run() == ExitCode.INTEGRITY
    assert own.ledger.read_bytes() == before
    assert gate(own.path) == ExitCode.INTEGRITY  # it is not finished


def test_without_its_guard_a_foreign_checkpoint_would_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    foreign, own = killed(tmp_path / "foreign", 0.01), killed(tmp_path / "own", 1.0)
    weights_alone(foreign.checkpoints, own.checkpoints)
    for guarded in (checkpoint, consistency):
        monkeypatch.setattr(guarded, "require_own_checkpoint", lambda *_: None)
    runs.resume_run(runs.prepare_resume(own.path), own.path, lambda done, seen: None)
    assert gate(own.path) == ExitCode.PASS


# A step of the old loop that was left in.


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, WIDTH, generator=generator)
    return x, torch.randint(0, 2, (200,), generator=generator)


def private(ledger: Path | None = None, **options: object) -> Private:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 2))
    given: dict[str, object] = {
        "noise_multiplier": 4.0, "sampling_rate": 0.05, "expected_batch_size": 10, **options,
    }  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return make_private(model, optimizer, ledger=ledger, **given)  # type: ignore[arg-type]


def by_the_same_optimizer(trainer: Private) -> None:
    trainer.optimizer.zero_grad()
    loss(trainer.model, data()).mean().backward()
    trainer.optimizer.step()


def by_hand_past_autograd(trainer: Private) -> None:
    loss(trainer.model, data()).mean().backward()
    for parameter in trainer.model.parameters():
        assert parameter.grad is not None
        parameter.data -= 0.1 * parameter.grad


LEFTOVERS = [by_the_same_optimizer, by_hand_past_autograd]


def train_with(leftover: Callable[[Private], None], where: str, run: Path) -> None:
    trainer = private(run / "ledger.jsonl")
    for batch in trainer.batches(data(), steps=10):
        trainer.step(loss, batch)
        if where == "inside":
            leftover(trainer)
    if where == "below":
        leftover(trainer)
    trainer.finish(delta=1e-5)


@pytest.mark.parametrize("where", ["inside", "below"])
@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_leftover_step_is_not_sealed(
    tmp_path: Path, leftover: Callable[[Private], None], where: str, gate: Gate
) -> None:
    with pytest.raises(UnrecordedChange):
        train_with(leftover, where, tmp_path / "run")
    assert gate(tmp_path / "run") == ExitCode.INTEGRITY


@pytest.mark.parametrize("where", ["inside", "below"])
def test_without_its_guard_a_leftover_step_would_pass(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    monkeypatch.setattr(ChangeDetector, "changed", lambda self, *, thoroughly: ())
    train_with(by_the_same_optimizer, where, tmp_path / "run")
    assert gate(tmp_path / "run") == ExitCode.PASS


def test_declared_leftover_step_fails_a_policy_that_allows_none(tmp_path: Path, gate: Gate) -> None:
    def declared(trainer: Private) -> None:
        by_the_same_optimizer(trainer)
        trainer.declare_change("plain steps on the same records")

    train_with(declared, "below", tmp_path / "run")
    assert gate(tmp_path / "run") == ExitCode.FAIL


# Noise of one key in two processes.


def forked_moves(trainer: Private) -> list[np.ndarray]:
    """Return what a step of each of two forked children did to the weights."""
    before = nn.utils.parameters_to_vector(trainer.model.parameters()).detach().clone()
    moves = []
    for _ in range(2):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for batch in trainer.batches(data(), steps=1):
                    trainer.step(loss, batch)
                after = nn.utils.parameters_to_vector(trainer.model.parameters()).detach()
                os.write(writing, (after - before).numpy().tobytes())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            moves.append(np.frombuffer(pipe.read(), dtype="f4"))
        os.waitpid(child, 0)
    return moves


NOISES: list[Callable[[], GradientNoise]] = [Independent, OnGrid, Prefetched]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("noise", NOISES)
def test_forked_noise_is_refused(noise: Callable[[], GradientNoise]) -> None:
    moves = forked_moves(private(noise=noise(), noise_multiplier=50.0))
    assert [len(move) for move in moves] == [0, 0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("noise", [Independent, OnGrid])
def test_without_its_guard_forked_noise_would_be_one(
    noise: Callable[[], GradientNoise], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Keystream, "require_own_process", lambda self: None)
    trainer = private(noise=noise(), noise_multiplier=50.0)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
    one, other = forked_moves(trainer)
    assert np.linalg.norm(one - other) <= 0.1 * np.linalg.norm(one)


def test_checkpoint_of_an_unknown_run_is_refused(tmp_path: Path) -> None:
    """An older version wrote no name: nothing shows whose weights these are."""
    own = killed(tmp_path / "own", 1.0)
    for folder in own.checkpoints.iterdir():
        progress = read_json(folder / "progress.json", checkpoints.Progress)
        write_json(folder / "progress.json", msgspec.structs.replace(progress, run=""))
    with pytest.raises(IntegrityError):
        runs.resume_run(runs.prepare_resume(own.path), own.path, lambda done, seen: None)
