"""Detection of gradients with random numbers that a replay does not reproduce.

Dropout and augmentation draw random numbers by a record's position in the batch. One more record
then changes the gradients of all others, and the difference of two steps does not show what that
record adds. Three properties reveal it. None of them depends on whether records are clipped:

1. A record that a step does not include changes its sum, by the same amount for any record.
2. Two records that exchange places change the sum. Without such random numbers, the sum of a step
   with two records does not depend on their order, however it is clipped.
3. What a probe adds depends on the other records of the step. By itself this may also be a fault
   (records that are clipped together); together with the second property it is not evidence.

Random numbers that depend on a record's index have the second property, but not the third. Such
steps can be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dpaudit.attacks.conformance.paired_replays import (
    IncludedIndices,
    ReplayedRun,
    ReplayPair,
    TrainerReplays,
    rescale_factor,
    rounding_slack,
)
from dpaudit.attacks.conformance.trainer_protocol import Record, derive_seeds

SWAP_SEEDS, ADDITION_SEEDS, SIZE_SEEDS = 30, 31, 32
MOST_RECORDS = 2000
ADDITIONS = 3  # steps in which a probe must add the same, beside different records
MOST_SWAP_SEEDS, MOST_ADDITION_SEEDS = 60, 200
SECOND_GENERATOR_OFFSET = 1 << 20  # added to a seed: the global generators of a second replay

REMEDY = (
    "put dropout layers into eval mode, or seed a separate generator for each record's random "
    "numbers from the seed, the step and the record's index"
)
ORDER_MATTERS = (
    "the gradients depend on random numbers that a replay does not reproduce (dropout, "
    "augmentation): exchanging two records changes the sum. Only steps of a single record are "
    f"compared. To compare other steps, {REMEDY}"
)
SIZE_MATTERS = (
    "a record changes the sum of a step that does not include it, by the same amount for any "
    "record: the other records' random numbers (dropout, augmentation) depend on the number of "
    f"records. Only steps of a single record are compared. To compare other steps, {REMEDY}"
)
GENERATORS_MATTER = (
    "the step draws from the global generators of Python, NumPy or torch, and the trainer does not "
    "report its records: only steps of a single record are compared. Add the attribute sampled to "
    f"the trainer, or {REMEDY}"
)


@dataclass(frozen=True)
class GradientRandomness:
    """Whether steps of several records can be compared.

    Attributes:
        why: Why they cannot; empty if there is no reason, or only a suspicion.
        suspected: Why they could not, if such a step exceeds the limit. Exchanging two records
            changed the sum, but in the tried steps the probe always added the same.
    """

    why: str = ""
    suspected: str = ""


def find_gradient_randomness(replays: TrainerReplays, seed: int) -> GradientRandomness:
    """Test whether random numbers in the gradients make steps of several records incomparable.

    Args:
        replays: Replays of the trainer, with at least one record.
        seed: Seed of the audit.

    Returns:
        The result; empty if the trainer's records are all the same, since nothing can be tested.
    """
    first, other = _two_records(replays)
    if first is None or other is None:
        return GradientRandomness()
    if _size_matters(replays, first, other, seed):
        return GradientRandomness(SIZE_MATTERS)
    swapped = _swap(replays, first, other, seed)
    if swapped is None:
        return GradientRandomness(GENERATORS_MATTER if _draws_globally(replays, seed) else "")
    if not swapped:
        return GradientRandomness()
    if _adds_the_same(replays, first, other, seed):
        return GradientRandomness(suspected=ORDER_MATTERS)
    return GradientRandomness(ORDER_MATTERS)


def _two_records(replays: TrainerReplays) -> tuple[Record | None, Record | None]:
    first = replays.records[0]
    others = (one for one in replays.records[1:] if not _same(one, first))
    return first, next(others, None)


def _same(one: Record, other: Record) -> bool:
    return np.array_equal(np.asarray(one[0]), np.asarray(other[0]), equal_nan=False)


def _size_matters(replays: TrainerReplays, first: Record, other: Record, seed: int) -> bool:
    """Return whether a record moves a step without it, by the same amount for any record.

    A factor on the whole sum is not randomness but a fault, which the replays of probes report.
    """
    size = 1 if replays.included else _enough(replays) - 1
    base = [first] * size
    for one in derive_seeds(seed, SIZE_SEEDS, MOST_SWAP_SEEDS):
        fewer = replays.run(base, first if replays.replaces else None, one, _without_last)
        more = [replays.run(base, last, one, _without_last) for last in (first, other)]
        pair = replays.pair(fewer, more[0], "", 0)
        if not replays.included:
            if pair.sampled is None:
                return False
            if pair.joined or not pair.same_others or not pair.others:
                continue
        same = np.array_equal(more[0].at(0)[0], more[1].at(0)[0])
        return pair.moved and same and rescale_factor(pair) is None
    return False


def _without_last(step: int, records: int) -> list[int]:
    return [0]


def _swap(replays: TrainerReplays, first: Record, other: Record, seed: int) -> bool | None:
    """Return whether exchanging two records changes the sum; None if not known.

    Only a step of exactly two records is used: no grouping of records can then treat them
    differently.
    """
    if replays.included:
        pair: IncludedIndices = lambda step, records: [0, 1]  # noqa: E731
        runs = [replays.run(both, None, seed, pair) for both in ((first, other), (other, first))]
        return _differ(replays, *runs)
    for one, size, joined in _joins(replays, seed):
        if joined is None:
            return None
        if len(joined) != 2 or joined[0] == joined[1]:
            continue
        layouts = []
        for both in ((first, other), (other, first)):
            data = [first] * size
            data[joined[0]], data[joined[1]] = both
            layouts.append(replays.run(data, None, one))
        return _differ(replays, *layouts)
    return None


def _joins(replays: TrainerReplays, seed: int) -> Iterator[tuple[int, int, list[int] | None]]:
    """Yield seeds, numbers of records, and the indices of the first step's records."""
    size = _enough(replays)
    for one in derive_seeds(seed, SWAP_SEEDS, MOST_SWAP_SEEDS):
        sampled = replays.run([replays.records[0]] * size, None, one).at(0)[1]
        yield one, size, None if sampled is None else sampled.tolist()
        if sampled is None:
            return


