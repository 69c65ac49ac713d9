"""Is a record still clipped after the first steps, up to the claim's last one?

A step without records adds noise alone, whatever the parameters are. So of two runs, one
without any record and one with a single record, every step can be compared, not just the first
that differs: the record adds the clip norm at most to each. Where records are drawn, the run has
some copies of the record, and the steps that one copy joins are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from dpaudit.attacks.conformance.blame import blame
from dpaudit.attacks.conformance.coverage import Reach
from dpaudit.attacks.conformance.pairs import Pair, Replays
from dpaudit.attacks.conformance.probes import Probe
from dpaudit.attacks.conformance.stage import named_stage
from dpaudit.attacks.conformance.trainers import Record, seeds
from dpaudit.vocabulary.conformance import Finding
from dpaudit.vocabulary.verdict import Outcome

NAME = "clipping of later steps"
LATER_SEEDS = 60
MOST_TRIED, LATE_ENOUGH = 3, 0.9  # runs; of the steps, for no other run to be made
STEEP = ("large", "huge")  # the names of probes whose gradients stay long as parameters change


@dataclass(frozen=True)
class Later:
    """What one record did to the steps of one run.

    Attributes:
        pairs: A pair for each step that can be compared.
        last: The last step that was looked at.
    """

    pairs: tuple[Pair, ...]
    last: int

    def worst(self, clip_norm: float) -> Pair | None:
        """Return the first pair that moved further than it may; None: there is none."""
        return next((pair for pair in self.pairs if _beyond(pair, clip_norm)), None)

    def reached(self, clip_norm: float) -> list[int]:
        """Return the steps at which the record moved the sum by the clip norm."""
        return [pair.step for pair in self.pairs if Reach.of(pair, clip_norm).capped]


def look_later(
    replays: Replays, candidates: Sequence[Probe], seed: int, *, alone: bool
) -> Later | None:
    """Return the run that tests clipping up to the latest step, or the first that is wrong.

    Args:
        replays: Of the trainer.
        candidates: Records that reach the clip norm at an early step.
        seed: Of the audit.
        alone: Whether steps with other records cannot be compared.

    Returns:
        None: no step could be compared.
    """
    norm, best = replays.claim.clip_norm, None
    steep_first = sorted(candidates, key=lambda one: not one.name.startswith(STEEP))
    if not steep_first:
        return None
    tried = zip(cycle(steep_first), seeds(seed, LATER_SEEDS, MOST_TRIED), strict=False)
    for probe, one in tried:
        found = _run(replays, probe, one, alone=alone)
        if found is None or found.worst(norm) is not None:
            return found or best
        if best is None or max(found.reached(norm), default=0) > max(best.reached(norm), default=0):
            best = found
        if max(best.reached(norm), default=0) >= LATE_ENOUGH * best.last:
            break
    return best


def check_later(later: Later | None, replays: Replays, check: str, tested: str) -> list[Finding]:
    """Return whether a record is clipped at the later steps; nothing where none showed it."""
    norm = replays.claim.clip_norm
    if later is None:
        return []
    worst, reached = later.worst(norm), later.reached(norm)
    if worst is None and not any(reached):
        return []
    longest = max(float(np.linalg.norm(pair.difference)) for pair in later.pairs) / norm
    limit = (worst or later.pairs[-1]).allowed(norm)
    return [
        Finding(
            check=check,
            name=NAME,
            outcome=Outcome.HOLDS if worst is None else Outcome.VIOLATED,
            tested=f"{tested}: {later.pairs[0].probe}; {len(later.pairs)} steps up to step "
            f"{later.pairs[-1].step} of 0 to {replays.claim.steps - 1}",
            why=f"one record moved the sum by {longest:.6g} C at most"
            if worst is None
            else f"at step {worst.step}, and not at the first steps: {blame(worst, norm, limit)}",
            power=f"anything above {limit / norm:.6g} C would be seen, at {len(reached)} steps of "
            f"which the last is step {max(reached, default=0)}; later steps are not tested",
            norm=longest if np.isfinite(longest) else None,
            limit=limit / norm,
            detectable=limit / norm,
        )
    ]


def last_tested(later: Later | None, pairs: Sequence[Pair], clip_norm: float) -> int:
    """Return the last step at which a record reached the clip norm."""
    early = [pair.step for pair in pairs if Reach.of(pair, clip_norm).capped]
    return max([*early, *(later.reached(clip_norm) if later else [])], default=0)


def _beyond(pair: Pair, clip_norm: float) -> bool:
    # NaN is above every limit.
    return not float(np.linalg.norm(pair.difference)) <= pair.allowed(clip_norm)


def _run(replays: Replays, probe: Probe, seed: int, *, alone: bool) -> Later | None:
    last = min(replays.claim.steps, replays.effort.longest_run) - 1
    for base in ((), replays.records[:1]):
        compared = _named if replays.included else _drawn
        try:
            with np.errstate(all="ignore"):
                pairs = tuple(compared(replays, base, probe, seed, last))
        except Exception:  # nobody in a step: a trainer that cannot do that raises what it likes
            continue
        if pairs:
            return Later(pairs, last)
    if not replays.included or alone:
        return None
    stages = (named_stage(replays, probe.record, seed, at, alone=False) for at in (last // 2, last))
    found = [stage.measure(probe.name, probe.record) for stage in stages if stage is not None]
    pairs = tuple(pair for pair in found if pair is not None)
    return Later(pairs, last) if pairs else None


def _named(
    replays: Replays, base: Sequence[Record], probe: Probe, seed: int, last: int
) -> Iterator[Pair]:
    if base:
        return
    without = replays.course((), None, seed, lambda step, records: [])
    course = replays.course((), probe.record, seed, lambda step, records: [records - 1])
    for step in range(last + 1):
        pair = replays.pair(without, course, probe.name, step)
        yield replace(pair, replaces=False)


def _drawn(
    replays: Replays, base: Sequence[Record], probe: Probe, seed: int, last: int
) -> Iterator[Pair]:
    """Yield the steps that one copy of the record joins, and nobody else, as far as is known."""
    without = replays.course(base, None, seed)
    known = without.at(0)[1] is not None
    copies = (probe.record,) * (replays.copies - 1 if known else 0)
    course = replays.course((*base, *copies), probe.record, seed)
    if base and not known:
        return
    for step in range(last + 1):
        pair = replays.pair(without, course, probe.name, step)
        if pair.sampled is None:
            yield pair
            continue
        others, joined = pair.sampled
        if len(others) == 0 and len(joined) == 1 and joined[0] >= len(base):
            yield replace(pair, base=int(joined[0]), others=0)
