"""The server of a Flower app for tests with real processes: DP-FedAvg.

It writes its run directory to the folder of the run's configuration, and last the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from digits_client import PARTICIPANTS, SECURE, Weights
from flwr.app import Array, ArrayRecord, Context, Message, MessageType
from flwr.serverapp import Grid, ServerApp

from dpaudit.trainer.federated.aggregation import ParticipantClipping
from dpaudit.trainer.federated.flower import DPFedAvg, SecureDPFedAvg, ServerSettings

SETTINGS = ServerSettings(
    ParticipantClipping(0.5, 1.0, participation_rate=1.0, participants=PARTICIPANTS),
    delta=1e-5,
    seed=3,
)
ROUND_SECONDS, TIMES_THE_FIRST = 20.0, 2.0
FIRST_ROUND_SECONDS = 120.0
MODEL, RUN = "model.npz", "run"
"""Names in the folder."""


def initial_weights() -> Weights:
    return {"weight": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}


class MeasuredTimeout:
    """Ends a round after a multiple of the first one, which all clients answer.

    So a client that died costs little time, and none that lives is late on a busy machine.
    """

    def __init__(self, grid: Grid) -> None:
        self._send, self._seconds = grid.send_and_receive, 0.0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        asked, begin = list(messages), time.monotonic()
        if self._seconds:
            return self._send(asked, timeout=max(ROUND_SECONDS, TIMES_THE_FIRST * self._seconds))
        replies = self._send(asked, timeout=timeout)
        if all(one.metadata.message_type == MessageType.TRAIN for one in asked):
            self._seconds = time.monotonic() - begin
        return replies


server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    folder, rounds = Path(str(context.run_config["folder"])), int(str(context.run_config["rounds"]))
    strategy = (
        SecureDPFedAvg(SECURE, folder / RUN)
        if context.run_config["secure"]
        else DPFedAvg(SETTINGS, folder / RUN)
    )
    grid.send_and_receive = MeasuredTimeout(grid).send_and_receive  # type: ignore[method-assign]
    initial = ArrayRecord({name: Array(one) for name, one in initial_weights().items()})
    result = strategy.start(grid, initial, rounds, timeout=FIRST_ROUND_SECONDS)
    partial = folder / f"partial-{MODEL}"
    np.savez(partial, **{name: one.numpy() for name, one in result.arrays.items()})
    partial.replace(folder / MODEL)
