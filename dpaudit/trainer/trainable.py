"""Models and optimizers that private steps cannot train, refused before anything is drawn."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn
from torch.optim import Optimizer

from dpaudit.trainer.engine.module_walk import named_parameters
from dpaudit.vocabulary.errors import InvalidArgument

CLOSURE_CHECK = re.compile(r"assert\s+closure\s+is\s+not\s+None|if\s+closure\s+is\s+None:\s*raise")
"""How the step of an optimizer says that its optional closure is required."""


def require_trainable(model: object, optimizer: object) -> None:
    """Refuse a model or optimizer that private steps cannot train.

    Args:
        model: What was given as the model.
        optimizer: What was given as the optimizer.

    Raises:
        InvalidArgument: If one is of another type, no parameter is trainable, the optimizer needs
            a closure or lacks a parameter, or a gradient would be sparse.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgument("model", type(model).__name__, "a torch.nn.Module")
    if not isinstance(optimizer, Optimizer):
        raise InvalidArgument("optimizer", type(optimizer).__name__, "a torch.optim.Optimizer")
    require_all_parameters(model, optimizer)
    if _needs_closure(optimizer):
        raise InvalidArgument(
            "optimizer", type(optimizer).__name__, "one whose step needs no closure, as SGD or "
            "Adam: a closure evaluates the loss again, which would be another release",
        )  # fmt: skip
    _require_dense(model, optimizer)


def require_all_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that lacks a trainable parameter, or a model without any.

    Args:
        model: The model.
        optimizer: The optimizer.

    Raises:
        InvalidArgument: If a parameter is missing, which is named, or none is trainable.
    """
    present = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = [(name, p) for name, p in named_parameters(model).items() if p.requires_grad]
    if not trainable:
        raise InvalidArgument(
            "model", f"a {type(model).__name__} without trainable parameters", "one with a "
            "trainable parameter: call requires_grad_(True) on what is to be trained",
        )  # fmt: skip
    missing = [name for name, p in trainable if id(p) not in present]
    if missing:
        raise InvalidArgument(
            "optimizer",
            type(optimizer).__name__,
            f"one over all trainable parameters; it lacks {', '.join(missing)} (freeze them, "
            "or add them with optimizer.add_param_group)",
        )


def _needs_closure(optimizer: Optimizer) -> bool:
    """Return whether the step of an optimizer cannot be taken without a closure."""
    step = inspect.unwrap(type(optimizer).step)
    closure = inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        return True
    return _checks_for_closure(step)


@lru_cache(maxsize=64)
def _checks_for_closure(step: Callable[..., object]) -> bool:
    """Return whether the source code of a function raises without a closure. Takes 2 ms."""
    try:
        return CLOSURE_CHECK.search(inspect.getsource(step)) is not None
    except (OSError, TypeError):  # without source code
        return False


def _require_dense(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse layers and optimizers of sparse gradients, as every entry gets noise."""
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise InvalidArgument(
            "optimizer", "SparseAdam", "one for dense gradients, as Adam: every entry gets noise"
        )
    for name, module in model.named_modules():
        trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if trained and getattr(module, "sparse", False) is True:
            raise InvalidArgument(
                "model", f"{name or type(module).__name__} with sparse=True", "made of layers with "
                "sparse=False: every entry of a gradient gets noise, so it is dense",
            )  # fmt: skip
