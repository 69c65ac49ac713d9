"""The releases of a federation over secure aggregation, planned before the run.

The sensitivity of a rounded update depends on the number of coordinates of the model. So the data
are read and the model is made to plan them.
"""

from __future__ import annotations

from msgspec.structs import replace

from dpaudit.accountants import calibrate
from dpaudit.trainer.data import load_dataset
from dpaudit.trainer.federated.dp_fedavg import clipping_settings
from dpaudit.trainer.federated.secure_dp_fedavg import noisy_sum_of_round
from dpaudit.trainer.models.factories import trained_part
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.trainer.run import prepare_model
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency

LEAST_ABOVE, MOST_ABOVE = 0.99, 1.05
"""Where the search begins, relative to the noise multiplier of a Gaussian mechanism."""


def count_coordinates(config: FederatedConfig) -> int:
    """Return the number of trained parameters of a run's model; reads its data.

    Args:
        config: The settings of the run.

    Returns:
        The number of coordinates of an update.

    Raises:
        InvalidArgument: If data or model cannot be used.
    """
    model = prepare_model(config.model.model, load_dataset(config.data), Keystream.seeded(0))
    return sum(one.numel() for one in trained_part(model).parameters() if one.requires_grad)


def planned_secure_mechanism(config: FederatedConfig, dimension: int) -> Mechanism:
    """Return what all rounds of a run over secure aggregation release about one participant.

    Every round counts as one that the participant joins, as who joins is public.

    Args:
        config: The settings of the run.
        dimension: Number of coordinates of an update.

    Returns:
        The composition over all rounds, as the run's ledger will record it.

    Raises:
        InvalidArgument: If the sum would wrap around the modulus, or another setting is out of
            range.
    """
    secure, rounds = config.secure_aggregation, config.federation.rounds
    assert secure is not None
    noisy_sum = noisy_sum_of_round(clipping_settings(config), secure, dimension)
    return Composed(tuple(Repeated(one, rounds) for _, one in noisy_sum.releases))


def with_calibrated_secure_noise(config: FederatedConfig, target_epsilon: float) -> FederatedConfig:
    """Find the noise multiplier that keeps epsilon of every participant at most a target.

    Args:
        config: The settings; their noise multiplier is ignored.
        target_epsilon: Largest allowed epsilon at the settings' delta, in nats.

    Returns:
        The settings with the noise multiplier that was found, by the PLD accountant.

    Raises:
        InvalidArgument: If no noise meets the target without a wrap-around of the sum.
    """
    dimension, rounds = count_coordinates(config), config.federation.rounds
    delta = config.privacy.delta

    def with_noise(noise: float) -> FederatedConfig:
        return replace(config, privacy=replace(config.privacy, noise_multiplier=noise))

    # Rounding makes the sensitivity a little larger than that of a Gaussian mechanism.
    least = calibrate.noise_multiplier(
        lambda noise: Repeated(Gaussian(noise), rounds),
        target_epsilon=target_epsilon,
        delta=delta,
    ).value
    try:
        found = calibrate.noise_multiplier(
            lambda noise: planned_secure_mechanism(with_noise(noise), dimension),
            target_epsilon=target_epsilon,
            delta=delta,
            adjacency=Adjacency.ZERO_OUT,
            bracket=(LEAST_ABOVE * least, MOST_ABOVE * least),
        )
    except InvalidArgument as error:
        raise InvalidArgument(
            "target_epsilon",
            target_epsilon,
            f"one that the noise of a secure sum of {dimension} coordinates can meet ({error})",
        ) from error
    return with_noise(found.value)
