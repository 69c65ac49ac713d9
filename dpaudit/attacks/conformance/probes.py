"""Probes: records that try to move the noisy sum by more than the clip norm.

Probes are derived from the user's records, so that the model accepts them: features are scaled,
zeroed or made NaN, and labels are exchanged. ``FeatureSpace`` varies real features along
directions. ``TokenSpace`` varies token ids, which cannot be scaled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.paired_replays import (
    IncludedIndices,
    ReplayedRun,
    ReplayPair,
    TrainerReplays,
)
from dpaudit.attacks.conformance.trainer_protocol import Array, Record, derive_seeds
from dpaudit.vocabulary.ledger import Sampling

# Variation of real features and of token ids.

MAX_LABELS = 6
MAX_TOKENS = 64


def has_real_features(value: Any) -> bool:
    """Return whether a value is an array or number of floats, which can be scaled."""
    if isinstance(value, list | tuple):  # multiplication repeats these, or fails
        return False
    return np.asarray(value).dtype.kind == "f"


def has_nan(record: Record) -> bool:
    """Return whether the features or the label of a record contain NaN."""
    return any(
        has_real_features(part) and bool(np.isnan(np.asarray(part)).any()) for part in record
    )


def labels_of(records: Sequence[Record]) -> list[Any]:
    """Return distinct labels of the records, the last record's label last.

    Args:
        records: Records ``(x, y)``.

    Returns:
        At most ``MAX_LABELS`` labels, of the last records that have them.
    """
    found: list[Any] = []
    for _, label in reversed(records):
        if not any(np.array_equal(np.asarray(label), np.asarray(one)) for one in found):
            found.append(label)
        if len(found) == MAX_LABELS:
            break
    return found[::-1]


@dataclass(frozen=True)
class FeatureSpace:
    """Real features as points of a vector space, in the container type of a record.

    Attributes:
        like: The features of a record: a NumPy array or scalar, or a torch tensor.
    """

    like: Any

    @property
    def size(self) -> int:
        """Number of features."""
        return int(np.asarray(self.like).size)

    @property
    def flat(self) -> Array:
        """The features of the record as float64, shape ``(size,)``."""
        return np.asarray(self.like, dtype=np.float64).ravel()

    @property
    def length(self) -> float:
        """Norm of the record; if it is 0 or not finite, that of a vector of ones."""
        own = float(np.linalg.norm(self.flat))
        return own if 0 < own < np.inf else float(np.sqrt(self.size))

    def of(self, flat: Array) -> Any:
        """Convert a point to features.

        Args:
            flat: The point, shape ``(size,)``.

        Returns:
            The features, with the record's container type, shape and precision.
        """
        shaped = flat.reshape(np.shape(self.like))
        if hasattr(self.like, "new_tensor"):
            return self.like.new_tensor(shaped)
        dtype = np.asarray(self.like).dtype
        with np.errstate(over="ignore"):
            cast = shaped.astype(dtype)
        return cast if cast.ndim else dtype.type(cast)

    def direction(self, rng: np.random.Generator) -> Array:
        """Return a point in a uniformly random direction.

        Args:
            rng: Generator of the direction.

        Returns:
            The point, of norm ``length`` and shape ``(size,)``.
        """
        drawn = rng.standard_normal(self.size)
        return np.asarray(drawn * (self.length / float(np.linalg.norm(drawn))))


@dataclass(frozen=True)
class TokenSpace:
    """Token ids: integer features without an order. Only ids of the given records are used.

    Attributes:
        like: The features of a record.
        known: The distinct ids of all records, in ascending order.
    """

    like: Any
    known: NDArray[np.int64]

    @classmethod
    def of_records(cls, records: Sequence[Record]) -> TokenSpace | None:
        """Collect the token ids of records.

        Args:
            records: Records ``(x, y)``.

        Returns:
            Their token space; None if the features of the last record are not integers.
        """
        like = records[-1][0]
        if isinstance(like, list | tuple | str) or np.asarray(like).dtype.kind not in "iu":
            return None
        everything = np.concatenate([np.asarray(x, dtype=np.int64).ravel() for x, _ in records])
        return cls(like, np.unique(everything))

    def of(self, flat: NDArray[np.int64]) -> Any:
        """Convert ids to features.

        Args:
            flat: The ids, shape ``(size,)``.

        Returns:
            The features, with the record's container type and shape.
        """
        shaped = flat.reshape(np.shape(self.like))
        if hasattr(self.like, "new_tensor"):
            return self.like.new_tensor(shaped)
        return shaped.astype(np.asarray(self.like).dtype)

    @property
    def flat(self) -> NDArray[np.int64]:
        """The ids of the record, shape ``(size,)``."""
        return np.asarray(self.like, dtype=np.int64).ravel()

    def repeated(self) -> Iterator[Any]:
        """Yield features that repeat one token.

        Yields:
            Features for each of the first ``MAX_TOKENS`` known ids.
        """
        for token in self.known[:MAX_TOKENS]:
            yield self.of(np.full(self.flat.size, token))

    def changed(self, flat: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Replace about a quarter of the ids, and at least one, by random known ids.

        Args:
            flat: The ids, shape ``(size,)``.
            rng: Generator of the positions and of the ids.

        Returns:
            The new ids, shape ``(size,)``.
        """
        chosen = rng.random(flat.size) < 0.25
        chosen[rng.integers(flat.size)] = True
        return np.where(chosen, rng.choice(self.known, flat.size), flat)


