"""DP-FedAvg: clipped updates and noise of the server protect a participant with all records.

Each participant joins a round by an independent coin of the server and trains by plain SGD. The
server clips each update, adds noise once to the sum, and divides by a public constant. The
server itself sees every update: the guarantee holds against other participants and readers of
the final model. With secure aggregation the server sees the noisy sum alone, and the threat
model in the ledger says whom the guarantee holds against.

References: McMahan et al. (2018), arXiv:1710.06963; Andrew et al. (2021), arXiv:1905.03871.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dpaudit.accountants.schedules import coin_sampling
from dpaudit.trainer.federated.aggregation import (
    AdaptiveClipping,
    AggregateResult,
    ParticipantAggregation,
    ParticipantClipping,
)
from dpaudit.trainer.federated.fedavg import (
    average_updates,
    describe_error,
    difference,
    is_private,
    require_federated_model,
    require_survivor,
)
from dpaudit.trainer.federated.federation import Federation
from dpaudit.trainer.federated.ledgers import FederationLedger
from dpaudit.trainer.federated.local_training import LocalTrainers, PlainTrainer
from dpaudit.trainer.federated.secure_dp_fedavg import SecureParticipantAggregation
from dpaudit.trainer.federated.strategy import FederationStrategy, RoundResult, StrategyDefinition
from dpaudit.trainer.federated.updates import Update, check_update
from dpaudit.trainer.noise.randomness import Purpose
from dpaudit.vocabulary.errors import InvalidUpdate, TooFewParticipants
from dpaudit.vocabulary.federation import (
    FederatedConfig,
    require_secure_settings,
)
from dpaudit.vocabulary.ledger import NoiseKind, Sampling
from dpaudit.vocabulary.mechanism import Release
from dpaudit.vocabulary.privacy_terms import Unit

CLIP_NORM = "clip_norm"


class DPFedAvg:
    """Participant-level FedAvg, with constant or adaptive clipping.

    Args:
        federation: The federation.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._trainers = LocalTrainers(federation, PlainTrainer, [0] * len(federation.participants))
        self._server = self._aggregation(clipping_settings(federation.config))

    def run_round(self, number: int) -> RoundResult:
        """Release the noisy average of the updates of one round.

        Args:
            number: Number of the round, from 0.

        Returns:
            Who took part; ``ended`` if the budget has no room for the round.
        """
        federation, server = self._federation, self._server
        release, what = server.settings.release, server.settings.what
        ledgers = [federation.server, *(one.ledger for one in federation.participants)]
        if not all(ledger.has_room(release) for ledger in ledgers):
            everyone = tuple(range(len(federation.participants)))
            return RoundResult(number, left=everyone, ended=True)
        # A round costs every participant, drawn or not; recorded before anything is uploaded.
        for one in federation.participants:
            one.ledger.record(what, release, number)
        drawn = [int(one) for one in server.draw_participants(number)]
        updates, failed = train_all(federation, self._trainers, drawn, number)
        result: AggregateResult = server.aggregate(number, updates, drawn)
        federation.move(result.average, federation.config.local.server_learning_rate)
        return RoundResult(number, result.accepted, result.rejected, failed)

    def state(self) -> dict[str, Tensor]:
        """Return the clip norm of the next round.

        Returns:
            One number in float64.
        """
        return {CLIP_NORM: torch.tensor([self._server.settings.clip_norm], dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue with the clip norm of a checkpoint.

        Args:
            state: What ``state`` returned.
        """
        clip_norm = float(state[CLIP_NORM][0])
        self._server = self._aggregation(replace(self._server.settings, clip_norm=clip_norm))

    def _aggregation(self, settings: ParticipantClipping) -> ParticipantAggregation:
        """Return the server of the rounds to come."""
        federation = self._federation

        def record(what: str, release: Release, number: int) -> None:
            federation.server.record(what, release, number)

        return ParticipantAggregation(
            settings,
            federation.reference(),
            federation.stream,
            record,
            first_round=federation.first_round,
        )


class PlainFedAvg:
    """FedAvg without clipping and noise on the same draws of participants: the baseline.

    Args:
        federation: The federation.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._trainers = LocalTrainers(federation, PlainTrainer, [0] * len(federation.participants))

    def run_round(self, number: int) -> RoundResult:
        """Average the updates of one round.

        Args:
            number: Number of the round, from 0.

        Returns:
            Who took part.
        """
        federation = self._federation
        count, rate = len(federation.participants), federation.config.privacy.participation_rate
        coins = federation.stream.coins(Purpose.PARTICIPANT_SAMPLING, number, count, rate)
        drawn = [one for one in range(count) if coins[one]]
        updates, failed = train_all(federation, self._trainers, drawn, number)
        accepted: dict[int, Update] = {}
        rejected: dict[int, str] = {}
        for one, update in updates.items():
            try:
                accepted[one] = check_update(update, federation.reference(), participant=one)
            except InvalidUpdate as error:
                rejected[one] = error.reason
        if accepted:
            federation.move(average_updates(accepted), federation.config.local.server_learning_rate)
        return RoundResult(number, tuple(accepted), rejected, failed)

    def state(self) -> dict[str, Tensor]:
        """Return nothing: the global model is all that a round needs.

        Returns:
            An empty dict.
        """
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Accept the state of a checkpoint, which is empty.

        Args:
            state: What ``state`` returned.
        """


def train_all(
    federation: Federation, trainers: LocalTrainers, drawn: list[int], number: int
) -> tuple[dict[int, Update], dict[int, str]]:
    """Train the drawn participants from the global model.

    Args:
        federation: The federation.
        trainers: The local trainers.
        drawn: Numbers of the participants of the round.
        number: Number of the round, from 0.

    Returns:
        Updates by participant, unchecked; and the error of each participant that failed.
    """
    weights = federation.weights()
    updates: dict[int, Update] = {}
    failed: dict[int, Exception] = {}
    for one in drawn:
        try:
            trained = trainers.trainer(one).train(weights, number)
            updates[one] = difference(trained, weights)
        except Exception as error:  # costs this participant alone
            failed[one] = error
    require_survivor(drawn, failed)
    return updates, {one: describe_error(error) for one, error in failed.items()}


class SecureDPFedAvg:
    """Participant-level FedAvg over secure aggregation: the server sees no single update.

    Args:
        federation: The federation, whose settings have a section ``secure_aggregation``.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._trainers = LocalTrainers(federation, PlainTrainer, [0] * len(federation.participants))
        self._server = self._aggregation(clipping_settings(federation.config))

    def run_round(self, number: int) -> RoundResult:
        """Release the noisy average of the updates of one round.

        A round with fewer updates than the threshold releases nothing, and the run continues.

        Args:
            number: Number of the round, from 0.

        Returns:
            Who took part; ``ended`` if the budget has no room for the round.
        """
        federation, server = self._federation, self._server
        releases = tuple(mechanism for _, mechanism in server.noisy_sum.releases)
        if not all(ledger.has_room_for(releases) for ledger in self._ledgers):
            everyone = tuple(one.number for one in federation.participants)
            return RoundResult(number, left=everyone, ended=True)
        drawn = [int(one) for one in server.draw_participants(number)]
        updates, failed = train_all(federation, self._trainers, drawn, number)
        try:
            result = server.aggregate(number, updates, drawn)
        except TooFewParticipants as error:
            return RoundResult(number, (), dict.fromkeys(updates, str(error)), failed)
        federation.move(result.average, federation.config.local.server_learning_rate)
        return RoundResult(number, result.accepted, result.rejected, failed)

    def state(self) -> dict[str, Tensor]:
        """Return the clip norm of the next round.

        Returns:
            One number in float64.
        """
        return {CLIP_NORM: torch.tensor([self._server.settings.clip_norm], dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue with the clip norm of a checkpoint; an older one has none, and a constant one.

        Args:
            state: What ``state`` returned.
        """
        if CLIP_NORM in state:
            clip_norm = float(state[CLIP_NORM][0])
            self._server = self._aggregation(replace(self._server.settings, clip_norm=clip_norm))

    def _aggregation(self, settings: ParticipantClipping) -> SecureParticipantAggregation:
        """Return both sides of the protocol for the rounds to come."""
        federation, secure = self._federation, self._federation.config.secure_aggregation
        assert secure is not None
        return SecureParticipantAggregation(
            settings,
            secure,
            federation.reference(),
            federation.stream,
            {one.number: one.stream for one in federation.participants},
            self._record,
            first_round=federation.first_round,
        )

    @property
    def _ledgers(self) -> list[FederationLedger]:
        """The ledgers of all participants, then the server's."""
        federation = self._federation
        return [*(one.ledger for one in federation.participants), federation.server]

    def _record(self, what: str, release: Release, number: int) -> None:
        """Record a release in every ledger, before noise is drawn or a message is sent."""
        for ledger in self._ledgers:
            ledger.record(what, release, number)


def clipping_settings(config: FederatedConfig) -> ParticipantClipping:
    """Return the settings of the server.

    Args:
        config: The settings of the run, with noise.

    Returns:
        Clip norm, noise and participation.

    Raises:
        InvalidArgument: If the noise of the count leaves none for the sum.
    """
    privacy = config.privacy
    adaptive = (
        AdaptiveClipping(
            privacy.quantile_noise, privacy.target_quantile, privacy.quantile_learning_rate
        )
        if privacy.adaptive_clipping
        else None
    )
    return ParticipantClipping(
        privacy.clip_norm,
        privacy.noise_multiplier,
        privacy.participation_rate,
        config.federation.participants,
        adaptive,
    )


def _begin(federation: Federation) -> FederationStrategy:
    """Return the private strategy, or the baseline if no noise is set."""
    if federation.config.secure_aggregation is not None:
        return SecureDPFedAvg(federation)
    return DPFedAvg(federation) if is_private(federation.config) else PlainFedAvg(federation)


def _check(config: FederatedConfig) -> None:
    """Refuse settings that the server cannot use."""
    require_federated_model(config)
    if config.secure_aggregation is not None:
        require_secure_settings(config, config.secure_aggregation)
    if is_private(config):
        clipping_settings(config)


def _sampling(config: FederatedConfig) -> Sampling:
    """Return how participants are drawn; with secure aggregation, as many in every round."""
    rate = config.privacy.participation_rate
    if config.secure_aggregation is not None and rate < 1:
        return Sampling.FIXED_SIZE
    return coin_sampling(rate)


def _noise(config: FederatedConfig) -> NoiseKind | None:
    """Return the kind of the server's noise; that of secure aggregation is in its mechanism."""
    adds = is_private(config) and config.secure_aggregation is None
    return NoiseKind.GRID if adds else None


DEFINITION = StrategyDefinition(
    unit=Unit.PARTICIPANT,
    protects_against=("other participants", "readers of the final model"),
    begin=_begin,
    check=_check,
    is_private=is_private,
    sampling=_sampling,
    noise=_noise,
)
