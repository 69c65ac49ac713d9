"""Per-record gradients by differentiating each record's own loss: slow, and for everything.

Whatever the model does, record i's gradient is that of its loss on a batch of itself alone:
nothing can be skipped, and no operation can mix records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dpaudit.trainer.engine.batches import Batch, count, part, tensors, with_tensors

PerSampleLoss = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) to losses of shape (records,)."""


class _Loss(nn.Module):
    """A loss as a module around the model, so that its parameters can be put in from outside."""

    def __init__(self, model: nn.Module, loss: PerSampleLoss) -> None:
        super().__init__()
        self.model, self._loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        return self._loss(self.model, batch)


class PerRecordGradients:
    """Gradients of each record's own loss with respect to some parameters."""

    def __init__(self, model: nn.Module, loss: PerSampleLoss, names: Iterable[str]) -> None:
        self._module = _Loss(model, loss)
        named = dict(model.named_parameters())
        self._parameters = {f"model.{name}": named[name] for name in names}

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Return one tensor of shape ``(records, *parameter)`` a parameter."""
        try:
            return self._at_once(batch)
        except (RuntimeError, NotImplementedError, ValueError):
            return self._one_by_one(batch)  # what vmap cannot do, a loop can

    def _at_once(self, batch: Batch) -> list[Tensor]:
        def loss_of_one(parameters: dict[str, Tensor], *record: Tensor) -> Tensor:
            alone = with_tensors(batch, [tensor[None] for tensor in record])
            losses: Tensor = functional_call(self._module, parameters, (alone,))
            return losses.sum()

        detached = {name: value.detach() for name, value in self._parameters.items()}
        parts = tensors(batch)
        in_dims = (None, *(0 for _ in parts))
        found = vmap(grad(loss_of_one), in_dims=in_dims, randomness="different")(detached, *parts)
        return [found[name] for name in self._parameters]

    def _one_by_one(self, batch: Batch) -> list[Tensor]:
        parameters = list(self._parameters.values())
        rows = []
        for record in range(count(batch)):
            loss = self._module(part(batch, record, record + 1)).sum()
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            rows.append([
                torch.zeros_like(p) if g is None else g
                for p, g in zip(parameters, gradients, strict=True)
            ])  # fmt: skip
        return [torch.stack(column) for column in zip(*rows, strict=True)]
