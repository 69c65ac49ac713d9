"""Flower's messages in one process, for strategies and client apps under test.

Flower is imported on use. Identifiers of messages, tasks and nodes are set where Flower's own
runtime sets them, so this follows one version of it (1.42).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import MissingExtra

RUN, SERVER = 1, 1
ARRAYS, METRICS, WEIGHT = "arrays", "metrics", "num-examples"
LOGGER = "flwr"


def flower(name: str) -> Any:
    """Import a module of Flower.

    Args:
        name: Name of the module below ``flwr``.

    Returns:
        The module.

    Raises:
        MissingExtra: If Flower is not installed.
    """
    try:
        return import_module(f"flwr.{name}")
    except ImportError as error:
        raise MissingExtra("flwr", "federated") from error


def arrays_of(record: Any) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``ArrayRecord`` by name."""
    return {name: np.array(array.numpy()) for name, array in record.items()}


def record_of(arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return an ``ArrayRecord`` of arrays by name."""
    app = flower("app")
    return app.ArrayRecord({name: app.Array(np.asarray(part)) for name, part in arrays.items()})


def context_of(node: int, config: Mapping[str, Any], run_config: Mapping[str, Any]) -> Any:
    """Return the context of a node.

    Args:
        node: Identifier of the node.
        config: The node's config, such as its partition.
        run_config: The run's config.

    Returns:
        A ``Context`` with an empty state.
    """
    app = flower("app")
    return app.Context(RUN, node, dict(config), app.RecordDict(), dict(run_config))


def delivered(message: Any, number: int) -> Any:
    """Return a message as if it had been sent: with an identifier."""
    message.metadata.__dict__["_message_id"] = f"message-{number}"
    return message


@contextmanager
def server_process() -> Iterator[None]:
    """Give this process the identity of a ServerApp, and silence Flower's log, for a while.

    Yields:
        Nothing.
    """
    identity = flower("supercore.task_identity").TaskIdentity
    logger = logging.getLogger(LOGGER)
    before = identity._task_id, identity._run_id, identity._node_id, logger.level
    identity.task_id, identity.run_id, identity.node_id = 1, RUN, SERVER
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        identity._task_id, identity._run_id, identity._node_id = before[:3]
        logger.setLevel(before[3])
