"""The processes that train together: each takes a part of every batch, and all add up.

The batch is drawn from one key and one step on every rank alike, and divided; the clipped
sums are added up once; the noise, from the same key, is the same on every rank. So the
result does not depend on how many there are, and a rank without a record is nothing special.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from dpaudit.trainer.added_noise import Sums
from dpaudit.trainer.randomness import Keystream
from dpaudit.trainer.sharding import is_sharded
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument


class Peers(Protocol):
    """Who trains, as one of them sees it."""

    @property
    def rank(self) -> int:
        """This one's number, from 0."""

    @property
    def world(self) -> int:
        """How many there are."""

    def share(self, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this rank's part of what was drawn."""

    def add_up(self, sums: Sums) -> None:
        """Replace the sums, in place, by those over all ranks."""

    def agreed(self, stream: Keystream) -> Keystream:
        """Return the first rank's stream."""

    def same_start(self, model: nn.Module) -> None:
        """Replace the model's parameters, in place, by those of the first rank."""

    def require_same(self, name: str, value: int) -> None:
        """Refuse to go on where ranks disagree.

        Raises:
            IntegrityError: they do.
        """

    def require_same_settings(self, settings: Mapping[str, str]) -> None:
        """Refuse to begin where ranks were given different settings.

        Args:
            settings: By name, in words that are equal where settings are.

        Raises:
            InvalidArgument: Names the first setting that differs, and what each rank has.
        """


@dataclass(frozen=True)
class Alone:
    """One process."""

    rank: int = 0
    world: int = 1

    def share(self, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """See ``Peers``."""
        return drawn

    def add_up(self, sums: Sums) -> None:
        """See ``Peers``."""

    def agreed(self, stream: Keystream) -> Keystream:
        """See ``Peers``."""
        return stream

    def same_start(self, model: nn.Module) -> None:
        """See ``Peers``."""

    def require_same(self, name: str, value: int) -> None:
        """See ``Peers``."""

    def require_same_settings(self, settings: Mapping[str, str]) -> None:
        """See ``Peers``."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of torch.distributed's default group."""

    rank: int
    world: int

    def share(self, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """See ``Peers``."""
        return drawn[self.rank :: self.world]

    def add_up(self, sums: Sums) -> None:
        """See ``Peers``: in float64, so that the order of ranks does not show.

        Raises:
            InvalidArgument: Ranks train different parameters, as one froze some in mid-run.
        """
        self._require_same_size(sum(part.numel() for part in sums.values()))
        flat = torch.cat([part.double().flatten() for part in sums.values()])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [part.numel() for part in sums.values()])
        for own, total in zip(sums.values(), parts, strict=True):
            own.copy_(total.view_as(own))

    def _require_same_size(self, size: int) -> None:
        """Refuse sums of different sizes, which the processes could not add up."""
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        ends = torch.tensor([size, -size], device=device)
        distributed.all_reduce(ends, op=distributed.ReduceOp.MAX)
        most, least = int(ends[0]), -int(ends[1])
        if most != least:
            raise InvalidArgument(
                "trainable parameters", f"{least} to {most} numbers", "the same on every rank"
            )

    def agreed(self, stream: Keystream) -> Keystream:
        """See ``Peers``: the key travels between the ranks and is not stored."""
        sent = [stream.key if self.rank == 0 else b""]
        distributed.broadcast_object_list(sent, src=0)
        return Keystream(sent[0], stream.randomness)

    def same_start(self, model: nn.Module) -> None:
        """See ``Peers``: sharded parameters are as ``fully_shard`` left them."""
        for tensor in (*model.parameters(), *model.buffers()):
            if not is_sharded(tensor):
                distributed.broadcast(tensor.detach(), src=0)

    def require_same(self, name: str, value: int) -> None:
        """See ``Peers``."""
        found: list[int] = [0] * self.world
        distributed.all_gather_object(found, value)
        if len(set(found)) > 1:
            raise IntegrityError(f"ranks are at different places: {name} {found}")

    def require_same_settings(self, settings: Mapping[str, str]) -> None:
        """See ``Peers``: every rank sees all settings, so that every rank refuses."""
        found: list[Mapping[str, str]] = [{}] * self.world
        distributed.all_gather_object(found, dict(settings))
        for name in dict.fromkeys(key for one in found for key in one):
            values = [one.get(name, "not given") for one in found]
            if len(set(values)) > 1:
                said = "; ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))
                raise InvalidArgument(name, said, "the same on every rank")


def device_of(asked: str) -> torch.device:
    """Return the device that ``cpu``, ``cuda`` or ``auto`` stand for; of several GPUs this rank's.

    Raises:
        InvalidArgument: there is no such device.
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise InvalidArgument("device", asked, "cpu or auto: there is no GPU that torch can use")
    if asked == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def begin_ranks(device: torch.device) -> None:
    """Join the processes that torchrun started, if it did.

    A rank that dies ends the others within a minute.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(seconds=60))


def peers() -> Peers:
    """Return the ranks of the process group, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    return Alone()
