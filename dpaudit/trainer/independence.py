"""Does any operation mix records? Found by trying, not by a list of class names.

One record of a batch is replaced; if another record's output moves, no clipping of
per-record gradients bounds what one record does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dpaudit.vocabulary.errors import InvalidArgument

BATCH = 6
TOLERANCE = 1e-4  # relative to the outputs' size; kernels are deterministic here


def require_independent_records(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Refuse a model in which one record changes the outputs of another.

    Args:
        model: In the mode in which it will train.
        shape: Shape of one record; the batches are made up, no record is touched.

    Raises:
        InvalidArgument: names the first module whose output mixes records.
    """
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(BATCH, *shape, generator=generator)
    changed = batch.clone()
    changed[0] = 1 - changed[0] * 3
    before, after = _outputs(model, batch), _outputs(model, changed)
    for (name, kind, one), (_, _, other) in zip(before, after, strict=True):
        if _others_moved(one, other):
            raise InvalidArgument(
                "model",
                f"{kind} {name!r}",
                "free of operations that mix records (one record moved the outputs of "
                "others; GroupNorm or LayerNorm can stand in for batch normalisation)",
            )


def _others_moved(one: Tensor, other: Tensor) -> bool:
    if one.ndim == 0 or one.shape[0] != BATCH or one.shape != other.shape:
        return one.shape != other.shape
    gap = (one[1:] - other[1:]).abs().max()
    return not bool(gap <= TOLERANCE * (1 + one[1:].abs().max()))  # NaN counts as moved


def _outputs(model: nn.Module, batch: Tensor) -> list[tuple[str, str, Tensor]]:
    """Return (name, class, output) of every leaf module, in order of execution, and the whole."""
    seen: list[tuple[str, str, Tensor]] = []
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _recorded(model, seen):
        torch.manual_seed(0)  # the same dropout in both passes
        output = model(batch)
    model.load_state_dict(state)  # running statistics moved
    return [*seen, ("", type(model).__name__, output)]


@contextmanager
def _recorded(model: nn.Module, seen: list[tuple[str, str, Tensor]]) -> Iterator[None]:
    def record(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            seen.append((name, type(module).__name__, output.detach().clone()))

    handles = [
        module.register_forward_hook(lambda m, _, out, name=name: record(name, m, out))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
