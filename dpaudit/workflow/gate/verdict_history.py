"""Record the verdicts of many runs in the history database beside the run directories."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json
from dpaudit.runs.history_database import VerdictKey, insert_verdict, read_verdict_keys
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.baseline import AttackRate, Baseline
from dpaudit.vocabulary.errors import (
    DpauditError,
    IntegrityError,
    InvalidArgument,
    StaleVerdict,
)
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.rounding import bound_holds_at
from dpaudit.vocabulary.verdict import PastRun, Verdict
from dpaudit.workflow.gate.baselines import baseline_of_run
from dpaudit.workflow.run_claims import require_claim_of_ledger, require_current_verdict

UNKNOWN_TIME = datetime.fromtimestamp(0, UTC)


def record_verdict(
    place: Path,
    run: RunDirectory,
    verdict: Verdict,
    *,
    figures: Baseline | None = None,
    judged: datetime | None = None,
) -> PastRun:
    """Write a verdict on a finished run into a history, unless it is recorded already.

    Args:
        place: A folder of runs, in which a history is created if there is none; or its file.
        run: The run.
        verdict: The verdict on it.
        figures: The run's figures, as they were evaluated; None: with the run's own claim.
        judged: Time of the evaluation, with its offset from UTC; None for now.

    Returns:
        The entry of the history.

    Raises:
        IntegrityError: If the run is unfinished or altered, the verdict is of another ledger, or
            the history is corrupt or of an unknown version.
        InvalidArgument: If the history cannot be written.
    """
    ledger = run.read_finished()
    _require_of(run, verdict, ledger)
    shown = baseline_of_run(run, None) if figures is None else figures
    past = history_entry(shown, verdict, count_steps(ledger), judged or datetime.now(UTC))
    insert_verdict(place, past, evidence=_digest(verdict))
    return past


@dataclass(frozen=True)
class Refusal:
    """A run whose verdict was not imported.

    Attributes:
        why: The run and the reason, as a sentence.
        stale: Whether the verdict is only older than a measurement of the run.
    """

    why: str
    stale: bool


def import_verdicts(folder: Path) -> tuple[Refusal, ...]:
    """Write every verdict of a folder of runs into the history of the folder.

    A run's verdict.json holds the time of its evaluation. Recorded verdicts are not read again,
    and those of removed runs are kept.

    Args:
        folder: The folder of runs.

    Returns:
        Each run whose verdict was not imported.

    Raises:
        InvalidArgument: If there is no such folder, it is a run itself, or cannot be written.
        IntegrityError: If the history is corrupt or of an unknown version.
    """
    if not folder.is_dir() or RunDirectory(folder).ledger.exists():
        raise InvalidArgument(
            "history", str(folder), "an existing folder of runs, not a run itself"
        )
    known, refused = read_verdict_keys(folder), []
    for run in _runs_in(folder):
        try:
            found = _unknown(run, known)
        except (DpauditError, OSError) as error:
            why = f"{run.name} was not imported: {error}"
            refused.append(Refusal(why, stale=isinstance(error, StaleVerdict)))
            continue
        if found is not None:
            insert_verdict(folder, found[0], evidence=found[1].evidence)
    return tuple(refused)


def history_entry(figures: Baseline, verdict: Verdict, steps: int, judged: datetime) -> PastRun:
    """Build the history's entry for a verdict.

    Args:
        figures: Figures of the run.
        verdict: The verdict on it.
        steps: Number of steps of the run.
        judged: Time of the evaluation.

    Returns:
        The entry; its attack rate is the largest at the smallest false-positive rate.
    """
    claim, worst = figures.claim, _strongest(figures.rates)
    return PastRun(
        run=figures.run,
        ledger_head=claim.ledger_head,
        judged=judged,
        outcome=verdict.outcome,
        epsilon_upper=claim.epsilon.upper,
        delta=claim.delta,
        steps=steps,
        accountant=claim.accountant,
        adjacency=claim.adjacency,
        dpaudit_version=claim.dpaudit_version,
        epsilon_lower=largest_lower_bound(figures.bounds, claim.delta),
        fpr=None if worst is None else worst.fpr,
        tpr=None if worst is None else worst.tpr.upper,
        accuracy=figures.heldout_accuracy,
    )


def count_steps(ledger: PrivacyLedger) -> int:
    """Count the recorded steps; a step that was repeated after a crash counts once.

    The steps of a federation are its rounds.
    """
    if ledger.header.federation is not None:
        return len({one.number for one in ledger.rounds})
    return len({release.step for release in ledger.releases if release.step is not None})


def largest_lower_bound(bounds: Iterable[AuditResult], delta: float) -> float | None:
    """Find the largest lower bound that holds at a delta; estimates are left out.

    Args:
        bounds: Lower bounds.
        delta: The delta.

    Returns:
        The bound on epsilon, in nats; None if there is none.
    """
    at_delta = (
        bound.epsilon_lower
        for bound in bounds
        if bound.kind is not BoundKind.ESTIMATE and bound_holds_at(bound.delta, delta)
    )
    return max(at_delta, default=None)


def _strongest(rates: Iterable[AttackRate]) -> AttackRate | None:
    """Return the rate with the largest upper end, at the smallest false-positive rate."""
    return min(rates, key=lambda rate: (rate.fpr, -rate.tpr.upper), default=None)


def _runs_in(folder: Path) -> Iterator[RunDirectory]:
    """Return the sub-folders as runs, sorted by name."""
    return (RunDirectory(path) for path in sorted(folder.iterdir()) if path.is_dir())


def _unknown(run: RunDirectory, known: frozenset[VerdictKey]) -> tuple[PastRun, VerdictKey] | None:
    """Verify a run with a verdict that is not recorded yet, and return its entry."""
    if not (run.ledger.is_file() and run.verdict.is_file()):
        return None
    ledger, verdict = run.read_ledger(), read_json(run.verdict, Verdict)
    key = VerdictKey(run.name, ledger.head, _digest(verdict))
    if key in known:
        return None
    require_claim_of_ledger(run, run.read_finished())
    figures = baseline_of_run(run, None)
    _require_of(run, verdict, ledger)  # last: a broken measurement is worse than a new one
    return history_entry(figures, verdict, count_steps(ledger), _judged(run, verdict)), key


def _judged(run: RunDirectory, verdict: Verdict) -> datetime:
    if verdict.basis is not None:
        return verdict.basis.judged
    return datetime.fromtimestamp(run.verdict.stat().st_mtime, UTC)


def _require_of(run: RunDirectory, verdict: Verdict, ledger: PrivacyLedger) -> None:
    if verdict.ledger_head != ledger.head:
        raise IntegrityError(f"{run.verdict} is of another ledger: dpaudit gate {run.path} again")
    require_current_verdict(run, verdict)


def _digest(verdict: Verdict) -> str:
    """Return a digest of a verdict and its basis, without the time of the evaluation."""
    basis = verdict.basis
    timeless = None if basis is None else msgspec.structs.replace(basis, judged=UNKNOWN_TIME)
    content = msgspec.structs.replace(verdict, basis=timeless)
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()
