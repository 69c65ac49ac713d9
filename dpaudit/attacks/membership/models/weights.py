"""Weights in a file, and the factory that makes the module they belong to."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dpaudit.attacks.membership.models.module import Module
from dpaudit.files.opening import InputFile, read
from dpaudit.files.user_code import imported, made
from dpaudit.vocabulary.errors import InvalidArgument

Weights = dict[str, Tensor]
NESTED = ("state_dict", "model_state_dict", "model")
"""Under which names a training checkpoint keeps a module's weights."""


def load(source: InputFile, factory: str, shape: tuple[int, ...], classes: int) -> Module:
    """Return the module of ``factory`` with the weights of a .safetensors file.

    Args:
        source: The file.
        factory: ``package.module:function``, called with ``shape`` and ``classes``, or without
            arguments if it takes none.
        shape: Of one record.
        classes: How many there are.

    Raises:
        InvalidArgument: no such factory, or weights that are not of its module.
        UserCodeError: the factory raised an error.
    """
    return _filled(source, factory, shape, classes, _safetensors)


def load_state_dict(
    source: InputFile, factory: str, shape: tuple[int, ...], classes: int
) -> Module:
    """Return the module of ``factory`` with the weights of ``torch.save(state_dict)``.

    They are read with ``weights_only=True``: nothing of the file is run.

    Raises:
        InvalidArgument: as ``load``; or the file holds more than weights.
        UserCodeError: the factory raised an error.
    """
    return _filled(source, factory, shape, classes, _saved_by_torch)


def _filled(
    source: InputFile,
    factory: str,
    shape: tuple[int, ...],
    classes: int,
    weights_of: Callable[[bytes], Weights],
) -> Module:
    allowed = "package.module:function that can be imported"
    module = made("model", factory, imported("model", factory, allowed), shape, classes)
    if not isinstance(module, nn.Module):
        raise InvalidArgument("model", factory, "a function that returns a torch.nn.Module")
    content = read(source)
    try:
        weights = weights_of(content)
        _fill(module, weights)
    except Exception as error:  # safetensors, pickle and torch raise their own kinds
        raise InvalidArgument(
            "checkpoint", str(source.path), f"weights of {factory} ({_short(error)})"
        ) from error
    return Module(module.eval(), f"model {factory}")


def _fill(module: nn.Module, weights: Weights) -> None:
    """Fill a module, of whose tied tensors the file may hold one alone."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    own = module.state_dict(keep_vars=True)
    given = {id(own[name]) for name in weights if name in own}
    missing = [name for name in missing if id(own[name]) not in given]
    if missing or unexpected:
        raise ValueError(f"missing are {missing[:5]}, not of the model are {unexpected[:5]}")


def _safetensors(content: bytes) -> Weights:
    return safetensors.torch.load(content)


def _saved_by_torch(content: bytes) -> Weights:
    found: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    for name in NESTED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError("it holds no state_dict, from names to tensors")
    return found


def _short(error: Exception) -> str:
    """Return the first lines of what torch says, which may go on about how to trust a file."""
    return " ".join(str(error).split())[:300]
