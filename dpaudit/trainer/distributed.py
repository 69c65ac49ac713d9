"""Training on several processes: ranks that share each batch, and sharded models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from dpaudit.trainer.engine.module_walk import named_parameters
from dpaudit.trainer.noise.gradient_noise import GradientSums
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument

# Models whose parameters are sharded over ranks (torch's ``fully_shard``, FSDP2).
#
# A step gathers the parameters and computes the clipped sum of this rank's records as in one
# process. Each rank then gets its shard of the noisy gradient. The optimizer's state stays
# sharded, and so do the parameters between steps. During a step each rank holds all parameters,
# since a record's norm is taken over all of them.


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is one rank's shard.

    Args:
        tensor: Any tensor.

    Returns:
        True for a DTensor.
    """
    if type(tensor) is Tensor or type(tensor) is nn.Parameter or not distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - seconds to import

    return isinstance(tensor, DTensor)


@contextmanager
def unsharded_parameters(model: nn.Module) -> Iterator[None]:
    """Hold a sharded model's parameters whole inside a ``with`` block; nothing for other models.

    Args:
        model: The model. Its gradients are not synchronized inside the block.

    Yields:
        Nothing.
    """
    if not any(map(is_sharded, named_parameters(model).values())):
        yield
        return
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in parts:
        # Gradients are summed by hand, once, after clipping.
        module.set_requires_gradient_sync(False)
        module.set_reshard_after_forward(False)
        module.set_reshard_after_backward(False)
        module.unshard()
    try:
        yield
    finally:
        for module in parts:
            module.reshard()


