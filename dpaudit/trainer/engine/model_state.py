"""State of a model besides its gradients: comparing, copying, restoring and watching it.

A forward pass may change buffers, extra state and Python attributes. Buffers and extra state
are saved with the model and so released without noise: records must not change them.
Attributes are not saved; they matter if a later pass reads them.
"""

from __future__ import annotations

import copy
import operator
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from dpaudit.trainer.engine.model_snapshot import MODULE_ATTRIBUTES, SIMPLE_TYPES
from dpaudit.trainer.engine.module_walk import ModuleWalk
from dpaudit.vocabulary.errors import InvalidArgument

# Equality of tensors, arrays, numbers and containers of them.


def values_equal(one: object, other: object) -> bool:
    """Return whether two values are equal; NaN equals itself.

    Args:
        one: A tensor, an array, a number, a container of these, or any other object.
        other: The value to compare with.

    Returns:
        False if the values cannot be compared.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return _tensors_equal(one, other)
    if type(one) is not type(other):
        return False
    match one, other:
        case np.ndarray(), np.ndarray():
            return bool(_arrays_equal(one, other))
        case Mapping(), Mapping():
            return list(one) == list(other) and all(
                values_equal(one[key], other[key]) for key in one
            )
        case ((list() | tuple()), (list() | tuple())):
            pairs = zip(one, other, strict=False)
            return len(one) == len(other) and all(values_equal(a, b) for a, b in pairs)
        case float(), float():
            return one == other or (one != one and other != other)  # noqa: PLR0124
        case _:
            return _objects_equal(one, other)


def _tensors_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether tensors agree in shape, type, device and numbers, with NaN equal to NaN."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    if torch.equal(one, other):
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return False
    return bool(((one == other) | (torch.isnan(one) & torch.isnan(other))).all())


def _arrays_equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether arrays agree in shape, type and numbers, with NaN equal to NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype == object:
        return all(map(values_equal, one.ravel().tolist(), other.ravel().tolist()))
    return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")


def _objects_equal(one: object, other: object) -> bool:
    """Return whether objects compare equal; an error counts as unequal."""
    try:
        return bool(one == other)
    except Exception:  # any class may define equality as it likes
        return False


# Copies of the state, and restoring it.

MAX_COMPARED_NUMBERS = 4096
"""Entries up to which a buffer is compared by value, and an intermediate result copied."""

CONTAINERS = (list, dict, tuple, deque)
MAX_COMPARED_ENTRIES, MAX_COMPARED_DEPTH = 256, 3
"""Length and depth up to which the entries of containers are compared."""


@dataclass
class _Kept:
    """A tensor that a module holds, with a copy of its numbers."""

    holder: dict[str, object]
    name: str
    tensor: Tensor
    numbers: Tensor | None

    def restore(self) -> None:
        """Put the tensor back, and its numbers if they have changed."""
        self.holder[self.name] = self.tensor
        # By value, as batch normalization changes its buffers without a new version.
        if self.numbers is not None and not values_equal(self.tensor, self.numbers):
            with torch.no_grad():
                self.tensor.copy_(self.numbers)


@dataclass
class _Listed:
    """A list, dict or deque that a module holds, with a copy of its entries."""

    holder: dict[str, object]
    name: str
    value: list[object] | dict[object, object] | deque[object]
    entries: list[object] | dict[object, object] | deque[object] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = self.value.copy()

    def restore(self) -> None:
        """Put the container back, with the entries it had.

        One that no pass changed is left alone: it may be read-only, as diffusers' settings are.
        """
        self.holder[self.name] = self.value
        if _same_entries(self.value, self.entries):
            return
        self.value.clear()
        if isinstance(self.value, dict):
            self.value.update(self.entries)  # type: ignore[arg-type]
        else:
            self.value.extend(self.entries)


def _same_entries(one: Iterable[object], other: Iterable[object]) -> bool:
    """Return whether two containers of one kind hold the same objects in the same order."""
    mine, its = ([*c, *c.values()] if isinstance(c, dict) else [*c] for c in (one, other))
    return len(mine) == len(its) and all(map(operator.is_, mine, its))


@dataclass
class _Simple:
    """Attributes of simple types, with their names."""

    holder: dict[str, object]
    values: dict[str, object]

    def restore(self) -> None:
        """Set the attributes back."""
        self.holder.update(self.values)


@dataclass
class _Extra:
    """Extra state of a module, as ``get_extra_state`` returned it."""

    module: nn.Module
    name: str
    value: object

    def restore(self) -> None:
        """Set the extra state back if it has changed."""
        if values_equal(self.module.get_extra_state(), self.value):
            return
        try:
            self.module.set_extra_state(copy.deepcopy(self.value))
        except RuntimeError as error:
            raise _refused_extra(self.module, self.name) from error


class ModuleState:
    """State of a model at one moment, which can be restored any number of times.

    Args:
        model: The model.
        buffers: Full names of the buffers to keep; None keeps all.
    """

    def __init__(self, model: nn.Module, buffers: frozenset[str] | None = None) -> None:
        self._parts: list[_Kept | _Simple | _Listed | _Extra] = []
        for prefix, module in model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is None:
                    self._parts.append(_Simple(module._buffers, {name: None}))
                elif buffers is None or _full_name(prefix, name) in buffers:
                    self._keep(module._buffers, name, buffer)
            if not isinstance(module, LazyModuleMixin):
                self._attributes(module)
            if keeps_extra_state(module):
                self._parts.append(_Extra(module, prefix, copy_extra_state(module, prefix)))

    def _keep(self, holder: dict[str, object], name: str, tensor: Tensor) -> None:
        """Keep a tensor; a large intermediate result is kept without a copy of its numbers."""
        # A large result of operations, such as stored attention weights, is an output: later
        # passes replace it and do not change it.
        shown = not tensor.is_leaf and tensor.numel() > MAX_COMPARED_NUMBERS
        numbers = None if shown else tensor.detach().clone()
        self._parts.append(_Kept(holder, name, tensor, numbers))

    def _attributes(self, module: nn.Module) -> None:
        """Keep a module's own attributes of types that a pass may set."""
        own = module.__dict__
        simple: dict[str, object] = {}
        for name, value in own.items():
            if name in MODULE_ATTRIBUTES:
                continue
            if type(value) in SIMPLE_TYPES:
                simple[name] = value
            elif isinstance(value, Tensor):
                self._keep(own, name, value)
            elif isinstance(value, list | dict | deque):
                self._parts.append(_Listed(own, name, value))
        if simple:
            self._parts.append(_Simple(own, simple))

    def restore(self) -> None:
        """Set the model back to this state."""
        for each in self._parts:
            each.restore()


