"""Evaluation of scores on parts of the records, such as one class or one group of persons.

An average over all records hides a group that leaks more. With k slices, each interval is
computed at confidence 1 - (1 - c)/k. So all intervals of one rate hold together at confidence c
(Bonferroni), and the slice with the largest rate may be picked after the scores are read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.attacks.membership.evaluation import INDEPENDENT_RECORDS, measure
from dpaudit.attacks.membership.scores import MembershipScores, RecordScores, membership_mask
from dpaudit.vocabulary.audit import MembershipResult
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit

MAX_SLICES = 200


def evaluate_slices(
    attack: str,
    scores: RecordScores,
    member: NDArray[Any],
    values: ArrayLike,
    *,
    confidence: float,
    assumes: str = INDEPENDENT_RECORDS,
) -> dict[str, MembershipResult]:
    """Compute how well scores distinguish members from non-members, in each slice by itself.

    Args:
        attack: Name of the attack, for the results.
        scores: One score per record.
        member: True membership, shape ``(records,)``: 1 or true for members.
        values: Value of each record, shape ``(records,)``; records of one value are a slice.
        confidence: Probability with which the intervals of one rate hold in all slices.
        assumes: The assumptions of the intervals, as text.

    Returns:
        The result of each slice that has members and non-members, under its value as text, in
        the order of the values.

    Raises:
        InvalidArgument: If shapes differ, there are more than ``MAX_SLICES`` values, no slice
            has members and non-members, or ``confidence`` is out of range.

    Example:
        >>> scores = RecordScores(np.arange(8.0))
        >>> member = np.array([0, 1] * 4)
        >>> found = evaluate_slices("loss", scores, member, list("aabbaabb"), confidence=0.9)
        >>> {value: result.auc for value, result in found.items()}
        {'a': 0.75, 'b': 0.75}
    """
    require_open_unit("confidence", confidence)
    truth = membership_mask(np.asarray(member), len(scores))
    names, place = slice_values(values, len(scores))
    parts = {
        name: _of_slice(scores.values, truth, place == number) for number, name in enumerate(names)
    }
    usable = {name: part for name, part in parts.items() if part is not None}
    if not usable:
        raise InvalidArgument("by", names[:5], "values that members and non-members share")
    each = 1 - (1 - confidence) / len(usable)
    return {
        name: measure(attack, part, confidence=each, assumes=assumes)
        for name, part in usable.items()
    }


def slice_values(values: ArrayLike, records: int) -> tuple[list[str], NDArray[np.int64]]:
    """Return the different values as text, and the place of each record's value among them.

    Args:
        values: Value of each record; numbers are ordered as numbers, others as text.
        records: Number of records.

    Returns:
        Names in order, and one index per record, shape ``(records,)``.

    Raises:
        InvalidArgument: If the numbers differ, or there are more than ``MAX_SLICES`` values.
    """
    given = np.asarray(values)
    if given.shape != (records,):
        raise InvalidArgument("by", f"shape {given.shape}", f"one value for each of {records}")
    if given.dtype.kind not in "buif":
        given = given.astype(str)
    different, place = np.unique(given, return_inverse=True)
    if len(different) > MAX_SLICES:
        allowed = f"a column of at most {MAX_SLICES} different values: cut them into groups"
        raise InvalidArgument("by", f"{len(different)} values", allowed)
    return [str(value) for value in different.tolist()], place


def _of_slice(
    scores: NDArray[np.float64], member: NDArray[np.bool_], which: NDArray[np.bool_]
) -> MembershipScores | None:
    """Return the scores of one slice; None if it has no members or no non-members."""
    inside, outside = scores[which & member], scores[which & ~member]
    return MembershipScores(inside, outside) if min(len(inside), len(outside)) else None
