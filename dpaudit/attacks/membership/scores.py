"""Scores of membership-inference attacks: one score per record; larger means member."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.arrays import BoolArray, FloatArray
from dpaudit.vocabulary.errors import InvalidArgument


@dataclass(frozen=True)
class RecordScores:
    """Scores of records, without their membership.

    Attributes:
        values: One score per record, finite, shape ``(records,)``; larger means member.

    Raises:
        InvalidArgument: If ``values`` is empty, not one-dimensional or not finite.

    Example:
        >>> scores = RecordScores(np.array([0.9, 0.1, 0.7]))
        >>> scores.split(np.array([1, 0, 0])).nonmembers
        array([0.1, 0.7])
    """

    values: FloatArray

    def __post_init__(self) -> None:
        require_finite_scores("scores", self.values)

    def __len__(self) -> int:
        return len(self.values)

    def split(self, member: NDArray[Any], ids: NDArray[Any] | None = None) -> MembershipScores:
        """Return the scores of members and of non-members.

        Args:
            member: True membership, shape ``(records,)``: 1 or true for members, 0 or false for
                non-members.
            ids: Identifier of each record, shape ``(records,)``; None if records have none.

        Returns:
            The scores of both classes, in the order of the records.

        Raises:
            InvalidArgument: If a shape differs from that of the scores, a membership is neither
                0 nor 1, an identifier occurs twice, or a class is empty.
        """
        truth = membership_mask(member, len(self))
        if ids is not None:
            require_distinct_ids(ids, len(self))
        return MembershipScores(self.values[truth], self.values[~truth])


@dataclass(frozen=True)
class MembershipScores:
    """Scores of members and of non-members; larger means member.

    Attributes:
        members: Scores of the members, finite, shape ``(members,)``.
        nonmembers: Scores of the non-members, finite, shape ``(nonmembers,)``.

    Raises:
        InvalidArgument: If an array is empty, not one-dimensional or not finite.

    Example:
        >>> len(MembershipScores(np.array([0.9]), np.array([0.1, 0.7])).nonmembers)
        2
    """

    members: FloatArray
    nonmembers: FloatArray

    def __post_init__(self) -> None:
        require_finite_scores("members", self.members)
        require_finite_scores("nonmembers", self.nonmembers)


def pool_scores(parts: list[MembershipScores]) -> MembershipScores:
    """Return the scores of several target models as one set, with one threshold for all.

    Args:
        parts: Scores of one attack on each target; at least one.

    Returns:
        All scores of members, and all scores of non-members.

    Example:
        >>> one = MembershipScores(np.array([0.9]), np.array([0.1]))
        >>> pool_scores([one, one]).members
        array([0.9, 0.9])
    """
    return MembershipScores(
        np.concatenate([part.members for part in parts]),
        np.concatenate([part.nonmembers for part in parts]),
    )


def require_finite_scores(name: str, scores: FloatArray) -> None:
    """Refuse scores that are empty, not one-dimensional or not finite.

    Args:
        name: The argument, for the message.
        scores: The scores.

    Raises:
        InvalidArgument: If ``scores`` is such an array; the message has the first bad value.
    """
    if scores.ndim != 1 or len(scores) == 0:
        given = f"scores of shape {scores.shape}"
        raise InvalidArgument(name, given, "a finite, non-empty list of scores")
    if not (good := np.isfinite(scores)).all():
        given = f"{scores[~good][0]} at index {int((~good).argmax())}"
        raise InvalidArgument(name, given, "a finite, non-empty list of scores")


def membership_mask(member: NDArray[Any], records: int) -> BoolArray:
    """Return a membership array as booleans.

    Args:
        member: Numbers or booleans, shape ``(records,)``.
        records: Number of records.

    Returns:
        True for members, shape ``(records,)``.

    Raises:
        InvalidArgument: If the shape differs, or a value is neither 0 nor 1.
    """
    if member.shape != (records,):
        allowed = f"one value for each of the {records} scores"
        raise InvalidArgument("member", f"shape {member.shape}", allowed)
    if member.dtype.kind not in "buif" or not np.isin(member, (0, 1)).all():
        raise InvalidArgument("member", np.unique(member)[:5].tolist(), "0 or 1, or -1 or 1")
    return member.astype(bool)


def require_distinct_ids(ids: NDArray[Any], records: int) -> None:
    """Refuse identifiers that are repeated or do not match the records.

    Args:
        ids: Identifiers, shape ``(records,)``.
        records: Number of records.

    Raises:
        InvalidArgument: If the shape differs, or an identifier occurs more than once.
    """
    if ids.shape != (records,):
        raise InvalidArgument("id", f"shape {ids.shape}", f"one for each of the {records} scores")
    names, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise InvalidArgument(
            "id", names[counts > 1][0].item(), "different for each record: it occurs twice"
        )
