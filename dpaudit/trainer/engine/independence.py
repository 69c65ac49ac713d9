"""Does any operation mix records? Found by trying, not by a list of class names.

One record of a batch is replaced; if another record's loss moves, no clipping of
per-record gradients bounds what one record does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.batches import Batch, count, mapped
from dpaudit.trainer.engine.functional import PerSampleLoss
from dpaudit.trainer.engine.seeding import seed_torch
from dpaudit.vocabulary.errors import InvalidArgument

BATCH = 6
TOLERANCE = 1e-4  # relative to the outputs' size; kernels are deterministic here

Seen = list[tuple[str, str, Tensor]]
"""Name, class and output of modules, in order of execution."""


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
    _require_unmoved(model, lambda: model(batch), lambda: model(changed), torch.arange(BATCH) > 0)


def require_independent_losses(model: nn.Module, loss: PerSampleLoss, batch: Batch) -> None:
    """Refuse a model or a loss in which one record changes the loss of another.

    For every bit of their numbers, the records that have it are replaced by their neighbours
    and the others watched, and the other way round: so any two are told apart once. A single
    record shows no mixing. Refused, too, is a model that keeps running statistics of what it
    is given: they are part of it, and would be released without noise.

    Raises:
        InvalidArgument: names the first module whose output mixes records, or a buffer that
            records move.
    """
    records = count(batch)
    numbers = torch.arange(records)
    for bit in range(max(0, records - 1).bit_length()):
        for replaced in ((numbers >> bit) & 1 == 1, (numbers >> bit) & 1 == 0):
            source = torch.where(replaced, numbers.roll(1), numbers)
            changed = mapped(batch, partial(_taken, source))
            runs = partial(loss, model, batch), partial(loss, model, changed)
            _require_unmoved(model, *runs, ~replaced)
    require_no_statistics(model, loss, batch)


def require_no_statistics(model: nn.Module, loss: PerSampleLoss, batch: Batch) -> None:
    """Refuse a model with a buffer that records move; the model is left as it was.

    Raises:
        InvalidArgument: names the buffer.
    """
    before = _state(model)
    with torch.random.fork_rng(), torch.no_grad():
        loss(model, batch)
    moved = [
        name
        for name, value in model.named_buffers()
        if value.is_floating_point() and not torch.equal(value, before.get(name, value))
    ]
    _restore(model, before)
    if moved:
        raise InvalidArgument(
            "model",
            f"{_owner(model, moved[0])} with the buffer {moved[0]!r}",
            "free of running statistics of its records (they are released with it, without "
            "noise: dpaudit.trainer.fix takes them out)",
        )


def _owner(model: nn.Module, buffer: str) -> str:
    name = buffer.rpartition(".")[0]
    return f"{type(model.get_submodule(name)).__name__} {name!r}"


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return what a forward pass may move: buffers. Parameters of shards stay where they are."""
    return {name: value.clone() for name, value in model.named_buffers()}


def _restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in model.named_buffers():
            value.copy_(state.get(name, value))


def _taken(source: Tensor, tensor: Tensor) -> Tensor:
    return tensor[source.to(tensor.device)]


def _require_unmoved(
    model: nn.Module, run: Callable[[], Tensor], run_changed: Callable[[], Tensor], watched: Tensor
) -> None:
    before, after = _outputs(model, run), _outputs(model, run_changed)
    if not _others_moved(before[-1][2], after[-1][2], watched):
        return
    for (name, kind, one), (_, _, other) in zip(before, after, strict=True):
        if _others_moved(one, other, watched):
            raise InvalidArgument(
                "model",
                f"{kind} {name!r}",
                "free of operations that mix records (one record moved the outputs of "
                "others; GroupNorm or LayerNorm can stand in for batch normalisation)",
            )


def _others_moved(one: Tensor, other: Tensor, watched: Tensor) -> bool:
    if one.shape != other.shape:
        return True
    if one.ndim == 0 or one.shape[0] != len(watched):
        return False  # not a module whose rows are known to be records
    one, other = one[watched], other[watched]
    fine = torch.isfinite(one)  # a record that is not finite says nothing of the others
    gap = (one - other)[fine].abs()
    if not len(gap):
        return False
    most = TOLERANCE * (1 + one[fine].abs().amax())
    return not bool((gap <= most).all())  # NaN counts as moved


def _outputs(model: nn.Module, run: Callable[[], Tensor]) -> Seen:
    """Return what every leaf module gave, and what the whole did."""
    seen: Seen = []
    state = _state(model)
    with torch.random.fork_rng(), torch.no_grad(), _recorded(model, seen):
        seed_torch(0)  # the same dropout in both passes
        output = run()
    _restore(model, state)  # running statistics moved
    return [*seen, ("", type(model).__name__, output)]


@contextmanager
def _recorded(model: nn.Module, seen: Seen) -> Iterator[None]:
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
