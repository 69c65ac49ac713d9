"""Coverage of the clipping tests: parameter groups, and steps of a run, for which they have power.

A trainer that does not clip moves the sum by at most the clip norm C as long as no gradient is
longer than C. So a test of clipping needs records that move the sum by C.

Parameter groups. With joint clipping the groups share C. Let a record move the sum by C, its
group g by s C, and let its gradient before clipping have norm k C, k >= 1. If g were not clipped,
the sum would move by C sqrt(1 - s^2 + k^2 s^2), or by more if the norm did not include g either
(the other groups would then have norm C). The limit is C (1 + r), where r allows for rounding.
With s >= 2 sqrt(r),

    sqrt(1 + s^2 (k^2 - 1)) > 1 + r    if    k^2 > 1.5 + r/4.

So a group is tested if a record that reached C moves it by at least 2 sqrt(r) C: without clipping
it would exceed the limit for gradients longer than about 1.23 C. A group that no record moves
by that much, or by a tenth of C, is reported as not tested. Judged by the movements that were
measured, it adds at most max(2 r, 0.005) C to a sum that was clipped without it. A group that some
record moves by more, but none that reached C, makes the test INCONCLUSIVE.

Later steps. A record that reaches C at an early step is followed through one run, to the claim's
last step where possible. The findings report the last step at which a record reached C.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle

import numpy as np

from dpaudit.attacks.conformance.paired_replays import ReplayPair, TrainerReplays, explain
from dpaudit.attacks.conformance.probes import Probe, included_probe_step
from dpaudit.attacks.conformance.trainer_protocol import Record, derive_seeds
from dpaudit.vocabulary.conformance import ConformanceFinding
from dpaudit.vocabulary.verdict import Outcome

CLIPPING_FINDING = "clipping"
CLIP_NORM_TOLERANCE = 1e-3  # relative: a movement this close to the clip norm has reached it
MAX_SLACK = 0.01  # of the clip norm: largest rounding that is allowed for in that comparison
NEGLIGIBLE_MOVEMENT = 0.1  # of the clip norm: a smaller movement of a group does not count
MOST_NAMED = 6
REMEDY = (
    "give records that reach it with probes= or --probes FILE, or claim a smaller clip norm if the "
    "trainer guarantees it; trained weights may give longer gradients"
)


@dataclass(frozen=True)
class ProbeMovement:
    """How far one record moved the sum, relative to the largest allowed movement.

    Attributes:
        probe: Name of the record.
        relative_norm: Norm of the difference over the clip norm, or over twice the clip norm if a
            record was replaced; infinite if it is NaN.
        reached_clip_norm: Whether ``relative_norm`` is 1 up to rounding.
        shares: The norm of each parameter group's part of the difference, in the same unit.
        notable: Smallest share at which the record tests the clipping of a group.
    """

    probe: str
    relative_norm: float
    reached_clip_norm: bool
    shares: dict[str, float]
    notable: float

    @classmethod
    def of(cls, pair: ReplayPair, clip_norm: float) -> ProbeMovement:
        """Compute the movement of a pair.

        Args:
            pair: A step with and without the record.
            clip_norm: The claimed clip norm.

        Returns:
            The movement, overall and for each parameter group.
        """
        unit = pair.times * clip_norm
        norm = float(np.linalg.norm(pair.difference))
        limit = pair.allowed(clip_norm)
        shares = {
            name: _finite_or_infinity(float(np.linalg.norm(pair.difference[own])) / unit)
            for name, own in pair.groups.items()
        }
        least = unit * (1 - CLIP_NORM_TOLERANCE) - min(pair.slack, MAX_SLACK * unit)
        reached_clip_norm = least <= norm <= limit
        return cls(
            pair.probe,
            _finite_or_infinity(norm / unit),
            reached_clip_norm,
            shares,
            _testable_share(limit / unit),
        )

    def tests(self, group: str) -> bool:
        """Return whether this record reached the clip norm and moved a group notably.

        Args:
            group: Name of the parameter group.

        Returns:
            True if the record tests the clipping of the group.
        """
        return self.reached_clip_norm and self.shares.get(group, 0.0) >= self.notable


def _finite_or_infinity(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _testable_share(limit: float) -> float:
    """Return the share 2 sqrt(r) of a group, for a limit of (1 + r) clip norms."""
    return 2 * math.sqrt(limit - 1)


@dataclass(frozen=True)
class ClippingCoverage:
    """The parameter groups whose clipping the tried records tested.

    Attributes:
        largest: The largest movement; None if no record was tried.
        most: The largest share of each parameter group, over all records.
        notable: Groups that some record moved notably, and by at least a tenth of the clip norm.
        tested: Groups whose clipping was tested.
        records: Number of replays.
        reached_clip_norm: Number of replays that reached the clip norm.
    """

    largest: ProbeMovement | None = None
    most: Mapping[str, float] = field(default_factory=dict)
    notable: frozenset[str] = frozenset()
    tested: frozenset[str] = frozenset()
    records: int = 0
    reached_clip_norm: int = 0

    @classmethod
    def of(cls, movements: Iterable[ProbeMovement]) -> ClippingCoverage:
        """Combine the coverage of several replays.

        Args:
            movements: The movements of the replays; none that is not finite counts.

        Returns:
            Their joint coverage.
        """
        return functools.reduce(cls.adding, movements, cls())

    def adding(self, movement: ProbeMovement) -> ClippingCoverage:
        """Add the coverage of one replay.

        Args:
            movement: The movement of one replay. It is ignored if it is not finite.

        Returns:
            The joint coverage.
        """
        if not math.isfinite(movement.relative_norm):
            return self
        shares = movement.shares
        larger = self.largest is None or movement.relative_norm > self.largest.relative_norm
        notable = {
            name
            for name, share in shares.items()
            if share >= max(movement.notable, NEGLIGIBLE_MOVEMENT)
        }
        return ClippingCoverage(
            movement if larger else self.largest,
            {name: max(share, self.most.get(name, 0.0)) for name, share in shares.items()},
            self.notable | notable,
            self.tested | {name for name in shares if movement.tests(name)},
            self.records + 1,
            self.reached_clip_norm + movement.reached_clip_norm,
        )

    @property
    def reached(self) -> bool:
        """Whether at least one record moved the sum by the clip norm."""
        return self.reached_clip_norm > 0

    @property
    def untested(self) -> dict[str, float]:
        """Groups moved notably only by records below the clip norm, with their largest shares."""
        names = self.notable - self.tested
        return {name: share for name, share in self.most.items() if name in names}

    @property
    def negligible(self) -> dict[str, float]:
        """Groups that no record moves notably, with their largest shares."""
        names = self.notable | self.tested
        return {name: share for name, share in self.most.items() if name not in names}

    @property
    def complete(self) -> bool:
        """Whether the clip norm was reached, and every notable group was tested."""
        return self.reached and not self.untested


def check_coverage(
    coverage: ClippingCoverage, tested: str, check: str, until: int = 0
) -> ConformanceFinding:
    """Report whether the tried records could detect a trainer that does not clip.

    Args:
        coverage: The coverage of all records.
        tested: What was tested, for the report.
        check: The check that the finding belongs to.
        until: The last step at which a record reached the clip norm.

    Returns:
        PASS if the coverage is complete, otherwise INCONCLUSIVE.
    """
    largest = coverage.largest
    tested = (
        f"{tested}: {coverage.reached_clip_norm} of {coverage.records} replays reached the clip "
        "norm" + (f", the last at step {until}" if coverage.reached else "")
    )
    return ConformanceFinding(
        check=check,
        name=CLIPPING_FINDING,
        outcome=Outcome.PASS if coverage.complete else Outcome.INCONCLUSIVE,
        tested=tested,
        why=_coverage_reason(coverage),
        power=_coverage_power(coverage, until),
        norm=None if largest is None else largest.relative_norm,
    )


def _coverage_reason(coverage: ClippingCoverage) -> str:
    largest = coverage.largest
    if largest is None:
        return f"no record could be added to a step, so clipping was not tested; {REMEDY}"
    if not coverage.reached:
        groups = _groups_text(sorted(largest.shares.items(), key=lambda one: -one[1]))
        return (
            f"none of the tried records moved the sum by the clip norm: the largest movement is "
            f"{largest.relative_norm:.4g} C ({largest.probe}; by parameters: {groups}). A trainer "
            f"without clipping would give the same result; {REMEDY}"
        )
    if coverage.untested:
        return (
            "no record that reached the clip norm moved these parameters enough to test whether "
            f"they are clipped: at most {_groups_text(coverage.untested.items())}; {REMEDY}"
        )
    return (
        f"records moved the sum by the clip norm and by no more{_negligible_groups_text(coverage)}"
    )


def _coverage_power(coverage: ClippingCoverage, until: int) -> str:
    if not coverage.reached:
        return "none: no record reached the clip norm"
    if coverage.untested:
        return f"none for {', '.join(list(coverage.untested)[:MOST_NAMED])}"
    return (
        "missing clipping is detectable for gradients longer than C, and of a single parameter "
        f"group for gradients longer than 1.23 C, at steps up to {until}"
        f"{_negligible_groups_text(coverage)}"
    )


def _negligible_groups_text(coverage: ClippingCoverage) -> str:
    if not coverage.negligible:
        return ""
    named = _groups_text(coverage.negligible.items())
    return f"; not tested: parameters that no record moves notably, at most {named}"


def _groups_text(groups: Iterable[tuple[str, float]]) -> str:
    named = [f"{name} {share:.3g} C" for name, share in groups]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return ", ".join(named[:MOST_NAMED]) + more


# Clipping of later steps, up to the claim's last step.

LATER_STEPS_FINDING = "clipping of later steps"
LATER_SEEDS = 60
MAX_LATER_RUNS = 3
LATE_STEP_SHARE = 0.9  # of the steps: a run that reaches the clip norm this late is the last one
STEEP_PROBES = ("large", "huge")  # prefixes of probes whose gradients stay long during training


@dataclass(frozen=True)
class LaterSteps:
    """The movements of one record along one run.

    Attributes:
        pairs: A pair for each step that can be compared.
        last: Number of the last step that was run.
    """

    pairs: tuple[ReplayPair, ...]
    last: int

    def worst(self, clip_norm: float) -> ReplayPair | None:
        """Return the first pair whose movement exceeds its limit.

        Args:
            clip_norm: The claimed clip norm.

        Returns:
            The pair; None if all movements are within their limits.
        """
        return next((pair for pair in self.pairs if _exceeds_clip_norm(pair, clip_norm)), None)

    def reached(self, clip_norm: float) -> list[int]:
        """Return the steps at which the record reached the clip norm.

        Args:
            clip_norm: The claimed clip norm.

        Returns:
            Step numbers, in ascending order.
        """
        return [
            pair.step for pair in self.pairs if ProbeMovement.of(pair, clip_norm).reached_clip_norm
        ]


def replay_later_steps(
    replays: TrainerReplays, candidates: Sequence[Probe], seed: int, *, alone: bool
) -> LaterSteps | None:
    """Follow records that reach the clip norm through whole runs.

    Args:
        replays: Replays of the trainer.
        candidates: Records that reach the clip norm at an early step.
        seed: Seed of the audit.
        alone: Whether only steps of a single record can be compared.

    Returns:
        The first run with a violation, or else the run that reaches the clip norm at the latest
        step; None if no step could be compared.
    """
    norm, best = replays.claim.clip_norm, None
    steep_first = sorted(candidates, key=lambda one: not one.name.startswith(STEEP_PROBES))
    if not steep_first:
        return None
    tried = zip(cycle(steep_first), derive_seeds(seed, LATER_SEEDS, MAX_LATER_RUNS), strict=False)
    for probe, one in tried:
        found = _replay_later_run(replays, probe, one, alone=alone)
        if found is None or found.worst(norm) is not None:
            return found or best
        if best is None or max(found.reached(norm), default=0) > max(best.reached(norm), default=0):
            best = found
        if max(best.reached(norm), default=0) >= LATE_STEP_SHARE * best.last:
            break
    return best


def check_later_steps(
    later: LaterSteps | None, replays: TrainerReplays, check: str, tested: str
) -> list[ConformanceFinding]:
    """Test whether a record is clipped at later steps.

    Args:
        later: The run that ``replay_later_steps`` returned.
        replays: Replays of the trainer.
        check: The check that the finding belongs to.
        tested: What was tested, for the report.

    Returns:
        One finding; none if no step after the first reached the clip norm.
    """
    norm = replays.claim.clip_norm
    if later is None:
        return []
    worst, reached = later.worst(norm), later.reached(norm)
    if worst is None and not any(reached):
        return []
    longest = max(float(np.linalg.norm(pair.difference)) for pair in later.pairs) / norm
    limit = (worst or later.pairs[-1]).allowed(norm)
    return [
        ConformanceFinding(
            check=check,
            name=LATER_STEPS_FINDING,
            outcome=Outcome.PASS if worst is None else Outcome.FAIL,
            tested=f"{tested}: {later.pairs[0].probe}; {len(later.pairs)} steps up to step "
            f"{later.pairs[-1].step} of 0 to {replays.claim.steps - 1}",
            why=f"one record moved the sum by at most {longest:.6g} C"
            if worst is None
            else f"at step {worst.step}, and not at the first steps: {explain(worst, norm, limit)}",
            power=f"a movement above {limit / norm:.6g} C is detectable at {len(reached)} steps; "
            f"the last is step {max(reached, default=0)}; later steps are not tested",
            norm=longest if np.isfinite(longest) else None,
            limit=limit / norm,
            detectable=limit / norm,
        )
    ]


def last_tested_step(
    later: LaterSteps | None, pairs: Sequence[ReplayPair], clip_norm: float
) -> int:
    """Return the last step at which a record reached the clip norm; 0 if none did.

    Args:
        later: The run that follows one record; None if there is none.
        pairs: All other replays.
        clip_norm: The claimed clip norm.

    Returns:
        Number of the step.
    """
    early = [pair.step for pair in pairs if ProbeMovement.of(pair, clip_norm).reached_clip_norm]
    return max([*early, *(later.reached(clip_norm) if later else [])], default=0)


def _exceeds_clip_norm(pair: ReplayPair, clip_norm: float) -> bool:
    # Written so that NaN exceeds every limit.
    return not float(np.linalg.norm(pair.difference)) <= pair.allowed(clip_norm)


def _replay_later_run(
    replays: TrainerReplays, probe: Probe, seed: int, *, alone: bool
) -> LaterSteps | None:
    """Follow one record through one run; None if no step could be compared."""
    last = min(replays.claim.steps, replays.effort.longest_run) - 1
    for base in ((), replays.records[:1]):
        compared = _pairs_by_include if replays.included else _pairs_by_sampling
        try:
            with np.errstate(all="ignore"):
                pairs = tuple(compared(replays, base, probe, seed, last))
        except Exception:  # a trainer that does not support empty steps may fail in any way
            continue
        if pairs:
            return LaterSteps(pairs, last)
    if not replays.included or alone:
        return None
    probe_steps = (
        included_probe_step(replays, probe.record, seed, at, alone=False)
        for at in (last // 2, last)
    )
    found = [
        probe_step.measure(probe.name, probe.record)
        for probe_step in probe_steps
        if probe_step is not None
    ]
    pairs = tuple(pair for pair in found if pair is not None)
    return LaterSteps(pairs, last) if pairs else None


def _pairs_by_include(
    replays: TrainerReplays, base: Sequence[Record], probe: Probe, seed: int, last: int
) -> Iterator[ReplayPair]:
    """Yield every step with only the record, against the same step without any."""
    if base:
        return
    without = replays.run((), None, seed, lambda step, records: [])
    run = replays.run((), probe.record, seed, lambda step, records: [records - 1])
    for step in range(last + 1):
        pair = replays.pair(without, run, probe.name, step)
        yield replace(pair, replaces=False)


def _pairs_by_sampling(
    replays: TrainerReplays, base: Sequence[Record], probe: Probe, seed: int, last: int
) -> Iterator[ReplayPair]:
    """Yield the steps that include one copy of the record and no other, as far as is known."""
    without = replays.run(base, None, seed)
    known = without.at(0)[1] is not None
    copies = (probe.record,) * (replays.copies - 1 if known else 0)
    run = replays.run((*base, *copies), probe.record, seed)
    if base and not known:
        return
    for step in range(last + 1):
        pair = replays.pair(without, run, probe.name, step)
        if pair.sampled is None:
            yield pair
            continue
        others, joined = pair.sampled
        if len(others) == 0 and len(joined) == 1 and joined[0] >= len(base):
            yield replace(pair, base=int(joined[0]), others=0)
