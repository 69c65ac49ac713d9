"""The cost of a federated run before anything is trained, and its noise by a target. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

import dpaudit
from dpaudit.accountants import calibrate, pld
from dpaudit.accountants.answers import compute_epsilon
from dpaudit.accountants.schedules import coin_sampling, poisson_step
from dpaudit.runs.directory import RunDirectory
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import (
    COPIES_OF_RECORDS,
    DP_FEDAVG,
    DSSGD,
    DSSGD_CORRECTED,
    FEDAVG,
    FederatedConfig,
)
from dpaudit.vocabulary.ledger import PrivacyLedger, Randomness
from dpaudit.vocabulary.mechanism import (
    Gaussian,
    Mechanism,
    NumericSparseVector,
    Release,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Unit
from dpaudit.vocabulary.rounding import round_up
from dpaudit.vocabulary.settings import RunConfig


def planned_steps(settings: RunConfig | FederatedConfig) -> int:
    """Return the number of steps of a run, or of rounds of a federation.

    Args:
        settings: The settings of the run.

    Returns:
        The planned number, which a budget may cut short.
    """
    if isinstance(settings, FederatedConfig):
        return settings.federation.rounds
    return settings.privacy.steps


def _local_steps(config: FederatedConfig) -> tuple[Release, int]:
    """Return the release of one local step, and how many a participant takes in a round."""
    noise = Gaussian(config.privacy.noise_multiplier)
    return poisson_step(noise, config.local.sampling_rate), config.local.local_steps


def _server_sum(config: FederatedConfig) -> tuple[Release, int]:
    """Return the release of the server in one round."""
    noise = Gaussian(config.privacy.noise_multiplier)
    return poisson_step(noise, config.privacy.participation_rate), 1


RoundReleases = Callable[[FederatedConfig], tuple[Release, int]]
_ROUNDS: Mapping[str, RoundReleases] = {
    FEDAVG: _local_steps,
    DP_FEDAVG: _server_sum,
    DSSGD_CORRECTED: _local_steps,
}
"""What one round releases about one unit, by strategy; only of those whose noise is planned."""


def has_planned_mechanism(config: FederatedConfig) -> bool:
    """Return whether the releases of a federated run are known before it begins.

    Args:
        config: The settings.

    Returns:
        False for a strategy whose releases depend on the model, with secure aggregation (whose
        sensitivity depends on the number of its parameters), and without noise.
    """
    planned = config.federation.strategy in _ROUNDS and config.secure_aggregation is None
    return planned and config.privacy.noise_multiplier > 0


def planned_federated_mechanism(config: FederatedConfig, rounds: int | None = None) -> Mechanism:
    """Return what a federated run releases about one unit: a record, or a participant.

    A participant of a strategy that protects records is taken to join every round, which is the
    most that a public draw of participants can give.

    Args:
        config: The settings.
        rounds: Number of rounds; None: all.

    Returns:
        The composition over all rounds, an upper bound where a budget ends the run earlier.

    Raises:
        InvalidArgument: If the releases of the strategy are not known before it begins.
    """
    strategy, noise = config.federation.strategy, config.privacy.noise_multiplier
    if config.secure_aggregation is not None:
        raise InvalidArgument(
            "secure_aggregation",
            "a section of the settings",
            "left out to plan epsilon before a run: epsilon depends on the number of parameters",
        )
    if strategy not in _ROUNDS:
        allowed = f"{' or '.join(_ROUNDS)} to plan epsilon before a run"
        raise InvalidArgument("strategy", strategy, allowed)
    if not has_planned_mechanism(config):
        raise InvalidArgument("noise_multiplier", noise, "above 0 to plan epsilon before a run")
    release, times = _ROUNDS[strategy](config)
    return Repeated(release, times * (config.federation.rounds if rounds is None else rounds))


def planned_federated_epsilon(config: FederatedConfig, rounds: int | None = None) -> float:
    """Compute an upper bound on epsilon after some rounds, by the PLD accountant.

    Args:
        config: The settings.
        rounds: Number of rounds; None: all.

    Returns:
        The upper bound for the participant who joins every round, in nats.

    Raises:
        InvalidArgument: If the releases of the strategy are not known before it begins.
    """
    mechanism = planned_federated_mechanism(config, rounds)
    return pld.profile(mechanism).epsilon(delta=config.privacy.delta).upper


def with_calibrated_federation(config: FederatedConfig, target_epsilon: float) -> FederatedConfig:
    """Find the least noise multiplier that keeps epsilon of every unit at most a target.

    Args:
        config: The settings; their noise multiplier is ignored.
        target_epsilon: Largest allowed epsilon at the settings' delta, in nats.

    Returns:
        The settings with the noise multiplier that was found, by the PLD accountant.

    Raises:
        InvalidArgument: If no noise meets the target, or the strategy has no planned releases.
    """
    if config.secure_aggregation is not None:
        from dpaudit.trainer.federated.secure_plan import (  # noqa: PLC0415  the model is made
            with_calibrated_secure_noise,
        )

        return with_calibrated_secure_noise(config, target_epsilon)

    def with_noise(noise: float) -> FederatedConfig:
        return replace(config, privacy=replace(config.privacy, noise_multiplier=noise))

    found = calibrate.noise_multiplier(
        lambda noise: planned_federated_mechanism(with_noise(noise)),
        target_epsilon=target_epsilon,
        delta=config.privacy.delta,
    )
    return with_noise(found.value)


def planned_federated_claim(config: FederatedConfig, delta: float, accountant: str) -> Claim:
    """Compute the claim that a federated run will make if no budget ends it.

    Args:
        config: The settings.
        delta: The delta of the claim, in (0, 1).
        accountant: Name of the accountant.

    Returns:
        The claim, with an empty ledger head. It names the copies of a record that participants
        may hold; what else a strategy assumes is not in it.

    Raises:
        InvalidArgument: If the releases of the strategy are not known before it begins.
    """
    privacy, adjacency = config.privacy, Adjacency.ADD_OR_REMOVE_ONE
    level = config.federation.strategy == DP_FEDAVG
    sampling = coin_sampling(privacy.participation_rate if level else config.local.sampling_rate)
    mechanism = planned_federated_mechanism(config)
    answer = compute_epsilon(accountant, mechanism, delta, adjacency, sampling)
    each = config.federation.rounds * (1 if level else config.local.local_steps)
    copied = config.federation.partition == "independent" and not level
    uses = (*privacy.unaccounted, *((COPIES_OF_RECORDS,) if copied else ()))
    return Claim(
        epsilon=answer.epsilon,
        delta=delta,
        accountant=accountant,
        adjacency=adjacency,
        sampling=sampling,
        randomness=Randomness.SECURE if privacy.seed is None else Randomness.SEEDED,
        releases=each * (1 if level else config.federation.participants),
        ledger_head="",
        dpaudit_version=dpaudit.__version__,
        unaccounted=uses,
        unit=Unit.PARTICIPANT if level else Unit.RECORD,
    )


def published_figure(run: RunDirectory, ledger: PrivacyLedger) -> str | None:
    """Return epsilon of a run of ``dssgd`` as the paper quotes it, which bounds no run.

    Args:
        run: The run, whose settings have the budget of one epoch.
        ledger: Its ledger, whose releases have the number of entries.

    Returns:
        One sentence; None for other strategies, and for runs without settings.
    """
    federation = ledger.header.federation
    if federation is None or federation.strategy != DSSGD or not run.config.exists():
        return None
    epsilon = run.read_federated_config().selective.epsilon_per_epoch
    releases = (one.mechanism for part in ledger.participants.values() for one in part.releases)
    upload = next((one for one in releases if isinstance(one, NumericSparseVector)), None)
    if epsilon is None or upload is None:
        return None
    entries = upload.comparison.answers
    return (
        f"published: epsilon {round_up(epsilon / entries)} per parameter and epoch "
        f"({epsilon:g} per epoch of at most {entries} entries); it is no bound for the run"
    )
