"""Settings of DP-FedAvg over secure aggregation, of the server and of each participant.

A client app needs them, and Flower starts a process of it per message. So this module imports
no accountant and no run directory.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpaudit.trainer.federated.secure_aggregation.noisy_sum import NoisySum
from dpaudit.vocabulary.errors import require_delta, require_positive
from dpaudit.vocabulary.federation import SecureAggregationSettings

__all__ = ["SecureServerSettings"]


@dataclass(frozen=True)
class SecureServerSettings:
    """Settings of DP-FedAvg over secure aggregation.

    Attributes:
        secure: Dropouts, colluders, noise shares and modulus.
        participants: Public number of participants; at least 1.
        clip_norm: Largest L2 norm of an update; above 0.
        noise_multiplier: Standard deviation of the honest survivors' noise on the sum, over the
            clip norm; above 0.
        delta: Delta of the claim, in [1e-300, 1).
        max_epsilon: Budget at ``delta``, in nats, above 0: the server ends before the round that
            would exceed it. None: no budget.
        learning_rate: Factor of the averaged update, above 0.
        unaccounted: Other uses of the participants' records, which the claim does not cover.

    Raises:
        InvalidArgument: If a setting is out of its range.

    Example:
        >>> secure = SecureAggregationSettings(dropouts=1, colluders=1)
        >>> SecureServerSettings(secure, 10, 1.0, 2.0, delta=1e-5).learning_rate
        1.0
    """

    secure: SecureAggregationSettings
    participants: int
    clip_norm: float
    noise_multiplier: float
    delta: float
    max_epsilon: float | None = None
    learning_rate: float = 1.0
    unaccounted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_delta("delta", self.delta)
        require_positive("learning_rate", self.learning_rate)
        if self.max_epsilon is not None:
            require_positive("max_epsilon", self.max_epsilon)
        self.noisy_sum(1)

    def noisy_sum(self, dimension: int) -> NoisySum:
        """Return the noisy sum of a model; participants make theirs from the same settings.

        Args:
            dimension: Number of coordinates of the model; at least 1.

        Returns:
            The noisy sum.
        """
        return NoisySum(
            self.secure, self.participants, dimension, self.clip_norm, self.noise_multiplier
        )
