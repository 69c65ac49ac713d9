"""The client side of our Flower strategy: a node says which participant it is.

Node identifiers of Flower are random, and a restarted node gets a new one. So the server asks
each new node for its number. Local training is an ordinary ``@app.train()`` function.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

ACTION = "dpaudit_participant"
QUESTION = f"query.{ACTION}"
RECORD, NUMBER = "participant", "number"
PARTITION = "partition-id"

__all__ = ["answer_participant", "partition_of"]


def partition_of(context: Context) -> int:
    """Return the number of a participant: ``partition-id`` of the node's configuration.

    Args:
        context: Flower's context of the node.

    Returns:
        The number, from 0.

    Raises:
        KeyError: If the node has no ``partition-id``.

    Example:
        >>> context = Context(1, 2, {"partition-id": 3}, RecordDict(), {})
        >>> partition_of(context)
        3
    """
    return int(context.node_config[PARTITION])


def answer_participant(
    app: ClientApp, number: Callable[[Context], int] = partition_of
) -> ClientApp:
    """Make a client app answer the server's question for its participant's number.

    Args:
        app: The client app.
        number: Returns the number of a node, from 0.

    Returns:
        The same app.

    Example:
        >>> app = answer_participant(ClientApp())
    """

    @app.query(ACTION)
    def answer(message: Message, context: Context) -> Message:
        answered = RecordDict({RECORD: ConfigRecord({NUMBER: number(context)})})
        return Message(answered, reply_to=message)

    return app
