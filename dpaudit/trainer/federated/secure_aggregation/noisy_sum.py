"""One noisy secure sum: what a participant contributes, and what the release costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.federated.secure_aggregation.encoding import UpdateEncoding
from dpaudit.trainer.federated.secure_aggregation.messages import SecureSumParameters
from dpaudit.trainer.federated.secure_aggregation.noise_shares import (
    SHARES,
    NoiseShare,
    wrap_around_probability,
)
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument, require_positive
from dpaudit.vocabulary.federation import SecureAggregationSettings, ThreatModel
from dpaudit.vocabulary.ledger import UPDATE_SUM, UPDATE_SUM_AND_COUNT, WRAP_AROUND
from dpaudit.vocabulary.mechanism import ApproximateDP, Composed, ElementaryMechanism


@dataclass(frozen=True)
class NoisySum:
    """A sum of clipped updates with noise in shares, over secure aggregation.

    Attributes:
        settings: Dropouts, colluders, noise and modulus.
        participants: Public number of participants; at least 1.
        dimension: Number of coordinates of an update; at least 1.
        clip_norm: Largest L2 norm of an update; above 0.
        noise_multiplier: Standard deviation of the honest survivors' noise on the sum, over the
            clip norm; above 0. Rounding enlarges the sensitivity, so epsilon is slightly larger
            than that of a Gaussian mechanism with this multiplier.
        count_noise: Standard deviation of the honest survivors' noise on the count of updates
            within the clip norm, in participants; None: nothing is counted.

    Raises:
        InvalidArgument: If a value is out of its range, there may be no honest survivor, or a
            wrap-around cannot be excluded.

    Example:
        >>> settings = SecureAggregationSettings(dropouts=2, colluders=1)
        >>> release = NoisySum(settings, 10, 1000, clip_norm=1.0, noise_multiplier=2.0)
        >>> release.threat_model.honest_shares, release.wrap_around_probability
        (7, 1e-300)
        >>> [name for name, mechanism in release.releases]
        ['update sum', 'wrap-around of the update sum']
    """

    settings: SecureAggregationSettings
    participants: int
    dimension: int
    clip_norm: float
    noise_multiplier: float
    count_noise: float | None = None

    def __post_init__(self) -> None:
        if self.count_noise is not None:
            require_positive("count_noise", self.count_noise)
        if not self.wrap_around_probability < 1:
            raise InvalidArgument(
                "modulus_bits",
                self.settings.modulus_bits,
                "larger: the sum with its noise is not bounded by the modulus",
            )

    @cached_property
    def threat_model(self) -> ThreatModel:
        """The parties that the guarantee holds against."""
        return ThreatModel.of(self.settings, self.participants)

    @cached_property
    def encoding(self) -> UpdateEncoding:
        """How an update becomes an integer vector."""
        return UpdateEncoding(
            self.clip_norm,
            self.settings.clip_levels,
            self.dimension,
            self.settings.rounding_failure,
            self.count_steps,
        )

    @property
    def count_steps(self) -> int:
        """Integer steps of half a participant in the count; 0: nothing is counted.

        All coordinates have noise of one deviation in steps. Rounded up to a whole number, so
        the noise of the count is at most ``count_noise``; the accounting uses the whole number.
        """
        if self.count_noise is None:
            return 0
        deviation = self.noise_multiplier * self.settings.clip_levels
        return max(1, math.ceil(deviation / (2 * self.count_noise)))

    @cached_property
    def share(self) -> NoiseShare:
        """The noise of one participant."""
        deviation = self.noise_multiplier * self.settings.clip_levels
        return SHARES[self.settings.noise](deviation, self.threat_model.honest_shares)

    @property
    def deviation(self) -> float:
        """Standard deviation of the honest survivors' noise, in units of the update."""
        return self.noise_multiplier * self.clip_norm

    @cached_property
    def wrap_around_probability(self) -> float:
        """Upper bound of the probability that one sum leaves the range of the modulus."""
        return wrap_around_probability(
            self.share,
            self.encoding,
            modulus_bits=self.settings.modulus_bits,
            participants=self.participants,
        )

    @property
    def releases(self) -> tuple[tuple[str, ElementaryMechanism], ...]:
        """The releases of one round, by the names that the ledger records.

        The noisy sum with the noise of the honest survivors alone; then the probability of a
        wrap-around, as delta. A reduction modulo 2^k is post-processing, so a wrap-around costs
        accuracy. It is charged all the same: the claim then covers every decoder, also one that
        detects it.
        """
        noise = self.share.mechanism(self.threat_model.honest_shares, self.encoding)
        what = UPDATE_SUM if self.count_noise is None else UPDATE_SUM_AND_COUNT
        return (
            (what, noise),
            (WRAP_AROUND, ApproximateDP(0.0, self.wrap_around_probability)),
        )

    @property
    def released_mechanism(self) -> Composed:
        """All releases of one round as one mechanism."""
        return Composed(tuple(mechanism for _, mechanism in self.releases))

    def parameters(self, session: bytes) -> SecureSumParameters:
        """Return what participants and server of the protocol agree on.

        Args:
            session: Public identifier of the run, 32 bytes.

        Returns:
            The parameters.
        """
        return SecureSumParameters(
            participants=self.participants,
            threshold=self.threat_model.threshold,
            modulus_bits=self.settings.modulus_bits,
            dimension=self.encoding.length,
            session=session,
        )

    def contribution(
        self, update: NDArray[np.floating[Any]], stream: Keystream, round_number: int
    ) -> NDArray[np.int64]:
        """Return what one participant puts into the secure sum: its encoded update plus noise.

        Args:
            update: Shape ``(dimension,)``, finite.
            stream: Keystream of the participant.
            round_number: Number of the round, from 0.

        Returns:
            Whole numbers, shape ``(dimension,)``, or one more with a count.

        Raises:
            InvalidArgument: If the update has another shape or holds NaN or infinity.
        """
        encoded = self.encoding.encode(update, stream, round_number)
        return encoded + self.share.draw(stream, round_number, self.encoding.length)

    def decode(self, total: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the unmasked sum in units of the update.

        Args:
            total: Shape ``(dimension,)``, or one more with a count.

        Returns:
            Shape ``(dimension,)``.
        """
        return self.encoding.decode(total)

    def decode_count(self, total: NDArray[np.int64]) -> float | None:
        """Return the noisy centered count of updates within the clip norm.

        Args:
            total: The unmasked sum.

        Returns:
            In participants; None if nothing is counted.
        """
        return self.encoding.decode_count(total)
