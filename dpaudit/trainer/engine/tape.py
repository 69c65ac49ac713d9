"""The tape: records the operations in which parameters take part while a model runs.

An operation with a rule runs on detached parameters, so the backward pass computes no
gradients of them. Only its input is kept, and the edge of the graph at which the gradient of
its output arrives. An operation without a rule runs unchanged. Its parameters then receive
gradients of their own, by which the engine detects them.
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

from dpaudit.trainer.engine.composite_operations import DECOMPOSITIONS
from dpaudit.trainer.engine.operation_rules import RULES, Operation


class _Differentiable(torch.autograd.Function):
    """Identity that makes an output require a gradient if it depends on parameters alone.

    Not a view, so that the result may be changed in place as the output might have been.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        """Return ``output``, which now depends on the anchor.

        Args:
            ctx: Context of autograd.
            output: Output of an operation on detached parameters.
            anchor: A scalar that requires a gradient.

        Returns:
            The output itself.
        """
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient for the output, and zero for the anchor.

        Args:
            ctx: Context of autograd.
            *gradients: The gradient of the result.

        Returns:
            Gradients of both inputs.
        """
        (gradient,) = gradients
        return gradient, gradient.new_zeros(())


def _is_whole(view: Tensor) -> bool:
    """Return whether a view covers all of a tensor that came out of the same operation."""
    base = view._base
    return (
        base is not None
        and base.grad_fn is not None
        and base.numel() == view.numel()
        and base.is_contiguous()
        and view.is_contiguous()
    )


@dataclass(frozen=True)
class ParameterUse:
    """One call in which trained parameters took part.

    Attributes:
        name: Name of the operation, for messages.
        operation: What the operation's rule returned.
        shape: Shape of the output.
        edge: Edge at which the gradient of the output arrives, in this shape or flattened.
    """

    name: str
    operation: Operation
    shape: torch.Size
    edge: GradientEdge


DIFFERENTIATING_TRANSFORMS = (functorch.TransformType.Grad, functorch.TransformType.Jvp)
BACKWARD_FUNCTIONS = frozenset({torch.autograd.backward, Tensor.backward})


class DifferentiationWatch(TorchFunctionMode):
    """Detects whether gradients are taken while it is active.

    Attributes:
        differentiates: Whether the loss takes gradients itself. Second derivatives are lost
            where parameters are detached, so rules must not be used then.
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
        """Note whether one call takes gradients of parameters.

        Args:
            func: The function of torch that is called.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        if func is torch.autograd.grad:
            # Without a graph, gradients of inputs alone (adversarial examples) are constants.
            twice = kwargs.get("create_graph", args[4] if len(args) > 4 else False)
            inputs = kwargs.get("inputs", args[1] if len(args) > 1 else ())
            inputs = [inputs] if isinstance(inputs, Tensor) else inputs
            if twice or any(isinstance(each, nn.Parameter) for each in inputs):
                self.differentiates = True
        elif func in BACKWARD_FUNCTIONS or getattr(func, "__name__", "") == "_make_dual":
            self.differentiates = True
        elif functorch.peek_interpreter_stack() is not None:
            levels = functorch.get_interpreter_stack() or ()
            if any(level.key() in DIFFERENTIATING_TRANSFORMS for level in levels):
                self.differentiates = True


class Tape(DifferentiationWatch):
    """Records the uses of some parameters while it is active.

    Args:
        parameters: Parameters that rules may cover.
        spread: Numbers of the uses whose single row is repeated for every record.
        records: Number of records, for these uses.

    Attributes:
        uses: The recorded uses, in order of execution.
    """

    def __init__(
        self, parameters: Iterable[Tensor], spread: Collection[int] = (), records: int = 1
    ) -> None:
        super().__init__()
        self.uses: list[ParameterUse] = []
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
        # torch switches the mode off while this method runs. It is switched on again for the
        # parts of a composite operation, which have rules of their own.
        if (decomposition := DECOMPOSITIONS.get(func)) is not None:
            with self:
                output = decomposition(*args, **kwargs)
            return func(*args, **kwargs) if output is NotImplemented else output
        if (rule := RULES.get(func)) is None:
            return func(*args, **kwargs)
        # The rule is used only if it covers every trained parameter of the call.
        operation = rule(*args, **kwargs)
        if operation is None or not self._has_rules_for(operation) or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        output = func(*map(self._plain, args), **{k: self._plain(v) for k, v in kwargs.items()})
        return self._recorded(func, operation, output)

    def _has_rules_for(self, operation: Operation) -> bool:
        """Return whether parameters are trained in a call, and rules may cover all of them."""
        trained = [p for p in operation.parameters if p is not None and p.requires_grad]
        return bool(trained) and all(id(p) in self._parameters for p in trained)

    def _plain(self, value: Any) -> Any:
        """Return a covered parameter detached, and any other value unchanged."""
        return value.detach() if id(value) in self._parameters else value

    def _recorded(self, func: Callable[..., Any], operation: Operation, output: Tensor) -> Tensor:
        """Return the output of a call, with a graph edge, and record the use."""
        if output._is_view() and not _is_whole(output):
            output = output.clone()
        # If only parameters would need a gradient, the output is detached from the graph. It
        # needs an edge all the same, at which its gradient arrives.
        if not output.requires_grad:
            output = output.clone() if output._is_view() else output
            output = _Differentiable.apply(output, self._anchor)  # type: ignore[no-untyped-call]
        # A use that ran once for all records gets one copy of its row per record, so that
        # each record's loss reaches its own copy.
        if len(self.uses) in self._spread:
            output = output.expand(self._records, *output.shape[1:]).clone()
            row = operation.input
            operation = replace(operation, input=row.expand(self._records, *row.shape[1:]))
        if self._recording:
            name = getattr(func, "__name__", str(func))
            # A view that is changed in place gets another edge; its base keeps this one.
            source = output._base if output._is_view() else output
            assert source is not None
            self.uses.append(ParameterUse(name, operation, output.shape, get_gradient_edge(source)))
        return output

    def gradients(
        self, loss: Tensor, others: Sequence[Tensor] = (), *, retain_graph: bool = False
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return a loss's gradients of the outputs of all uses, and of other tensors.

        Args:
            loss: A scalar that was computed while the tape was active.
            others: Further tensors to differentiate with respect to.
            retain_graph: Whether another backward pass follows.

        Returns:
            Gradients per use, in the output's shape, and gradients per other tensor; None where
            the loss does not depend on it.
        """
        # torch takes graph edges and tensors alike.
        wanted: list[Any] = [*(use.edge for use in self.uses), *others]
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
        """Be active, without recording, during a backward pass that may recompute activations.

        Recomputed activations must equal those of the forward pass, on detached parameters.
        """
        self._recording = False
        try:
            with self:
                yield
        finally:
            self._recording = True
