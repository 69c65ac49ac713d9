"""Snapshots of a model and a loss; what was verified holds while the snapshot is equal.

A snapshot has two parts. The structure decides how the model runs: modules, their training
flags and hooks, which parameters are trained, the code of the loss. Values are what the code
may branch on: Python attributes, closures, globals, small tensors. They may change at every
step, as an annealed weight does.

Not covered: branches on the data alone between batches of equal shapes; the values of trained
parameters (``Engine`` verifies again at steps 4, 8, 16, ...); globals that library code reads;
state outside of the model and the loss.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from dpaudit.trainer.engine.generators import HELD_GENERATORS, HeldGenerator

SIMPLE_TYPES = frozenset({bool, int, float, complex, str, bytes, type(None)})
CONTAINERS = frozenset({list, tuple, dict})
SMALL_TENSOR = 16  # entries up to which a tensor is compared by value
MAX_ENTRIES = 64  # entries of a container or object that are followed
MAX_ITEMS = 5000  # values of a loss, which bounds the time of a snapshot
MAX_DEPTH = 6  # levels of references from the loss
MODULE_ATTRIBUTES = frozenset(nn.Module().__dict__)  # what torch keeps in every module
LIBRARIES = ("site-packages", "dist-packages")  # code that is not followed into globals
OPAQUE_MODULES = ("torch", "numpy", "builtins")  # modules whose constants are not read


@dataclass(frozen=True)
class ModelSnapshot:
    """Structure and values of a model and a loss at one moment.

    Attributes:
        structure: What decides how the model runs.
        values: What its code may branch on.
        kept: Objects whose ``id`` is part of the snapshot. They are kept alive, so that no
            other object gets the same ``id``.
        generators: Random generators that the model or the loss holds.
    """

    structure: tuple[object, ...]
    values: tuple[object, ...]
    kept: tuple[object, ...] = field(compare=False, repr=False)
    generators: tuple[HeldGenerator, ...] = field(default=(), compare=False, repr=False)


def take_snapshot(model: nn.Module, loss: object) -> ModelSnapshot:
    """Take a snapshot of a model and a loss.

    No tensor on an accelerator is read, so the device is not waited for.

    Args:
        model: The model, with all of its submodules.
        loss: The loss function, with its closure, defaults and globals.

    Returns:
        A snapshot that compares equal while structure and values are unchanged.
    """
    snapshot = _SnapshotBuilder()
    snapshot.add(loss, MAX_DEPTH)
    snapshot.module(model)
    return ModelSnapshot(
        tuple(snapshot.structure),
        tuple(snapshot.values),
        tuple(snapshot.kept),
        tuple(snapshot.generators),
    )


class _SnapshotBuilder:
    """Collects structure and values depth first, with limits on depth and number of entries."""

    def __init__(self) -> None:
        self.structure: list[object] = []
        self.values: list[object] = []
        self.kept: list[object] = []
        self.generators: list[HeldGenerator] = []
        self._seen: set[int] = set()
        self._tensors: dict[int, int] = {}
        self._classes: set[type] = set()
        self._most = MAX_ITEMS

    def module(self, root: nn.Module) -> None:
        """Add a module and all below it, each once.

        Args:
            root: The module.
        """
        stack: list[nn.Module | None] = [root]
        while stack:
            module = stack.pop()
            if module is None or id(module) in self._seen:
                continue
            self._seen.add(id(module))
            self.kept.append(module)
            own = module.__dict__
            self._most = len(self.values) + MAX_ENTRIES * MAX_ENTRIES
            self.structure += (id(module), module.training)
            for hooks in (own.get("_forward_hooks"), own.get("_forward_pre_hooks")):
                if hooks:
                    self.structure += hooks
            if module._parameters:
                self._parameters(module)
            if module._buffers:
                self._buffers(module)
            if len(own) > len(MODULE_ATTRIBUTES):
                for name, value in own.items():
                    if name not in MODULE_ATTRIBUTES:
                        self._attribute(name, value)
            if type(module) not in self._classes:
                self._class(type(module))
            if module._modules:
                stack += module._modules.values()

    def _parameters(self, module: nn.Module) -> None:
        """Add parameters: shapes and training flags as structure, values of the frozen ones."""
        for name, parameter in module._parameters.items():
            if parameter is None:
                self.structure += (name, None)
                continue
            trained = parameter.requires_grad
            number = self._tensors.setdefault(id(parameter), len(self._tensors))
            shape, device = parameter.shape, parameter.device
            self.structure.append((name, number, trained, shape, parameter.dtype, device))
            self.kept.append(parameter)
            self.values.append(id(parameter))
            if not trained:
                self._tensor(parameter)

    def _buffers(self, module: nn.Module) -> None:
        """Add buffers: types as structure, contents as values."""
        for name, buffer in module._buffers.items():
            if buffer is None:
                self.values += (name, None)
            else:
                self.structure += (name, buffer.dtype, buffer.device)
                self._tensor(buffer)

    def _tensor(self, tensor: Tensor) -> None:
        """Add a tensor: a small one on the CPU by content, others by identity and version."""
        self.values += (tensor.shape, tensor.dtype)
        if (
            tensor.numel() <= SMALL_TENSOR
            and tensor.device.type == "cpu"
            and type(tensor) in TENSOR_TYPES
        ):
            self.values.append(repr(tensor.tolist()))
        else:
            self.kept.append(tensor)
            version = -1 if tensor.is_inference() else tensor._version
            self.values += (id(tensor), version)

    def _attribute(self, name: str, value: object) -> None:
        """Add an attribute of a module; a large tensor there is a result, not an input."""
        if type(value) in SIMPLE_TYPES:
            self.values += (name, value)
        elif not isinstance(value, Tensor) or value.numel() <= SMALL_TENSOR:
            self.values.append(name)
            self.add(value, MAX_DEPTH - 3)

    def _class(self, kind: type) -> None:
        """Add attributes and methods of a user's class, with what the methods read."""
        if kind in self._classes:
            return
        self._classes.add(kind)
        if not _is_user_class(kind):
            return
        for base in kind.__mro__:
            if base is nn.Module:
                break
            if not _is_user_class(base):
                continue
            for name, value in vars(base).items():
                if name.startswith("__"):
                    continue
                if isinstance(value, FunctionType) or type(value) in SIMPLE_TYPES:
                    self.add(value, MAX_DEPTH - 3)

    def add(self, value: object, depth: int) -> None:
        """Add any object, with what it refers to.

        Args:
            value: The object.
            depth: Levels of references that are still followed.
        """
        kind = type(value)
        if kind in SIMPLE_TYPES:
            self.values.append(value if value == value else "NaN")  # noqa: PLR0124
            return
        if depth <= 0 or len(self.values) > self._most:
            return
        if kind in CONTAINERS:
            self._collection(value, depth)
        elif not self._known(value):
            self._other(value, depth)

    def _collection(self, value: Any, depth: int) -> None:
        """Add a collection by its length and its first entries."""
        self.values += (type(value), len(value))
        if isinstance(value, Mapping):
            self._entries(value.keys(), depth)
            self._entries(value.values(), depth)
        else:
            self._entries(value, depth)

    def _other(self, value: object, depth: int) -> None:
        """Add an object that is neither simple nor one of the usual collections."""
        match value:
            case nn.Module():
                self.module(value)
            case Tensor():
                self._tensor(value)
            case np.ndarray():
                self._array(value)
            case FunctionType():
                self._function(value, depth)
            case MethodType():
                self.add(value.__func__, depth)
                self.add(value.__self__, depth - 1)
            case functools.partial():
                self.add(value.func, depth)
                self._entries((*value.args, *value.keywords, *value.keywords.values()), depth)
            case list() | tuple() | set() | frozenset() | Mapping():
                self._collection(value, depth)
            case ModuleType() | BuiltinFunctionType() | type():
                pass
            case _:
                self._object(value, depth)

    def _known(self, value: object) -> bool:
        """Return whether an object was added before; containers end by depth instead."""
        if isinstance(value, list | tuple | Mapping | Tensor | MethodType):
            return False
        if id(value) in self._seen:
            return True
        if not isinstance(value, nn.Module):  # ``module`` marks these itself
            self._seen.add(id(value))
        return False

    def _entries(self, values: object, depth: int) -> None:
        """Add the first entries of a collection."""
        for number, value in enumerate(values):  # type: ignore[arg-type, var-annotated]
            if number == MAX_ENTRIES:
                break
            if type(value) in SIMPLE_TYPES:
                self.values.append(value if value == value else "NaN")  # noqa: PLR0124
            else:
                self.add(value, depth - 1)

    def _array(self, array: np.ndarray) -> None:
        """Add an array: a small one by content, others by identity."""
        self.values += (array.shape, array.dtype.str)
        if array.size <= SMALL_TENSOR:
            self.values.append(repr(array.tolist()))
        else:
            self.kept.append(array)
            self.values.append(id(array))

    def _function(self, function: FunctionType, depth: int) -> None:
        """Add a function: its code as structure; closure, defaults and globals as values."""
        code = function.__code__
        self.structure.append(code)
        for cell in function.__closure__ or ():
            try:
                inside = cell.cell_contents
            except ValueError:  # not set yet
                continue
            self.add(inside, depth - 1)
        self._entries(function.__defaults__ or (), depth)
        self._entries((function.__kwdefaults__ or {}).values(), depth)
        if not _in_library(code.co_filename):
            self._globals(function, depth)

    def _globals(self, function: FunctionType, depth: int) -> None:
        """Add the globals that a function reads."""
        names, spread = _names(function.__code__), function.__globals__
        for name in names:
            if name not in spread:
                continue
            value = spread[name]
            if isinstance(value, ModuleType):
                self._of_module(value, names)
            elif not isinstance(value, type):
                self.add(value, depth - 1)

    def _of_module(self, module: ModuleType, names: tuple[str, ...]) -> None:
        """Add the constants of a Python module under the names that a function reads."""
        if module.__name__.partition(".")[0] in OPAQUE_MODULES:
            return
        inside = vars(module)
        for name in names:
            value = inside.get(name)
            if type(value) in SIMPLE_TYPES or isinstance(value, list | tuple | dict):
                self.add(value, 2)

    def _object(self, value: object, depth: int) -> None:
        """Add an object by its class, its ``__call__``, its attributes and its slots."""
        kind = type(value)
        self.values.append(kind)
        if isinstance(value, HELD_GENERATORS):  # its state moves in every pass
            self.generators.append(value)
            return
        if isinstance(call := getattr(kind, "__call__", None), FunctionType):  # noqa: B004
            self.add(call, depth)
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict):
            self._entries(own.keys(), depth)
            self._entries(own.values(), depth)
        for name in getattr(kind, "__slots__", ()):
            self.add(getattr(value, name, None), depth - 1)


TENSOR_TYPES = frozenset({Tensor, nn.Parameter})


@functools.cache
def _in_library(filename: str) -> bool:
    """Return whether a file belongs to an installed library."""
    return any(place in filename for place in LIBRARIES)


@functools.cache
def _is_user_class(kind: type) -> bool:
    """Return whether a class is defined outside of installed libraries."""
    written = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return not _in_library(written or "")


@functools.lru_cache(4096)
def _names(code: CodeType) -> tuple[str, ...]:
    """Return the global and attribute names that a function and its inner functions read."""
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return tuple(
        dict.fromkeys([*code.co_names, *(name for each in inner for name in _names(each))])
    )