# The usual probes.

HUGE, LARGE = 1e4, 30.0  # factors of the features
ORDINARY = "ordinary"


@dataclass(frozen=True)
class Probe:
    """A record to add to a step.

    Attributes:
        name: What is special about it, for the report.
        record: The record ``(x, y)``.
    """

    name: str
    record: Record


def make_probes(records: Sequence[Record], given: Sequence[Record] | int | None) -> list[Probe]:
    """Build the probes: the ordinary one first, then the given or the derived ones.

    Args:
        records: Ordinary records; the last one is the ordinary probe.
        given: Records to use as probes. None to derive them from ``records``; a number to derive
            them and to use so many of the records besides, at equal distances.

    Returns:
        The probes. Derived features are scaled, zeroed or NaN if they are floats.
    """
    x, y = records[-1]
    ordinary = Probe(ORDINARY, (x, y))
    if isinstance(given, int):
        return [*_derived_probes(records, ordinary), *_spread_probes(records, given)]
    if given is not None:
        return [ordinary, *(Probe(f"given, number {i}", one) for i, one in enumerate(given))]
    return _derived_probes(records, ordinary)


def _spread_probes(records: Sequence[Record], count: int) -> list[Probe]:
    """Return records at equal distances; each of them once if more are asked for."""
    places = np.unique(np.linspace(0, len(records) - 1, max(count, 1)).round().astype(int))
    return [Probe(f"record {place}", records[place]) for place in places[:count].tolist()]


def _derived_probes(records: Sequence[Record], ordinary: Probe) -> list[Probe]:
    x, y = ordinary.record
    other = _other_label(records)
    probes = [ordinary, Probe("repeated", records[0])]
    if not has_real_features(x):
        probes.append(Probe("other label", (x, other)))
    else:
        probes += [
            Probe("huge features", (x * HUGE, other)),
            Probe("huge features of the other sign", (x * -HUGE, other)),
            Probe("large features", (x * LARGE, other)),
            Probe("zero features", (x * 0.0, other)),
            Probe("NaN features", (x * float("nan"), y)),
        ]
    if has_real_features(y):
        probes.append(Probe("huge label", (x, y * HUGE + HUGE)))
    return probes


def _other_label(records: Sequence[Record]) -> Any:
    """Return a label that differs from the last record's, if there is one; its loss is high."""
    own = np.asarray(records[-1][1])
    others = (y for _, y in records if not np.array_equal(np.asarray(y), own))
    return next(others, records[-1][1])


# A fixed step of a run that any record can be put into, to measure how it moves the noisy sum.
#
# A search measures thousands of records. It needs a step that is reached in few steps and includes
# the last record, preferably alone.

