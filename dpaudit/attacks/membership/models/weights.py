"""Weights in a safetensors file, and the factory that makes the module they belong to."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_model
from torch import nn

from dpaudit.attacks.membership.models.module import Module
from dpaudit.vocabulary.errors import InvalidArgument

Factory = Callable[[tuple[int, ...], int], nn.Module]


def load(path: Path, factory: str, shape: tuple[int, ...], classes: int) -> Module:
    """Return the module of ``factory`` with the weights in ``path``.

    Args:
        path: A .safetensors file.
        factory: ``package.module:function``, called with ``shape`` and ``classes``.
        shape: Of one record.
        classes: How many there are.

    Raises:
        InvalidArgument: no such factory, or weights that are not of its module.
    """
    module = _imported(factory)(shape, classes)
    if not isinstance(module, nn.Module):
        raise InvalidArgument("model", factory, "a function that returns a torch.nn.Module")
    try:
        load_model(module, path)
    except Exception as error:  # safetensors raises its own and torch's kinds
        allowed = f"weights of {factory} ({error})"
        raise InvalidArgument("checkpoint", str(path), allowed) from error
    return Module(module.eval())


def _imported(name: str) -> Factory:
    module, colon, attribute = name.partition(":")
    allowed = "package.module:function that can be imported"
    if not colon:
        raise InvalidArgument("model", name, allowed)
    if os.getcwd() not in sys.path:  # an installed command does not look where it is called
        sys.path.append(os.getcwd())
    try:
        found: Factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidArgument("model", name, f"{allowed} ({error})") from error
    return found
