"""Records, as a model runs, which parameters took part in which operations.

An operation with a rule runs on detached parameters, so that the backward pass takes no
gradients of them; all that is kept is its input and the edge of the graph where its
output's gradient arrives. What has no rule runs as it is, and its parameters get
gradients of their own, by which they are noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from dpaudit.trainer.engine.decompositions import DECOMPOSITIONS
from dpaudit.trainer.engine.rules import RULES, Operation


class _Differentiable(torch.autograd.Function):
    """The same tensor, with a gradient: of an output that depends on parameters alone.

    Not a view, so that it may be changed in place as the output might have been.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        """Return ``output``."""
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Pass the gradient on, and nothing to the anchor."""
        (gradient,) = gradients
        return gradient, gradient.new_zeros(())


def _is_whole(view: Tensor) -> bool:
    """Return whether a view shows all of a tensor that came out of the same operation."""
    base = view._base
    return (
        base is not None
        and base.grad_fn is not None
        and base.numel() == view.numel()
        and base.is_contiguous()
        and view.is_contiguous()
    )


@dataclass(frozen=True)
class Use:
    """One call in which trained parameters took part.

    Attributes:
        name: Of the operation, for messages.
        operation: Its rule's answer.
        shape: Of its output.
        edge: Where the gradient of its output arrives, in this shape or laid out flat.
    """

    name: str
    operation: Operation
    shape: torch.Size
    edge: GradientEdge


TRANSFORMS = (functorch.TransformType.Grad, functorch.TransformType.Jvp)
BACKWARD = frozenset({torch.autograd.backward, Tensor.backward})


class Watch(TorchFunctionMode):
    """While it is on, it notices whether gradients are taken.

    Attributes:
        differentiates: Whether a loss depends on gradients that it takes itself: a second
            derivative is lost where parameters are detached.
    """

    def __init__(self) -> None:
        self.differentiates = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.watch(func, args, kwargs)
        return func(*args, **kwargs)

    def watch(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Take note of one call."""
        if func is torch.autograd.grad:
            # The gradient of inputs alone, as of an attack, is a constant in the loss.
            twice = kwargs.get("create_graph", args[4] if len(args) > 4 else False)
            inputs = kwargs.get("inputs", args[1] if len(args) > 1 else ())
            inputs = [inputs] if isinstance(inputs, Tensor) else inputs
            if twice or any(isinstance(each, nn.Parameter) for each in inputs):
                self.differentiates = True
        elif func in BACKWARD or getattr(func, "__name__", "") == "_make_dual":
            self.differentiates = True
        elif functorch.peek_interpreter_stack() is not None:
            levels = functorch.get_interpreter_stack() or ()
            if any(level.key() in TRANSFORMS for level in levels):
                self.differentiates = True


class Tape(Watch):
    """While it is on, uses of ``parameters`` are recorded in ``uses``.

    Args:
        parameters: Those that rules may take care of.
        spread: Numbers of the uses whose single row is to be repeated for every record.
        records: How many records there are, for these.
    """

    def __init__(
        self, parameters: Iterable[Tensor], spread: Collection[int] = (), records: int = 1
    ) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self._parameters = {id(parameter) for parameter in parameters}
        self._spread, self._records = frozenset(spread), records
        self._anchor = torch.zeros((), requires_grad=True)
        self._recording = True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._recording:
            self.watch(func, args, kwargs)
        if (decomposition := DECOMPOSITIONS.get(func)) is not None:
            with self:
                output = decomposition(*args, **kwargs)
            return func(*args, **kwargs) if output is NotImplemented else output
        if (rule := RULES.get(func)) is None:
            return func(*args, **kwargs)
        operation = rule(*args, **kwargs)
        if operation is None or not self._has_rules_for(operation) or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        output = func(*map(self._plain, args), **{k: self._plain(v) for k, v in kwargs.items()})
        return self._recorded(func, operation, output)

    def _has_rules_for(self, operation: Operation) -> bool:
        trained = [p for p in operation.parameters if p is not None and p.requires_grad]
        return bool(trained) and all(id(p) in self._parameters for p in trained)

    def _plain(self, value: Any) -> Any:
        return value.detach() if id(value) in self._parameters else value

    def _recorded(self, func: Callable[..., Any], operation: Operation, output: Tensor) -> Tensor:
        if output._is_view() and not _is_whole(output):
            output = output.clone()
        if not output.requires_grad:
            output = output.clone() if output._is_view() else output
            output = _Differentiable.apply(output, self._anchor)  # type: ignore[no-untyped-call]
        if len(self.uses) in self._spread:
            output = output.expand(self._records, *output.shape[1:]).clone()
            row = operation.input
            operation = replace(operation, input=row.expand(self._records, *row.shape[1:]))
        if self._recording:
            name = getattr(func, "__name__", str(func))
            # Changed in place, a view gets another edge; what it is a view of keeps this one.
            source = output._base if output._is_view() else output
            assert source is not None
            self.uses.append(Use(name, operation, output.shape, get_gradient_edge(source)))
        return output

    def gradients(
        self, loss: Tensor, others: Sequence[Tensor] = (), *, retain_graph: bool = False
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return a loss's gradients of all uses' outputs, and those of other tensors."""
        wanted: list[Any] = [*(use.edge for use in self.uses), *others]  # torch allows either
        if not wanted:
            return [], []
        with self._replayed():
            found = torch.autograd.grad(loss, wanted, retain_graph=retain_graph, allow_unused=True)
        own: list[Tensor | None] = [
            None if gradient is None else gradient.reshape(use.shape)
            for use, gradient in zip(self.uses, found, strict=False)
        ]
        return own, list(found[len(own) :])

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        """Be on while a backward pass runs, which may compute activations anew.

        What is computed then must be what was computed before, on detached parameters; it
        is not recorded again.
        """
        self._recording = False
        try:
            with self:
                yield
        finally:
            self._recording = True
