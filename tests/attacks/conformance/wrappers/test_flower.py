"""``wrap`` refuses clients and strategies of Flower, and names the tests that they have."""

from __future__ import annotations

from typing import Any

import pytest

from dpaudit.attacks import conformance
from dpaudit.attacks.conformance import federated
from dpaudit.vocabulary.errors import InvalidArgument


def of_module(module: str) -> Any:
    """Return an object whose class is of a module; with a method ``step`` as other trainers."""
    return type("OfFlower", (), {"__module__": module, "step": lambda self: None})()


@pytest.mark.parametrize(
    ("module", "check", "factory"),
    [
        ("flwr.clientapp.client_app", "check_client", "FlowerClientFactory"),
        ("flwr.compat.client.client", "check_client", "FlowerClientFactory"),
        ("flwr.serverapp.strategy.fedavg", "check_server", "FlowerStrategyFactory"),
    ],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_objects_of_flower_are_refused_by_name(
    module: str, check: str, factory: str, parts: int
) -> None:
    built = of_module(module) if parts == 1 else (object(), of_module(module))
    with pytest.raises(InvalidArgument, match="what build returns") as refused:
        conformance.wrap(lambda records: built)([], 0)
    message = str(refused.value)
    for name in (check, factory):
        assert f"federated.{name}(" in message
        assert hasattr(federated, name)


def test_a_module_of_a_similar_name_is_not_of_flower() -> None:
    built = of_module("flwrs.client")
    assert conformance.wrap(lambda records: built)([], 0) is built
