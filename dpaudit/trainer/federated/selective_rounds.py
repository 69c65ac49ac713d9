"""The rounds of selective SGD in the embedded engine: turns, downloads and uploads.

Both strategies share the server, the order of turns and the bookkeeping. They differ in what a
participant computes in its turn (``Turn``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.trainer.federated.dssgd import (
    Action,
    ParameterServer,
    Upload,
    Vector,
    apply_upload,
    download,
    turn_events,
)
from dpaudit.trainer.federated.fedavg import describe_error, require_survivor
from dpaudit.trainer.federated.federation import Federation, draw_some
from dpaudit.trainer.federated.local_training import Weights
from dpaudit.trainer.federated.strategy import RoundResult
from dpaudit.vocabulary.errors import InvalidUpdate

COUNTERS, LOCALS = "counters", "local parameters"


class Turn(Protocol):
    """What one strategy does in the turn of a participant."""

    def has_budget(self, participant: int) -> bool:
        """Return whether a participant has budget for one more turn."""

    def take(self, participant: int, number: int, local: Vector) -> tuple[Vector, Upload]:
        """Train from the downloaded parameters, and choose what is uploaded.

        Args:
            participant: Number of the participant, from 0.
            number: Number of the round, from 0.
            local: The participant's parameters after its download, shape ``(d,)``.

        Returns:
            The participant's parameters after training, and its upload.
        """

    def uploaded(self, upload: Upload) -> None:
        """Take note of an upload that the server has added."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint stores."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the state of a checkpoint."""


class SelectiveRounds:
    """A selective strategy in the middle of a run.

    Args:
        federation: The federation.
        turn: What a participant does in its turn.
    """

    def __init__(self, federation: Federation, turn: Turn) -> None:
        self._federation, self._turn = federation, turn
        start = flatten_weights(federation.weights())
        self._counters = np.zeros(len(start))
        # Parameters that a participant does not download stay its own.
        self._keeps_own = federation.config.selective.download_fraction < 1
        count = len(federation.participants) if self._keeps_own else 0
        self._locals = np.tile(start, (count, 1))
        self._left: set[int] = set()

    def run_round(self, number: int) -> RoundResult:
        """Let every participant of a round take its turn.

        Args:
            number: Number of the round, from 0.

        Returns:
            Who took part. A participant without budget for its turn has left.
        """
        federation, selective = self._federation, self._federation.config.selective
        count = len(federation.participants)
        rate = federation.config.privacy.participation_rate
        drawn = {int(one) for one in draw_some(federation.stream, number, count, rate)}
        self._left |= {one for one in drawn if not self._turn.has_budget(one)}
        present = sorted(drawn - self._left)
        if len(self._left) == count:
            return RoundResult(number, left=tuple(sorted(self._left)), ended=True)
        server = ParameterServer(flatten_weights(federation.weights()), self._counters)
        uploads: dict[int, Upload] = {}
        joined, rejected, failed = [], dict[int, str](), dict[int, Exception]()
        for event in turn_events(selective.order, count, federation.stream, number):
            one = event.participant
            if one not in present:
                continue
            if event.action is Action.DOWNLOAD:
                try:
                    uploads[one] = self._take(one, number, server)
                except InvalidUpdate as error:
                    rejected[one] = error.reason
                except Exception as error:  # costs this participant alone
                    failed[one] = error
            elif one in uploads:
                server = apply_upload(server, uploads[one], selective.counter_decay)
                self._turn.uploaded(uploads[one])
                joined.append(one)
        require_survivor(present, failed)
        self._counters = server.counters
        federation.set_weights(split_vector(server.parameters, federation.weights()))
        described = {one: describe_error(error) for one, error in failed.items()}
        left = tuple(sorted(self._left))
        return RoundResult(number, tuple(sorted(joined)), rejected, described, left)

    def state(self) -> dict[str, Tensor]:
        """Return counters, the participants' own parameters, and the state of the turns.

        Returns:
            Tensors by name.
        """
        own = {COUNTERS: torch.from_numpy(self._counters.copy())}
        if self._keeps_own:
            own[LOCALS] = torch.from_numpy(self._locals.copy())
        return {**own, **self._turn.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint.

        Args:
            state: What ``state`` returned.
        """
        self._counters = state[COUNTERS].double().numpy().copy()
        if self._keeps_own:
            self._locals = state[LOCALS].float().numpy().copy()
        self._turn.load_state(state)

    def _take(self, participant: int, number: int, server: ParameterServer) -> Upload:
        """Download, train and select; keep the participant's own parameters."""
        fraction = self._federation.config.selective.download_fraction
        own = self._locals[participant] if self._keeps_own else server.parameters
        trained, upload = self._turn.take(participant, number, download(server, own, fraction))
        if self._keeps_own:
            self._locals[participant] = trained
        return upload


def flatten_weights(weights: Weights) -> Vector:
    """Return the trainable parameters as one vector, in the order of their names' mapping.

    Args:
        weights: One tensor per trainable parameter.

    Returns:
        Shape ``(d,)``, float32.

    Example:
        >>> flatten_weights({"w": torch.ones(1, 2), "b": torch.zeros(1)})
        array([1., 1., 0.], dtype=float32)
    """
    parts = [part.detach().float().cpu().flatten() for part in weights.values()]
    return np.asarray(torch.cat(parts).numpy().copy(), dtype=np.float32)


def split_vector(vector: NDArray[np.float32], weights: Weights) -> dict[str, Tensor]:
    """Return a vector as tensors in the shapes of the trainable parameters.

    Args:
        vector: Shape ``(d,)``.
        weights: One tensor per trainable parameter, for names, shapes and devices.

    Returns:
        New tensors by name.

    Example:
        >>> like = {"w": torch.zeros(1, 2), "b": torch.zeros(1)}
        >>> split_vector(np.array([1.0, 2.0, 3.0], dtype=np.float32), like)["w"]
        tensor([[1., 2.]])
    """
    whole = torch.from_numpy(vector.copy())
    parts = torch.split(whole, [part.numel() for part in weights.values()])
    return {
        name: part.view(like.shape).to(like.device)
        for (name, like), part in zip(weights.items(), parts, strict=True)
    }
