"""Conformance tests of federated training: of a server, of a client, and of masked uploads.

A server claims clipped sums of updates plus noise, a client claims local steps of DP-SGD and an
upload that is what these steps give. ``server_protocol`` and ``client_protocol`` describe what the
tested objects must return. Noise, correlation and sampling are tested by the tests of trainers.
"""

from dpaudit.attacks.conformance.federated.client_protocol import FederatedClient, MakeClient
from dpaudit.attacks.conformance.federated.clients import check_client
from dpaudit.attacks.conformance.federated.flower_clients import (
    FlowerClientFactory,
    LocalSteps,
)
from dpaudit.attacks.conformance.federated.flower_strategies import FlowerStrategyFactory
from dpaudit.attacks.conformance.federated.masked_uploads import (
    MaskedUploads,
    check_masked_uploads,
)
from dpaudit.attacks.conformance.federated.server_protocol import FederatedServer, MakeServer
from dpaudit.attacks.conformance.federated.servers import check_server

__all__ = [
    "FederatedClient",
    "FederatedServer",
    "FlowerClientFactory",
    "FlowerStrategyFactory",
    "LocalSteps",
    "MakeClient",
    "MakeServer",
    "MaskedUploads",
    "check_client",
    "check_masked_uploads",
    "check_server",
]
