"""Noise in shares: what every participant adds, what the sum of shares costs, and its tails.

The variance of one share is the wanted variance divided by the number of honest survivors. So
these alone add the whole of it. Other survivors add more, which the accounting leaves out.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.trainer.federated.secure_aggregation.discrete_gaussian import discrete_gaussians
from dpaudit.trainer.federated.secure_aggregation.encoding import UpdateEncoding
from dpaudit.trainer.federated.secure_aggregation.skellam import LARGEST_VARIANCE, skellams
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_positive
from dpaudit.vocabulary.mechanism import DistributedDiscreteGaussian, ElementaryMechanism, Skellam

ROUNDED_UP = 1 + 2.0**-30
"""Factor on a tail bound that exceeds the error of its floats."""


class NoiseShare(Protocol):
    """The noise that one participant adds to every coordinate of its input."""

    def draw(self, stream: Keystream, round_number: int, count: int) -> NDArray[np.int64]:
        """Return the share of one participant in one round.

        Args:
            stream: Keystream of the participant.
            round_number: Number of the round, from 0.
            count: Number of coordinates.

        Returns:
            Whole numbers, shape ``(count,)``.
        """

    def mechanism(self, shares: int, encoding: UpdateEncoding) -> ElementaryMechanism:
        """Return the release of a sum with this many shares of noise.

        Args:
            shares: Number of honest shares, at least 1.
            encoding: How much one update can move the sum.

        Returns:
            The mechanism for the ledger.
        """

    def log_tail(self, shares: int, reach: float) -> float:
        """Return an upper bound of ln P(S >= reach) for a sum S of shares.

        Args:
            shares: Number of shares, at least 1.
            reach: Above 0.

        Returns:
            At most 0.
        """


class GaussianShare:
    """A share of discrete Gaussian noise.

    Args:
        deviation: Standard deviation that ``honest_shares`` shares would have if they were
            continuous, in integer steps; above 0.
        honest_shares: Number of shares that add up to it; at least 1.

    Raises:
        InvalidArgument: If the deviation is not above 0 and finite.

    Example:
        >>> GaussianShare(40.0, 16).scale
        10.0
    """

    def __init__(self, deviation: float, honest_shares: int) -> None:
        require_positive("noise deviation", deviation)
        self.scale = deviation / math.sqrt(honest_shares)

    def draw(self, stream: Keystream, round_number: int, count: int) -> NDArray[np.int64]:
        """Return the share of one participant in one round; see ``NoiseShare``."""
        return discrete_gaussians(stream, Purpose.NOISE_SHARE, round_number, self.scale, count)

    def mechanism(self, shares: int, encoding: UpdateEncoding) -> ElementaryMechanism:
        """Return the release of a sum with this many shares of noise; see ``NoiseShare``."""
        return DistributedDiscreteGaussian(
            self.scale,
            shares=shares,
            l2_sensitivity=encoding.l2_sensitivity,
            l1_sensitivity=encoding.l1_sensitivity,
            dimension=encoding.length,
        )

    def log_tail(self, shares: int, reach: float) -> float:
        """Return an upper bound of ln P(S >= reach); see ``NoiseShare``.

        One share X has E exp(t X) <= exp(t^2 scale^2 / 2): completing the square leaves the sum
        of a shifted Gaussian over the integers, which is at most that of the centered one.
        """
        return -0.5 * (reach / self.scale) * (reach / self.scale) / shares / ROUNDED_UP


class SkellamShare:
    """A share of Skellam noise.

    Args:
        deviation: Standard deviation that ``honest_shares`` shares have, in integer steps;
            above 0.
        honest_shares: Number of shares that add up to it; at least 1.

    Raises:
        InvalidArgument: If the variance of a share is not above 0 and at most 2^32.

    Example:
        >>> SkellamShare(40.0, 16).variance
        100.0
    """

    def __init__(self, deviation: float, honest_shares: int) -> None:
        require_positive("noise deviation", deviation)
        self.variance = deviation * deviation / honest_shares
        if not 0 < self.variance <= LARGEST_VARIANCE:
            raise InvalidArgument(
                "clip_levels",
                f"a variance of {self.variance:.3g} steps per Skellam share",
                "so small that a share has a variance of at most 2^32 steps",
            )

    def draw(self, stream: Keystream, round_number: int, count: int) -> NDArray[np.int64]:
        """Return the share of one participant in one round; see ``NoiseShare``."""
        return skellams(
            stream,
            Purpose.NOISE_SHARE,
            Purpose.NOISE_SHARE_SUBTRAHEND,
            round_number,
            self.variance,
            count,
        )

    def mechanism(self, shares: int, encoding: UpdateEncoding) -> ElementaryMechanism:
        """Return the release of a sum with this many shares of noise; see ``NoiseShare``."""
        return Skellam(
            math.nextafter(self.variance * shares, 0),  # not above the true variance
            l1_sensitivity=encoding.l1_sensitivity,
            l2_sensitivity=encoding.l2_sensitivity,
            dimension=encoding.length,
        )

    def log_tail(self, shares: int, reach: float) -> float:
        """Return an upper bound of ln P(S >= reach); see ``NoiseShare``.

        Chernoff's bound: E exp(t S) = exp(v (cosh t - 1)), at t = asinh(reach / v).
        """
        variance = self.variance * shares
        root = math.hypot(variance, reach)
        # root - variance, without cancellation.
        exponent = reach * (reach / (root + variance)) - reach * math.asinh(reach / variance)
        return min(0.0, exponent / ROUNDED_UP)


SHARES: dict[str, type[GaussianShare] | type[SkellamShare]] = {
    "discrete-gaussian": GaussianShare,
    "skellam": SkellamShare,
}
"""The share of each distribution of ``vocabulary.federation.NOISE_SHARES``."""


def wrap_around_probability(
    share: NoiseShare, encoding: UpdateEncoding, *, modulus_bits: int, participants: int
) -> float:
    """Return an upper bound of the probability that a sum wraps around the modulus.

    All participants contribute their largest entry with one sign, and all add noise. The bound
    is on any coordinate leaving (-2^(k-1), 2^(k-1)), by the union over coordinates and signs.

    Args:
        share: Noise of one participant.
        encoding: How updates become integers.
        modulus_bits: The k of the modulus 2^k.
        participants: Number of participants.

    Returns:
        In [1e-300, 1].

    Raises:
        InvalidArgument: If the updates alone can wrap around.
    """
    reach = 2 ** (modulus_bits - 1) - participants * encoding.largest_entry
    if reach <= 0:
        raise InvalidArgument(
            "modulus_bits",
            modulus_bits,
            f"at least {(participants * encoding.largest_entry).bit_length() + 1}: "
            f"{participants} updates of {encoding.levels} levels wrap around",
        )
    # Sums of fewer shares have smaller tails.
    logarithm = math.log(2 * encoding.length) + share.log_tail(participants, reach)
    return min(1.0, max(math.exp(min(logarithm, 0.0)) * ROUNDED_UP, 1e-300))
