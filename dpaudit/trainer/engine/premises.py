"""What the engine has learned of a model and a loss stays valid while this stays the same.

A snapshot has two parts. The structure decides how the model runs: modules, their training
flags and hooks, which parameters are trained, the code of the loss. Values are what the code
may branch on: Python attributes, closures, globals, small tensors. They may change at every
step, as a weight that is annealed does.

Not seen: what the data alone decide between batches of equal shapes, the values of trained
parameters (``Engine`` looks again at steps 4, 8, 16, ...), globals that library code reads,
and state outside of the model and the loss.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType

import numpy as np
from torch import Tensor, nn

SIMPLE = frozenset({bool, int, float, complex, str, bytes, type(None)})
SMALL = 16  # numbers of a tensor that are compared by value
MOST_ENTRIES = 64  # of a container or object
MOST_ITEMS = 5000  # of a loss, which bounds what it costs
DEPTH = 6
OWN = frozenset(nn.Module().__dict__)  # what torch keeps in every module
LIBRARIES = ("site-packages", "dist-packages")
NO_MODULES = ("torch", "numpy", "builtins")


@dataclass(frozen=True)
class Premises:
    """A snapshot.

    Attributes:
        structure: What decides how the model runs.
        values: What its code may branch on.
        kept: Objects whose identity is in it, so that no other gets the same.
    """

    structure: tuple[object, ...]
    values: tuple[object, ...]
    kept: tuple[object, ...] = field(compare=False, repr=False)


def premises_of(model: nn.Module, loss: object) -> Premises:
    """Take a snapshot of a model and a loss; no tensor on an accelerator is read."""
    snapshot = _Snapshot()
    snapshot.add(loss, DEPTH)
    snapshot.module(model)
    return Premises(tuple(snapshot.structure), tuple(snapshot.values), tuple(snapshot.kept))


class _Snapshot:
    def __init__(self) -> None:
        self.structure: list[object] = []
        self.values: list[object] = []
        self.kept: list[object] = []
        self._seen: set[int] = set()
        self._tensors: dict[int, int] = {}
        self._classes: set[type] = set()
        self._most = MOST_ITEMS

    def module(self, root: nn.Module) -> None:
        """Add a module and all below it, each once."""
        stack: list[nn.Module | None] = [root]
        while stack:
            module = stack.pop()
            if module is None or id(module) in self._seen:
                continue
            self._seen.add(id(module))
            self.kept.append(module)
            own = module.__dict__
            self._most = len(self.values) + MOST_ENTRIES * MOST_ENTRIES
            self.structure += (id(module), module.training)
            for hooks in (own.get("_forward_hooks"), own.get("_forward_pre_hooks")):
                if hooks:
                    self.structure += hooks
            self._parameters(module)
            self._buffers(module)
            if len(own) > len(OWN):
                for name, value in own.items():
                    if name not in OWN:
                        self._attribute(name, value)
            self._class(type(module))
            stack += module._modules.values()

    def _parameters(self, module: nn.Module) -> None:
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
        for name, buffer in module._buffers.items():
            if buffer is None:
                self.values += (name, None)
            else:
                self.structure += (name, buffer.dtype, buffer.device)
                self._tensor(buffer)

    def _tensor(self, tensor: Tensor) -> None:
        """A small one by its numbers, which are read where that waits for no device."""
        self.values += (tensor.shape, tensor.dtype)
        if tensor.numel() <= SMALL and tensor.device.type == "cpu" and type(tensor) in PLAIN:
            self.values.append(repr(tensor.tolist()))
        else:
            self.kept.append(tensor)
            version = -1 if tensor.is_inference() else tensor._version
            self.values += (id(tensor), version)

    def _attribute(self, name: str, value: object) -> None:
        """A large tensor among a module's attributes is what it stored, not what it reads."""
        if type(value) in SIMPLE:
            self.values += (name, value)
        elif not isinstance(value, Tensor) or value.numel() <= SMALL:
            self.values.append(name)
            self.add(value, DEPTH - 3)

    def _class(self, kind: type) -> None:
        """Add what a user's class has on it, and what its methods read."""
        if kind in self._classes or not _is_users(kind):
            return
        self._classes.add(kind)
        for base in kind.__mro__:
            if base is nn.Module:
                break
            if not _is_users(base):
                continue
            for name, value in vars(base).items():
                if name.startswith("__"):
                    continue
                if isinstance(value, FunctionType) or type(value) in SIMPLE:
                    self.add(value, DEPTH - 3)

    def add(self, value: object, depth: int) -> None:
        """Add anything, with what it refers to."""
        kind = type(value)
        if kind in SIMPLE:
            self.values.append(value if value == value else "NaN")  # noqa: PLR0124
            return
        if depth <= 0 or len(self.values) > self._most or self._known(value):
            return
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
            case list() | tuple() | set() | frozenset():
                self.values += (kind, len(value))
                self._entries(value, depth)
            case Mapping():
                self.values += (kind, len(value))
                self._entries(value.keys(), depth)
                self._entries(value.values(), depth)
            case ModuleType() | BuiltinFunctionType() | type():
                pass
            case _:
                self._object(value, depth)

    def _known(self, value: object) -> bool:
        """Say whether a thing of its own identity was added before; containers end by depth."""
        if isinstance(value, list | tuple | Mapping | Tensor | MethodType):
            return False
        if id(value) in self._seen:
            return True
        if not isinstance(value, nn.Module):  # which marks itself
            self._seen.add(id(value))
        return False

    def _entries(self, values: object, depth: int) -> None:
        for number, value in enumerate(values):  # type: ignore[arg-type, var-annotated]
            if number == MOST_ENTRIES:
                break
            self.add(value, depth - 1)

    def _array(self, array: np.ndarray) -> None:
        self.values += (array.shape, array.dtype.str)
        if array.size <= SMALL:
            self.values.append(repr(array.tolist()))
        else:
            self.kept.append(array)
            self.values.append(id(array))

    def _function(self, function: FunctionType, depth: int) -> None:
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
        """Add what a Python module holds under the names that a function reads."""
        if module.__name__.partition(".")[0] in NO_MODULES:
            return
        inside = vars(module)
        for name in names:
            value = inside.get(name)
            if type(value) in SIMPLE or isinstance(value, list | tuple | dict):
                self.add(value, 2)

    def _object(self, value: object, depth: int) -> None:
        kind = type(value)
        self.values.append(kind)
        if isinstance(call := getattr(kind, "__call__", None), FunctionType):  # noqa: B004
            self.add(call, depth)
        own = getattr(value, "__dict__", None)
        if isinstance(own, dict):
            self._entries(own.keys(), depth)
            self._entries(own.values(), depth)
        for name in getattr(kind, "__slots__", ()):
            self.add(getattr(value, name, None), depth - 1)


PLAIN = frozenset({Tensor, nn.Parameter})


@functools.cache
def _in_library(filename: str) -> bool:
    return any(place in filename for place in LIBRARIES)


@functools.cache
def _is_users(kind: type) -> bool:
    """Return whether a class is written in user code."""
    written = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return not _in_library(written or "")


@functools.lru_cache(4096)
def _names(code: CodeType) -> tuple[str, ...]:
    """Return the names that a function and those written inside it read."""
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return tuple(
        dict.fromkeys([*code.co_names, *(name for each in inner for name in _names(each))])
    )
