"""Runs in which no record takes part: what is left is the noise, on every coordinate.

The first of these ways that a trainer can go is taken: an empty data set; ``include=[]``;
a single record, looking only at the steps that it did not join. Where even that is not
known, the record stays in: it adds at most the clip norm, which the test of the scale can
allow for, and the tests of correlation cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.effort import Effort
from dpaudit.attacks.conformance.trainers import (
    Array,
    MakeTrainer,
    Record,
    Trainer,
    dataset_size_of,
    groups_of,
    noisy_sum,
    sampled_of,
    seeds,
)
from dpaudit.vocabulary.conformance import StepClaim

QUIET_SEEDS = 1
LEAST_EMPTY = 0.1  # of the steps, for a single record's absence to be worth waiting for


@dataclass(frozen=True)
class Way:
    """How a trainer is run without records.

    Attributes:
        how: In words.
        records: What it is made with.
        options: What ``step`` is given.
        known: Whether it is known which steps no record joined.
    """

    how: str
    records: tuple[Record, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    known: bool = True


@dataclass(frozen=True)
class Quiet:
    """Noise of some runs, over the claimed standard deviation.

    Attributes:
        way: How it was come by.
        noise: Shape ``(runs, steps, kept)``; zero where a step is not ``empty``, unless the
            way does not know which are.
        empty: Which steps no record joined, shape ``(runs, steps)``; all, where that is not
            known.
        groups: Positions in ``kept`` of each group, by name.
        dimension: How many coordinates an update has.
        ranks: The same of each rank, shape ``(runs, steps, ranks, kept)``; None: no ranks.
    """

    way: Way
    noise: Array
    empty: NDArray[np.bool_]
    groups: dict[str, NDArray[np.int64]]
    dimension: int
    ranks: Array | None

    @property
    def finite(self) -> bool:
        """Whether every number is one."""
        return bool(np.isfinite(self.noise).all())

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Names of the groups in which some number is none."""
        parts = ((name, self.noise[:, :, places]) for name, places in self.groups.items())
        return tuple(name for name, part in parts if not np.isfinite(part).all())


@dataclass(frozen=True)
class Watched:
    """One step of a run."""

    noise: Array
    empty: bool
    ranks: Array | None


def find_way(
    make_trainer: MakeTrainer, claim: StepClaim, records: Sequence[Record], seed: int
) -> Way:
    """Return the first way that gives a finite update of the right size."""
    (first,) = seeds(seed, QUIET_SEEDS, 1)
    trainer = make_trainer(records, first)
    dimension = noisy_sum(trainer.step(), claim).size
    named = Way("with step(include=[])", tuple(records), {"include": []})
    sized = dataset_size_of(make_trainer) is not None  # then an empty data set has other steps
    for way in (named,) if sized else (Way("on an empty data set"), named):
        if _goes(make_trainer, claim, way, first, dimension):
            return way
    one = (records[0],)
    if sampled_of(trainer) is not None and claim.sampling_rate <= 1 - LEAST_EMPTY:
        return Way("on one record, at the steps that it did not join", one)
    return Way("on one record, which moves each step by the clip norm at most", one, known=False)


def _goes(make_trainer: MakeTrainer, claim: StepClaim, way: Way, seed: int, dimension: int) -> bool:
    try:
        seen = noisy_sum(make_trainer(way.records, seed).step(**way.options), claim)
    except Exception:  # a trainer that cannot do that raises whatever it likes
        return False
    return seen.size == dimension and bool(np.isfinite(seen).all())


def listen(
    make_trainer: MakeTrainer, claim: StepClaim, way: Way, effort: Effort, seed: int
) -> Quiet:
    """Run without records, for as many samples as ``effort`` asks for."""
    steps = min(claim.steps, effort.longest_run)
    first, *others = seeds(seed, QUIET_SEEDS, 1 + effort.most_noise_steps)
    trainer = make_trainer(way.records, first)
    start = _watched(trainer, claim, way)
    dimension = start.noise.size
    runs = _runs(dimension, steps, effort)
    groups, kept = _kept(groups_of(trainer, dimension), dimension, effort.kept // (runs * steps))
    rows = [[start, *(_watched(trainer, claim, way) for _ in range(steps - 1))]]
    rows[0] = [_only(one, kept) for one in rows[0]]
    for other in others[: runs - 1]:
        trainer = make_trainer(way.records, other)
        rows.append([_only(_watched(trainer, claim, way), kept) for _ in range(steps)])
    return Quiet(
        way,
        np.array([[one.noise for one in row] for row in rows]),
        np.array([[one.empty for one in row] for row in rows]),
        groups,
        dimension,
        None if start.ranks is None else np.array([[one.ranks for one in row] for row in rows]),
    )


def _runs(dimension: int, steps: int, effort: Effort) -> int:
    wanted = math.ceil(effort.noise_samples / (dimension * steps))
    return max(2, min(wanted, effort.most_noise_steps // steps))


def _kept(
    groups: dict[str, slice], dimension: int, most: int
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Return which coordinates are looked at: all, or of each group so many, at random."""
    each = max(1, most // len(groups))
    rng = np.random.default_rng(0)  # which ones is public, and the same in every audit
    chosen = []
    for where in groups.values():
        own = np.arange(dimension)[where]
        chosen.append(own if len(own) <= each else np.sort(rng.choice(own, each, replace=False)))
    ends = np.cumsum([len(own) for own in chosen])
    positions = np.split(np.arange(ends[-1]), ends[:-1])
    return dict(zip(groups, positions, strict=True)), np.concatenate(chosen)


def _watched(trainer: Trainer, claim: StepClaim, way: Way) -> Watched:
    step: Any = trainer.step
    deviation = claim.noise_multiplier * claim.clip_norm
    noise = noisy_sum(step(**way.options), claim) / deviation
    rows = getattr(trainer, "rank_updates", None)
    ranks = None
    if rows is not None:
        ranks = np.array([noisy_sum(row, claim) for row in rows]) / deviation
    empty = True
    if way.records and way.known and not way.options:
        sampled = sampled_of(trainer)
        empty = sampled is None or len(sampled) == 0
    return Watched(noise if empty else np.zeros_like(noise), empty, ranks)


def _only(seen: Watched, kept: NDArray[np.int64]) -> Watched:
    ranks = None if seen.ranks is None else seen.ranks[:, kept]
    return Watched(seen.noise[kept], seen.empty, ranks)