PROBE_STEP_SEEDS, LATE_SEEDS = 40, 41
MOST_SEEDS, FEW_SEEDS = 300, 20  # seeds in all; seeds in search of an earlier step than the best
FIRST_STEPS, MOST_STEPS = 3, 800  # number of early steps; steps in search of a late one
LATE_FROM, LATE_TO = 4, 12  # number of a late step: sufficient; largest


@dataclass(frozen=True)
class ProbeStep:
    """A step that includes the last record of a run.

    Attributes:
        replays: Replays of the trainer.
        base: The records beside the last one.
        seed: Seed of the run.
        step: Number of the first step that includes the last record.
        without: The run without the last record.
        included: The indices for each step, if the trainer accepts ``include``; otherwise None.
        adds_nothing: Whether the record in the last one's place is assumed to add nothing. The
            difference is then what the last record adds.
    """

    replays: TrainerReplays
    base: tuple[Record, ...]
    seed: int
    step: int
    without: ReplayedRun
    included: IncludedIndices | None
    adds_nothing: bool = False

    @property
    def cost(self) -> int:
        """Number of steps that one measurement takes."""
        return self.step + 1

    @property
    def replaces(self) -> bool:
        """Whether the run without the last record has another one in its place."""
        return self.included is None and self.without.records > len(self.base)

    @property
    def alone(self) -> bool:
        """Whether the step includes only the last record, as far as is known."""
        sampled = self.without.at(self.step)[1]
        if self.included is not None or sampled is None:
            return not self.base
        return len(sampled) == 0

    def input_directions(self) -> list[Any]:
        """Return the trainer's ``input_directions``; empty if it lists none."""
        return list(getattr(self.without.trainer, "input_directions", None) or [])

    def measure(self, name: str, record: Record) -> ReplayPair | None:
        """Measure what a record adds to the sum of this step.

        Args:
            name: Name of the record, for the report.
            record: The record, put in the last place.

        Returns:
            The step with and without the record; None if the trainer rejects the record, or if the
            steps differ in their other records.
        """
        try:
            with np.errstate(all="ignore"):
                run = self.replays.run(self.base, record, self.seed, self.included)
                pair = self.replays.pair(self.without, run, name, self.step)
        except Exception:  # a trainer may fail in any way on a record that it rejects
            return None
        if pair.joined is False or not pair.same_others:
            return None
        return replace(pair, replaces=False) if self.adds_nothing else pair


def early_probe_step(replays: TrainerReplays, ordinary: Record, seed: int) -> ProbeStep | None:
    """Find an early step that includes the last record, alone if possible.

    Args:
        replays: Replays of the trainer.
        ordinary: The record to find the step with.
        seed: Seed of the audit.

    Returns:
        One of the first ``FIRST_STEPS`` steps; None if none includes the record.
    """
    # A fixed size is a share of the records, so the batch of a small base may be empty.
    fixed = replays.claim.sampling is Sampling.FIXED_SIZE
    smallest = replays.bases()[-1 if fixed else 0]
    if replays.included:
        return included_probe_step(replays, ordinary, seed, 0, alone=True)
    found = None
    for taken, one in enumerate(derive_seeds(seed, PROBE_STEP_SEEDS, MOST_SEEDS)):
        without, run = _runs_without_and_with(replays, smallest, ordinary, one)
        for step in range(min(FIRST_STEPS, replays.claim.steps)):
            if (found is None or step < found.step) and _last_record_joins(
                replays, without, run, step
            ):
                found = ProbeStep(replays, smallest, one, step, without, None)
        if found is not None and (found.step == 0 or taken >= FEW_SEEDS):
            return found
    return found


