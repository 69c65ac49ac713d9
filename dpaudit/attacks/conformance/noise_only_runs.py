"""Runs without records: every coordinate of a step is then noise.

The first mode that a trainer supports is used: an empty data set; ``step(include=[])``; or one
record, of which only the steps that did not include it count. If a trainer does not report its
records, the one record stays in. It adds at most the clip norm to each step. The test of the scale
allows for that; the tests of correlation cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.statistical_tests import Effort
from dpaudit.attacks.conformance.trainer_protocol import (
    Array,
    MakeTrainer,
    Record,
    Trainer,
    derive_seeds,
    noisy_sum,
    parameter_groups,
    passes_seed,
    required_dataset_size,
    sampled_indices,
)
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.ledger import Sampling

NOISE_ONLY_SEEDS = 1
NEGLIGIBLE = 1e-9  # probability of an empty batch below which it is not expected in any run
MIN_EMPTY_SHARE = 0.1  # of the steps: smallest share without the one record for that mode


@dataclass(frozen=True)
class NoiseOnlyMode:
    """How a trainer is run without records.

    Attributes:
        description: The mode as a phrase, for the report.
        records: The records that the trainer is made with.
        options: Keyword arguments of ``step``.
        known: Whether it is known which steps had no record.
        refused: Why the trainer takes no step without records; empty if it was not asked to.
    """

    description: str
    records: tuple[Record, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    known: bool = True
    refused: str = ""

    @property
    def why_none_is_empty(self) -> str:
        """Why all steps had records, for the report."""
        reason = f": without any, the trainer raises {self.refused}" if self.refused else ""
        return (
            f"every step of these runs had records{reason}; let the trainer take steps without "
            "any, on an empty data set or by step(include=[])"
        )


@dataclass(frozen=True)
class NoiseOnlyRuns:
    """Noise of some runs, over the claimed standard deviation.

    Attributes:
        mode: How the trainer was run.
        noise: Noise of the kept coordinates, shape ``(runs, steps, kept)``. It is set to zero for
            steps with a record, unless the mode does not know which these are.
        empty: Whether a step had no record, shape ``(runs, steps)``; all True if that is not known.
        groups: Positions of each parameter group among the kept coordinates, by name.
        dimension: Number of coordinates of an update.
        ranks: The rows of each rank, shape ``(runs, steps, ranks, kept)``; None without ranks.
        seed_is_ignored: Whether all seeds gave the same noise. Then there is only one run.
        seed_is_passed: Whether the trainer certainly got these seeds.
    """

    mode: NoiseOnlyMode
    noise: Array
    empty: NDArray[np.bool_]
    groups: dict[str, NDArray[np.int64]]
    dimension: int
    ranks: Array | None
    seed_is_ignored: bool = False
    seed_is_passed: bool = False

    @property
    def finite(self) -> bool:
        """Whether all noise values are finite."""
        return bool(np.isfinite(self.noise).all())

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Names of the groups with a NaN or infinite noise value."""
        parts = ((name, self.noise[:, :, places]) for name, places in self.groups.items())
        return tuple(name for name, part in parts if not np.isfinite(part).all())


@dataclass(frozen=True)
class NoiseOnlyStep:
    """One step of a run.

    Attributes:
        noise: Noise over the claimed standard deviation, shape ``(d,)``; zeros if not ``empty``.
        empty: Whether the step had no record, or its records are not known.
        ranks: The ranks' rows over the claimed standard deviation, shape ``(ranks, d)``; None
            without ranks.
    """

    noise: Array
    empty: bool
    ranks: Array | None


def find_noise_only_mode(
    make_trainer: MakeTrainer, claim: StepClaim, records: Sequence[Record], seed: int
) -> NoiseOnlyMode:
    """Find the first mode without records that gives a finite update of the right size.

    Args:
        make_trainer: Makes the trainer.
        claim: The claim; its sampling rate decides whether steps without the one record are
            frequent enough.
        records: Records of the data set, at least one.
        seed: Seed of the audit.

    Returns:
        The mode. The last resort, a record in an unknown number of steps, has ``known`` False.
    """
    (first,) = derive_seeds(seed, NOISE_ONLY_SEEDS, 1)
    trainer = make_trainer(records, first)
    dimension = noisy_sum(trainer.step(), claim).size
    by_include = NoiseOnlyMode("with step(include=[])", tuple(records), {"include": []})
    sized = (
        required_dataset_size(make_trainer) is not None
    )  # such a trainer takes different steps on an empty data set
    for mode in (by_include,) if sized else (NoiseOnlyMode("on an empty data set"), by_include):
        if _mode_works(make_trainer, claim, mode, first, dimension):
            return mode
    if sized:
        return _mode_of_sized_trainer(make_trainer, claim, by_include, first)
    one = (records[0],)
    if sampled_indices(trainer) is not None and claim.sampling_rate <= 1 - MIN_EMPTY_SHARE:
        return NoiseOnlyMode("on one record, in the steps without it", one)
    return NoiseOnlyMode(
        "on one record, which adds at most the clip norm to each step", one, known=False
    )


def _mode_of_sized_trainer(
    make_trainer: MakeTrainer, claim: StepClaim, by_include: NoiseOnlyMode, seed: int
) -> NoiseOnlyMode:
    """Return the mode of a trainer whose step without records fails or is not finite.

    A sum that is not finite is a violation where batches can be empty: it reveals that this one is.
    """
    try:
        noisy_sum(make_trainer(by_include.records, seed).step(**by_include.options), claim)
    except Exception as error:  # a trainer may fail in any way on an empty batch
        refused = f"{type(error).__name__} ({str(error).splitlines()[0] if str(error) else ''})"
        return NoiseOnlyMode("in steps without records", by_include.records, refused=refused)
    if can_be_empty(claim, len(by_include.records)):
        return by_include
    return NoiseOnlyMode(
        "in steps without records", by_include.records, refused="no error, and is not finite"
    )


