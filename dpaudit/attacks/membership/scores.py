"""What every attack returns: one score a record, and larger always means member."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import InvalidArgument

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RecordScores:
    """Scores of records whose membership is not known here, shape ``(records,)``, finite."""

    values: Array

    def __post_init__(self) -> None:
        require_scores("scores", self.values)

    def __len__(self) -> int:
        return len(self.values)

    def split(self, member: NDArray[Any], ids: NDArray[Any] | None = None) -> MembershipScores:
        """Return the scores by what is true of each record.

        Args:
            member: 1 or true for members, 0 or false for non-members; shape ``(records,)``.
            ids: One name a record; None where nobody named them.

        Raises:
            InvalidArgument: scores without a membership or the other way round, a membership
                other than 0 and 1, a record twice, or no members, or no non-members.
        """
        truth = membership(member, len(self))
        if ids is not None:
            require_distinct(ids, len(self))
        return MembershipScores(self.values[truth], self.values[~truth])


@dataclass(frozen=True)
class MembershipScores:
    """Scores of members and of non-members, each shape ``(records,)``, finite."""

    members: Array
    nonmembers: Array

    def __post_init__(self) -> None:
        require_scores("members", self.members)
        require_scores("nonmembers", self.nonmembers)


def pooled(parts: list[MembershipScores]) -> MembershipScores:
    """Return the scores of several attacked models together, under one threshold for all."""
    return MembershipScores(
        np.concatenate([part.members for part in parts]),
        np.concatenate([part.nonmembers for part in parts]),
    )


def require_scores(name: str, scores: Array) -> None:
    """Refuse anything but a finite, non-empty list."""
    if scores.ndim != 1 or len(scores) == 0:
        given = f"scores of shape {scores.shape}"
        raise InvalidArgument(name, given, "a finite, non-empty list of scores")
    if not (good := np.isfinite(scores)).all():
        given = f"{scores[~good][0]} at place {int((~good).argmax())}"
        raise InvalidArgument(name, given, "a finite, non-empty list of scores")


def membership(member: NDArray[Any], records: int) -> NDArray[np.bool_]:
    """Return ``member`` as booleans; refuse what pairs with no record, or is not 0 or 1."""
    if member.shape != (records,):
        allowed = f"one value for each of the {records} scores"
        raise InvalidArgument("member", f"shape {member.shape}", allowed)
    if member.dtype.kind not in "buif" or not np.isin(member, (0, 1)).all():
        raise InvalidArgument("member", np.unique(member)[:5].tolist(), "0 or 1")
    return member.astype(bool)


def require_distinct(ids: NDArray[Any], records: int) -> None:
    """Refuse names that do not pair with the records, or come twice."""
    if ids.shape != (records,):
        raise InvalidArgument("id", f"shape {ids.shape}", f"one for each of the {records} scores")
    names, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise InvalidArgument(
            "id", names[counts > 1][0].item(), "of one record each: it comes twice"
        )
