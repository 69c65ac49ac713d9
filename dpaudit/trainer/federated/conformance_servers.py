"""Servers and clients of our strategies as subjects of the conformance tests.

They do exactly what a federation does: the same aggregation, local training and keystreams. Only
the key comes from a seed, and releases are recorded in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.federated.aggregation import (
    AggregateResult,
    ParticipantAggregation,
    ParticipantClipping,
)
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.mechanism import Release

Arrays = Mapping[str, NDArray[Any]]

__all__ = ["AdaptiveAggregationServer", "AggregationServer", "AggregationServerFactory"]


@dataclass(frozen=True)
class AggregationServerFactory:
    """Makes servers of ``ParticipantAggregation`` from a seed.

    Attributes:
        settings: Clip norm, noise, participation and adaptive clipping.
        reference: The model's parameters, by name; their shapes count.

    Example:
        >>> settings = ParticipantClipping(0.5, 1.0, participation_rate=0.1, participants=20)
        >>> factory = AggregationServerFactory(settings, {"w": np.zeros(3, np.float32)})
        >>> factory.claim(rounds=5).update_scale
        0.5
        >>> factory(7).aggregate({}, expected=[])["w"].shape
        (3,)
    """

    settings: ParticipantClipping
    reference: Arrays

    def claim(self, rounds: int) -> StepClaim:
        """Return the claim on each round of these servers.

        With adaptive clipping, the claim is that on the sum: its noise is larger than that of the
        whole round, which has a noisy count beside it.

        Args:
            rounds: Number of rounds.

        Returns:
            The claim on what ``aggregate`` returns, the average.
        """
        settings = self.settings
        return StepClaim(
            noise_multiplier=settings.sum_multiplier,
            clip_norm=settings.clip_norm,
            sampling_rate=settings.participation_rate,
            steps=rounds,
            update_scale=1 / settings.denominator,
        )

    def __call__(self, seed: int) -> AggregationServer:
        """Return a server before its first round.

        Args:
            seed: Seed of the participants' coins and of the noise.

        Returns:
            The server.
        """
        kind = AggregationServer if self.settings.adaptive is None else AdaptiveAggregationServer
        return kind(self.settings, self.reference, Keystream.seeded(seed))


class AggregationServer:
    """A server of ``ParticipantAggregation`` in the form of the conformance tests.

    Args:
        settings: The settings of the next round.
        reference: The model's parameters, by name.
        stream: Keystream of coins and noise.
        next_round: Number of the next round.
        recorded: The releases so far, by round.

    Attributes:
        participants: Public number of participants.
        reference: An array of float32 for each parameter.
        rejected: Why updates of the last round were rejected, by participant.
        recorded: The releases so far, by round.

    Example:
        >>> settings = ParticipantClipping(0.5, 1.0, participation_rate=1.0, participants=2)
        >>> server = AggregationServer(settings, {"w": np.zeros(3)}, Keystream.seeded(7))
        >>> server.draw()
        [0, 1]
        >>> server.aggregate({0: {"w": np.zeros(2, np.float32)}}, [0, 1])["w"].dtype.name
        'float32'
        >>> server.rejected, server.releases
        ({0: 'w has shape (2,), not (3,)'}, 1)
    """

    def __init__(
        self,
        settings: ParticipantClipping,
        reference: Arrays,
        stream: Keystream,
        *,
        next_round: int = 0,
        recorded: Mapping[int, Release] | None = None,
    ) -> None:
        self.participants = settings.participants
        self.reference = {name: np.zeros(p.shape, np.float32) for name, p in reference.items()}
        self.rejected: dict[int, str] = {}
        self.recorded: dict[int, Release] = dict(recorded or {})
        self._stream, self._number = stream, next_round
        self._result: AggregateResult | None = None
        self._aggregation = ParticipantAggregation(
            settings, self.reference, stream, self._record, first_round=next_round
        )

    @property
    def clip_norm(self) -> float:
        """The public clip norm of the next round."""
        return self._aggregation.settings.clip_norm

    @property
    def releases(self) -> int:
        """Number of recorded releases."""
        return len(self.recorded)

    def draw(self) -> list[int]:
        """Return the participants of the next round, by their coins."""
        return [int(one) for one in self._aggregation.draw_participants(self._number)]

    def aggregate(self, updates: Mapping[int, Arrays], expected: Sequence[int]) -> Arrays:
        """Release the next round.

        Args:
            updates: The updates of the participants that replied, by number.
            expected: All participants of the round.

        Returns:
            The average by parameter: the noisy sum over the public denominator.
        """
        result = self._aggregation.aggregate(self._number, updates, expected)
        self._number += 1
        self.rejected = result.rejected
        self._result = result
        return result.average

    def resumed(self) -> AggregationServer:
        """Return the server as it continues after a restart in the present round."""
        return type(self)(
            self._aggregation.settings,
            self.reference,
            self._stream,
            next_round=self._number,
            recorded=self.recorded,
        )

    def _record(self, what: str, release: Release, number: int) -> None:
        """Record a release before its noise is drawn."""
        del what
        self.recorded[number] = release


class AdaptiveAggregationServer(AggregationServer):
    """A server with adaptive clipping, which also shows its noisy count.

    Example:
        >>> from dpaudit.trainer.federated.aggregation import AdaptiveClipping
        >>> adaptive = AdaptiveClipping(count_noise=2.0)
        >>> settings = ParticipantClipping(0.5, 1.0, 1.0, participants=2, adaptive=adaptive)
        >>> AdaptiveAggregationServer(settings, {"w": np.zeros(3)}, Keystream.seeded(7)).count_noise
        2.0
    """

    @property
    def count_noise(self) -> float:
        """Accounted standard deviation of the noise of the count, in participants."""
        adaptive = self._aggregation.settings.adaptive
        return 0.0 if adaptive is None else adaptive.count_noise

    @property
    def noisy_count(self) -> float:
        """The last round's noisy count within the clip norm, minus half of the updates."""
        share = None if self._result is None else self._result.noisy_share
        return ((0.5 if share is None else share) - 0.5) * self._aggregation.settings.denominator
