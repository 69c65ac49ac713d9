"""One step of one run into which any record can be put: what it does to the sum is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpaudit.attacks.conformance.pairs import Course, Named, Pair, Replays
from dpaudit.attacks.conformance.record_space import is_real
from dpaudit.attacks.conformance.trainers import Record, seeds
from dpaudit.vocabulary.ledger import Sampling

STAGE_SEEDS, LATE_SEEDS = 40, 41
MOST_SEEDS, FEW_SEEDS = 300, 20
FIRST_STEPS, MOST_STEPS = 3, 800
LATE_FROM, LATE_TO = 4, 12


@dataclass(frozen=True)
class Stage:
    """A step that the last record of a run joins.

    Attributes:
        replays: Of the trainer.
        base: The records beside the last one.
        seed: Of the run.
        step: At which the last record joins for the first time.
        without: The run without it.
        named: The records of each step, where they are named.
        silent: Whether the record that stands in the last one's place is taken to add nothing:
            then the difference is what the last record adds.
    """

    replays: Replays
    base: tuple[Record, ...]
    seed: int
    step: int
    without: Course
    named: Named | None
    silent: bool = False

    @property
    def cost(self) -> int:
        """How many steps one measurement takes."""
        return self.step + 1

    @property
    def replaces(self) -> bool:
        """Whether the run without the last record has another one in its place."""
        return self.named is None and self.without.records > len(self.base)

    @property
    def alone(self) -> bool:
        """Whether the step has no record but the last one, as far as is known."""
        seen = self.without.at(self.step)[1]
        if self.named is not None or seen is None:
            return not self.base
        return len(seen) == 0

    def input_directions(self) -> list[Any]:
        """Return the directions of features that the trainer names, if it names any."""
        return list(getattr(self.without.trainer, "input_directions", None) or [])

    def measure(self, name: str, record: Record) -> Pair | None:
        """Return what a record does to the sum; None: the trainer does not take it."""
        try:
            with np.errstate(all="ignore"):
                course = self.replays.course(self.base, record, self.seed, self.named)
                pair = self.replays.pair(self.without, course, name, self.step)
        except Exception:  # a trainer that does not take a record raises whatever it likes
            return None
        if pair.joined is False or not pair.same_others:
            return None
        return replace(pair, replaces=False) if self.silent else pair


def first_stage(replays: Replays, ordinary: Record, seed: int) -> Stage | None:
    """Return a step near the first that a record takes alone where possible; None: none found."""
    fixed = replays.claim.sampling is Sampling.FIXED_SIZE  # a batch of few records may be empty
    smallest = replays.bases()[-1 if fixed else 0]
    if replays.included:
        return named_stage(replays, ordinary, seed, 0, alone=True)
    found = None
    for taken, one in enumerate(seeds(seed, STAGE_SEEDS, MOST_SEEDS)):
        without, course = _both(replays, smallest, ordinary, one)
        for step in range(min(FIRST_STEPS, replays.claim.steps)):
            if (found is None or step < found.step) and _joins(replays, without, course, step):
                found = Stage(replays, smallest, one, step, without, None)
        if found is not None and (found.step == 0 or taken >= FEW_SEEDS):
            return found
    return found


def silent_stage(replays: Replays, ordinary: Record, seed: int) -> Stage | None:
    """Return the first stage with a NaN record in the last one's place; None: it needs none.

    Batches of a fixed size have no room for one more record. Most trainers drop what is not
    finite: then another record in its place moves the sum by what it adds, C at most.
    """
    x, label = ordinary
    if replays.included or replays.claim.sampling is not Sampling.FIXED_SIZE or not is_real(x):
        return None
    stage = first_stage(replays, ordinary, seed)
    if stage is None:
        return None
    without = replays.course(stage.base, (x * float("nan"), label), stage.seed)
    try:
        finite = bool(np.isfinite(without.at(stage.step)[0]).all())
    except Exception:  # a trainer that does not take such a record raises whatever it likes
        return None
    return replace(stage, without=without, silent=True) if finite else None


def late_stage(replays: Replays, ordinary: Record, seed: int) -> Stage | None:
    """Return a step after some others, whose weights have been trained; None: none found."""
    last = min(LATE_TO, replays.claim.steps - 1)
    if last < 1:
        return None
    if replays.included:
        return named_stage(replays, ordinary, seed, last, alone=False)
    base, best, taken = replays.bases()[-1], None, 0
    for one in seeds(seed, LATE_SEEDS, MOST_SEEDS):
        without, course = _both(replays, base, ordinary, one)
        for step in range(last + 1):
            taken += 1
            if _joins(replays, without, course, step):
                if step > 0 and (best is None or step > best.step):
                    best = Stage(replays, base, one, step, without, None)
                break
        if taken >= MOST_STEPS or (best is not None and best.step >= LATE_FROM):
            return best
    return best


def _both(
    replays: Replays, base: tuple[Record, ...], ordinary: Record, seed: int
) -> tuple[Course, Course]:
    # Batches of a fixed size have no room for one more: another record is replaced there.
    replaced = replays.claim.sampling is Sampling.FIXED_SIZE
    without = replays.course(base, ordinary if replaced else None, seed)
    return without, replays.course(base, ordinary, seed)


def _joins(replays: Replays, without: Course, course: Course, step: int) -> bool:
    sampled = course.at(step)[1]
    if sampled is not None:
        return course.records - 1 in sampled
    return replays.pair(without, course, "", step).moved


def named_stage(
    replays: Replays, ordinary: Record, seed: int, step: int, *, alone: bool
) -> Stage | None:
    """Return a step that takes the last record of a data set, and that without naming it."""
    (one,) = seeds(seed, STAGE_SEEDS, 1)
    bases = [base for base in replays.bases() if alone or base]
    for base in bases if alone else bases[-1:]:
        without, with_last = _namings(len(base), step)
        try:
            course = replays.course(base, ordinary, one, without)
            course.at(step)
        except Exception:  # nobody named: a trainer that cannot do that raises what it likes
            continue
        return Stage(replays, base, one, step, course, with_last)
    return None


def _namings(base: int, at: int) -> tuple[Named, Named]:
    def without(step: int, records: int) -> list[int]:
        return list(range(base))

    def with_last(step: int, records: int) -> list[int]:
        return [*range(base), *([records - 1] if step == at else [])]

    return without, with_last
