"""FedAvg with DP-SGD on each participant: protects one record of one participant.

In each round, participants train from the global model by DP-SGD, and the server averages their
models. What a participant sends is computed from recorded releases alone, so it is protected
against the server, other participants and readers of the final model. Every constant is public:
the number by which sums are divided, and the weights of the average, which are equal.

Drawing participants amplifies nothing here: the server knows who joins.

References: McMahan et al. (2017), arXiv:1602.05629, Algorithm 1; Abadi et al. (2016),
arXiv:1607.00133.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from dpaudit.accountants.schedules import coin_sampling, poisson_step
from dpaudit.trainer.federated.federation import Federation, draw_some
from dpaudit.trainer.federated.local_training import (
    LocalTrainers,
    PlainTrainer,
    PrivateTrainer,
    Weights,
)
from dpaudit.trainer.federated.strategy import RoundResult, StrategyDefinition
from dpaudit.trainer.federated.updates import Update, check_update
from dpaudit.vocabulary.errors import InvalidArgument, InvalidUpdate
from dpaudit.vocabulary.federation import OBSERVERS, FederatedConfig
from dpaudit.vocabulary.ledger import NoiseKind
from dpaudit.vocabulary.mechanism import Gaussian, Release
from dpaudit.vocabulary.privacy_terms import Unit

STEPS = "steps"


class FedAvg:
    """FedAvg whose participants train with DP-SGD, or with plain SGD if no noise is set.

    Args:
        federation: The federation.
    """

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        kind = PrivateTrainer if is_private(federation.config) else PlainTrainer
        count = len(federation.participants)
        self._trainers = LocalTrainers(federation, kind, [0] * count)
        self._left: set[int] = set()

    def run_round(self, number: int) -> RoundResult:
        """Train the participants of a round, and average their models.

        Args:
            number: Number of the round, from 0.

        Returns:
            Who took part. A participant without budget for the whole round has left.
        """
        federation = self._federation
        count, rate = len(federation.participants), federation.config.privacy.participation_rate
        drawn = [int(one) for one in draw_some(federation.stream, number, count, rate)]
        self._left |= {one for one in drawn if not self._has_budget(one)}
        if len(self._left) == count:
            return RoundResult(number, left=tuple(sorted(self._left)), ended=True)
        reference, weights = federation.reference(), federation.weights()
        joined: dict[int, Update] = {}
        rejected: dict[int, str] = {}
        failed: dict[int, Exception] = {}
        present = [one for one in drawn if one not in self._left]
        for one in present:
            try:
                trained = self._trainers.trainer(one).train(weights, number)
                joined[one] = check_update(difference(trained, weights), reference, participant=one)
            except InvalidUpdate as error:
                rejected[one] = error.reason
            except Exception as error:  # costs this participant alone
                failed[one] = error
        require_survivor(present, failed)
        if joined:
            federation.move(average_updates(joined), federation.config.local.server_learning_rate)
        return RoundResult(
            number,
            tuple(joined),
            rejected,
            {one: describe_error(error) for one, error in failed.items()},
            tuple(sorted(self._left)),
        )

    def state(self) -> dict[str, Tensor]:
        """Return the number of steps of each participant.

        Returns:
            One tensor of shape ``(participants,)``.
        """
        return {STEPS: self._trainers.steps}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the numbers of steps of a checkpoint.

        Args:
            state: What ``state`` returned.
        """
        self._trainers.steps_before = [int(steps) for steps in state[STEPS]]

    def _has_budget(self, number: int) -> bool:
        """Return whether a participant has budget for all steps of a round."""
        config = self._federation.config
        if not is_private(config):
            return True
        ledger = self._federation.participants[number].ledger
        return ledger.has_room(local_release(config), config.local.local_steps)


def local_release(config: FederatedConfig) -> Release:
    """Return the release of one local step.

    Args:
        config: The settings of the run.

    Returns:
        A Gaussian mechanism on a Poisson sample of one participant's records.
    """
    return poisson_step(Gaussian(config.privacy.noise_multiplier), config.local.sampling_rate)


def average_updates(updates: Mapping[int, Update]) -> Update:
    """Return the average of updates with equal weights.

    Args:
        updates: Checked updates by number of the participant; at least one.

    Returns:
        The mean, summed in float64 in the order of participants.

    Example:
        >>> updates = {1: {"w": np.ones(1, np.float32)}, 0: {"w": np.zeros(1, np.float32)}}
        >>> average_updates(updates)["w"].tolist()
        [0.5]
    """
    first, *others = (updates[number] for number in sorted(updates))
    total = {name: part.astype(np.float64) for name, part in first.items()}
    for update in others:
        for name, part in update.items():
            total[name] += part
    return {name: (part / len(updates)).astype(np.float32) for name, part in total.items()}


def difference(trained: Weights, weights: Weights) -> Update:
    """Return what local training changed, as arrays by parameter.

    Args:
        trained: The parameters after local training.
        weights: The parameters of the global model.

    Returns:
        Arrays of float32.
    """
    return {name: (part - weights[name]).cpu().numpy() for name, part in trained.items()}


def require_survivor(present: Sequence[int], failed: Mapping[int, Exception]) -> None:
    """Raise the first error of a round in which all of several participants failed.

    One participant's failure costs that participant alone; a failure of all of them is one of
    the model, the data or the settings.

    Args:
        present: The participants of the round.
        failed: The error of each that failed.
    """
    if len(present) > 1 and len(failed) == len(present):
        raise failed[present[0]]


def describe_error(error: Exception) -> str:
    """Return the type and the text of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def is_private(config: FederatedConfig) -> bool:
    """Return whether settings add noise."""
    return config.privacy.noise_multiplier > 0


def require_federated_model(config: FederatedConfig) -> None:
    """Refuse settings of the model that a federation has no meaning for.

    Args:
        config: The settings of the run.

    Raises:
        InvalidArgument: If weights are averaged over steps.
    """
    model = config.model
    if model.average_decay is not None:
        raise InvalidArgument("average_decay", model.average_decay, "None in a federation")


DEFINITION = StrategyDefinition(
    unit=Unit.RECORD,
    protects_against=OBSERVERS,
    begin=FedAvg,
    check=require_federated_model,
    is_private=is_private,
    sampling=lambda config: coin_sampling(config.local.sampling_rate),
    assumed_public=("expected batch size", "weights of participants", "who joins a round"),
    noise=lambda config: NoiseKind.NORMAL if is_private(config) else None,
)
