"""Check the conformance of a federated run's server or clients, or of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from dpaudit.attacks.conformance.federated import check_client, check_server
from dpaudit.vocabulary.conformance import Assumption, ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import DP_FEDAVG, DSSGD_CORRECTED, FEDAVG, FederatedConfig
from dpaudit.vocabulary.settings import Progress

if TYPE_CHECKING:
    from dpaudit.attacks.conformance.trainer_protocol import Record

REPLAY_RECORDS = 256
"""Number of a participant's records that are replayed."""

TESTED = (FEDAVG, DP_FEDAVG, DSSGD_CORRECTED)
"""Strategies whose server or clients the settings of a run can rebuild."""


@dataclass(frozen=True)
class FederatedCheck:
    """The result for a federated run, and the claim that its ledgers are compared with.

    Attributes:
        result: The findings of the tests.
        recorded: The claim on each step or round, as the ledgers record it. With adaptive
            clipping, it is on the whole round, and the tests are on the sum alone.
    """

    result: ConformanceResult
    recorded: StepClaim


def check_federation(
    config: FederatedConfig,
    claim: StepClaim | None,
    probes: list[Record] | int | None,
    progress: Progress | None,
    assumptions: Sequence[Assumption] = (),
) -> FederatedCheck:
    """Check what a federated run's settings describe: its clients, or its server.

    A strategy that protects records is checked at its clients, one that protects participants at
    its server.

    Args:
        config: The settings of the run, with noise.
        claim: The claim on each local step or round; None: that of the settings.
        probes: Records to replay at a client; None: derived ones.
        progress: Receives each finished check.
        assumptions: What is assumed at clients instead of tested.

    Returns:
        The result.

    Raises:
        InvalidArgument: If the strategy cannot be rebuilt, the run adds no noise, or probes are
            given for a server.
    """
    strategy = config.federation.strategy
    if strategy not in TESTED:
        raise InvalidArgument(
            "run", f"a run of {strategy}", f"one of {' or '.join(TESTED)}; for others, give "
            "package.module:make_client or :make_server with --kind",
        )  # fmt: skip
    if config.secure_aggregation is not None:
        raise InvalidArgument(
            "run", "a run with secure aggregation", "one without: no server sees its updates; see "
            "check_masked_uploads of dpaudit.attacks.conformance.federated",
        )  # fmt: skip
    if config.privacy.noise_multiplier == 0:
        raise InvalidArgument("run", "a run without noise", "one with noise, which has a claim")
    check = _check_server_of if strategy == DP_FEDAVG else _check_client_of
    return check(config, claim, probes, progress, assumptions)


def _check_client_of(
    config: FederatedConfig,
    claim: StepClaim | None,
    probes: list[Record] | int | None,
    progress: Progress | None,
    assumptions: Sequence[Assumption] = (),
) -> FederatedCheck:
    """Check the clients of FedAvg, or of corrected selective SGD."""
    from dpaudit.trainer.federated.conformance_clients import (  # noqa: PLC0415 - torch
        ParticipantClientFactory,
    )
    from dpaudit.trainer.federated.federation_run import prepare_federation  # noqa: PLC0415

    factory = ParticipantClientFactory(prepare_federation(config))
    stated, records = claim or factory.claim(), factory.records(REPLAY_RECORDS)
    result = check_client(
        factory, stated, records=records, probes=probes, progress=progress,
        assumptions=assumptions,
    )  # fmt: skip
    return FederatedCheck(result, stated)


def _check_server_of(
    config: FederatedConfig,
    claim: StepClaim | None,
    probes: list[Record] | int | None,
    progress: Progress | None,
    assumptions: Sequence[Assumption] = (),
) -> FederatedCheck:
    """Check the server of DP-FedAvg."""
    from dpaudit.trainer.federated.conformance_servers import (  # noqa: PLC0415 - torch
        AggregationServerFactory,
    )
    from dpaudit.trainer.federated.dp_fedavg import clipping_settings  # noqa: PLC0415
    from dpaudit.trainer.federated.federation_run import prepare_federation  # noqa: PLC0415
    from dpaudit.trainer.models.factories import trained_part  # noqa: PLC0415

    require_no_records_of_server(probes=probes, assumptions=assumptions or None)
    model = trained_part(prepare_federation(config).model)
    reference = {
        name: p.detach().cpu().numpy() for name, p in model.named_parameters() if p.requires_grad
    }
    factory = AggregationServerFactory(clipping_settings(config), reference)
    stated = claim or factory.claim(config.federation.rounds)
    result = check_server(factory, stated, progress=progress)
    if claim is None:  # of adaptive clipping, the ledger records the whole round
        stated = replace(stated, noise_multiplier=config.privacy.noise_multiplier)
    return FederatedCheck(result, stated)


def require_no_records_of_server(**given: object) -> None:
    """Refuse arguments about records for a server.

    Args:
        **given: The arguments; None for those that were left out.

    Raises:
        InvalidArgument: If one of them was given.
    """
    for name, value in given.items():
        if value is not None:
            raise InvalidArgument(name, "given", "left out: updates are planted at a server")


def require_arguments(kind: str, name: str, factory: Callable[..., object]) -> None:
    """Refuse a factory whose signature does not fit its kind.

    Args:
        kind: ``server`` or ``client``.
        name: The given name, for the error.
        factory: The factory.

    Raises:
        InvalidArgument: If it is not callable, or takes other arguments.
    """
    wanted = {"server": ("seed",), "client": ("records", "seed", "participant")}[kind]
    allowed = f"a function of ({', '.join(wanted)})"
    if not callable(factory):
        raise InvalidArgument(kind, name, allowed)
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # C code without a signature
        return
    try:
        signature.bind(*((), 0, 0)[: len(wanted)])
    except TypeError as error:
        raise InvalidArgument(kind, name, f"{allowed}; its signature is {signature}") from error
