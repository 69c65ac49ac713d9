"""A ledger that its run's other files contradict is refused wherever the run is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from ledgers import (
    finish,
    finished_run,
    header,
    step_release,
    unfinished_run,
    write_checkpoint,
    write_model,
)

from dpaudit.runs import ledger_file
from dpaudit.runs.checkpoints import (
    PROGRESS,
    Progress,
    complete_checkpoints,
    digests_of,
    read_newest_progress,
    remove_checkpoint,
    require_own_checkpoint,
)
from dpaudit.runs.consistency import model_metadata
from dpaudit.runs.directory import RunDirectory, create_run
from dpaudit.runs.file_io import read_json, write_arrays, write_json
from dpaudit.runs.ledger_file import LedgerWriter, read_unfinished
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, RunExists
from dpaudit.vocabulary.ledger import (
    CheckpointEntry,
    Randomness,
    ReleaseEntry,
    ResumeEntry,
    Sampling,
)
from dpaudit.vocabulary.mechanism import BandedMatrixFactorization, Gaussian, RandomAllocation

RESUMED = ResumeEntry(2, Randomness.SECURE)
RELEASES = 4

WAYS_IN: list[Callable[[RunDirectory], object]] = [
    RunDirectory.read_ledger,
    RunDirectory.read_unfinished,
    lambda run: read_unfinished(run.ledger),
    lambda run: LedgerWriter.resume(run.ledger, RESUMED),
]


def require_refused(run: RunDirectory, why: str) -> None:
    before = run.ledger.read_bytes()
    for way_in in WAYS_IN:
        with pytest.raises(IntegrityError, match=why):
            way_in(run)
    assert run.ledger.read_bytes() == before


def cut(run: RunDirectory, lines: int) -> None:
    kept = run.ledger.read_bytes().splitlines(keepends=True)[:lines]
    run.ledger.write_bytes(b"".join(kept))


# The claim.


def test_a_finished_run_is_read(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    assert len(run.read_finished().releases) == RELEASES
    assert run.read_unfinished() == run.read_ledger() == run.read_finished()


@pytest.mark.parametrize("lines", range(1, RELEASES + 1))
def test_a_finished_ledger_that_is_cut_is_refused(tmp_path: Path, lines: int) -> None:
    run = finished_run(tmp_path / "run")
    cut(run, lines)
    require_refused(run, "holds .* and no seal that fits")


@pytest.mark.parametrize("lines", range(2, RELEASES + 1))
@pytest.mark.parametrize("evidence", ["model", "observations", "checkpoint"])
def test_without_the_claim_every_other_file_tells(
    tmp_path: Path, lines: int, evidence: str
) -> None:
    run = finished_run(tmp_path / "run")
    write_checkpoint(run, Progress(RELEASES, RELEASES, 10.0))
    run.claim.unlink()
    if evidence != "model":
        run.model.unlink()
    if evidence != "observations":
        run.observations.unlink()
    if evidence != "checkpoint":
        remove_checkpoint(run.checkpoints / f"step-{RELEASES}")
    cut(run, lines)
    require_refused(run, "the ledger was cut")


def test_a_cut_within_a_line_is_no_better(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    run.claim.unlink()
    whole = run.ledger.read_bytes()
    run.ledger.write_bytes(whole[: whole.index(b'"step":3')])
    for way_in in WAYS_IN[1:]:
        with pytest.raises(IntegrityError, match="the ledger was cut"):
            way_in(run)


def test_a_sealed_run_without_its_claim_is_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    run.claim.unlink()
    for read in (
        RunDirectory.read_ledger,
        RunDirectory.read_unfinished,
        RunDirectory.read_finished,
    ):
        with pytest.raises(IntegrityError, match=r"no claim\.json: .* dpaudit finish"):
            read(run)


@pytest.mark.parametrize("change", [{"ledger_head": "ab" * 32}, {"releases": 3}])
def test_the_claim_of_another_ledger_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    run = finished_run(tmp_path / "run")
    write_json(run.claim, msgspec.structs.replace(read_json(run.claim, Claim), **change))
    with pytest.raises(IntegrityError, match="another ledger"):
        run.read_finished()


def test_a_claim_that_is_broken_is_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    run.claim.write_text("{")
    with pytest.raises(IntegrityError):
        run.read_unfinished()


def test_a_run_that_lacks_its_seal_alone_is_read_and_not_resumed(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    whole = run.ledger.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in (*range(start, len(whole) - 1, 7), start, start + 1, len(whole) - 2):
        run.ledger.write_bytes(whole[:end])
        assert len(run.read_unfinished().releases) == RELEASES
        with pytest.raises(RunExists, match="dpaudit finish"):
            LedgerWriter.resume(run.ledger, RESUMED)
        assert run.ledger.read_bytes() == whole[:end]
        with pytest.raises(IntegrityError):
            run.read_finished()


def test_a_run_that_lacks_its_seal_and_has_another_model_is_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    cut(run, RELEASES + 1)
    run.model.write_bytes(b"other weights")
    require_refused(run, "another file was cut or altered")


# The model.


def test_the_model_of_another_run_is_refused(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    write_model(run, RELEASES, name="another")
    require_refused(run, "the model of another run")
    write_model(run, "many")
    require_refused(run, "has no valid number of releases")
    write_model(run, RELEASES + 1)
    require_refused(run, "was made by 5 releases")
    write_model(run, RELEASES - 1)
    assert len(run.read_unfinished().releases) == RELEASES


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"weights", b"\xff" * 40, (10**12).to_bytes(8, "little") + b"{}"),
        *(b"\x02" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]", b"\x04" + bytes(7) + b"null"),
        b"\x12" + bytes(7) + b'{"__metadata__":1}',
    ],
)
def test_a_model_without_metadata_proves_nothing(tmp_path: Path, content: bytes) -> None:
    run = unfinished_run(tmp_path / "run")
    run.model.write_bytes(content)
    assert model_metadata(run.model) == {}
    assert len(run.read_ledger().releases) == RELEASES


def test_metadata_are_those_that_safetensors_writes(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    metadata = {"dpaudit_run": "ab", "dpaudit_releases": "12"}
    numpy.save_file({"w": np.ones(3)}, tmp_path / "m", metadata=metadata)
    assert model_metadata(tmp_path / "m") == metadata


# Observations.


def observed(run: RunDirectory, rows: int) -> None:
    write_arrays(run.observations, rows=np.zeros((rows, 3), np.float32), joined=np.zeros(2))


def test_more_rows_than_steps_are_refused(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    observed(run, RELEASES)
    assert len(run.read_unfinished().releases) == RELEASES
    observed(run, RELEASES + 1)
    require_refused(run, "holds 5 steps, its ledger at most 4")


@pytest.mark.parametrize(
    ("sampling", "mechanism"),
    [
        (Sampling.BALLS_IN_BINS, RandomAllocation(Gaussian(1.0), 6)),
        (Sampling.CYCLIC_POISSON, BandedMatrixFactorization(Gaussian(1.0), 6, 2)),
    ],
)
def test_a_release_of_a_pass_covers_its_steps(
    tmp_path: Path, sampling: Sampling, mechanism: RandomAllocation
) -> None:
    run = create_run(tmp_path / "run")
    with LedgerWriter.create(run.ledger, header(sampling=sampling)) as writer:
        writer.record_release(ReleaseEntry("record count", Gaussian(9.0)))
        writer.record_release(ReleaseEntry("gradient sum", mechanism, 0))
    observed(run, 6)
    assert len(run.read_unfinished().releases) == 2
    observed(run, 7)
    require_refused(run, "holds 7 steps, its ledger at most 6")


def test_shuffled_passes_do_not_say_how_many_steps_they_cover(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    with LedgerWriter.create(run.ledger, header(sampling=Sampling.SHUFFLED)) as writer:
        writer.record_release(ReleaseEntry("gradient sum", Gaussian(1.0), 0))
    observed(run, 1000)
    assert len(run.read_unfinished().releases) == 1


@pytest.mark.parametrize("content", [b"", b"PK", b"\x00" * 100])
def test_broken_observations_prove_nothing(tmp_path: Path, content: bytes) -> None:
    run = unfinished_run(tmp_path / "run")
    run.observations.write_bytes(content)
    assert len(run.read_unfinished().releases) == RELEASES


# Checkpoints.


def checkpointed(run: RunDirectory, *, recorded: bool = True) -> Path:
    folder = write_checkpoint(run, Progress(2, 2, 10.0, run="00" * 16))
    if recorded:
        with LedgerWriter.resume(run.ledger, RESUMED) as writer:
            writer.checkpointed(CheckpointEntry(2, digests_of(folder)))
    return folder


def test_an_altered_checkpoint_is_refused(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run", releases=2)
    folder = checkpointed(run)
    assert set(digests_of(folder)) == {PROGRESS, "model.safetensors"}
    require_own_checkpoint(folder, run.read_unfinished())
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert len(run.read_unfinished().releases) == 2  # a look hashes no weights
    with pytest.raises(IntegrityError, match="altered after its ledger recorded it"):
        LedgerWriter.resume(run.ledger, RESUMED)
    write_json(folder / PROGRESS, Progress(2, 1, 10.0))
    require_refused(run, "altered after its ledger recorded it")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    write_checkpoint(run, Progress(2, 2, 10.0, run="another"))
    require_refused(run, "of another run")


def test_a_checkpoint_that_is_not_recorded_is_refused_beside_one_that_is(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    checkpointed(run)
    write_checkpoint(run, Progress(3, 3, 10.0))
    with pytest.raises(IntegrityError, match="not a checkpoint that its ledger records"):
        LedgerWriter.resume(run.ledger, RESUMED)


def test_a_checkpoint_of_an_older_version_is_resumed(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    checkpointed(run, recorded=False)
    LedgerWriter.resume(run.ledger, RESUMED).close()


def test_an_incomplete_checkpoint_proves_nothing(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    folder = write_checkpoint(run, Progress(9, 9, 10.0))
    require_refused(run, "the ledger was cut")
    (folder / "COMPLETE").unlink()
    assert len(run.read_unfinished().releases) == RELEASES
    assert read_newest_progress(run.checkpoints) is None


def test_checkpoints_are_in_order_of_their_steps(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run", releases=12)
    for step in (10, 9, 2):
        write_checkpoint(run, Progress(step, step, 10.0, settings={"a": "b"}))
    (run.checkpoints / "step-x").mkdir()
    assert [folder.name for folder in complete_checkpoints(run.checkpoints)] == [
        *("step-2", "step-9", "step-10"),
    ]
    newest = read_newest_progress(run.checkpoints)
    assert newest == Progress(10, 10, 10.0, settings={"a": "b"})


# Another process writes meanwhile.


def test_a_run_that_goes_on_while_it_is_read_is_no_cut_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(tmp_path / "run")
    writer = LedgerWriter.create(run.ledger, header())
    writer.record_release(step_release(0))
    read, looks = ledger_file.ledger_bytes, [0]

    def then_goes_on(path: Path) -> bytes:
        content = read(path)
        if path == run.ledger:
            looks[0] += 1
            if looks[0] == 1:
                writer.record_release(step_release(1))
                write_checkpoint(run, Progress(2, 2, 10.0))
        return content

    monkeypatch.setattr(ledger_file, "ledger_bytes", then_goes_on)
    assert len(run.read_unfinished().releases) == 2
    write_model(run, 2)
    looks[0] = 5
    finish(run, writer)
    assert len(run.read_finished().releases) == 2