def set_gradients(model: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Set each trainable parameter's gradient, or this rank's shard of it.

    A frozen parameter gets no gradient: one left from before would move it again.

    Args:
        model: The model.
        gradients: The gradient of each trainable parameter, whole.
    """
    for name, parameter in named_parameters(model).items():
        if not parameter.requires_grad:
            parameter.grad = None
        else:
            gradient = gradients[name].to(parameter.dtype)
            parameter.grad = shard_like(gradient, parameter) if is_sharded(parameter) else gradient


def shard_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's shard of a tensor that every rank holds whole.

    Args:
        whole: The tensor.
        parameter: A sharded parameter, whose placement is used.

    Returns:
        A DTensor sharded like ``parameter``.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: PLC0415

    assert isinstance(parameter, DTensor)
    mesh, places = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole, mesh, places, src_data_rank=None)


def gather_shards(tensor: Tensor) -> Tensor:
    """Return a tensor gathered from all ranks, all of which must call this.

    Args:
        tensor: A shard, or any other tensor, which is returned as it is.

    Returns:
        The whole tensor, on the CPU if it was sharded.
    """
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full.to(torch.device("cpu"))


# The group of processes that train together: each takes a part of every batch.
#
# Every rank draws the same batch, from the same key and step, and takes its part. The clipped
# sums are added once over all ranks. The noise comes from the same key, so every rank adds the
# same noise. The result does not depend on the number of ranks, up to the rounding of sums. A
# rank without a record needs no special case.


class RankGroup(Protocol):
    """The group of ranks that train together, from the point of view of one rank."""

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""

    @property
    def world(self) -> int:
        """The number of ranks."""

    def share(self, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return this rank's part of the drawn records.

        Args:
            drawn: Positions of all drawn records, shape ``(batch,)``.

        Returns:
            The positions that this rank processes.
        """

    def sum_over_ranks(self, sums: GradientSums) -> None:
        """Replace sums, in place, by the sums over all ranks.

        Args:
            sums: This rank's sums per parameter; changed in place.
        """

    def broadcast_stream(self, stream: Keystream) -> Keystream:
        """Return the first rank's keystream.

        Args:
            stream: This rank's keystream.

        Returns:
            The keystream that all ranks use.
        """

    def broadcast_parameters(self, model: nn.Module) -> None:
        """Replace the model's parameters and buffers by those of the first rank.

        Args:
            model: The model, changed in place on other ranks than the first.
        """

    def require_same(self, name: str, value: int) -> None:
        """Refuse values that differ between ranks.

        Args:
            name: What is compared, for the message.
            value: This rank's value.

        Raises:
            IntegrityError: If they differ.
        """

    def require_same_settings(self, settings: Mapping[str, str]) -> None:
        """Refuse settings that differ between ranks.

        Args:
            settings: One text per setting of this rank; equal settings have equal texts.

        Raises:
            InvalidArgument: If one differs; names the first one and the value of each rank.
        """


@dataclass(frozen=True)
class SingleProcess:
    """A group of one process: nothing is exchanged or compared."""

    rank: int = 0
    world: int = 1

    def share(self, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return all drawn records.

        Args:
            drawn: Positions of all drawn records, shape ``(batch,)``.

        Returns:
            The positions that this rank processes.
        """
        return drawn

    def sum_over_ranks(self, sums: GradientSums) -> None:
        """Leave the sums as they are: they are those over all ranks.

        Args:
            sums: This rank's sums per parameter; changed in place.
        """

    def broadcast_stream(self, stream: Keystream) -> Keystream:
        """Return the same keystream.

        Args:
            stream: This rank's keystream.

        Returns:
            The keystream that all ranks use.
        """
        return stream

    def broadcast_parameters(self, model: nn.Module) -> None:
        """Leave the parameters as they are.

        Args:
            model: The model, which is not changed.
        """

    def require_same(self, name: str, value: int) -> None:
        """Accept any value: there is no other rank.

        Args:
            name: What is compared, for the message.
            value: This rank's value.
        """

    def require_same_settings(self, settings: Mapping[str, str]) -> None:
        """Accept any settings: there is no other rank.

        Args:
            settings: One text per setting of this rank; equal settings have equal texts.
        """


@dataclass(frozen=True)
class DistributedRanks:
    """The ranks of torch.distributed's default process group.

    Attributes:
        rank: The number of this rank, from 0.
        world: The number of ranks.
    """

    rank: int
    world: int

    def share(self, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return every ``world``-th drawn record, from ``rank`` on.

        Args:
            drawn: Positions of all drawn records, shape ``(batch,)``.

        Returns:
            The positions that this rank processes.
        """
        # Every rank draws the same positions; the parts are disjoint and cover the batch.
        return drawn[self.rank :: self.world]

    def sum_over_ranks(self, sums: GradientSums) -> None:
        """Add sums over all ranks in float64, so that the order of ranks does not show.

        Args:
            sums: This rank's sums per parameter; changed in place.

        Raises:
            InvalidArgument: If ranks train different numbers of parameters, for example because one
                rank froze some during the run.
        """
        self._require_same_size(sum(part.numel() for part in sums.values()))
        flat = torch.cat([part.double().flatten() for part in sums.values()])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [part.numel() for part in sums.values()])
        for own, total in zip(sums.values(), parts, strict=True):
            own.copy_(total.view_as(own))

    def _require_same_size(self, size: int) -> None:
        """Refuse sums of different sizes, which the ranks could not add."""
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        # The maximum of the negated sizes is the negated minimum: one exchange gives both.
        ends = torch.tensor([size, -size], device=device)
        distributed.all_reduce(ends, op=distributed.ReduceOp.MAX)
        most, least = int(ends[0]), -int(ends[1])
        if most != least:
            raise InvalidArgument(
                "trainable parameters", f"{least} to {most} numbers", "the same on every rank"
            )

    def broadcast_stream(self, stream: Keystream) -> Keystream:
        """Return the first rank's keystream; the key is sent between ranks and not stored.

        Args:
            stream: This rank's keystream.

        Returns:
            The keystream that all ranks use.
        """
        sent = [stream.key if self.rank == 0 else b""]
        distributed.broadcast_object_list(sent, src=0)
        return Keystream(sent[0], stream.randomness)

    def broadcast_parameters(self, model: nn.Module) -> None:
        """Replace parameters and buffers by the first rank's, except sharded ones.

        Args:
            model: The model, changed in place on other ranks than the first.
        """
        for tensor in (*model.parameters(), *model.buffers()):
            if not is_sharded(tensor):
                distributed.broadcast(tensor.detach(), src=0)

    def require_same(self, name: str, value: int) -> None:
        """Refuse values that differ between ranks; waits for all ranks.

        Args:
            name: What is compared, for the message.
            value: This rank's value.

        Raises:
            IntegrityError: If they differ.
        """
        found: list[int] = [0] * self.world
        distributed.all_gather_object(found, value)
        if len(set(found)) > 1:
            raise IntegrityError(f"ranks are at different positions: {name} {found}")

    def require_same_settings(self, settings: Mapping[str, str]) -> None:
        """Refuse settings that differ; every rank has all settings, so every rank refuses.

        Args:
            settings: One text per setting of this rank; equal settings have equal texts.

        Raises:
            InvalidArgument: If one differs; names the first one and the value of each rank.
        """
        found: list[Mapping[str, str]] = [{}] * self.world
        distributed.all_gather_object(found, dict(settings))
        for name in dict.fromkeys(key for one in found for key in one):
            values = [one.get(name, "not given") for one in found]
            if len(set(values)) > 1:
                listed = "; ".join(f"rank {rank}: {value}" for rank, value in enumerate(values))
                raise InvalidArgument(name, listed, "the same on every rank")


def select_device(name: str) -> torch.device:
    """Return the device of this process.

    Args:
        name: ``cpu``, ``cuda``, or ``auto``: a GPU if torch can use one.

    Returns:
        The device; of several GPUs, the one of this rank (``LOCAL_RANK``).

    Raises:
        InvalidArgument: If ``cuda`` is requested and torch can use no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InvalidArgument("device", name, "cpu or auto: there is no GPU that torch can use")
    if name == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def join_process_group(device: torch.device) -> None:
    """Join the processes that torchrun started, if there are several.

    If a rank dies, the others stop within a minute.

    Args:
        device: This process's device, which decides the backend: nccl or gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(seconds=60))


def current_ranks() -> RankGroup:
    """Return the ranks of the process group.

    Returns:
        The default process group of torch.distributed; a single process if there is none.
    """
    if distributed.is_available() and distributed.is_initialized():
        return DistributedRanks(distributed.get_rank(), distributed.get_world_size())
    return SingleProcess()
