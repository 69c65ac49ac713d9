"""Paired replays: runs under one seed that differ by one record, compared step by step.

``TrainerReplays`` makes runs of a trainer. A ``ReplayedRun`` takes its steps on demand, with the
global generators seeded, and keeps their noisy sums. A ``ReplayPair`` is one step of two runs, one
of which has the probe. The noise cancels in their difference, so only the probe and rounding
remain. ``rounding_slack`` bounds what rounding alone may contribute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.statistical_tests import Effort
from dpaudit.attacks.conformance.trainer_protocol import (
    Array,
    MakeTrainer,
    Record,
    noisy_sum,
    parameter_groups,
    repeat_to_dataset_size,
    required_dataset_size,
    sampled_indices,
    seed_global_generators,
    supports_include,
)
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Adjacency

# Rounding of the difference of two noisy sums.

FLOAT32_UNIT_ROUNDOFF = 2.0**-24
ROUNDINGS_PER_COORDINATE = 4
NORM_ROUNDING = 1e-5  # relative: error of a norm that is computed in float32
MAX_RELATIVE_LAST_BIT = 2.0**-12  # of the update's root mean square: a coarser bit is chance


def rounding_slack(one: Array, other: Array, batch: int, clip_norm: float, scale: float) -> float:
    """Compute how far rounding may move the difference of two noisy sums, in L2 norm.

    Three sources are added: roundings of the values, the resolution of the float32 parameters whose
    change was returned, and the float32 sums over the records of a batch.

    Args:
        one: A noisy sum, shape ``(d,)``.
        other: The noisy sum with one more record, shape ``(d,)``.
        batch: Upper bound of the number of records in the step.
        clip_norm: Clip norm of each record.
        scale: Factor from the noisy sum to what the trainer returned.

    Returns:
        The slack, in the unit of the noisy sum; 0 if a sum is not finite.
    """
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return 0.0  # rounding does not explain NaN or infinity
    of_values = ROUNDINGS_PER_COORDINATE * FLOAT32_UNIT_ROUNDOFF * (np.abs(one) + np.abs(other))
    of_parameters = _last_bits(one * scale) + _last_bits(other * scale)
    of_sums = 2 * batch**2 * FLOAT32_UNIT_ROUNDOFF * clip_norm
    each = of_values + of_parameters / abs(scale)
    return float(np.linalg.norm(each)) + of_sums


def _last_bits(updates: Array) -> Array:
    """Return the value of the lowest set bit of each number, at 24 bits of precision.

    A difference of float32 parameters is a multiple of their last bits, so its lowest set bit
    bounds the rounding of the parameters. For numbers that were not computed in float32, it is far
    below their own rounding. Zeros give 0; a cap limits numbers that are round by chance.
    """
    mantissas, exponents = np.frexp(np.abs(updates))
    whole = np.rint(np.ldexp(mantissas, 24)).astype(np.int64)
    lowest = np.ldexp((whole & -whole).astype(np.float64), exponents - 24)
    coarsest = MAX_RELATIVE_LAST_BIT * float(np.sqrt(np.square(updates).mean()))
    return np.minimum(np.where(updates == 0, 0.0, lowest), coarsest)


# Pairs and runs.

IncludedIndices = Callable[[int, int], list[int]]
"""From the step number and the number of records to the indices for ``step(include=...)``."""

MAX_COPIES = 1000
SMALL_BASE_SIZE = 2  # records
LARGE_BASE_BATCH_SIZE = 3  # records of an average batch


@dataclass(frozen=True)
class ReplayPair:
    """One step with and without a probe.

    Attributes:
        probe: Name of the probe.
        base: Number of records beside the probe, which is the probe's index.
        step: Number of the step.
        without: The noisy sum without the probe, shape ``(d,)``.
        with_probe: The noisy sum with the probe, shape ``(d,)``.
        sampled: Indices of the step's records without and with the probe; None if not known.
        slack: Norm by which rounding may move the difference.
        groups: Slices of the parameter groups, by name.
        others: Number of other records in the step with the probe; None if not known.
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
        """Return the largest norm of the difference under the claim.

        Args:
            clip_norm: The claimed clip norm.

        Returns:
            One or two clip norms, plus rounding.
        """
        return self.times * clip_norm * (1 + NORM_ROUNDING) + self.slack

    @property
    def times(self) -> int:
        """Allowed norm of the difference in clip norms: 2 if a record is replaced, else 1."""
        return 2 if self.replaces else 1

    @property
    def difference(self) -> Array:
        """The sum with the probe minus the sum without it, shape ``(d,)``."""
        return np.asarray(self.with_probe - self.without)

    @property
    def moved(self) -> bool:
        """Whether the difference exceeds rounding; NaN does."""
        return not float(np.linalg.norm(self.difference)) <= self.slack

    @property
    def joined(self) -> bool | None:
        """Whether the step included the probe; None if not known."""
        return None if self.sampled is None else bool((self.sampled[1] == self.base).any())

    @property
    def same_others(self) -> bool:
        """Whether both steps have the same other records, as far as is known."""
        if self.sampled is None:
            return True
        one, other = (set(indices.tolist()) - {self.base} for indices in self.sampled)
        return one == other