def probe_step_beside_nan_record(
    replays: TrainerReplays, ordinary: Record, seed: int
) -> ProbeStep | None:
    """Find an early step with a NaN record in the last one's place.

    Batches of a fixed size cannot have one more record, so a record is replaced. Most trainers drop
    gradients that are not finite. If so, replacing the NaN record shows what the other record adds,
    which is at most C.

    Args:
        replays: Replays of the trainer.
        ordinary: The record whose features are made NaN.
        seed: Seed of the audit.

    Returns:
        The step; None if batches have no fixed size, or if the NaN record is not dropped.
    """
    x, label = ordinary
    if (
        replays.included
        or replays.claim.sampling is not Sampling.FIXED_SIZE
        or not has_real_features(x)
    ):
        return None
    probe_step = early_probe_step(replays, ordinary, seed)
    if probe_step is None:
        return None
    without = replays.run(probe_step.base, (x * float("nan"), label), probe_step.seed)
    try:
        finite = bool(np.isfinite(without.at(probe_step.step)[0]).all())
    except Exception:  # a trainer may fail in any way on a NaN record
        return None
    return replace(probe_step, without=without, adds_nothing=True) if finite else None


def late_probe_step(replays: TrainerReplays, ordinary: Record, seed: int) -> ProbeStep | None:
    """Find a later step that includes the last record, with weights that have been trained.

    Args:
        replays: Replays of the trainer.
        ordinary: The record to find the step with.
        seed: Seed of the audit.

    Returns:
        A step up to ``LATE_TO``; None if the claim has only one step, or if none includes the
        record.
    """
    last = min(LATE_TO, replays.claim.steps - 1)
    if last < 1:
        return None
    if replays.included:
        return included_probe_step(replays, ordinary, seed, last, alone=False)
    base, best, taken = replays.bases()[-1], None, 0
    for one in derive_seeds(seed, LATE_SEEDS, MOST_SEEDS):
        without, run = _runs_without_and_with(replays, base, ordinary, one)
        for step in range(last + 1):
            taken += 1
            if _last_record_joins(replays, without, run, step):
                if step > 0 and (best is None or step > best.step):
                    best = ProbeStep(replays, base, one, step, without, None)
                break
        if taken >= MOST_STEPS or (best is not None and best.step >= LATE_FROM):
            return best
    return best


def _runs_without_and_with(
    replays: TrainerReplays, base: tuple[Record, ...], ordinary: Record, seed: int
) -> tuple[ReplayedRun, ReplayedRun]:
    # Batches of a fixed size cannot have one more record: a record is replaced instead.
    replaced = replays.claim.sampling is Sampling.FIXED_SIZE
    without = replays.run(base, ordinary if replaced else None, seed)
    return without, replays.run(base, ordinary, seed)


def _last_record_joins(
    replays: TrainerReplays, without: ReplayedRun, run: ReplayedRun, step: int
) -> bool:
    """Return whether a step includes the last record; if not reported, whether the sums differ."""
    sampled = run.at(step)[1]
    if sampled is not None:
        return run.records - 1 in sampled
    return replays.pair(without, run, "", step).moved


def included_probe_step(
    replays: TrainerReplays, ordinary: Record, seed: int, step: int, *, alone: bool
) -> ProbeStep | None:
    """Build a step whose records are chosen by ``step(include=indices)``.

    Args:
        replays: Replays of a trainer that accepts ``include``.
        ordinary: The record in the last place.
        seed: Seed of the audit.
        step: Number of the step that includes the last record.
        alone: Whether a step of the last record alone is allowed.

    Returns:
        The step; None if the trainer fails on the same step without the last record.
    """
    (one,) = derive_seeds(seed, PROBE_STEP_SEEDS, 1)
    bases = [base for base in replays.bases() if alone or base]
    for base in bases if alone else bases[-1:]:
        without, with_last = _inclusions(len(base), step)
        try:
            run = replays.run(base, ordinary, one, without)
            run.at(step)
        except Exception:  # a trainer that does not support empty steps may fail in any way
            continue
        return ProbeStep(replays, base, one, step, run, with_last)
    return None


def _inclusions(base: int, at: int) -> tuple[IncludedIndices, IncludedIndices]:
    """Return the indices of runs without the last record, and with it at one step only."""

    def without(step: int, records: int) -> list[int]:
        return list(range(base))

    def with_last(step: int, records: int) -> list[int]:
        return [*range(base), *([records - 1] if step == at else [])]

    return without, with_last
