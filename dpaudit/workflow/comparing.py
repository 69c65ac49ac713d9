"""Two runs side by side: what differs, and what each difference by itself costs."""

from __future__ import annotations

from pathlib import Path

from dpaudit.accountants.answers import ACCOUNTANTS, epsilon_by
from dpaudit.gate.causes import Change, Difference, Effect, changes
from dpaudit.gate.comparison import Comparison, Cost
from dpaudit.runs.directory import open_run
from dpaudit.vocabulary.baseline import Baseline, Booked
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import AccountingError, InvalidArgument
from dpaudit.vocabulary.mechanism import Composed, Repeated
from dpaudit.workflow.baselines import read_baseline
from dpaudit.workflow.public_figures import same_content


def compare(before: Path, after: Path) -> Comparison:
    """Return what differs between two runs, each a run directory or a baseline file.

    Raises:
        InvalidArgument: there is nothing at a path.
        IntegrityError: a run is unfinished, or a file is missing, altered or broken.
    """
    content = None
    if before.is_dir() and after.is_dir():
        content = same_content(open_run(before), open_run(after))
    return comparison_of(read_baseline(before), read_baseline(after), same_data=content)


def comparison_of(
    before: Baseline, after: Baseline, *, same_data: bool | None = None
) -> Comparison:
    """Return what differs, each cause with the epsilon that it alone would have led to.

    Args:
        before: The figures of one run.
        after: The figures of the other.
        same_data: Whether their data files are two of the same bytes; None where that is not
            known, or they are one file.
    """
    costs = tuple(
        Cost(change.difference, _epsilon_of(change, before.claim))
        for change in changes(before, after)
    )
    if same_data is not None:
        now = "another file of the same bytes" if same_data else "other bytes"
        costs += (Cost(Difference("data (content)", "its file", now, Effect.NONE)),)
    return Comparison(before=before, after=after, costs=costs)


def _epsilon_of(change: Change, claim: Claim) -> float | None:
    """Return epsilon at most, had ``change`` alone been made; None where that is not plain."""
    if change.alone is None or claim.accountant not in ACCOUNTANTS:
        return None
    try:
        return epsilon_by(
            claim.accountant,
            _composed(change.alone),
            claim.delta,
            claim.adjacency,
            claim.sampling,
        ).epsilon.upper
    except (InvalidArgument, AccountingError):  # what the accountant refuses has no number
        return None


def _composed(booked: tuple[Booked, ...]) -> Composed:
    return Composed(tuple(Repeated(one.mechanism, one.times) for one in booked))
