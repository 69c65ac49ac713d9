"""Models whose parameters are sharded over ranks (torch's ``fully_shard``, FSDP2).

A step puts the parameters together, takes the clipped sum of this rank's records as on one
process, and gives each rank its shard of the noisy gradient: the optimizer's state stays
sharded, and the parameters between steps. During a step each rank holds them whole, since
norms are taken over all parameters of a record at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a rank's part of one."""
    if not distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - seconds to import

    return isinstance(tensor, DTensor)


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Let a sharded model have its parameters whole; nothing for any other."""
    if not any(is_sharded(parameter) for parameter in model.parameters()):
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


def set_gradients(model: nn.Module, sums: Mapping[str, Tensor], expected: float) -> None:
    """Set each trainable parameter's gradient: its sum, or this rank's shard, over ``expected``.

    What is frozen has none: a gradient left from before would move it again.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            parameter.grad = None
        else:
            gradient = sums[name].div_(expected).to(parameter.dtype)
            parameter.grad = shard_like(gradient, parameter) if is_sharded(parameter) else gradient


def shard_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's shard of a tensor that every rank has whole."""
    from torch.distributed.tensor import DTensor, distribute_tensor  # noqa: PLC0415

    assert isinstance(parameter, DTensor)
    mesh, places = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole, mesh, places, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor put together from all ranks, which all have to ask for it."""
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full.to(torch.device("cpu"))
