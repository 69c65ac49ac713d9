"""Per-record gradients by differentiating each record's own loss: slow, and for everything.

Whatever the model does, record i's gradient is that of its loss on a batch of itself alone:
nothing can be skipped, and no operation can mix records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from dpaudit.trainer.engine.batches import (
    Batch,
    columns,
    count,
    part,
    tensors,
    with_tensors,
)
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument

PerSampleLoss = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) to losses of shape (records,)."""


@contextmanager
def swapped(model: nn.Module, replacements: Mapping[int, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of parameters, wherever a parameter is used.

    By identity, in every module once: torch's own way of it leaves a module that a model
    holds under two names with what was put in.
    """
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and id(parameter) in replacements
    ]
    try:
        for module, name, parameter in places:
            module._parameters[name] = replacements[id(parameter)]  # type: ignore[assignment]
        _refresh(module for module, _, _ in places)
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
        _refresh(module for module, _, _ in places)


def _refresh(modules: Iterable[nn.Module]) -> None:
    """Let recurrent layers look up their weights anew: they keep a list of them."""
    for module in modules:
        if isinstance(module, nn.RNNBase):
            names = module._flat_weights_names
            module._flat_weights = [getattr(module, name, None) for name in names]


def _nothing() -> None:
    pass


class PerRecordGradients:
    """Gradients of each record's own loss with respect to some parameters.

    Args:
        model: Whose parameters they are.
        loss: Of a batch, per record.
        names: Of the parameters.
        reset: Sets the model's state back, before each pass.
        at_once: Whether ``torch.func.vmap`` may be tried; not on a loss that differentiates.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: PerSampleLoss,
        names: Iterable[str],
        reset: Callable[[], None] = _nothing,
        *,
        at_once: bool = True,
    ) -> None:
        self._model, self._loss = model, loss
        self._reset, self._may_be_at_once = reset, at_once
        named = dict(model.named_parameters())
        self._parameters = {name: named[name] for name in names}

    def __call__(self, batch: Batch) -> list[Tensor]:
        """Return one tensor of shape ``(records, *parameter)`` a parameter.

        Raises:
            InvalidArgument: If the loss of one record cannot be differentiated.
        """
        if self._may_be_at_once and not columns(batch):
            # What vmap cannot do, a loop can; a model may say so in any way.
            with suppress(Exception):
                return self._at_once(batch)
        return self._one_by_one(batch)

    def _at_once(self, batch: Batch) -> list[Tensor]:
        def loss_of_one(parameters: dict[str, Tensor], *record: Tensor) -> Tensor:
            alone = with_tensors(batch, [tensor[None] for tensor in record])
            ids = (id(parameter) for parameter in self._parameters.values())
            with swapped(self._model, dict(zip(ids, parameters.values(), strict=True))):
                return self._loss(self._model, alone).sum()

        detached = {name: value.detach() for name, value in self._parameters.items()}
        parts = tensors(batch)
        in_dims = (None, *(0 for _ in parts))
        self._reset()
        found = vmap(grad(loss_of_one), in_dims=in_dims, randomness="different")(detached, *parts)
        return [found[name] for name in self._parameters]

    def _one_by_one(self, batch: Batch) -> list[Tensor]:
        rows = []
        for record in range(count(batch)):
            with typed_errors():
                rows.append(self._of_one(part(batch, record, record + 1)))
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _of_one(self, record: Batch) -> list[Tensor]:
        parameters = list(self._parameters.values())
        if not self._may_be_at_once:  # a loss that takes gradients may add them up there
            self._model.zero_grad()
        self._reset()
        with torch.enable_grad():
            loss = self._loss(self._model, record).sum()
            gradients = differentiated(loss, parameters)
        return [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(parameters, gradients, strict=True)
        ]


def differentiated(loss: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return a loss's gradients; None where it does not depend on a parameter."""
    if not loss.requires_grad:
        return [None] * len(parameters)
    return torch.autograd.grad(loss, parameters, allow_unused=True)


FAILURES = (RuntimeError, LookupError, TypeError, ValueError, NotImplementedError, AttributeError)


@contextmanager
def typed_errors() -> Iterator[None]:
    """Name the argument behind an error of a model or loss; out of memory stays what it is."""
    try:
        yield
    except (DpauditError, torch.OutOfMemoryError):
        raise
    except FAILURES as error:
        raise InvalidArgument(
            "per_sample_loss",
            f"{type(error).__name__}: {error}",
            "a function that runs, and can be differentiated, on a batch of any records",
        ) from error
