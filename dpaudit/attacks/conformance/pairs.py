"""Pairs of runs that differ by one record, up to the step at which it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.effort import Effort
from dpaudit.attacks.conformance.rounding import slack
from dpaudit.attacks.conformance.trainers import (
    Array,
    MakeTrainer,
    Record,
    groups_of,
    noisy_sum,
    sampled_of,
    takes_include,
)
from dpaudit.vocabulary.conformance import StepClaim

MOST_COPIES = 1000
FEW, BATCH = 2, 3  # records of a small base; of an average batch of a large one


@dataclass(frozen=True)
class Pair:
    """One step with a probe and without it.

    Attributes:
        probe: Its name.
        base: How many records there were beside it; its index.
        step: The first step at which the runs differ.
        without: The noisy sum, shape ``(d,)``.
        with_probe: The same with the probe.
        sampled: Who was in the step without the probe, and with it; None: not known.
        slack: By how much rounding may move the difference, in norm.
        groups: The coordinates of each group, by name.
    """

    probe: str
    base: int
    step: int
    without: Array
    with_probe: Array
    sampled: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    slack: float
    groups: dict[str, slice]

    @property
    def difference(self) -> Array:
        """What the probe did to the sum, shape ``(d,)``."""
        return np.asarray(self.with_probe - self.without)

    @property
    def moved(self) -> bool:
        """Whether it did more than rounding does; NaN is more."""
        return not float(np.linalg.norm(self.difference)) <= self.slack

    @property
    def joined(self) -> bool | None:
        """Whether the probe was in the step; None: not known."""
        return None if self.sampled is None else bool((self.sampled[1] == self.base).any())

    @property
    def same_others(self) -> bool:
        """Whether the other records of both steps are the same, as far as is known."""
        if self.sampled is None:
            return True
        one, other = (set(seen.tolist()) - {self.base} for seen in self.sampled)
        return one == other


@dataclass(frozen=True)
class Replays:
    """Replays of one trainer.

    Attributes:
        make_trainer: Makes it.
        claim: What is claimed of it.
        records: To make bases of.
        effort: How long a probe is waited for.
        included: Whether records are named by ``step(include=...)``, not drawn.
    """

    make_trainer: MakeTrainer
    claim: StepClaim
    records: tuple[Record, ...]
    effort: Effort
    included: bool

    @classmethod
    def of(
        cls, make_trainer: MakeTrainer, claim: StepClaim, records: Sequence[Record], effort: Effort
    ) -> Replays:
        """Return replays by the way that the trainer offers."""
        included = takes_include(make_trainer(records, 0))
        return cls(make_trainer, claim, tuple(records), effort, included)

    @property
    def way(self) -> str:
        """How a probe gets into a step, in words."""
        return "named by include=" if self.included else "drawn by its own coin"

    def bases(self) -> list[tuple[Record, ...]]:
        """Return data sets to add a probe to: of no record, of few, and of some batches."""
        enough = BATCH if self.included else math.ceil(BATCH / self.claim.sampling_rate)
        few, many = self.records[:FEW], self.records[: max(FEW, enough)]
        sizes = [few, many] if len(many) > len(few) else [few]
        return [(), *sizes] if self._takes_nothing() else sizes

    @property
    def copies(self) -> int:
        """How many copies of a record to add a probe to: about one of them is in its step."""
        wanted = 1 if self.included else math.ceil(1 / self.claim.sampling_rate)
        return min(wanted, MOST_COPIES)

    def meets(self, records: Sequence[Record], seed: int) -> bool:
        """Return whether the last record first joins a step that just one other one joins.

        So, too, where who is in is not said, or everyone that is named is.
        """
        course, last = self.course(records, seed), len(records) - 1
        for step in range(min(self.claim.steps, self.effort.longest_replay)):
            _, sampled = course.at(step)
            if self.included or sampled is None:
                return True
            if last in sampled:
                return len(sampled) == 2
        return False

    def _takes_nothing(self) -> bool:
        try:
            self.step_of(self.make_trainer((), 0), 0)
            return True
        except Exception:  # a trainer that cannot do that raises whatever it likes
            return False

    def step_of(self, trainer: Any, records: int) -> Array:
        """Take a step, on all of so many records if they are named; return the noisy sum."""
        options = {"include": list(range(records))} if self.included else {}
        return noisy_sum(trainer.step(**options), self.claim)

    def course(self, records: Sequence[Record], seed: int) -> Course:
        """Return the steps of a trainer on ``records``, taken as they are asked for."""
        return Course(self, self.make_trainer(records, seed), len(records))

    def first_difference(self, without: Course, with_probe: Course, probe: str) -> Pair | None:
        """Return the step that the probe joined, as far as that is known, or that differs first.

        Args:
            without: The steps on the records, of which each keeps its index.
            with_probe: The steps on the records and the probe, which is the last.
            probe: Its name.

        Returns:
            None: in all steps it did nothing.
        """
        steps = min(self.claim.steps, self.effort.longest_replay)
        for step in range(1 if self.included else steps):
            pair = self.pair(without, with_probe, probe, step)
            if pair.moved or pair.joined:
                return pair
        return None

    def pair(self, without: Course, with_probe: Course, probe: str, step: int) -> Pair:
        """Return one step of each of two trainers."""
        (one, one_seen), (other, other_seen) = without.at(step), with_probe.at(step)
        sampled = None if one_seen is None or other_seen is None else (one_seen, other_seen)
        batch = with_probe.records if one_seen is None else 1 + len(one_seen)
        room = slack(one, other, batch, self.claim.clip_norm, self.claim.update_scale)
        groups = with_probe.groups
        return Pair(probe, with_probe.records - 1, step, one, other, sampled, room, groups)


class Course:
    """The steps of one trainer, each taken once."""

    def __init__(self, replays: Replays, trainer: Any, records: int) -> None:
        self._replays, self._trainer, self.records = replays, trainer, records
        self._taken: list[tuple[Array, NDArray[np.int64] | None]] = []

    def at(self, step: int) -> tuple[Array, NDArray[np.int64] | None]:
        """Return the noisy sum of a step, and who was in it, where that is known."""
        while len(self._taken) <= step:
            found = self._replays.step_of(self._trainer, self.records)
            self._taken.append((found, sampled_of(self._trainer)))
        return self._taken[step]

    @property
    def groups(self) -> dict[str, slice]:
        """The coordinates of each group, by name."""
        return groups_of(self._trainer, self._taken[0][0].size)
