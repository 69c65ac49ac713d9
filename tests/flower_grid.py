"""A Flower grid in this process: client apps answer at once, and a hook loses or delays them.

It sets metadata that only Flower's own grids set, so it follows one version (1.42).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN, SERVER = 7, 1
CLIENT_APP_RAISED = 2

Hook = Callable[[Message, int], "Message | None"]
"""Called with a reply and the partition of its sender: returns what arrives, None if nothing."""


def everything_arrives(reply: Message, partition: int) -> Message | None:
    del partition
    return reply


class InProcessGrid(Grid):
    """Nodes of one client app; node identifiers are not in the order of partitions.

    Args:
        app: The client app of every node.
        partitions: Number of nodes.
        hook: What happens to replies.
        node_ids: Identifiers of the nodes, by partition.
    """

    def __init__(
        self,
        app: ClientApp,
        partitions: int,
        hook: Hook = everything_arrives,
        node_ids: tuple[int, ...] = (),
    ) -> None:
        ids = node_ids or tuple((partition * 7919 + 5) % 104729 for partition in range(partitions))
        self.hook, self.app, self.sent = hook, app, list[Message]()
        self.contexts = {
            node: Context(RUN, node, {"partition-id": number}, RecordDict(), {})
            for number, node in enumerate(ids)
        }

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        return Run.create_empty(RUN)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Return the replies in the reverse order of the messages."""
        return [reply for one in reversed(list(messages)) for reply in self._replies(one)]

    def _replies(self, message: Message) -> Iterator[Message]:
        self.sent.append(message)
        context = self.contexts.get(message.metadata.dst_node_id)
        if context is None:
            return
        own = copy.deepcopy(message)  # as if it had been sent: clients may change it
        own.metadata.__dict__["_message_id"] = f"message-{len(self.sent)}"
        try:
            reply = self.app(own, context)
        except Exception as error:
            reply = Message(Error(CLIENT_APP_RAISED, str(error)), reply_to=own)
        reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
        arrived = self.hook(reply, int(str(context.node_config["partition-id"])))
        if arrived is not None:
            yield arrived


@contextmanager
def as_server_app() -> Iterator[None]:
    """Give this process the identity that messages need, and take it away again."""
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, SERVER
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def config_of(message: Message) -> ConfigRecord:
    """Return the one config record of a message."""
    (found,) = message.content.config_records.values()
    return found
