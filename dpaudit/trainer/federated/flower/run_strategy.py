"""What dpaudit's Flower strategies share: a run directory, rounds, and nodes as participants.

``start`` begins a run or continues it, ends it at its last round or its budget, and finishes it.
Node identifiers of Flower are random, so every new node is asked which participant it is.
"""

from __future__ import annotations

import logging
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated.flower.client import NUMBER, QUESTION, RECORD
from dpaudit.trainer.federated.updates import Update
from dpaudit.vocabulary.errors import InvalidArgument, require_positive
from dpaudit.vocabulary.privacy_terms import Bound

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0


class RunServer(Protocol):
    """What ``RunStrategy`` needs of the server of a run."""

    @property
    def weights(self) -> Update:
        """The global model."""

    @property
    def next_round(self) -> int:
        """Number of the next round, from 0."""

    @property
    def releases(self) -> int:
        """Number of recorded releases."""

    def epsilon(self) -> Bound:
        """Return bounds of epsilon so far."""

    def has_room(self) -> bool:
        """Return whether the budget has room for a further round."""

    def finish(self) -> RunDirectory:
        """Write model, claim and seal."""

    def close(self) -> None:
        """Release the ledger's lock."""


Server = TypeVar("Server", bound=RunServer)


class RunStrategy(Strategy, Generic[Server]):
    """A strategy whose rounds are in a run directory, and whose nodes are participants.

    Args:
        out: The run directory.
        participants: Public number of participants.
        node_timeout: Longest time to wait for all nodes to connect before the first round, and
            for their answers to the server's question, in seconds.

    Attributes:
        run: The finished run directory; None before ``start`` has returned, and if no round was
            released.
    """

    def __init__(self, out: str | os.PathLike[str], participants: int, node_timeout: float) -> None:
        require_positive("node_timeout", node_timeout)
        self.run: RunDirectory | None = None
        self._out, self._participants, self._node_timeout = Path(out), participants, node_timeout
        self._server: Server | None = None
        self._nodes: dict[int, int] = {}  # node identifier to number of the participant

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run all rounds, or those that an earlier process left, and finish the run.

        Args:
            grid: Flower's grid.
            initial_arrays: The model before the first round: trained parameters as float32.
            num_rounds: Number of rounds, those of earlier processes included.
            timeout: Longest time to wait for the replies of a round, in seconds.
            train_config: Settings that are sent to clients.
            evaluate_config: Not used: clients do not evaluate.
            evaluate_fn: Evaluates the global model on the server, on public records.

        Returns:
            The last model, and epsilon after each round. If the budget ends the run, the last
            model within it.

        Raises:
            InvalidArgument: If an array cannot be used, or an earlier run has other settings.
            IntegrityError: If a file of an earlier run is damaged.
            RunExists: If the run in the run directory is finished.
        """
        self.begin(initial_arrays)
        result = Result()
        try:
            self.summary()
            result.arrays = self.arrays
            self._await_nodes(grid)
            self._evaluate(0, evaluate_fn, result)
            for current in range(self._open.next_round + 1, num_rounds + 1):
                if not self._open.has_room():
                    log.info("the budget has no room for round %d: the run ends", current)
                    break
                config = ConfigRecord(dict(train_config or {}))
                messages = self.configure_train(current, self.arrays, config, grid)
                replies = grid.send_and_receive(messages, timeout=timeout)
                arrays, metrics = self.aggregate_train(current, replies)
                if arrays is not None and metrics is not None:
                    result.arrays, result.train_metrics_clientapp[current] = arrays, metrics
                self._evaluate(current, evaluate_fn, result)
            if self._open.releases:
                self.run = self._open.finish()
        finally:
            self.close()
        return result

    def begin(self, initial_arrays: ArrayRecord) -> None:
        """Open the run directory; ``start`` does this. For your own loop over rounds.

        Args:
            initial_arrays: The model before the first round.

        Raises:
            InvalidArgument: If an array cannot be used, or an earlier run has other settings.
            RunExists: If the run in the run directory is finished.
        """
        initial = {name: array.numpy() for name, array in initial_arrays.items()}
        self._server = self._open_server(initial)

    @abstractmethod
    def _open_server(self, initial: Update) -> Server:
        """Begin or continue the run."""

    def close(self) -> None:
        """Release the ledger's lock, so that another process can continue the run."""
        if self._server is not None:
            self._server.close()

    @property
    def arrays(self) -> ArrayRecord:
        """The global model."""
        return to_record(self._open.weights)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no message: metrics of clients would be released without noise.

        Args:
            server_round: Number of the round, from 1.
            arrays: The global model.
            config: Settings of the evaluation.
            grid: Flower's grid.

        Returns:
            An empty list.
        """
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing: clients do not evaluate.

        Args:
            server_round: Number of the round, from 1.
            replies: Ignored.

        Returns:
            None.
        """
        return None

    @property
    def _open(self) -> Server:
        """The server of the run that is open."""
        if self._server is None:
            raise InvalidArgument("strategy", "one that did not begin", "started with start()")
        return self._server

    def _require_round(self, server_round: int) -> Server:
        """Return the server, if a round is its next one."""
        server = self._open
        if server_round != server.next_round + 1:
            raise InvalidArgument("server_round", server_round, str(server.next_round + 1))
        return server

    def _evaluate(
        self,
        current: int,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None,
        result: Result,
    ) -> None:
        """Evaluate the global model on the server, if that is asked for."""
        found = None if evaluate_fn is None else evaluate_fn(current, self.arrays)
        if found is not None:
            result.evaluate_metrics_serverapp[current] = found

    def _await_nodes(self, grid: Grid) -> None:
        """Wait until a node of each participant is known, or the time is up."""
        end = time.monotonic() + self._node_timeout
        while self._identify(grid) < self._participants:
            if time.monotonic() + POLL_SECONDS > end:
                missing = set(range(self._participants)) - {*self._nodes.values()}
                log.warning("no node answered for the participants %s", sorted(missing))
                return
            time.sleep(POLL_SECONDS)

    def _identify(self, grid: Grid) -> int:
        """Ask new nodes for their participant's number; return how many are known."""
        present = set(grid.get_node_ids())
        self._nodes = {node: one for node, one in self._nodes.items() if node in present}
        new = sorted(present - self._nodes.keys())
        if new:
            asked = [
                Message(content=RecordDict(), dst_node_id=node, message_type=QUESTION)
                for node in new
            ]
            self._register(grid.send_and_receive(asked, timeout=self._node_timeout))
        return len(self._nodes)

    def _register(self, replies: Iterable[Message]) -> None:
        """Note which node is which participant; a number that two nodes claim is nobody's."""
        claims: dict[int, list[int]] = {}
        for reply in replies:
            number = read_number(reply, self._participants)
            if number is None:
                log.warning("node %d has no valid number", reply.metadata.src_node_id)
            else:
                claims.setdefault(number, []).append(reply.metadata.src_node_id)
        for number, nodes in claims.items():
            if len(nodes) > 1 or number in self._nodes.values():
                log.warning("the nodes %s claim participant %d together", nodes, number)
            else:
                self._nodes[nodes[0]] = number


def read_number(reply: Message, participants: int) -> int | None:
    """Return the number that a node gave as its participant's.

    Args:
        reply: The node's answer.
        participants: Number of participants.

    Returns:
        A number from 0; None if the answer has no valid one.
    """
    if reply.has_error():
        return None
    record = reply.content.config_records.get(RECORD)
    number = None if record is None else record.get(NUMBER)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < participants:
        return None
    return number


def to_record(weights: Update) -> ArrayRecord:
    """Return arrays as a record of a message.

    Args:
        weights: Arrays by name.

    Returns:
        Copies, in Flower's serialization.
    """
    return ArrayRecord({name: Array(part) for name, part in weights.items()})