def can_be_empty(claim: StepClaim, records: int) -> bool:
    """Return whether a batch of the claim's sampler is empty with a notable probability.

    Args:
        claim: The claim, with its sampling.
        records: Number of records of the data set.

    Returns:
        False for batches of a fixed size, and where the probability is below ``NEGLIGIBLE``.
    """
    if claim.sampling is not Sampling.POISSON or claim.sampling_rate == 1:
        return False
    return records * math.log1p(-claim.sampling_rate) > math.log(NEGLIGIBLE)


def _mode_works(
    make_trainer: MakeTrainer, claim: StepClaim, mode: NoiseOnlyMode, seed: int, dimension: int
) -> bool:
    try:
        noise = noisy_sum(make_trainer(mode.records, seed).step(**mode.options), claim)
    except Exception:  # a trainer that does not support the mode may fail in any way
        return False
    return noise.size == dimension and bool(np.isfinite(noise).all())


def run_without_records(
    make_trainer: MakeTrainer, claim: StepClaim, mode: NoiseOnlyMode, effort: Effort, seed: int
) -> NoiseOnlyRuns:
    """Run a trainer without records until there are as many noise samples as ``effort`` sets.

    Args:
        make_trainer: Makes the trainer.
        claim: The claim, for the number of steps and the scale.
        mode: How to run without records.
        effort: Number of samples and the limits of steps and memory.
        seed: Seed of the audit; each run has its own derived seed.

    Returns:
        The noise of at least two runs; of one, if the trainer ignores its seed.
    """
    steps = min(claim.steps, effort.longest_run)
    first, *others = derive_seeds(seed, NOISE_ONLY_SEEDS, 1 + effort.most_noise_steps)
    trainer = make_trainer(mode.records, first)
    start = _noise_only_step(trainer, claim, mode)
    dimension = start.noise.size
    runs = _run_count(dimension, steps, effort)
    groups, kept = _kept_coordinates(
        parameter_groups(trainer, dimension), dimension, effort.kept // (runs * steps)
    )
    rows = [[start, *(_noise_only_step(trainer, claim, mode) for _ in range(steps - 1))]]
    rows[0] = [_select_coordinates(one, kept) for one in rows[0]]
    for other in others[: runs - 1]:
        trainer = make_trainer(mode.records, other)
        rows.append(
            [
                _select_coordinates(_noise_only_step(trainer, claim, mode), kept)
                for _ in range(steps)
            ]
        )
    found = NoiseOnlyRuns(
        mode,
        np.array([[one.noise for one in row] for row in rows]),
        np.array([[one.empty for one in row] for row in rows]),
        groups,
        dimension,
        None if start.ranks is None else np.array([[one.ranks for one in row] for row in rows]),
        seed_is_passed=passes_seed(trainer),
    )
    return _first_run(found) if _repeats_one_run(found) else found


def _repeats_one_run(runs: NoiseOnlyRuns) -> bool:
    """Return whether all runs have the same noise, although their seeds differ."""
    return bool(runs.noise.any() and (runs.noise == runs.noise[:1]).all())


def _first_run(runs: NoiseOnlyRuns) -> NoiseOnlyRuns:
    ranks = None if runs.ranks is None else runs.ranks[:1]
    return replace(
        runs, noise=runs.noise[:1], empty=runs.empty[:1], ranks=ranks, seed_is_ignored=True
    )


def _run_count(dimension: int, steps: int, effort: Effort) -> int:
    wanted = math.ceil(effort.noise_samples / (dimension * steps))
    return max(2, min(wanted, effort.most_noise_steps // steps))


def _kept_coordinates(
    groups: dict[str, slice], dimension: int, most: int
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Select the tested coordinates: all of a small group, a random subset of a large one.

    Args:
        groups: Slices of the parameter groups, by name.
        dimension: Number of coordinates of an update.
        most: How many coordinates fit into memory for all steps.

    Returns:
        The positions of each group among the selected coordinates, and these coordinates.
    """
    each = max(1, most // len(groups))
    rng = np.random.default_rng(0)  # a fixed seed: every audit tests the same coordinates
    chosen = []
    for where in groups.values():
        own = np.arange(dimension)[where]
        chosen.append(own if len(own) <= each else np.sort(rng.choice(own, each, replace=False)))
    ends = np.cumsum([len(own) for own in chosen])
    positions = np.split(np.arange(ends[-1]), ends[:-1])
    return dict(zip(groups, positions, strict=True)), np.concatenate(chosen)


def _noise_only_step(trainer: Trainer, claim: StepClaim, mode: NoiseOnlyMode) -> NoiseOnlyStep:
    step: Any = trainer.step
    deviation = claim.noise_multiplier * claim.clip_norm
    noise = noisy_sum(step(**mode.options), claim) / deviation
    rows = getattr(trainer, "rank_updates", None)
    ranks = None
    if rows is not None:
        ranks = np.array([noisy_sum(row, claim) for row in rows]) / deviation
    empty = True
    if mode.records and mode.known and not mode.options:
        sampled = sampled_indices(trainer)
        empty = sampled is None or len(sampled) == 0
    return NoiseOnlyStep(noise if empty else np.zeros_like(noise), empty, ranks)


def _select_coordinates(step: NoiseOnlyStep, kept: NDArray[np.int64]) -> NoiseOnlyStep:
    ranks = None if step.ranks is None else step.ranks[:, kept]
    return NoiseOnlyStep(step.noise[kept], step.empty, ranks)
