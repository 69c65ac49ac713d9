"""The end of a run, killed at every point: finished, to be finished, or to be resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ledgers import claim, header, step_release, write_model

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs import ledger_file
from dpaudit.runs.directory import RunDirectory, create_run, seal_run
from dpaudit.runs.file_io import sha256
from dpaudit.runs.ledger_file import LedgerWriter, complete_seal
from dpaudit.vocabulary.errors import (
    DpauditError,
    InputOutputError,
    IntegrityError,
    InvalidArgument,
)
from dpaudit.vocabulary.ledger import Randomness, ResumeEntry
from dpaudit.workflow.train.finish import CompletedPart, finish_run

RELEASES = 3
DELTA = 1e-5
RESUMED = ResumeEntry(0, Randomness.SECURE)


def at_its_end(path: Path, *, ended: bool = False) -> tuple[RunDirectory, LedgerWriter]:
    """A run whose model is written, and whose ledger is open; it may hold the model's digest."""
    run = create_run(path)
    writer = LedgerWriter.create(run.ledger, header())
    for step in range(RELEASES):
        writer.record_release(step_release(step))
    write_model(run, RELEASES)
    if ended:
        writer.end({run.model.name: sha256(run.model)})
    return run, writer


def seal(run: RunDirectory, writer: LedgerWriter) -> None:
    seal_run(run, writer, claim_from_ledger(run.read_ledger(), DELTA, "pld"))


CALLS: list[tuple[object, str]] = [
    *((os, "fsync"), (os, "open"), (os, "close"), (Path, "replace")),
    (ledger_file, "_write_all"),
]
"""What touches the disk, and is counted."""


def run_and_die(act: Callable[[], None], call: int, *, after: bool) -> bool:
    """Let a forked process die before, in the middle of, or after the n-th call; False: no such."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        left = [call]
        for owner, name in CALLS:
            _die_in(owner, name, left, after=after)
        try:
            act()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def _die_in(owner: object, name: str, left: list[int], *, after: bool) -> None:
    real = getattr(owner, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and name == "_write_all":
            file, text = arguments
            file.write(text[: len(text) // 2 if not after else len(text) - 1])
            os._exit(9)
        if left[0] == 0 and not after:
            os._exit(9)
        done = real(*arguments, **named)
        if left[0] == 0:
            os._exit(9)
        return done

    setattr(owner, name, counted)


def outcome(run: RunDirectory) -> str:
    """Finish or resume a dead run; return which, once the releases are seen to be all there."""
    try:
        assert len(run.read_unfinished().releases) == RELEASES
    except IntegrityError as error:
        pytest.fail(f"a killed run is taken for an altered one: {error}")
    try:
        done = finish_run(run, DELTA)
    except InvalidArgument:
        LedgerWriter.resume(run.ledger, RESUMED).close()
        assert len(run.read_unfinished().releases) == RELEASES
        return "resumed"
    assert len(run.read_finished().releases) == RELEASES
    assert finish_run(run, None) is CompletedPart.NOTHING
    return done.name


@pytest.mark.parametrize("after", [False, True])
def test_kill_at_any_point_leaves_a_finished_or_resumable_run(tmp_path: Path, after: bool) -> None:
    outcomes = []
    for call in range(1, 100):
        run, writer = at_its_end(tmp_path / str(call))
        writer.close()

        def end(run: RunDirectory = run) -> None:
            # A process of its own has the lock: it dies with it.
            seal(run, LedgerWriter.resume(run.ledger, RESUMED))

        died = run_and_die(end, call, after=after)
        outcomes.append(outcome(run))
        if not died:
            break
    assert outcomes[-1] == "NOTHING"
    assert set(outcomes) <= {"BOTH", "SEAL", "NOTHING", "resumed"}
    # Resumed: it died before the line that binds the model to the ledger.
    assert {"resumed", "BOTH", "SEAL"} <= set(outcomes)


@pytest.mark.parametrize("after", [False, True])
def test_without_proof_in_the_model_a_kill_leaves_a_run_that_is_resumed_or_finished(
    tmp_path: Path, after: bool
) -> None:
    outcomes = []
    for call in range(1, 100):
        run, writer = at_its_end(tmp_path / str(call))
        writer.close()
        run.model.write_bytes(b"weights without metadata")

        def end(run: RunDirectory = run) -> None:
            seal(run, LedgerWriter.resume(run.ledger, RESUMED))

        died = run_and_die(end, call, after=after)
        outcomes.append(outcome(run))
        if not died:
            break
    assert set(outcomes) == {"resumed", "BOTH", "SEAL", "NOTHING"}


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_while_finishing_leaves_a_run_that_can_be_finished(
    tmp_path: Path, after: bool
) -> None:
    for call in range(1, 100):
        run, writer = at_its_end(tmp_path / str(call), ended=True)
        writer.close()
        died = run_and_die(lambda run=run: finish_run(run, DELTA), call, after=after)  # type: ignore[misc]
        assert outcome(run) in {"BOTH", "SEAL", "NOTHING"}
        if not died:
            return
    pytest.fail("it never came to an end")


# What the disk refuses.


@pytest.mark.parametrize("call", range(1, 12))
def test_disk_failure_leaves_a_finished_or_resumable_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    run, writer = at_its_end(tmp_path / "run")
    ends = claim_from_ledger(run.read_ledger(), DELTA, "pld")
    left = [call]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            return real(*arguments, **named)

        return fail

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(Path, "replace", failing(Path.replace))
        patch.setattr(ledger_file, "_write_all", failing(ledger_file._write_all))
        try:
            seal_run(run, writer, ends)
        except (OSError, DpauditError):
            writer.close()
    assert outcome(run) in {"BOTH", "SEAL", "NOTHING", "resumed"}


def test_a_claim_that_could_not_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpaudit.files import regular_files

    run, writer = at_its_end(tmp_path / "run")

    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(regular_files, "sync_to_disk", fail)
        with pytest.raises(InputOutputError):
            seal_run(run, writer, claim(RELEASES))
    assert not run.claim.exists()
    writer.record_release(step_release(RELEASES))
    assert len(run.read_unfinished().releases) == RELEASES + 1


def test_a_forked_process_writes_no_claim(tmp_path: Path) -> None:
    run, writer = at_its_end(tmp_path / "run")
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            seal_run(run, writer, claim(RELEASES))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert not run.claim.exists()
    seal(run, writer)
    assert len(run.read_finished().releases) == RELEASES


def test_the_claim_of_another_number_of_releases_is_refused(tmp_path: Path) -> None:
    run, writer = at_its_end(tmp_path / "run")
    with pytest.raises(IntegrityError, match="the claim covers 2 releases"):
        seal_run(run, writer, claim(2))
    assert not run.claim.exists()


def test_unfinished_run_is_not_sealed(tmp_path: Path) -> None:
    run, writer = at_its_end(tmp_path / "run")
    writer.close()
    before = run.ledger.read_bytes()
    with pytest.raises(IntegrityError, match="no claim that proves its seal"):
        complete_seal(run)
    assert run.ledger.read_bytes() == before
