"""Whether any record reached the clip norm: else nothing was clipped, and nothing is shown.

A trainer that does not clip moves the sum by no more than the clip norm C as long as every
gradient is shorter than C. So the test of clipping needs a record that moves the sum by C.

With joint clipping the parameter groups share C. Let a record move the sum by C (capped), its
group g by s C, and let its gradient before clipping have the norm k C, k >= 1. Had g been left
out of the clip, the sum would have moved by C sqrt(1 - s^2 + k^2 s^2), or by more where the
norm left g out as well (then the other groups have C to themselves). The limit is C (1 + r): r
is what rounding needs. With s >= 2 sqrt(r),

    sqrt(1 + s^2 (k^2 - 1)) > 1 + r    as soon as    k^2 > 1.5 + r/4.

So a group counts as tested where a capped record moves it by at least 2 sqrt(r) C: left out of
the clip, it would have been seen for gradients longer than about 1.23 C. A group that no record
moves by as much, or by a tenth of C, is named as not tested: by what the records tried moved it,
it adds at most max(2 r, 0.005) C to a sum that has been clipped without it. A group that some
record moves by more, but no capped one does, leaves the test undecided.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from dpaudit.attacks.conformance.pairs import Pair
from dpaudit.vocabulary.conformance import Finding
from dpaudit.vocabulary.verdict import Outcome

NAME = "clipping"
CAPPED = 1e-3  # relative: a movement this close to the clip norm counts as one that reached it
MOST_SLACK = 0.01  # of the clip norm: what rounding may excuse of that
FAINT = 0.1  # of the clip norm: what moves a group less is named, and decides nothing
MOST_NAMED = 6
DECIDES = (
    "give records that reach it by probes= or --probes FILE, or, if that is what the trainer "
    "keeps to, claim a smaller clip norm; weights that have been trained may give longer gradients"
)


@dataclass(frozen=True)
class Reach:
    """How far one record moved the sum, in units of what it may.

    Attributes:
        probe: Name of the record.
        movement: Norm of the difference over the clip norm, or over twice that where a record
            was replaced; infinite where it is not a number.
        capped: Whether it is the clip norm, but for rounding.
        shares: The same norm of each group's part of the difference.
        notable: The share from which a group that is not clipped would be seen.
    """

    probe: str
    movement: float
    capped: bool
    shares: dict[str, float]
    notable: float

    @classmethod
    def of(cls, pair: Pair, clip_norm: float) -> Reach:
        """Return how far the record of a pair moved the sum."""
        unit = pair.times * clip_norm
        norm = float(np.linalg.norm(pair.difference))
        limit = pair.allowed(clip_norm)
        shares = {
            name: _finite(float(np.linalg.norm(pair.difference[own])) / unit)
            for name, own in pair.groups.items()
        }
        least = unit * (1 - CAPPED) - min(pair.slack, MOST_SLACK * unit)
        capped = least <= norm <= limit
        return cls(pair.probe, _finite(norm / unit), capped, shares, _notable(limit / unit))

    def tests(self, group: str) -> bool:
        """Whether this record tests the clipping of a group."""
        return self.capped and self.shares.get(group, 0.0) >= self.notable


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _notable(limit: float) -> float:
    """Return the share 2 sqrt(r) of a group, for a limit of (1 + r) clip norms."""
    return 2 * math.sqrt(limit - 1)


@dataclass(frozen=True)
class Coverage:
    """What all records tried show of the clipping.

    Attributes:
        largest: That with the largest movement; None: there is none.
        most: The largest share of each group, over all records.
        notable: Groups that some record moved notably, and by a tenth of the clip norm.
        tested: Groups whose clipping was tested.
        records: How many replays there were.
        capped: How many of them reached the clip norm.
    """

    largest: Reach | None = None
    most: Mapping[str, float] = field(default_factory=dict)
    notable: frozenset[str] = frozenset()
    tested: frozenset[str] = frozenset()
    records: int = 0
    capped: int = 0

    @classmethod
    def of(cls, reaches: Iterable[Reach]) -> Coverage:
        """Return what some replays show."""
        return functools.reduce(cls.adding, reaches, cls())

    def adding(self, reach: Reach) -> Coverage:
        """Return what is shown with one more record; one that is not finite shows nothing."""
        if not math.isfinite(reach.movement):
            return self
        shares = reach.shares
        larger = self.largest is None or reach.movement > self.largest.movement
        notable = {name for name, share in shares.items() if share >= max(reach.notable, FAINT)}
        return Coverage(
            reach if larger else self.largest,
            {name: max(share, self.most.get(name, 0.0)) for name, share in shares.items()},
            self.notable | notable,
            self.tested | {name for name in shares if reach.tests(name)},
            self.records + 1,
            self.capped + reach.capped,
        )

    @property
    def reached(self) -> bool:
        """Whether a record moved the sum by the clip norm."""
        return self.capped > 0

    @property
    def untested(self) -> dict[str, float]:
        """Groups that some record moves notably, but none that reached the clip norm."""
        names = self.notable - self.tested
        return {name: share for name, share in self.most.items() if name in names}

    @property
    def faint(self) -> dict[str, float]:
        """Groups that no record moves notably, with the largest movement of each."""
        names = self.notable | self.tested
        return {name: share for name, share in self.most.items() if name not in names}

    @property
    def complete(self) -> bool:
        """Whether the clip norm was reached, and by every group that matters."""
        return self.reached and not self.untested


def check_coverage(coverage: Coverage, tested: str, check: str, until: int = 0) -> Finding:
    """Return whether the records tried could have shown that a trainer does not clip.

    Args:
        coverage: What the records showed.
        tested: What was done, in words.
        check: What the finding belongs to.
        until: The last step at which a record reached the clip norm.
    """
    largest = coverage.largest
    tested = (
        f"{tested}: does any record reach the clip norm; {coverage.records} replays, of which "
        f"{coverage.capped} do" + (f", the last at step {until}" if coverage.reached else "")
    )
    return Finding(
        check=check,
        name=NAME,
        outcome=Outcome.HOLDS if coverage.complete else Outcome.INCONCLUSIVE,
        tested=tested,
        why=_why(coverage),
        power=_power(coverage, until),
        norm=None if largest is None else largest.movement,
    )


def _why(coverage: Coverage) -> str:
    largest = coverage.largest
    if largest is None:
        return f"no record could be added to a step: whether it is clipped is not known; {DECIDES}"
    if not coverage.reached:
        groups = _listed(sorted(largest.shares.items(), key=lambda one: -one[1]))
        return (
            f"no record that was tried moved the sum by the clip norm: the largest movement is "
            f"{largest.movement:.4g} C ({largest.probe}; by parameters: {groups}). A trainer that "
            f"does not clip would do the same; {DECIDES}"
        )
    if coverage.untested:
        return (
            "no record that reached the clip norm moved these parameters by enough to show "
            f"whether they are clipped: {_listed(coverage.untested.items())} at most; {DECIDES}"
        )
    return f"records moved the sum by the clip norm and no further{_faint(coverage)}"


def _power(coverage: Coverage, until: int) -> str:
    if not coverage.reached:
        return "none: no record reached the clip norm"
    if coverage.untested:
        return f"none for {', '.join(list(coverage.untested)[:MOST_NAMED])}"
    return (
        "gradients longer than the clip norm that are not clipped would be seen, and so would a "
        "group of parameters that is left out, where they are longer than 1.23 C, at steps up to "
        f"{until}{_faint(coverage)}"
    )


def _faint(coverage: Coverage) -> str:
    if not coverage.faint:
        return ""
    named = _listed(coverage.faint.items())
    return f"; not tested are parameters that no record moves notably: {named} at most"


def _listed(groups: Iterable[tuple[str, float]]) -> str:
    named = [f"{name} {share:.3g} C" for name, share in groups]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return ", ".join(named[:MOST_NAMED]) + more
