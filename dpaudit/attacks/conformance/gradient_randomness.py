"""Find out whether the records of a step share random numbers that a replay does not reproduce.

Dropout and augmentation draw by a record's place in the batch. One record more then changes
what all others add, and the difference of two steps says nothing of that record. These
properties show it, and none depends on whether records are clipped:

- a record that does not join a step moves its sum, by exactly as much whatever the record is;
- two records that change places change the sum. A sum over records, however it is clipped,
  does not depend on their order where a step has just two;
- what a probe adds depends on which records the step has beside it. Alone this may also be
  a fault (records that are clipped together); with the second property it is no evidence.

Random numbers by a record's index have the second property and not the third: they replay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dpaudit.attacks.conformance.blame import rescaled
from dpaudit.attacks.conformance.pairs import Course, Named, Pair, Replays
from dpaudit.attacks.conformance.rounding import slack
from dpaudit.attacks.conformance.trainers import Record, seeds

SWAP_SEEDS, ADDITION_SEEDS, SIZE_SEEDS = 30, 31, 32
MOST_RECORDS = 2000
ADDITIONS = 3  # steps, most of different size, in which a probe must add the same
MOST_SWAP_SEEDS, MOST_ADDITION_SEEDS = 60, 200
OTHER_GENERATORS = 1 << 20  # added to a seed: the global generators of a second replay

REMEDY = (
    "put dropout layers into eval mode, or draw each record's random numbers from a generator of "
    "its own, seeded by the seed, the step and the record's index"
)
ORDER_MATTERS = (
    "the gradients depend on random numbers that a replay does not reproduce (dropout, "
    "augmentation): two records that change places change the sum. Only steps that one record "
    f"takes alone are compared. To have the others compared, {REMEDY}"
)
SIZE_MATTERS = (
    "one record more changes the sum of a step that it does not join, by as much whatever the "
    "record is: the other records' random numbers (dropout, augmentation) depend on how many "
    f"there are. Only steps that one record takes alone are compared. To have the others "
    f"compared, {REMEDY}"
)
GENERATORS_MATTER = (
    "the step draws from the global generators of Python, NumPy or torch, and does not say which "
    "records it takes: only steps of a single record are compared. Let the trainer say it by "
    f"sampled, or {REMEDY}"
)


@dataclass(frozen=True)
class Randomness:
    """Whether steps of several records can be compared.

    Attributes:
        why: Why they cannot be; empty: nothing says so, or it is only suspected.
        suspected: Why they could not be, if one of them moved further than it may: two records
            that change places change the sum, but in the steps that were tried one record
            more changed no other.
    """

    why: str = ""
    suspected: str = ""


def gradient_randomness(replays: Replays, seed: int) -> Randomness:
    """Return whether random numbers of the gradients make steps of several records differ."""
    first, other = _two_records(replays)
    if first is None or other is None:
        return Randomness()
    if _size_matters(replays, first, other, seed):
        return Randomness(SIZE_MATTERS)
    swapped = _swap(replays, first, other, seed)
    if swapped is None:
        return Randomness(GENERATORS_MATTER if _draws_globally(replays, seed) else "")
    if not swapped:
        return Randomness()
    if _adds_the_same(replays, first, other, seed):
        return Randomness(suspected=ORDER_MATTERS)
    return Randomness(ORDER_MATTERS)


def _two_records(replays: Replays) -> tuple[Record | None, Record | None]:
    first = replays.records[0]
    others = (one for one in replays.records[1:] if not _same(one, first))
    return first, next(others, None)


def _same(one: Record, other: Record) -> bool:
    return np.array_equal(np.asarray(one[0]), np.asarray(other[0]), equal_nan=False)


def _size_matters(replays: Replays, first: Record, other: Record, seed: int) -> bool:
    """Return whether a record moves a step that it does not join, by as much whatever it is.

    A factor on the whole sum is no randomness, but a fault: the replays of probes show it.
    """
    size = 1 if replays.included else _enough(replays) - 1
    base = [first] * size
    for one in seeds(seed, SIZE_SEEDS, MOST_SWAP_SEEDS):
        fewer = replays.course(base, first if replays.replaces else None, one, _without_last)
        more = [replays.course(base, last, one, _without_last) for last in (first, other)]
        pair = replays.pair(fewer, more[0], "", 0)
        if not replays.included:
            if pair.sampled is None:
                return False
            if pair.joined or not pair.same_others or not pair.others:
                continue
        same = np.array_equal(more[0].at(0)[0], more[1].at(0)[0])
        return pair.moved and same and rescaled(pair) is None
    return False


def _without_last(step: int, records: int) -> list[int]:
    return [0]


def _swap(replays: Replays, first: Record, other: Record, seed: int) -> bool | None:
    """Return whether two records that change places change the sum; None: not known.

    In a step that just two records join: then no grouping of records sets them apart.
    """
    if replays.included:
        pair: Named = lambda step, records: [0, 1]  # noqa: E731
        runs = [replays.course(both, None, seed, pair) for both in ((first, other), (other, first))]
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
            layouts.append(replays.course(data, None, one))
        return _differ(replays, *layouts)
    return None


def _joins(replays: Replays, seed: int) -> Iterator[tuple[int, int, list[int] | None]]:
    """Yield seeds, numbers of records, and who joins the first step of them."""
    size = _enough(replays)
    for one in seeds(seed, SWAP_SEEDS, MOST_SWAP_SEEDS):
        sampled = replays.course([replays.records[0]] * size, None, one).at(0)[1]
        yield one, size, None if sampled is None else sampled.tolist()
        if sampled is None:
            return


def _enough(replays: Replays) -> int:
    """Return how many records there must be for about two of them to join a step."""
    most = min(MOST_RECORDS, math.ceil(2 / replays.claim.sampling_rate))
    return replays.dataset_size or max(2, most)


def _adds_the_same(replays: Replays, first: Record, other: Record, seed: int) -> bool:
    """Return whether a probe moves a step by the same, whichever records it has beside it."""
    probe = replays.records[-1]
    size = 1 if replays.included else _enough(replays) - 1
    compared = 0
    for one in seeds(seed, ADDITION_SEEDS, MOST_ADDITION_SEEDS):
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


def _change(replays: Replays, base: list[Record], probe: Record, seed: int) -> Pair | None:
    """Return the first step with a probe and without it; None: it did not join others."""
    with_probe = replays.course(base, probe, seed)
    if not replays.included:
        sampled = with_probe.at(0)[1]
        if sampled is None or len(base) not in sampled or len(sampled) < 2:
            return None
    if replays.replaces:  # another record stands in its place: the same one in both changes
        return replays.pair(replays.course(base, replays.records[0], seed), with_probe, "", 0)
    return replays.pair(replays.course(base, None, seed), with_probe, "", 0)


def _draws_globally(replays: Replays, seed: int) -> bool:
    """Return whether a step is another one under other states of the global generators."""
    base = replays.records[:2]
    once = replays.course(base, None, seed)
    again = replays.course(base, None, seed, salt=OTHER_GENERATORS)
    return _differ(replays, once, again)


def _differ(replays: Replays, one: Course, other: Course) -> bool:
    (a, _), (b, _) = one.at(0), other.at(0)
    room = slack(a, b, 2, replays.claim.clip_norm, replays.claim.update_scale)
    return not float(np.linalg.norm(a - b)) <= room
