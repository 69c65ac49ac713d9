"""Which participants reply in a round: all of them, or fewer after dropouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReplyPattern:
    """A number of replies, as a share of the participants.

    Attributes:
        name: The pattern, for the report.
        share: Share of the participants that reply; the others are lost.
        least: Smallest number of replies.
    """

    name: str
    share: float
    least: int

    def replies(self, participants: int) -> int:
        """Return the number of replies.

        Args:
            participants: Number of participants of the round.

        Returns:
            At least ``least`` and at most ``participants``.
        """
        return min(participants, max(self.least, round(self.share * participants)))

    def repliers(self, participants: Sequence[int], first: int) -> list[int]:
        """Return the participants that reply.

        Args:
            participants: The participants of the round.
            first: The participant that replies in every pattern with a reply.

        Returns:
            ``first`` and those that follow it, in ascending order.
        """
        start = list(participants).index(first)
        order = [*participants[start:], *participants[:start]]
        return sorted(order[: self.replies(len(participants))])


ALL = ReplyPattern("all participants reply", 1.0, 1)
HALF = ReplyPattern("half of the replies are lost", 0.5, 1)
ONE = ReplyPattern("all replies but one are lost", 0.0, 1)
NONE = ReplyPattern("every reply is lost", 0.0, 0)

PATTERNS = (ALL, HALF, ONE, NONE)
