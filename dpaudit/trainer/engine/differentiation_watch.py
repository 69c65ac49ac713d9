"""Detects losses that take gradients themselves, for which no rule may be used."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.overrides import TorchFunctionMode

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
