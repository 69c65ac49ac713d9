"""Causes of a clipping violation, told apart by steps on copies of one record.

All steps have the same noise ``z``, and the record adds ``g``. Of a correct trainer, the noisy sum
of ``n`` copies is ``S(n) = z + n g``, with a norm of ``g`` of at most the clip norm C.

- Division by the actual batch size: ``S(n) = B (z + n g) / n``, so ``n S(n)`` is affine in ``n``,
  and ``S(n)`` is not. With a floor, ``S(n)`` is affine up to the floor only.
- Clipping of the sum of several records: ``S(n)`` does not change with ``n`` once it is clipped.
- Another clip norm or update scale: ``S(n)`` is affine, and several records move it by the same
  multiple of C.
- No clipping: ``S(n)`` is affine, and records move it by different multiples of C.

These are properties of noise-free differences, so they hold up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpaudit.attacks.conformance.paired_replays import (
    IncludedIndices,
    ReplayPair,
    TrainerReplays,
    rescale_factor,
)
from dpaudit.attacks.conformance.probes import Probe
from dpaudit.attacks.conformance.trainer_protocol import Array, Record, derive_seeds

CAUSE_SEEDS, MOST_SEEDS = 70, 12
FEWEST_SIZES = 3  # sizes that show whether a function of the size is affine
AFFINE_TOLERANCE = 1e-3  # residual of an affine fit, relative to the change of the sums
SAME_TOLERANCE = 1e-3  # relative: movements of several records that are the same
LARGE_SIZES = (2, 3, 4)  # expected batch sizes: a floor of the divisor is below them

ACTUAL_BATCH_SIZE = (
    "division by the actual batch size: the step divides by the actual number of records in the "
    "batch, not by a public constant, and one more record rescales the whole noisy sum"
)
FLOORED_BATCH_SIZE = (
    "division by the actual batch size in large batches, not by a public constant: one more record "
    "rescales the whole noisy sum, with its noise"
)
CLIPPED_TOGETHER = (
    "gradients are not clipped per record: the sum of several records is clipped as a whole, and "
    "copies of a record add no more than one of them"
)


UNCLIPPED = (
    "a record's gradients are not clipped: different records move the sum by {:.4g} C and by "
    "{:.4g} C, and copies of a record add up"
)
OTHER_CLIP_NORM = (
    "records are clipped, to {:.4g} times the claimed norm: clip_norm or update_scale of the claim "
    "is not that of the trainer"
)
MUCH = 2.0  # factor between the movements of two records that are not clipped to a common norm


@dataclass(frozen=True)
class SumsOfCopies:
    """Noisy sums of the first step on copies of one record, with equal noise.

    Attributes:
        sums: The noisy sum of each number of copies, shape ``(d,)``.
        unit: The claimed clip norm.
    """

    sums: Mapping[int, Array]
    unit: float

    @property
    def usable(self) -> bool:
        """Whether there are enough sizes, and all sums are finite."""
        return len(self.sums) >= FEWEST_SIZES and all(
            np.isfinite(one).all() for one in self.sums.values()
        )

    def is_affine(self, weight: Callable[[int], float] = lambda size: 1.0) -> bool:
        """Return whether the weighted sums are affine in the number of copies."""
        sizes = np.array(sorted(self.sums), dtype=np.float64)
        rows = np.array([weight(int(size)) * self.sums[int(size)] for size in sizes])
        design = np.column_stack([np.ones_like(sizes), sizes])
        fitted = design @ np.linalg.lstsq(design, rows, rcond=None)[0]
        changes = float(np.linalg.norm(np.diff(rows, axis=0)))
        return float(np.linalg.norm(rows - fitted)) <= AFFINE_TOLERANCE * changes

    @property
    def is_constant(self) -> bool:
        """Whether further copies add much less than a clip norm, unlike the first one."""
        rows = np.array([self.sums[size] for size in sorted(self.sums)])
        return float(np.abs(np.linalg.norm(np.diff(rows, axis=0), axis=1)).max()) <= (
            SAME_TOLERANCE * self.unit
        )

    @property
    def added(self) -> Array:
        """What one more copy adds, shape ``(d,)``, where the sums are affine."""
        first, second = sorted(self.sums)[:2]
        return np.asarray((self.sums[second] - self.sums[first]) / (second - first))


def find_cause(
    replays: TrainerReplays, probes: Sequence[Probe], pairs: Sequence[ReplayPair], seed: int
) -> str:
    """Find the cause of a violation by steps on copies of a record.

    Args:
        replays: Replays of the trainer.
        probes: The usual probes.
        pairs: Their replays, at least one of which exceeds its limit.
        seed: Seed of the audit.

    Returns:
        The cause as a sentence; empty if the steps do not show one.
    """
    moved = {pair.probe: _movement(pair) for pair in pairs if pair.joined is not False}
    finite = [one for one in probes if 0 < moved.get(one.name, 0.0) < np.inf]
    if not finite:
        return ""
    worst = max(finite, key=lambda one: moved[one.name])
    small = sums_of_copies(replays, worst.record, (1, 2, 3, 4), seed)
    if small is None or not small.usable:
        return ""
    if small.is_constant:
        return "" if _is_rescaled(worst.name, pairs) else CLIPPED_TOGETHER
    if not small.is_affine():
        return ACTUAL_BATCH_SIZE if small.is_affine(float) else ""
    large = sums_of_copies(replays, worst.record, _large_sizes(replays), seed)
    if large is not None and large.usable and not large.is_affine() and large.is_affine(float):
        return FLOORED_BATCH_SIZE
    return _cause_of_single_records(small, finite, moved, replays.claim.clip_norm, pairs[0].groups)


def _cause_of_single_records(
    sums: SumsOfCopies,
    probes: Sequence[Probe],
    moved: Mapping[str, float],
    unit: float,
    groups: Mapping[str, slice],
) -> str:
    """Tell another clip norm from missing clipping, where copies add up."""
    norms = sorted((moved[one.name] for one in probes), reverse=True)
    largest, own = norms[0], float(np.linalg.norm(sums.added))
    parts = [float(np.linalg.norm(sums.added[where])) for where in groups.values()]
    if largest <= unit or abs(own - largest) > SAME_TOLERANCE * largest:
        return ""
    beyond = [one for one in norms if one > unit * (1 + SAME_TOLERANCE)]
    if min(parts) > unit and len(beyond) > 1 and beyond[-1] < largest / MUCH:
        return UNCLIPPED.format(beyond[-1] / unit, largest / unit)
    same = [one for one in norms if abs(one - largest) <= SAME_TOLERANCE * largest]
    if len(same) < FEWEST_SIZES or _groups_are_clipped(parts, unit):
        return ""
    times = largest / unit
    return "" if abs(times - round(times)) <= SAME_TOLERANCE else OTHER_CLIP_NORM.format(times)


def _is_rescaled(probe: str, pairs: Sequence[ReplayPair]) -> bool:
    """Return whether a probe multiplied the whole sum: copies may then change it no further."""
    return any(rescale_factor(pair) is not None for pair in pairs if pair.probe == probe)


def _groups_are_clipped(norms: Sequence[float], unit: float) -> bool:
    """Return whether several parameter groups have a norm of C each."""
    return sum(abs(one - unit) <= SAME_TOLERANCE * unit for one in norms) > 1


def _movement(pair: ReplayPair) -> float:
    norm = float(np.linalg.norm(pair.difference))
    return norm if np.isfinite(norm) else np.inf


# Steps on copies.


def _large_sizes(replays: TrainerReplays) -> tuple[int, ...]:
    size = len(replays.records) if replays.dataset_size is None else replays.dataset_size
    batch = max(1, round(replays.claim.sampling_rate * size))
    return tuple(times * batch for times in LARGE_SIZES)


def sums_of_copies(
    replays: TrainerReplays, record: Record, sizes: Sequence[int], seed: int
) -> SumsOfCopies | None:
    """Take first steps on copies of a record, under the same seed.

    Args:
        replays: Replays of the trainer.
        record: The record.
        sizes: Numbers of copies. A trainer that samples has about as many in its step.
        seed: Seed of the audit.

    Returns:
        The sums; None if a step fails, or if its records are not known.
    """
    take = _included_copies if replays.included else _sampled_copies
    try:
        for one in derive_seeds(seed, CAUSE_SEEDS, MOST_SEEDS):
            found = take(replays, record, sizes, one)
            if found is None or len(found) >= FEWEST_SIZES:
                break
    except Exception:  # a trainer may fail in any way on such data sets
        return None
    return None if found is None else SumsOfCopies(found, replays.claim.clip_norm)


def _included_copies(
    replays: TrainerReplays, record: Record, sizes: Sequence[int], seed: int
) -> dict[int, Array] | None:
    found, most = {}, max(sizes)
    if replays.dataset_size is not None:
        most = replays.dataset_size - (0 if replays.replaces else 1)
    for size in (one for one in sizes if one <= most):
        found[size] = replays.run((record,) * most, None, seed, _first(size)).at(0)[0]
    return found


def _first(size: int) -> IncludedIndices:
    """Return the choice of the first ``size`` records."""
    return lambda step, records: list(range(size))


def _sampled_copies(
    replays: TrainerReplays, record: Record, sizes: Sequence[int], seed: int
) -> dict[int, Array] | None:
    found = {}
    for size in sizes:
        total, sampled = replays.run((record,) * (size * replays.copies), None, seed).at(0)
        if sampled is None:
            return None
        if len(sampled):
            found[len(sampled)] = total
    return found
