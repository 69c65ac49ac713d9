"""DP-FedAvg over secure aggregation as a Flower strategy: the server sees the noisy sum alone.

A round has four messages per participant. ``configure_train`` exchanges the first two, and
returns the third, which holds the global model. ``aggregate_train`` takes the masked inputs,
sends the fourth, and unmasks the sum. The clients are made with ``join_secure_sum``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from dpaudit.trainer.federated.flower.run_strategy import RunStrategy
from dpaudit.trainer.federated.flower.secure_client import (
    ACTIONS,
    ARRAYS,
    ENVELOPE,
    envelope,
    opened,
)
from dpaudit.trainer.federated.flower.secure_server import SecureServer
from dpaudit.trainer.federated.flower.secure_settings import SecureServerSettings
from dpaudit.trainer.federated.secure_aggregation.messages import Phase
from dpaudit.trainer.federated.updates import Update
from dpaudit.vocabulary.errors import ProtocolViolation, TooFewParticipants

log = logging.getLogger(__name__)

CONFIG, ROUND = "config", "server-round"

__all__ = ["SecureDPFedAvg"]


class SecureDPFedAvg(RunStrategy[SecureServer]):
    """Participant-level FedAvg over secure aggregation, with noise in shares.

    All participants are invited to every round. A round that loses more of them than the
    settings allow does not move the model. Its release counts if it was recorded, which is
    before the participants are asked for their inputs.

    Args:
        settings: Clip norm, noise, dropouts, colluders, delta and budget.
        out: The run directory, which ``dpaudit epsilon`` reads.
        node_timeout: Longest time to wait for all nodes to connect before the first round, and
            for their answers to the server's question, in seconds.
        phase_timeout: Longest time to wait for the answers of a phase without training, in
            seconds.

    Attributes:
        settings: The settings.

    Example:
        >>> from dpaudit.vocabulary.federation import SecureAggregationSettings
        >>> secure = SecureAggregationSettings(dropouts=2, colluders=1)
        >>> settings = SecureServerSettings(secure, 10, 0.5, 2.0, delta=1e-5)
        >>> SecureDPFedAvg(settings, "runs/secure").run is None
        True
    """

    def __init__(
        self,
        settings: SecureServerSettings,
        out: str | os.PathLike[str],
        *,
        node_timeout: float = 60.0,
        phase_timeout: float = 120.0,
    ) -> None:
        super().__init__(out, settings.participants, node_timeout)
        self.settings, self._phase_timeout = settings, phase_timeout
        self._grid: Grid | None = None

    def _open_server(self, initial: Update) -> SecureServer:
        return SecureServer.open(self._out, self.settings, initial)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Exchange keys and shares, and return the messages with the global model.

        Args:
            server_round: Number of the round, from 1.
            arrays: The global model.
            config: Settings that are sent to clients.
            grid: Flower's grid.

        Returns:
            One message per participant that is left. None at the budget's end, and if too few
            participants are left.

        Raises:
            InvalidArgument: If this is not the next round.
        """
        server = self._require_round(server_round)
        self._grid = None
        if not server.has_room():
            return []
        self._identify(grid)
        config[ROUND] = server_round
        try:
            invited = server.invite(self._nodes.values())
            keys = self._ask(grid, Phase.ADVERTISE_KEYS, invited)
            shares = self._ask(grid, Phase.SHARE_KEYS, server.receive_keys(keys))
            inputs = server.receive_shares(shares)
        except TooFewParticipants as error:
            log.warning("round %d is not released: %s", server_round, error)
            server.abandon(str(error))
            return []
        self._grid = grid
        return self._messages(Phase.MASKED_INPUT, inputs, {ARRAYS: arrays, CONFIG: config})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Unmask the noisy sum of the round, and move the model by it.

        Args:
            server_round: Number of the round, from 1.
            replies: The masked inputs, in any order; some may be missing, failed or malformed.

        Returns:
            The global model, and epsilon so far. Nothing if the round was not released.
        """
        server, grid, self._grid = self._open, self._grid, None
        if grid is None:
            return None, None
        self._require_round(server_round)
        try:
            request = server.receive_masked_inputs(self._opened(replies))
            server.receive_unmask_shares(self._ask(grid, Phase.UNMASKING, request))
        except (TooFewParticipants, ProtocolViolation) as error:
            log.warning("the sum of round %d cannot be unmasked: %s", server_round, error)
            server.abandon(str(error))
        for number, reason in server.left_out.items():
            log.warning("round %d: participant %d left out: %s", server_round, number, reason)
        metrics = MetricRecord(
            {
                "epsilon": server.epsilon().upper,
                "delta": self.settings.delta,
                "clip-norm": self.settings.clip_norm,
            }
        )
        return self.arrays, metrics

    def summary(self) -> None:
        """Log the settings that the guarantee depends on."""
        settings, secure = self.settings, self.settings.secure
        log.info(
            "DP-FedAvg over secure aggregation of %d participants, at most %d dropouts and %d "
            "colluders: noise multiplier %g, clip norm %g, delta %g",
            settings.participants,
            secure.dropouts,
            secure.colluders,
            settings.noise_multiplier,
            settings.clip_norm,
            settings.delta,
        )

    def _ask(self, grid: Grid, phase: Phase, messages: Mapping[int, bytes]) -> dict[int, bytes]:
        """Send the messages of a phase, and return the answers that arrive."""
        sent = self._messages(phase, messages, {})
        return self._opened(grid.send_and_receive(sent, timeout=self._phase_timeout))

    def _messages(
        self,
        phase: Phase,
        messages: Mapping[int, bytes],
        more: Mapping[str, ArrayRecord | ConfigRecord],
    ) -> list[Message]:
        """Return the Flower messages of a phase."""
        node_of = {number: node for node, number in self._nodes.items()}
        return [
            Message(
                content=RecordDict({ENVELOPE: envelope(data), **more}),
                dst_node_id=node_of[number],
                message_type=ACTIONS[phase],
            )
            for number, data in messages.items()
        ]

    def _opened(self, replies: Iterable[Message]) -> dict[int, bytes]:
        """Return the answers by participant; name those that have none."""
        found: dict[int, bytes] = {}
        left_out = self._open.left_out
        answered: set[int] = set()
        for reply in replies:
            number = self._nodes.get(reply.metadata.src_node_id)
            if number is None:
                log.warning("a reply of node %d was not asked for", reply.metadata.src_node_id)
            elif number in answered:
                found.pop(number, None)
                left_out[number] = "it sent two replies"
            else:
                answered.add(number)
                try:
                    found[number] = _opened_reply(reply)
                except ProtocolViolation as error:
                    left_out[number] = str(error)
        return found


def _opened_reply(reply: Message) -> bytes:
    """Return the message of the protocol that a reply holds."""
    if reply.has_error():
        raise ProtocolViolation("its client app failed")
    return opened(reply)
