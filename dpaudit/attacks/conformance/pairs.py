"""Pairs of runs that differ by one record, up to the step at which it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.effort import Effort
from dpaudit.attacks.conformance.global_generators import seeded
from dpaudit.attacks.conformance.rounding import RELATIVE, slack
from dpaudit.attacks.conformance.trainers import (
    Array,
    MakeTrainer,
    Record,
    dataset_size_of,
    groups_of,
    noisy_sum,
    of_claimed_size,
    sampled_of,
    takes_include,
)
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import InvalidArgument

Named = Callable[[int, int], list[int]]
"""From the number of a step, and of all records, to the indices of those that take it."""

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
        others: How many other records the step with the probe has; None: not known.
        replaces: Whether ``without`` has another record in the probe's place.
    """

    probe: str
    base: int
    step: int
    without: Array
    with_probe: Array
    sampled: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    slack: float
    groups: dict[str, slice]
    others: int | None = None
    replaces: bool = False

    def allowed(self, clip_norm: float) -> float:
        """Return the largest norm of the difference under the claim, rounding included."""
        return self.times * clip_norm * (1 + RELATIVE) + self.slack

    @property
    def times(self) -> int:
        """How many clip norms the difference may have: two where a record is replaced."""
        return 2 if self.replaces else 1

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
        dataset_size: How many records the data set of the claim has, where that matters.
    """

    make_trainer: MakeTrainer
    claim: StepClaim
    records: tuple[Record, ...]
    effort: Effort
    included: bool
    dataset_size: int | None = None

    @classmethod
    def of(
        cls, make_trainer: MakeTrainer, claim: StepClaim, records: Sequence[Record], effort: Effort
    ) -> Replays:
        """Return replays by the way that the trainer offers."""
        size = dataset_size_of(make_trainer)
        included = takes_include(make_trainer(of_claimed_size(make_trainer, records), 0))
        if size is not None and not included:
            raise InvalidArgument(
                "make_trainer",
                f"dataset_size {size} and trainers without step(include=...)",
                "either: steps of so many records are compared by naming them",
            )
        return cls(make_trainer, claim, tuple(records), effort, included, size)

    @property
    def way(self) -> str:
        """How a probe gets into a step, in words."""
        return "named by include=" if self.included else "drawn by its own coin"

    @property
    def replaces(self) -> bool:
        """Whether neighbours differ by a replaced record."""
        return self.claim.adjacency is Adjacency.REPLACE_ONE

    def bases(self) -> list[tuple[Record, ...]]:
        """Return data sets to add a probe to: of no record, of few, and of some batches."""
        enough = BATCH if self.included else math.ceil(BATCH / self.claim.sampling_rate)
        few, many = self.records[:FEW], self.records[: max(FEW, enough)]
        sizes = [few, many] if len(many) > len(few) else [few]
        return [(), *sizes] if self.takes_nothing() else sizes

    @property
    def copies(self) -> int:
        """How many copies of a record to add a probe to: about one of them is in its step."""
        wanted = 1 if self.included else math.ceil(1 / self.claim.sampling_rate)
        return min(wanted, MOST_COPIES)

    def meets(self, records: Sequence[Record], seed: int) -> bool:
        """Return whether the last record first joins a step that just one other one joins.

        So, too, where who is in is not said, or everyone that is named is.
        """
        if self.included:
            return True
        course, last = self.course(records, None, seed), len(records) - 1
        for step in range(min(self.claim.steps, self.effort.longest_replay)):
            _, sampled = course.at(step)
            if sampled is None:
                return True
            if last in sampled:
                return len(sampled) == 2
        return False

    def takes_nothing(self) -> bool:
        """Return whether a step without any record can be taken."""
        try:
            self.course((), None, 0).at(0)
            return True
        except Exception:  # a trainer that cannot do that raises whatever it likes
            return False

    def course(
        self,
        base: Sequence[Record],
        last: Record | None,
        seed: int,
        named: Named | None = None,
        *,
        salt: int = 0,
    ) -> Course:
        """Return the steps of a trainer on ``base`` and ``last``, taken as they are asked for.

        Args:
            base: Records that keep their index, whether or not there is a last one.
            last: The record with the highest index; None: there is none.
            seed: Of the trainer, and of all global generators.
            named: From the number of a step and that of all records to the indices for
                ``step(include=...)``; None: those of ``base`` and of ``last``.
            salt: For other states of the global generators under the same seed.
        """
        own = () if last is None else (last,)
        size = len(base) if self.dataset_size is None else self.dataset_size - 1
        if self.replaces and last is None and self.dataset_size is not None:
            size += 1
        data = (*self._filled(base, size), *own)
        everyone = [*range(len(base)), *range(len(data) - len(own), len(data))]
        chosen = named or (lambda step, records: everyone)
        return Course(self, data, (seed, salt), chosen if self.included else None)

    def _filled(self, base: Sequence[Record], size: int) -> tuple[Record, ...]:
        filler = cycle(self.records)
        return tuple(islice(chain(base, filler), max(size, len(base))))

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
        last = with_probe.records - 1
        return Pair(
            probe, last, step, one, other, sampled, room, with_probe.groups,
            with_probe.others(step), replaces=_replaced(without, with_probe, step),
        )  # fmt: skip


def _replaced(without: Course, with_probe: Course, step: int) -> bool:
    """Return whether both steps have, or may have, a record in the last place."""
    last = with_probe.records - 1
    if without.records < with_probe.records:
        return False
    return without.names is None or last in without.names(step, without.records)


class Course:
    """The steps of one trainer, each taken once, under global generators of a fixed seed."""

    def __init__(
        self, replays: Replays, data: Sequence[Record], seed: tuple[int, int], names: Named | None
    ) -> None:
        self._claim, self._seed, self.names, self.records = replays.claim, seed, names, len(data)
        self._taken: list[tuple[Array, NDArray[np.int64] | None]] = []
        with seeded(*seed, 0):
            self.trainer = replays.make_trainer(data, seed[0])

    def at(self, step: int) -> tuple[Array, NDArray[np.int64] | None]:
        """Return the noisy sum of a step, and who was in it, where that is known."""
        while len(self._taken) <= step:
            number = len(self._taken)
            options = {} if self.names is None else {"include": self.names(number, self.records)}
            with seeded(*self._seed, 1 + number):
                update = self.trainer.step(**options)
            self._taken.append((noisy_sum(update, self._claim), sampled_of(self.trainer)))
        return self._taken[step]

    def others(self, step: int) -> int | None:
        """Return how many records but the last one are in a step; None: not known."""
        last = self.records - 1
        if self.names is not None:
            return len([i for i in self.names(step, self.records) if i != last])
        sampled = self.at(step)[1]
        if sampled is not None:
            return int((sampled != last).sum())
        return 0 if self.records == 1 else None

    @property
    def groups(self) -> dict[str, slice]:
        """The coordinates of each group, by name."""
        return groups_of(self.trainer, self._taken[0][0].size)
