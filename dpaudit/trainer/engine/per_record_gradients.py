"""Per-record gradients by differentiating each record's own loss: slow, for any model.

Record i's gradient is that of its loss on a batch of itself alone. So no parameter can be
skipped, and no operation can mix records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.func import grad, vmap

from dpaudit.trainer.engine.batch_structure import (
    Batch,
    batch_columns,
    batch_tensors,
    count_records,
    describe_structure,
    replace_tensors,
    slice_records,
)
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument

PerSampleLoss = Callable[[nn.Module, Batch], Tensor]
"""Function of (model, batch) that returns one loss per record, shape ``(records,)``.

For instance ``lambda model, batch: cross_entropy(model(batch[0]), batch[1], reduction="none")``.
"""


@contextmanager
def replaced_parameters(model: nn.Module, replacements: Mapping[int, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of parameters, wherever a parameter is used.

    Parameters are found by identity in every module. ``torch.func.functional_call`` works by
    name, and leaves the replacement in a module that a model holds under two names.

    Args:
        model: The model.
        replacements: Tensors by the identity of the parameter.

    Yields:
        Nothing; the parameters are put back after the block.
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
    """Let recurrent layers read their weights again, as they keep a list of them."""
    for module in modules:
        if isinstance(module, nn.RNNBase):
            names = module._flat_weights_names
            module._flat_weights = [getattr(module, name, None) for name in names]


def _nothing() -> None:
    """Stand in for a reset where no state moves."""
    pass


class PerRecordGradients:
    """Gradients of each record's own loss with respect to some parameters.

    Args:
        model: The model.
        loss: Function of (model, batch) that returns one loss per record.
        names: Names of the parameters.
        reset: Sets the model's state back; called before each pass.
        at_once: Whether to try ``torch.func.vmap``, which is wrong for a loss that takes
            gradients itself.
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
        """Return the gradients of each record.

        Args:
            batch: At least one record.

        Returns:
            One tensor per parameter, shape ``(records, *parameter)``.

        Raises:
            InvalidArgument: If the loss of one record cannot be computed or differentiated.
        """
        if self._may_be_at_once and not batch_columns(batch):
            # A loop covers what vmap does not; the model may raise any error in vmap.
            with suppress(Exception):
                return self._at_once(batch)
        return self._one_by_one(batch)

    def _at_once(self, batch: Batch) -> list[Tensor]:
        """Return the gradients by ``torch.func.vmap`` over records."""

        # vmap hides the record dimension; the model gets it back with length 1.
        def loss_of_one(parameters: dict[str, Tensor], *record: Tensor) -> Tensor:
            alone = replace_tensors(batch, [tensor[None] for tensor in record])
            ids = (id(parameter) for parameter in self._parameters.values())
            with replaced_parameters(self._model, dict(zip(ids, parameters.values(), strict=True))):
                return self._loss(self._model, alone).sum()

        detached = {name: value.detach() for name, value in self._parameters.items()}
        parts = batch_tensors(batch)
        in_dims = (None, *(0 for _ in parts))
        self._reset()
        differentiate = vmap(grad(loss_of_one), in_dims=in_dims, randomness="different")
        with _without_advice_of_vmap():
            found = differentiate(detached, *parts)
        return [found[name] for name in self._parameters]

    def _one_by_one(self, batch: Batch) -> list[Tensor]:
        """Return the gradients by one backward pass per record."""
        rows = []
        for record in range(count_records(batch)):
            with convert_user_errors(batch):
                rows.append(self._of_one(slice_records(batch, record, record + 1)))
        return [torch.stack(column) for column in zip(*rows, strict=True)]

    def _of_one(self, record: Batch) -> list[Tensor]:
        """Return the gradients of one record; zeros for parameters that it does not reach."""
        parameters = list(self._parameters.values())
        if not self._may_be_at_once:  # a loss that calls backward() accumulates into .grad
            self._model.zero_grad()
        self._reset()
        with torch.enable_grad():
            loss = self._loss(self._model, record).sum()
            gradients = gradients_of(loss, parameters)
        return [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(parameters, gradients, strict=True)
        ]


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return the gradients of a loss.

    Args:
        loss: A tensor with one entry.
        parameters: Tensors to differentiate with respect to.

    Returns:
        One gradient per parameter; None if the loss does not depend on it.
    """
    if not loss.requires_grad:
        return [None] * len(parameters)
    return torch.autograd.grad(loss, parameters, allow_unused=True)


USER_ERRORS = (
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    NotImplementedError,
    AttributeError,
)


def _ignore(shown: bool) -> None:
    """Do nothing."""


@contextmanager
def _without_advice_of_vmap() -> Iterator[None]:
    """Omit torch's advice to file an issue about an operation that vmap runs in a loop."""
    # Private names of torch, which a later version may lack. The setting cannot be read.
    show = getattr(functorch, "_set_vmap_fallback_warning_enabled", _ignore)
    show(False)
    try:
        yield
    finally:
        show(True)  # torch's default


ONE_RECORD_ERROR = "Expected more than 1 value per channel when training"
"""Text of torch's error for batch statistics of one record."""


@contextmanager
def convert_user_errors(batch: Batch) -> Iterator[None]:
    """Turn an error of a model or a loss into one that names the argument.

    Running out of memory and errors of dpaudit pass unchanged.

    Args:
        batch: What the loss is called with; an error shows its structure.

    Yields:
        Nothing.

    Raises:
        InvalidArgument: If the block raises one of ``USER_ERRORS``.
    """
    try:
        yield
    except (DpauditError, torch.OutOfMemoryError):
        raise
    except USER_ERRORS as error:
        if ONE_RECORD_ERROR in str(error):
            raise InvalidArgument(
                "model",
                f"{type(error).__name__}: {error}",
                "without batch statistics, which one record does not have "
                "(dpaudit.trainer.fix replaces batch normalization)",
            ) from error
        raise InvalidArgument(
            "per_sample_loss",
            f"{type(error).__name__}: {error}",
            "a function of (model, batch) that runs, and can be differentiated, on a batch of any "
            f"records; this batch is {describe_structure(batch)}",
        ) from error
