"""Keep the verdicts of many runs: from run directories into the history beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_json
from dpaudit.runs.history import VerdictKey, known_verdicts, remember
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.baseline import AttackRate, Baseline
from dpaudit.vocabulary.errors import DpauditError, IntegrityError, InvalidArgument
from dpaudit.vocabulary.history import PastRun
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.tolerance import holds_at
from dpaudit.vocabulary.verdict import Verdict
from dpaudit.workflow.baselines import baseline_of_run
from dpaudit.workflow.claims import require_measured_before, require_own_claim

UNTIMED = datetime.fromtimestamp(0, UTC)


def remember_verdict(
    place: Path,
    run: RunDirectory,
    verdict: Verdict,
    *,
    figures: Baseline | None = None,
    judged: datetime | None = None,
) -> PastRun:
    """Write a verdict on a finished run into a history, unless it is there, and return it.

    Args:
        place: A folder of runs, in which a history is made where there is none, or its file.
        run: What was judged.
        verdict: What was said of it.
        figures: The run's figures, as they were judged; None: as the run has them.
        judged: When, with its offset from UTC; None for now.

    Raises:
        IntegrityError: the run is unfinished or altered, the verdict is of another ledger, or
            the history is corrupt or of an unknown version.
        InvalidArgument: the history cannot be written.
    """
    ledger = run.read_finished()
    _require_of(run, verdict, ledger)
    shown = baseline_of_run(run, None) if figures is None else figures
    past = past_run(shown, verdict, steps_of(ledger), judged or datetime.now(UTC))
    remember(place, past, evidence=_digest(verdict))
    return past


def take_up(folder: Path) -> tuple[str, ...]:
    """Write every judged run of a folder into its history; return why others were not.

    A run counts from its verdict.json on, which says when it was judged. Verdicts that are
    known are not read again, and those of runs that were removed stay.

    Raises:
        InvalidArgument: there is no such folder, it is a run itself, or cannot be written.
        IntegrityError: the history is corrupt or of an unknown version.
    """
    if not folder.is_dir() or RunDirectory(folder).ledger.exists():
        raise InvalidArgument("history", str(folder), "a folder of runs that exists, and no run")
    known, refused = known_verdicts(folder), []
    for run in _runs_in(folder):
        try:
            found = _unknown(run, known)
        except (DpauditError, OSError) as error:
            refused.append(f"{run.name} is not taken up: {error}")
            continue
        if found is not None:
            remember(folder, found[0], evidence=found[1].evidence)
    return tuple(refused)


def past_run(figures: Baseline, verdict: Verdict, steps: int, judged: datetime) -> PastRun:
    """Return what is remembered of a verdict on a run with ``figures``."""
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
        epsilon_lower=largest_lower(figures.bounds, claim.delta),
        fpr=None if worst is None else worst.fpr,
        tpr=None if worst is None else worst.tpr.upper,
        accuracy=figures.heldout_accuracy,
    )


def steps_of(ledger: PrivacyLedger) -> int:
    """Return how many steps are booked; one that was taken again after a crash counts once."""
    return len({release.step for release in ledger.releases if release.step is not None})


def largest_lower(bounds: Iterable[AuditResult], delta: float) -> float | None:
    """Return the largest lower bound that holds at ``delta``; an estimate is none."""
    at_delta = (
        bound.epsilon_lower
        for bound in bounds
        if bound.kind is not BoundKind.ESTIMATE and holds_at(bound.delta, delta)
    )
    return max(at_delta, default=None)


def _strongest(rates: Iterable[AttackRate]) -> AttackRate | None:
    """Return the rate with the largest upper end, at the smallest false-positive rate."""
    return min(rates, key=lambda rate: (rate.fpr, -rate.tpr.upper), default=None)


def _runs_in(folder: Path) -> Iterator[RunDirectory]:
    """Return the sub-folders, by name."""
    return (RunDirectory(path) for path in sorted(folder.iterdir()) if path.is_dir())


def _unknown(run: RunDirectory, known: frozenset[VerdictKey]) -> tuple[PastRun, VerdictKey] | None:
    """Verify a judged run that is not known yet, and return what is to be remembered of it."""
    if not (run.ledger.is_file() and run.verdict.is_file()):
        return None
    ledger, verdict = run.read_ledger(), read_json(run.verdict, Verdict)
    key = VerdictKey(run.name, ledger.head, _digest(verdict))
    if key in known:
        return None
    _require_of(run, verdict, ledger)
    require_own_claim(run, run.read_finished())
    judged = _judged(run, verdict)
    return past_run(baseline_of_run(run, None), verdict, steps_of(ledger), judged), key


def _judged(run: RunDirectory, verdict: Verdict) -> datetime:
    if verdict.basis is not None:
        return verdict.basis.judged
    return datetime.fromtimestamp(run.verdict.stat().st_mtime, UTC)


def _require_of(run: RunDirectory, verdict: Verdict, ledger: PrivacyLedger) -> None:
    if verdict.ledger_head != ledger.head:
        raise IntegrityError(f"{run.verdict} is of another ledger: judge {run.path} again")
    require_measured_before(run, verdict)


def _digest(verdict: Verdict) -> str:
    """Return a digest of what was said, and of what it was said of, whenever it was said."""
    basis = verdict.basis
    timeless = None if basis is None else msgspec.structs.replace(basis, judged=UNTIMED)
    said = msgspec.structs.replace(verdict, basis=timeless)
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()