@dataclass(frozen=True)
class TrainerReplays:
    """Replays of one trainer.

    Attributes:
        make_trainer: Makes the trainer.
        claim: The claim.
        records: Ordinary records, from which base data sets are made.
        effort: Number of steps within which a probe must be included.
        included: Whether records are chosen by ``step(include=...)`` instead of sampled.
        dataset_size: Number of records of the claim's data set; None if the trainer accepts any.
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
    ) -> TrainerReplays:
        """Choose how probes are included: by ``include`` if the trainer accepts it.

        Args:
            make_trainer: Makes the trainer.
            claim: The claim.
            records: Ordinary records.
            effort: Number of steps.

        Returns:
            The replays.

        Raises:
            InvalidArgument: If the trainer has a ``dataset_size`` and does not accept ``include``.
        """
        size = required_dataset_size(make_trainer)
        included = supports_include(make_trainer(repeat_to_dataset_size(make_trainer, records), 0))
        if size is not None and not included:
            raise InvalidArgument(
                "make_trainer",
                f"dataset_size {size} and no include",
                "a factory whose trainers accept step(include=indices), or have no dataset_size",
            )
        return cls(make_trainer, claim, tuple(records), effort, included, size)

    @property
    def inclusion_method(self) -> str:
        """How a step includes a probe, for the report."""
        return "chosen by include=" if self.included else "sampled by the trainer"

    @property
    def replaces(self) -> bool:
        """Whether neighbors differ by a replaced record."""
        return self.claim.adjacency is Adjacency.REPLACE_ONE

    def bases(self) -> list[tuple[Record, ...]]:
        """Return the data sets to add a probe to.

        Returns:
            In ascending size: no record (if the trainer supports it), ``SMALL_BASE_SIZE`` records,
            and enough records for batches of ``LARGE_BASE_BATCH_SIZE`` on average.
        """
        enough = (
            LARGE_BASE_BATCH_SIZE
            if self.included
            else math.ceil(LARGE_BASE_BATCH_SIZE / self.claim.sampling_rate)
        )
        few, many = self.records[:SMALL_BASE_SIZE], self.records[: max(SMALL_BASE_SIZE, enough)]
        sizes = [few, many] if len(many) > len(few) else [few]
        return [(), *sizes] if self.accepts_empty_batch() else sizes

    @property
    def copies(self) -> int:
        """Number of copies of a record of which a step includes about one."""
        wanted = 1 if self.included else math.ceil(1 / self.claim.sampling_rate)
        return min(wanted, MAX_COPIES)

    def joins_with_one_other(self, records: Sequence[Record], seed: int) -> bool:
        """Return whether the first step of the last record includes just one other record.

        Args:
            records: Records of the data set.
            seed: Seed of the run.

        Returns:
            Also True if the trainer accepts ``include``, or does not report its records.
        """
        if self.included:
            return True
        run, last = self.run(records, None, seed), len(records) - 1
        for step in range(min(self.claim.steps, self.effort.longest_replay)):
            _, sampled = run.at(step)
            if sampled is None:
                return True
            if last in sampled:
                return len(sampled) == 2
        return False

    def accepts_empty_batch(self) -> bool:
        """Return whether a step on an empty data set has no error, and gives a finite sum."""
        try:
            return bool(np.isfinite(self.run((), None, 0).at(0)[0]).all())
        except Exception:  # a trainer that does not support it may fail in any way
            return False

    def run(
        self,
        base: Sequence[Record],
        last: Record | None,
        seed: int,
        named: IncludedIndices | None = None,
        *,
        salt: int = 0,
    ) -> ReplayedRun:
        """Make a trainer on ``base`` and ``last``, and return its run. Steps are taken on demand.

        Args:
            base: Records, whose indices do not depend on ``last``.
            last: The record with the highest index; None for no such record.
            seed: Seed of the trainer and of the global generators.
            named: From the step number and the number of records to the indices for
                ``step(include=...)``; None for those of ``base`` and ``last``.
            salt: Selects other states of the global generators under the same seed.

        Returns:
            The run.
        """
        own = () if last is None else (last,)
        size = len(base) if self.dataset_size is None else self.dataset_size - 1
        if self.replaces and last is None and self.dataset_size is not None:
            size += 1
        data = (*self._filled(base, size), *own)
        everyone = [*range(len(base)), *range(len(data) - len(own), len(data))]
        chosen = named or (lambda step, records: everyone)
        return ReplayedRun(self, data, (seed, salt), chosen if self.included else None)

    def _filled(self, base: Sequence[Record], size: int) -> tuple[Record, ...]:
        filler = cycle(self.records)
        return tuple(islice(chain(base, filler), max(size, len(base))))

    def first_difference(
        self, without: ReplayedRun, with_probe: ReplayedRun, probe: str
    ) -> ReplayPair | None:
        """Return the first step that includes the probe, or whose sums differ.

        Args:
            without: The run without the probe.
            with_probe: The run with the probe as the last record.
            probe: Name of the probe.

        Returns:
            The step; None if no step includes the probe or differs.
        """
        steps = min(self.claim.steps, self.effort.longest_replay)
        for step in range(1 if self.included else steps):
            pair = self.pair(without, with_probe, probe, step)
            if pair.moved or pair.joined:
                return pair
        return None

    def pair(
        self, without: ReplayedRun, with_probe: ReplayedRun, probe: str, step: int
    ) -> ReplayPair:
        """Pair one step of two runs.

        Args:
            without: The run without the probe.
            with_probe: The run with the probe as the last record.
            probe: Name of the probe.
            step: Number of the step.

        Returns:
            The pair, with the slack for rounding.
        """
        (one, one_sampled), (other, other_sampled) = without.at(step), with_probe.at(step)
        sampled = (
            None if one_sampled is None or other_sampled is None else (one_sampled, other_sampled)
        )
        batch = with_probe.records if one_sampled is None else 1 + len(one_sampled)
        room = rounding_slack(one, other, batch, self.claim.clip_norm, self.claim.scale)
        last = with_probe.records - 1
        return ReplayPair(
            probe, last, step, one, other, sampled, room, with_probe.groups,
            with_probe.others(step), replaces=_replaced(without, with_probe, step),
        )  # fmt: skip


def _replaced(without: ReplayedRun, with_probe: ReplayedRun, step: int) -> bool:
    """Return whether both steps include, or may include, a record in the last place."""
    last = with_probe.records - 1
    if without.records < with_probe.records:
        return False
    return without.names is None or last in without.names(step, without.records)


class ReplayedRun:
    """The steps of one trainer, each taken once, under seeded global generators.

    Attributes:
        trainer: The trainer, in the state after the last step that was taken.
        names: From the step number and the number of records to the indices for ``include``; None
            if the trainer samples.
        records: Number of records of the data set.
    """

    def __init__(
        self,
        replays: TrainerReplays,
        data: Sequence[Record],
        seed: tuple[int, int],
        names: IncludedIndices | None,
    ) -> None:
        """Make the trainer.

        Args:
            replays: Replays of the trainer, for its factory and claim.
            data: Records of the data set.
            seed: Seed of the trainer, and the salt of the global generators.
            names: Indices for ``include``; None if the trainer samples.
        """
        self._claim, self._seed, self.names, self.records = replays.claim, seed, names, len(data)
        self._taken: list[tuple[Array, NDArray[np.int64] | None]] = []
        with seed_global_generators(*seed, 0):
            self.trainer = replays.make_trainer(data, seed[0])

    def at(self, step: int) -> tuple[Array, NDArray[np.int64] | None]:
        """Return one step, taking all steps up to it if necessary.

        Args:
            step: Number of the step, from 0.

        Returns:
            The noisy sum, shape ``(d,)``, and the indices of the step's records; None for these if
            the trainer does not report them.
        """
        while len(self._taken) <= step:
            number = len(self._taken)
            options = {} if self.names is None else {"include": self.names(number, self.records)}
            with seed_global_generators(*self._seed, 1 + number):
                update = self.trainer.step(**options)
            self._taken.append((noisy_sum(update, self._claim), sampled_indices(self.trainer)))
        return self._taken[step]

    def others(self, step: int) -> int | None:
        """Count the records of a step other than the last record of the data set.

        Args:
            step: Number of the step, from 0.

        Returns:
            The number; None if it is not known.
        """
        last = self.records - 1
        if self.names is not None:
            return len([i for i in self.names(step, self.records) if i != last])
        sampled = self.at(step)[1]
        if sampled is not None:
            return int((sampled != last).sum())
        return 0 if self.records == 1 else None

    @property
    def groups(self) -> dict[str, slice]:
        """Slices of the parameter groups, by name. At least one step must have been taken."""
        return parameter_groups(self.trainer, self._taken[0][0].size)


# Diagnosis of a clipping violation: the likely fault and the parameters that show it.

SUM_CLIPPED_LIMIT = 2.05  # clip norms: a sum that is clipped as a whole moves by at most 2
MULTIPLE_TOLERANCE = 1e-4  # relative: a movement this close to a multiple of C is that multiple
CLIP_NORM_MATCH_TOLERANCE = 1e-3  # relative: a group's norm this close to C is C
MAX_NAMED_GROUPS = 4
MAX_COUNTED_COPIES = 50  # the tolerance grows with the movement: larger ones match by chance


def explain(pair: ReplayPair, clip_norm: float, limit: float) -> str:
    """Explain a difference that exceeds its limit.

    The rules are tried from the most specific to the general one. Each is a plausible cause, not a
    proof: different faults can give the same difference.

    Args:
        pair: A step with and without one record.
        clip_norm: The claimed clip norm.
        limit: The largest allowed norm of the difference.

    Returns:
        The likely fault, the movement in clip norms (C) and the parameters, for the report.
    """
    where = _listed(pair.groups)
    if not np.isfinite(pair.with_probe).all():
        broken = [
            n for n, own in pair.groups.items() if not np.isfinite(pair.with_probe[own]).all()
        ]
        return (
            "gradients that are not finite pass the clipping: one record made the sum NaN or "
            f"infinite; parameters {_listed(broken)}"
        )
    if not np.isfinite(pair.without).all():
        broken = [n for n, own in pair.groups.items() if not np.isfinite(pair.without[own]).all()]
        return (
            "without the record, the sum is NaN or infinite, like a mean over no records; with it, "
            f"the sum is finite; parameters {_listed(broken)}"
        )
    norm = float(np.linalg.norm(pair.difference))
    moved = f"one record moved the sum by {norm / clip_norm:.4g} C"
    factor = rescale_factor(pair)
    if factor is not None:
        return (
            f"the whole noisy sum was multiplied by {factor:.4g}: something in the step depends "
            "on the records (the actual batch size, a learning rate, the size of the data set); "
            f"{moved}"
        )
    if pair.joined is False:
        return f"{moved} in a step that did not include it: the step depends on the whole data set"
    times = round(norm / clip_norm)
    if (
        1 < times <= MAX_COUNTED_COPIES
        and abs(norm / clip_norm - times) < MULTIPLE_TOLERANCE * times
    ):
        return (
            f"one record counts {times} times: {moved} (its copies are clipped separately, or "
            f"several ranks include it); parameters {where}"
        )
    norms = {n: float(np.linalg.norm(pair.difference[own])) for n, own in pair.groups.items()}
    beyond = [name for name, size in norms.items() if not size <= limit]
    if beyond and (norm > SUM_CLIPPED_LIMIT * clip_norm or _are_only_biases(beyond, norms)):
        return (
            f"{_unclipped_part(beyond, norms)} gradients are not clipped: {moved}; parameters "
            + _listed(sorted(beyond, key=lambda name: -norms[name]))
        )
    full = [
        name
        for name, size in norms.items()
        if abs(size / clip_norm - 1) < CLIP_NORM_MATCH_TOLERANCE
    ]
    if len(full) > 1:
        return f"each parameter group is clipped separately: {moved}; parameters {_listed(full)}"
    return (
        f"gradients are not clipped per record: {moved} (no clipping, or clipping of the sum of "
        "several records, or gradients that depend on batch statistics, or a divisor that depends "
        f"on the records); parameters {where}"
    )


def rescale_factor(pair: ReplayPair) -> float | None:
    """Estimate the factor by which the whole noisy sum was multiplied.

    Args:
        pair: A step with and without one record.

    Returns:
        The least-squares factor, if it explains more than half of the difference in norm;
        otherwise None.
    """
    length = float(pair.without @ pair.without)
    if length == 0:
        return None
    factor = float(pair.with_probe @ pair.without) / length
    left = float(np.linalg.norm(pair.with_probe - factor * pair.without))
    return factor if left < float(np.linalg.norm(pair.difference)) / 2 else None


def _unclipped_part(beyond: list[str], norms: Mapping[str, float]) -> str:
    if _are_only_biases(beyond, norms):
        return "bias"
    return "some" if len(beyond) < len(norms) else "a record's"


def _are_only_biases(beyond: list[str], norms: Mapping[str, float]) -> bool:
    return all("bias" in name.lower() for name in beyond) and len(beyond) < len(norms)


def _listed(names: Mapping[str, object] | list[str]) -> str:
    some = list(names)[:MAX_NAMED_GROUPS]
    return ", ".join(some) + (f" and {len(names) - len(some)} more" if len(names) > 4 else "")