def _enough(replays: TrainerReplays) -> int:
    """Return the number of records of which a step includes about two."""
    most = min(MOST_RECORDS, math.ceil(2 / replays.claim.sampling_rate))
    return replays.dataset_size or max(2, most)


def _adds_the_same(replays: TrainerReplays, first: Record, other: Record, seed: int) -> bool:
    """Return whether a probe moves a step by the same amount beside different records."""
    probe = replays.records[-1]
    size = 1 if replays.included else _enough(replays) - 1
    compared = 0
    for one in derive_seeds(seed, ADDITION_SEEDS, MOST_ADDITION_SEEDS):
        changes = [_change(replays, [beside] * size, probe, one) for beside in (first, other)]
        if None in changes:
            continue
        found = [change for change in changes if change is not None]
        apart = float(np.linalg.norm(found[0].difference - found[1].difference))
        if not apart <= found[0].slack + found[1].slack:
            return False
        compared += 1
        if compared == ADDITIONS:
            return True
    return False


def _change(
    replays: TrainerReplays, base: list[Record], probe: Record, seed: int
) -> ReplayPair | None:
    """Return the first step with and without a probe; None if it has no other records."""
    with_probe = replays.run(base, probe, seed)
    if not replays.included:
        sampled = with_probe.at(0)[1]
        if sampled is None or len(base) not in sampled or len(sampled) < 2:
            return None
    if replays.replaces:  # the probe replaces the same record in both changes
        return replays.pair(replays.run(base, replays.records[0], seed), with_probe, "", 0)
    return replays.pair(replays.run(base, None, seed), with_probe, "", 0)


def _draws_globally(replays: TrainerReplays, seed: int) -> bool:
    """Return whether a step changes with the states of the global generators."""
    base = replays.records[:2]
    once = replays.run(base, None, seed)
    again = replays.run(base, None, seed, salt=SECOND_GENERATOR_OFFSET)
    return _differ(replays, once, again)


def _differ(replays: TrainerReplays, one: ReplayedRun, other: ReplayedRun) -> bool:
    (a, _), (b, _) = one.at(0), other.at(0)
    room = rounding_slack(a, b, 2, replays.claim.clip_norm, replays.claim.scale)
    return not float(np.linalg.norm(a - b)) <= room
