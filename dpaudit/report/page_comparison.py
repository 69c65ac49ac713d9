"""Two runs in one HTML page, side by side: what differs by cause, and every figure of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dpaudit.gate.causes import Effect
from dpaudit.report import figures
from dpaudit.report.evidence import ReportEvidence, TwoRuns
from dpaudit.report.findings import attacks_on, require_one_ledger
from dpaudit.report.page import page
from dpaudit.report.page_figures import figures_of_both, measurements_of
from dpaudit.report.page_words import (
    SAMPLING,
    SIGNS,
    exact,
    rules_in_words,
    verdict_in_words,
    verdict_tone,
)
from dpaudit.report.words import RELEASED
from dpaudit.vocabulary.rounding import round_down, round_near, round_up

NOT_MEASURED = "not measured"
COMPARABLE = ("delta", "accountant", "adjacency", "unit")
"""Claims that differ in one of these are of different things: neither is the larger one."""


class Row(NamedTuple):
    """One thing that is known of both runs, or of one."""

    name: str
    before: str
    after: str

    @property
    def differs(self) -> bool:
        """Whether the two are not the same in words."""
        return self.before != self.after


class Side(NamedTuple):
    """One of the two runs."""

    letter: str
    evidence: ReportEvidence

    @property
    def name(self) -> str:
        """The letter and the run's own name."""
        return f"{self.letter}: {self.evidence.run}"

    @property
    def id(self) -> str:
        """Ends the ids of what is shown of it."""
        return self.letter.lower()


def render_both(runs: TwoRuns) -> str:
    """Return the report on two runs as a complete HTML document.

    Raises:
        IntegrityError: what is known of a run is of two states of its ledger.
        AccountingError: a number to show is not a number.
    """
    sides = (Side("A", runs.before), Side("B", runs.after))
    for side in sides:
        require_one_ledger(side.evidence)
    curves = [curve for side in sides for curve in side.evidence.curves]
    verdicts = [side.evidence.verdict for side in sides]
    return page(
        "comparison.html",
        sides=sides,
        costs=runs.costs,
        raises=Effect.RAISES,
        unlike=_unlike(runs),
        claims=_rows(runs, _claim),
        bounds=_rows(runs, _bounds),
        rates=_rows(runs, _rates),
        rules=_rows(runs, _rules),
        words=[verdict_in_words(s.evidence.verdict, s.evidence.project_digest) for s in sides],
        tones=[verdict_tone(s.evidence.verdict, s.evidence.project_digest) for s in sides],
        rules_words=[rules_in_words(verdict) if verdict else None for verdict in verdicts],
        figures=figures_of_both(runs, (sides[0].name, sides[1].name)),
        measured=[
            measurements_of(side.evidence, f"-{side.id}", (runs.before, runs.after))
            for side in sides
        ],
        far_apart=figures.lie_far_apart(curves),
        signs=SIGNS,
    )


def _unlike(runs: TwoRuns) -> tuple[str, ...]:
    before, after = runs.before.claim, runs.after.claim
    return tuple(name for name in COMPARABLE if getattr(before, name) != getattr(after, name))


def _rows(
    runs: TwoRuns, tell: Callable[[ReportEvidence], Iterator[tuple[str, str]]]
) -> tuple[Row, ...]:
    """Return what ``tell`` says of both, those first that the first run has."""
    before, after = dict(tell(runs.before)), dict(tell(runs.after))
    return tuple(
        Row(name, before.get(name, NOT_MEASURED), after.get(name, NOT_MEASURED))
        for name in dict.fromkeys((*before, *after))
    )


def _claim(run: ReportEvidence) -> Iterator[tuple[str, str]]:
    claim = run.claim
    yield "Epsilon at most", round_up(claim.epsilon.upper)
    yield "Epsilon certainly not below", round_down(max(0.0, claim.epsilon.lower))
    yield "Delta", exact(claim.delta)
    yield "Accountant", claim.accountant
    yield "Neighbours", claim.adjacency.value
    yield "Unit of privacy", claim.unit.value
    yield "Covers", RELEASED[claim.released]
    yield "Sampling", SAMPLING[claim.sampling]
    yield "Randomness", claim.randomness.value
    yield "Released", run.mechanism_in_words
    yield "Taken as public", ", ".join(claim.takes_as_public) or "nothing was declared"
    yield "Left out", ", ".join(claim.leaves_out) or "nothing was declared"
    yield "dpaudit version", claim.dpaudit_version
    if run.audit is not None and run.audit.heldout_accuracy is not None:
        yield "Held-out accuracy", round_near(run.audit.heldout_accuracy)
    if run.conformance is not None:
        yield "Conformance of the trainer", run.conformance.verdict.value


def _bounds(run: ReportEvidence) -> Iterator[tuple[str, str]]:
    for bound in run.audit.bounds if run.audit else ():
        name = f"{bound.name} ({bound.kind.value}, at delta {exact(bound.delta)})"
        yield name, round_down(bound.epsilon_lower)


def _rates(run: ReportEvidence) -> Iterator[tuple[str, str]]:
    for attack in attacks_on(run):
        for rate in attack.tpr_at_fpr:
            interval = f"{round_down(rate.interval.lower)} to {round_up(rate.interval.upper)}"
            yield f"{attack.attack} at {exact(rate.fpr)}", f"{round_near(rate.tpr)} ({interval})"


def _rules(run: ReportEvidence) -> Iterator[tuple[str, str]]:
    for rule in run.verdict.rules if run.verdict else ():
        waived = "" if rule.waived is None else f"; waived until {rule.waived.expires}"
        yield rule.rule, f"{rule.outcome.value}{waived}: {rule.why}"