def copy_saved_state(model: nn.Module, names: Collection[str] | None = None) -> dict[str, object]:
    """Return copies of buffers and of all extra states.

    Args:
        model: The model.
        names: Full names of the buffers to copy; None copies all.

    Returns:
        Copies by full name; extra states have the suffix ``_extra_state``.

    Raises:
        InvalidArgument: If an extra state cannot be copied or compared.
    """
    found: dict[str, object] = {}
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            full = _full_name(prefix, name)
            if buffer is not None and (names is None or full in names):
                found[full] = buffer.detach().clone()
        if keeps_extra_state(module):
            found[_full_name(prefix, EXTRA_STATE)] = copy_extra_state(module, prefix)
    return found


def copy_attributes(model: nn.Module) -> dict[str, object]:
    """Return copies of the attributes that a pass may set: numbers, tensors, containers.

    Args:
        model: The model.

    Returns:
        Copies by full name.
    """
    return {
        _full_name(prefix, name): _copied(value, MAX_COMPARED_DEPTH)
        for prefix, module in model.named_modules()
        for name, value in module.__dict__.items()
        if name not in MODULE_ATTRIBUTES
        and (type(value) in SIMPLE_TYPES or isinstance(value, (*CONTAINERS, Tensor)))
    }


def _copied(value: object, depth: int) -> object:
    """Return a copy of a value and of its entries; of long or deep containers, the length."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if depth == 0 or not isinstance(value, CONTAINERS) or len(value) > MAX_COMPARED_ENTRIES:
        return len(value) if isinstance(value, CONTAINERS) else value
    if isinstance(value, dict):
        return {key: _copied(item, depth - 1) for key, item in value.items()}
    return [_copied(item, depth - 1) for item in value]


class ParameterGuard:
    """Detects which parameters were written to, or replaced, since it was made.

    Args:
        model: The model.
        walk: A walk over the model, refreshed before each use of the guard; None makes one.
    """

    def __init__(self, model: nn.Module, walk: ModuleWalk | None = None) -> None:
        self._walk, self._refreshes = walk or ModuleWalk(model), walk is None
        self._marks = _parameter_marks(self._walk)

    def moved(self) -> list[str]:
        """Return the parameters that have changed.

        Returns:
            Names in the model; a module of another class or place is named for its parameters.
        """
        if self._refreshes:
            self._walk.refresh()
        now = _parameter_marks(self._walk)
        if now == self._marks:
            return []
        before = {mark[:2]: mark for mark in self._marks}
        after = {mark[:2]: mark for mark in now}
        changed = {key for key in {**before, **after} if before.get(key) != after.get(key)}
        names = {
            (id(module), name): _full_name(prefix, name)
            for prefix, module in self._walk.named_modules
            for name in module._parameters
        }
        return [names.get(key, key[1]) for key in sorted(changed, key=lambda key: key[1])]


def _parameter_marks(walk: ModuleWalk) -> list[tuple[int, str, int, int]]:
    """Return place, name, identity and version of each parameter, one entry per use of it."""
    return [
        (id(module), name, id(parameter), _version(parameter))
        for module in walk.modules
        if module._parameters
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]


class BufferGuard:
    """Detects which buffers have changed since it was made.

    Small buffers are compared by value. Large ones are compared by identity and version, which
    some kernels do not update.

    Args:
        model: The model.
        walk: A walk over the model, refreshed before each use of the guard; None makes one.
    """

    def __init__(self, model: nn.Module, walk: ModuleWalk | None = None) -> None:
        self._walk, self._refreshes = walk or ModuleWalk(model), walk is None
        self._marks, self._small = self._now()
        self._copies = {name: each.detach().clone() for name, each in self._small.items()}

    def _now(self) -> tuple[dict[str, tuple[int, int]], dict[str, Tensor]]:
        """Return identity and version of all buffers, and the small buffers themselves."""
        marks: dict[str, tuple[int, int]] = {}
        small: dict[str, Tensor] = {}
        if not any(module._buffers for module in self._walk.modules):
            return marks, small
        for prefix, module in self._walk.named_modules:
            for name, buffer in module._buffers.items() if module._buffers else ():
                if buffer is not None:
                    full = _full_name(prefix, name)
                    marks[full] = (id(buffer), _version(buffer))
                    if buffer.numel() <= MAX_COMPARED_NUMBERS:
                        small[full] = buffer
        return marks, small

    def moved(self) -> list[str]:
        """Return the buffers that have changed.

        Returns:
            Full names. A buffer that was written to counts, even if its numbers are equal.
        """
        if self._refreshes:
            self._walk.refresh()
        marks, small = self._now()
        # First by identity and version, which needs no comparison of numbers.
        both = {**self._marks, **marks}
        found = [name for name in both if marks.get(name) != self._marks.get(name)]
        pairs = [(small[n], copy) for n, copy in self._copies.items() if n in small]
        if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs) or _any_differ(pairs):
            found += [n for n, each in self._copies.items() if not values_equal(small.get(n), each)]
        return list(dict.fromkeys(found))


def _any_differ(pairs: list[tuple[Tensor, Tensor]]) -> bool:
    """Return whether any pair differs, waiting once per device; NaN differs from NaN."""
    if any(a.device != b.device for a, b in pairs):
        return True
    if all(a.device.type == "cpu" for a, _ in pairs):
        return any(not torch.equal(a, b) for a, b in pairs)
    by_device: dict[torch.device, list[Tensor]] = {}
    for a, b in pairs:
        by_device.setdefault(a.device, []).append((a != b).any())
    return any(bool(torch.stack(each).any()) for each in by_device.values())


EXTRA_STATE = "_extra_state"


def keeps_extra_state(module: nn.Module) -> bool:
    """Return whether a module saves state besides parameters and buffers.

    Args:
        module: The module.

    Returns:
        Whether its class overrides ``get_extra_state``.
    """
    return type(module).get_extra_state is not nn.Module.get_extra_state


def copy_extra_state(module: nn.Module, name: str) -> object:
    """Return a copy of a module's extra state.

    Args:
        module: A module that keeps extra state.
        name: Its name, for the error.

    Returns:
        A deep copy that equals the state.

    Raises:
        InvalidArgument: If the state cannot be copied, or does not equal its copy.
    """
    value = module.get_extra_state()
    copied = _attempt(lambda: copy.deepcopy(value))
    if not values_equal(value, copied):
        raise _refused_extra(module, name)
    return copied


def _attempt(make: Callable[[], object]) -> object:
    """Return the result of a call; a new object, which equals nothing, if it fails."""
    try:
        return make()
    except Exception:  # any class may be copied as it likes
        return object()


def _refused_extra(module: nn.Module, name: str) -> InvalidArgument:
    """Return the error for an extra state that cannot be verified."""
    return InvalidArgument(
        "model",
        f"{type(module).__name__} {name!r} with an extra state",
        "one whose extra state can be copied, compared and set, so that it can be tested for a "
        "dependence on records",
    )


def _version(tensor: Tensor) -> int:
    """Return a tensor's version counter; inference tensors have none."""
    return -1 if tensor.is_inference() else tensor._version


def _full_name(prefix: str, name: str) -> str:
    """Return the name of an attribute, prefixed by its module's name."""
    return f"{prefix}.{name}" if prefix else name


# The generators that dropout draws from.


def seed_torch(seed: int) -> None:
    """Seed the generator of the CPU, and of GPUs that are in use.

    ``torch.manual_seed`` also keeps a stack trace for each kind of device that is not in use.
    This takes 2 ms per call, more than a step of a small model.

    Args:
        seed: Any integer that torch accepts.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
