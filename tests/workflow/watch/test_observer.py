"""Looking at a run that another process writes: what is seen is what its ledger says."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ledgers import STEPS, Begin, book_step, finish

from dpaudit.accountants import pld
from dpaudit.gate.policy import ClaimPolicy, Policy
from dpaudit.report.run_status import RunStage, RunStatus, status_line, status_text
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import Randomness, ReleaseEntry, RenyiBudget, ResumeEntry
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
from dpaudit.workflow import watch
from dpaudit.workflow.watch import Observer, ProgressSample, StepRate

STEP = PoissonSampled(Gaussian(1.5), 0.1)


def watching(run: RunDirectory, policy: Policy | None = None) -> Observer:
    return Observer(run, policy, time.time)


def upper(steps: int, delta: float = 1e-5) -> float:
    return pld.profile(Repeated(STEP, steps)).epsilon(delta=delta).upper


def look(run: RunDirectory) -> RunStatus:
    return watching(run).read_status()


def test_a_run_is_seen_from_its_first_line_to_its_seal(begin: Begin) -> None:
    run, writer = begin()
    run_observer = watching(run)
    assert run_observer.read_status() == RunStatus(run="run", stage=RunStage.BEGINNING)
    for step in range(10):
        book_step(writer, step)
    seen = run_observer.read_status()
    assert (seen.stage, seen.steps_done, seen.steps) == (RunStage.TRAINING, 10, STEPS)
    assert seen.spent == upper(10)
    assert seen.projected == upper(STEPS)
    for step in range(10, STEPS):
        book_step(writer, step)
    assert not run_observer.read_status().finished
    finish(run, writer)
    seen = run_observer.read_status()
    assert seen.finished
    assert seen.spent == seen.projected == upper(STEPS)


@pytest.mark.parametrize("torn", [b"", b"{", b'{"entry":{"kind":"header"'])
def test_a_ledger_whose_first_line_is_being_written_has_not_begun(
    tmp_path: Path, torn: bytes
) -> None:
    run = RunDirectory(tmp_path)
    run.ledger.write_bytes(torn)
    assert look(run).stage is RunStage.BEGINNING


def test_a_torn_last_line_is_not_there_yet_and_a_broken_whole_one_is_an_error(
    begin: Begin,
) -> None:
    run, writer = begin()
    for step in range(3):
        book_step(writer, step)
    whole = run.ledger.read_bytes()
    run.ledger.write_bytes(whole[:-20])
    assert look(run).steps_done == 2
    run.ledger.write_bytes(whole.replace(b"1.5", b"9.5"))
    with pytest.raises(IntegrityError, match="altered"):
        look(run)


def test_nothing_is_computed_while_the_ledger_stays_as_it_is(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    price = watch.compute_epsilon
    claim = watch.claim_from_ledger

    def priced(*question: object) -> object:
        asked.append(1)
        return price(*question)  # type: ignore[arg-type]

    def claimed(*question: object) -> object:
        asked.append(1)
        return claim(*question)  # type: ignore[arg-type]

    monkeypatch.setattr(watch, "compute_epsilon", priced)
    monkeypatch.setattr(watch, "claim_from_ledger", claimed)
    run, writer = begin()
    run_observer = watching(run)
    book_step(writer, 0)
    run_observer.read_status()
    assert len(asked) == 2  # what is spent, and once what the plan will have spent
    run_observer.read_status()
    assert len(asked) == 2
    for step in range(1, 6):
        book_step(writer, step)
        run_observer.read_status()
    assert len(asked) == 2 + 5


def test_after_a_crash_what_is_recorded_twice_is_spent_twice(begin: Begin) -> None:
    run, writer = begin()
    with writer:
        for step in range(8):
            book_step(writer, step)
    with LedgerWriter.resume(run.ledger, ResumeEntry(5, Randomness.SECURE)) as resumed:
        assert look(run).steps_done == 5
        assert look(run).spent == upper(8)
        assert look(run).projected == upper(8 + STEPS - 5)
        book_step(resumed, 5)
        assert look(run).steps_done == 6
        assert look(run).spent == upper(9)
        assert look(run).steps_per_second is None  # its start says nothing of its pace


def test_the_policys_limit_delta_and_accountant_count(begin: Begin) -> None:
    run, writer = begin()
    for step in range(10):
        book_step(writer, step)
    most = (upper(10, 1e-6) + upper(STEPS, 1e-6)) / 2
    policy = Policy(claim=ClaimPolicy(max_epsilon=most, delta=1e-6))
    seen = watching(run, policy).read_status()
    assert (seen.spent, seen.delta) == (upper(10, 1e-6), 1e-6)
    said = status_text(seen)
    assert f"of the policy's {most:g}" in said
    assert f"OVER the policy's {most:g}" in said.splitlines()[4]
    tight = Policy(claim=ClaimPolicy(max_epsilon=upper(10, 1e-6) / 2, delta=1e-6))
    assert "none: OVER" in status_line(watching(run, tight).read_status())


def test_a_schedule_chosen_on_the_way_has_no_projected_end(begin: Begin) -> None:
    run, writer = begin(schedule_fixed_in_advance=False)
    book_step(writer, 0)
    seen = look(run)
    assert seen.spent is seen.projected is None
    assert "not known: " in status_text(seen)


def test_a_filters_budget_is_its_limit(begin: Begin) -> None:
    budget = RenyiBudget(4.0, 1e-5, (2.0, 4.0, 8.0, 16.0))
    run, writer = begin(schedule_fixed_in_advance=False, budget=budget)
    book_step(writer, 0)
    seen = look(run)
    assert seen.limit is not None
    assert seen.limit.epsilon == 4.0
    assert "of the filter's 4" in status_text(seen)


def test_a_run_without_settings_needs_a_policys_delta(begin: Begin) -> None:
    run, writer = begin()
    run.config.unlink()
    book_step(writer, 0)
    with pytest.raises(InvalidArgument, match="delta"):
        look(run)
    policy = Policy(claim=ClaimPolicy(max_epsilon=3, delta=1e-5))
    seen = watching(run, policy).read_status()
    assert seen.steps is seen.projected is None
    assert seen.spent == upper(1)


def test_releases_that_are_no_steps_are_spent_and_not_counted(begin: Begin) -> None:
    run, writer = begin()
    writer.record_release(ReleaseEntry("record count", Gaussian(50.0)))
    seen = look(run)
    assert seen.steps_done == 0
    assert seen.spent is not None
    assert seen.projected is None


def test_the_end_is_projected_from_the_pace() -> None:
    pace = StepRate()
    pace.add(ProgressSample(1000.0, 10), began=990.0)
    assert pace.steps_per_second == 1.0
    assert pace.ends(30, now=1000.0) == datetime.fromtimestamp(1030, UTC)
    pace.add(ProgressSample(1010.0, 40), began=990.0)
    assert pace.steps_per_second == 2.0
    pace.add(ProgressSample(1011.0, 5), began=None)  # resumed
    assert pace.steps_per_second is None


def test_old_readings_are_discarded() -> None:
    pace = StepRate()
    for second in range(200):
        pace.add(ProgressSample(1000.0 + second, second), began=None)
    for second in range(watch.PROGRESS_SAMPLES):
        pace.add(ProgressSample(1200.0 + second, 200 + 10 * second), began=None)
    assert pace.steps_per_second == pytest.approx(10)


@pytest.mark.parametrize(
    ("quiet", "stage"),
    [(5.0, RunStage.TRAINING), (59.0, RunStage.TRAINING), (61.0, RunStage.SILENT)],
)
def test_a_run_that_is_quiet_for_long_has_no_projected_end(quiet: float, stage: RunStage) -> None:
    pace = StepRate()
    pace.add(ProgressSample(1000.0, 1000), began=0.0)
    now = 1000.0 + quiet
    assert pace.stage(now) is stage
    assert (pace.ends(10, now) is None) is (stage is RunStage.SILENT)


def test_a_slow_run_is_given_more_time_before_it_counts_as_silent() -> None:
    pace = StepRate()
    pace.add(ProgressSample(1000.0, 10), began=0.0)  # 100 s a step
    assert pace.stage(2900.0) is RunStage.TRAINING
    assert pace.stage(3100.0) is RunStage.SILENT


def test_whatever_a_run_is_called_its_line_is_one_line(begin: Begin) -> None:
    run, writer = begin("a\nb\x1b[31m")
    book_step(writer, 0)
    line = status_line(look(run))
    assert line.isprintable()
    assert "\ufffd" in line


def test_watching_writes_nothing(begin: Begin, tmp_path: Path) -> None:
    def everything() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    run, writer = begin()
    book_step(writer, 0)
    before = everything()
    look(run)
    assert everything() == before
    finish(run, writer)  # the writer's lock was never in question


def test_many_steps_are_read_quickly(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    run, writer = begin()
    for step in range(20_000):
        book_step(writer, step)
    run_observer = watching(run)
    run_observer.read_status()
    began = time.process_time()
    run_observer.read_status()
    assert time.process_time() - began < 2.0
