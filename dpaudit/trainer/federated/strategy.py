"""What a strategy of a federation implements, and the registry of strategies.

A strategy is one module with a ``DEFINITION``. The engine (``federation_run``) owns data,
ledgers, budgets, checkpoints and files; a strategy computes rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import (
    DP_FEDAVG,
    DSSGD,
    DSSGD_CORRECTED,
    FEDAVG,
    FederatedConfig,
)
from dpaudit.vocabulary.ledger import NoiseKind, Sampling
from dpaudit.vocabulary.privacy_terms import Unit

if TYPE_CHECKING:
    from dpaudit.trainer.federated.federation import Federation

MODULES = {
    FEDAVG: "fedavg",
    DP_FEDAVG: "dp_fedavg",
    DSSGD: "dssgd_strategy",
    DSSGD_CORRECTED: "dssgd_corrected_strategy",
}
"""The module of each strategy, imported when it is used."""


@dataclass(frozen=True)
class RoundResult:
    """What happened in one round.

    Attributes:
        number: Number of the round, from 0.
        joined: Participants whose update is in the result of the round, ascending.
        rejected: Why an update was left out, by number of the participant.
        failed: The error that ended a participant's local training, by number.
        left: Participants that have no budget for a further round, ascending.
        ended: Whether the run ends before this round, as its budget does or nobody is left. The
            round then released nothing.
    """

    number: int
    joined: tuple[int, ...] = ()
    rejected: Mapping[int, str] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    left: tuple[int, ...] = ()
    ended: bool = False


class FederationStrategy(Protocol):
    """One strategy in the middle of a run."""

    def run_round(self, number: int) -> RoundResult:
        """Compute one round: move the parameters of ``federation.model`` in place.

        Every release is recorded in a ledger of the federation before its noise is drawn. An
        ``Exception`` in one participant's training goes into ``failed``; the round continues.

        Args:
            number: Number of the round, from 0.

        Returns:
            Who took part.
        """

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint stores beside the global model.

        Returns:
            Tensors by name, without any key; empty if nothing is needed.
        """

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the state of a checkpoint; the global model is filled already.

        Args:
            state: What ``state`` returned.
        """


@dataclass(frozen=True)
class StrategyDefinition:
    """What the engine has to know of a strategy before it begins.

    Attributes:
        unit: What neighbors differ in: a record of one participant, or a participant.
        protects_against: Members of ``vocabulary.federation.OBSERVERS``.
        begin: Starts the strategy on a federation whose ledgers are open.
        check: Refuses settings that the strategy cannot use, before any file is written.
        is_private: Whether these settings add noise. A run without noise has no claim.
        sampling: How records (or participants) are drawn, for the headers.
        clip_norm: Largest L2 norm of what one unit adds to a sum, for the headers.
        unaccounted: Uses of the records that the ledgers of this strategy do not cover.
        assumed_public: Quantities that this strategy assumes to be public.
        noise: The kind of noise on its sums, for the headers; None where it is none of these.
    """

    unit: Unit
    protects_against: tuple[str, ...]
    begin: Callable[[Federation], FederationStrategy]
    check: Callable[[FederatedConfig], None]
    is_private: Callable[[FederatedConfig], bool]
    sampling: Callable[[FederatedConfig], Sampling]
    clip_norm: Callable[[FederatedConfig], float] = lambda config: config.privacy.clip_norm
    unaccounted: Callable[[FederatedConfig], tuple[str, ...]] = lambda config: ()
    assumed_public: tuple[str, ...] = ()
    noise: Callable[[FederatedConfig], NoiseKind | None] = lambda config: None


def find_strategy(name: str) -> StrategyDefinition:
    """Return a strategy by its name; its module is imported now.

    Args:
        name: One of ``vocabulary.federation.STRATEGIES``.

    Returns:
        The ``DEFINITION`` of its module.

    Raises:
        InvalidArgument: If there is no such strategy.

    Example:
        >>> find_strategy("fedavg").unit.value
        'record'
    """
    if name not in MODULES:
        raise InvalidArgument("strategy", name, f"one of {', '.join(MODULES)}")
    module = import_module(f"dpaudit.trainer.federated.{MODULES[name]}")
    definition: StrategyDefinition = module.DEFINITION
    return definition
