"""DP-FedAvg as a Flower strategy: participant-level privacy beyond one machine.

It differs from Flower's own wrappers in its guarantee:

- each participant joins a round by its own coin of a keystream;
- a release is on disk before its noise is drawn from the keystream;
- the sum is divided by a public constant, so a lost client makes it smaller, not the noise;
- a bad reply is named in the ledger and left out, and the round ends;
- at the budget's end the last model is kept, and the run is finished;
- a restarted ServerApp continues with its newest model, under its ledger.

Clients send the arrays of the trained model, as for Flower's FedAvg. Their metrics are not used:
a metric without noise is a release that no ledger covers. Client-side evaluation is off for the
same reason.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from dpaudit.trainer.federated.flower.records import read_update
from dpaudit.trainer.federated.flower.run_strategy import RunStrategy
from dpaudit.trainer.federated.flower.server import ParticipantServer, ServerSettings
from dpaudit.trainer.federated.updates import Update
from dpaudit.vocabulary.errors import InvalidUpdate

log = logging.getLogger(__name__)

ARRAYS, CONFIG = "arrays", "config"
"""Names of the records of a training message, as in Flower's FedAvg."""

ROUND = "server-round"

NO_NODE = "no node answered for it"
NO_REPLY = "it sent no reply in time"
FAILED = "its client app failed"
TWO_REPLIES = "it sent two replies"
NO_ARRAYS = "its reply has not exactly one record of arrays"
"""Why a drawn participant has no update; no text of a client is recorded."""

__all__ = ["DPFedAvg"]


class DPFedAvg(RunStrategy[ParticipantServer]):
    """Participant-level FedAvg with Poisson sampling, a ledger, and keystream noise.

    ``start`` begins a run, or continues the one in the run directory, and finishes it.

    Args:
        settings: Clip norm, noise, participation, delta and budget.
        out: The run directory, which ``dpaudit epsilon`` reads.
        node_timeout: Longest time to wait for all nodes to connect before the first round, and
            for their answers to the server's question, in seconds.

    Attributes:
        settings: The settings.
        run: The finished run directory; None before ``start`` has returned, and if no round was
            released.

    Example:
        >>> from dpaudit.trainer.federated.aggregation import ParticipantClipping
        >>> clipping = ParticipantClipping(0.5, 1.0, participation_rate=0.5, participants=20)
        >>> strategy = DPFedAvg(ServerSettings(clipping, delta=1e-5), "runs/flower")
        >>> strategy.run is None
        True
    """

    def __init__(
        self, settings: ServerSettings, out: str | os.PathLike[str], *, node_timeout: float = 60.0
    ) -> None:
        super().__init__(out, settings.clipping.participants, node_timeout)
        self.settings = settings
        self._drawn: tuple[int, ...] = ()

    def _open_server(self, initial: Update) -> ParticipantServer:
        return ParticipantServer.open(self._out, self.settings, initial)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the participants of a round, and make their messages.

        Args:
            server_round: Number of the round, from 1.
            arrays: The global model.
            config: Settings that are sent to clients.
            grid: Flower's grid, for nodes that did not say their number yet.

        Returns:
            One message per drawn participant whose node is known. None at the budget's end.

        Raises:
            InvalidArgument: If this is not the next round.
        """
        server = self._require_round(server_round)
        if not server.has_room():
            self._drawn = ()
            return []
        self._identify(grid)
        self._drawn = server.draw()
        config[ROUND] = server_round
        node_of = {number: node for node, number in self._nodes.items()}
        return [
            Message(
                content=RecordDict({ARRAYS: arrays, CONFIG: config}),
                dst_node_id=node_of[number],
                message_type=MessageType.TRAIN,
                group_id=str(server_round),
            )
            for number in self._drawn
            if number in node_of
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Release the noisy sum of the replies, in the order of participants.

        A round without any reply is a release like any other.

        Args:
            server_round: Number of the round, from 1.
            replies: Replies in any order; some may be missing, failed or malformed.

        Returns:
            The new global model, and epsilon so far. Nothing at the budget's end.

        Raises:
            InvalidArgument: If this is not the next round.
        """
        server = self._require_round(server_round)
        if not server.has_room():
            return None, None
        updates, left_out = self._read_replies(replies, server.weights)
        result = server.aggregate(updates, self._drawn, left_out)
        for number, reason in result.rejected.items():
            log.warning("round %d: participant %d left out: %s", server_round, number, reason)
        metrics = MetricRecord(
            {
                "epsilon": server.epsilon().upper,
                "delta": self.settings.delta,
                "clip-norm": result.clip_norm,
            }
        )
        return self.arrays, metrics

    def summary(self) -> None:
        """Log the settings that the guarantee depends on."""
        clipping = self.settings.clipping
        log.info(
            "DP-FedAvg of %d participants at rate %g: noise multiplier %g, clip norm %g, delta %g",
            clipping.participants,
            clipping.participation_rate,
            clipping.noise_multiplier,
            clipping.clip_norm,
            self.settings.delta,
        )

    def _read_replies(
        self, replies: Iterable[Message], weights: Update
    ) -> tuple[dict[int, Update], dict[int, str]]:
        """Return the update of each participant, and why a drawn one has none."""
        updates: dict[int, Update] = {}
        known = self._nodes.values()
        left_out = {one: NO_REPLY if one in known else NO_NODE for one in self._drawn}
        answered: set[int] = set()
        for reply in replies:
            number = self._nodes.get(reply.metadata.src_node_id)
            if number not in left_out or number is None:
                log.warning("a reply of node %d was not asked for", reply.metadata.src_node_id)
                continue
            if number in answered:
                updates.pop(number, None)
                left_out[number] = TWO_REPLIES
                continue
            answered.add(number)
            try:
                updates[number] = read_reply(reply, weights, participant=number)
            except InvalidUpdate as error:
                left_out[number] = error.reason
        return updates, {one: why for one, why in left_out.items() if one not in updates}


def read_reply(reply: Message, weights: Update, *, participant: int) -> Update:
    """Return the update that a reply holds.

    Args:
        reply: The reply of a client to a training message.
        weights: The model that was sent.
        participant: Number of the participant, for the error.

    Returns:
        The change of the model, float32 by name.

    Raises:
        InvalidUpdate: If the client failed, or its arrays cannot be used.
    """
    if reply.has_error():
        raise InvalidUpdate(participant, FAILED)
    records = list(reply.content.array_records.values())
    if len(records) != 1:
        raise InvalidUpdate(participant, NO_ARRAYS)
    return read_update(records[0], weights, participant=participant)
