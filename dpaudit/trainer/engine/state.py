"""What a forward pass may move in a model, besides gradients: buffers, extra state, attributes.

Buffers and extra state are saved with the model, so that they are released without noise:
records must not move them. Attributes are not saved; they matter where a later pass reads
them.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from dpaudit.trainer.engine.comparison import same
from dpaudit.trainer.engine.premises import OWN, SIMPLE
from dpaudit.vocabulary.errors import InvalidArgument

MOST_SHOWN = 4096  # numbers
CONTAINERS = (list, dict, tuple, deque)
MOST_ENTRIES, DEPTH = 256, 3  # of containers whose entries are compared


@dataclass
class _Kept:
    """A tensor that a module holds, and its numbers as they were."""

    holder: dict[str, object]
    name: str
    tensor: Tensor
    numbers: Tensor | None

    def restore(self) -> None:
        self.holder[self.name] = self.tensor
        # By value: batch normalisation moves its buffers past the version counter.
        if self.numbers is not None and not same(self.tensor, self.numbers):
            with torch.no_grad():
                self.tensor.copy_(self.numbers)


@dataclass
class _Listed:
    """A list, dict or deque that a module holds, and its entries as they were."""

    holder: dict[str, object]
    name: str
    value: list[object] | dict[object, object] | deque[object]
    entries: list[object] | dict[object, object] | deque[object] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = self.value.copy()

    def restore(self) -> None:
        self.holder[self.name] = self.value
        self.value.clear()
        if isinstance(self.value, dict):
            self.value.update(self.entries)  # type: ignore[arg-type]
        else:
            self.value.extend(self.entries)


@dataclass
class _Simple:
    """Attributes of simple values, by name."""

    holder: dict[str, object]
    values: dict[str, object]

    def restore(self) -> None:
        self.holder.update(self.values)


@dataclass
class _Extra:
    """What ``get_extra_state`` of a module gave."""

    module: nn.Module
    name: str
    value: object

    def restore(self) -> None:
        if same(self.module.get_extra_state(), self.value):
            return
        try:
            self.module.set_extra_state(copy.deepcopy(self.value))
        except RuntimeError as error:
            raise _refused_extra(self.module, self.name) from error


class ModuleState:
    """The state of a model at one moment, to which it can be set back as often as needed.

    Args:
        model: Whose state it is.
        buffers: Full names of those to keep; None: all.
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
                self._parts.append(_Extra(module, prefix, extra_state(module, prefix)))

    def _keep(self, holder: dict[str, object], name: str, tensor: Tensor) -> None:
        # A large result of operations is what a module stored to show, and is not changed.
        shown = not tensor.is_leaf and tensor.numel() > MOST_SHOWN
        numbers = None if shown else tensor.detach().clone()
        self._parts.append(_Kept(holder, name, tensor, numbers))

    def _attributes(self, module: nn.Module) -> None:
        own = module.__dict__
        simple: dict[str, object] = {}
        for name, value in own.items():
            if name in OWN:
                continue
            if type(value) in SIMPLE:
                simple[name] = value
            elif isinstance(value, Tensor):
                self._keep(own, name, value)
            elif isinstance(value, list | dict | deque):
                self._parts.append(_Listed(own, name, value))
        if simple:
            self._parts.append(_Simple(own, simple))

    def restore(self) -> None:
        """Set the model back."""
        for each in self._parts:
            each.restore()


def saved_state(model: nn.Module, names: Collection[str] | None = None) -> dict[str, object]:
    """Return copies of some buffers, or all, and of all extra states, by full name."""
    found: dict[str, object] = {}
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            full = _full_name(prefix, name)
            if buffer is not None and (names is None or full in names):
                found[full] = buffer.detach().clone()
        if keeps_extra_state(module):
            found[_full_name(prefix, EXTRA)] = extra_state(module, prefix)
    return found


def attributes(model: nn.Module) -> dict[str, object]:
    """Return copies of what a pass may have set: numbers, tensors and containers of them."""
    return {
        _full_name(prefix, name): _copied(value, DEPTH)
        for prefix, module in model.named_modules()
        for name, value in module.__dict__.items()
        if name not in OWN and (type(value) in SIMPLE or isinstance(value, (*CONTAINERS, Tensor)))
    }


def _copied(value: object, depth: int) -> object:
    """Return a copy of a value, and of what a container holds down to some depth."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if depth == 0 or not isinstance(value, CONTAINERS) or len(value) > MOST_ENTRIES:
        return len(value) if isinstance(value, CONTAINERS) else value
    if isinstance(value, dict):
        return {key: _copied(item, depth - 1) for key, item in value.items()}
    return [_copied(item, depth - 1) for item in value]


def parameter_marks(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the identity and version of each parameter, by name."""
    return {name: (id(p), _version(p)) for name, p in model.named_parameters()}


class BufferGuard:
    """Tells which buffers have moved since it was made.

    Small ones by value; large ones by identity and version, which some kernels do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._marks, self._small = self._now()
        self._copies = {name: each.detach().clone() for name, each in self._small.items()}

    def _now(self) -> tuple[dict[str, tuple[int, int]], dict[str, Tensor]]:
        marks, small = {}, {}
        for prefix, module in self._model.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    full = _full_name(prefix, name)
                    marks[full] = (id(buffer), _version(buffer))
                    if buffer.numel() <= MOST_SHOWN:
                        small[full] = buffer
        return marks, small

    def moved(self) -> list[str]:
        """Return full names; one that was written to counts, even if with equal numbers."""
        marks, small = self._now()
        both = {**self._marks, **marks}
        found = [name for name in both if marks.get(name) != self._marks.get(name)]
        pairs = [(small[n], copy) for n, copy in self._copies.items() if n in small]
        if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs) or _any_differ(pairs):
            found += [n for n, each in self._copies.items() if not same(small.get(n), each)]
        return list(dict.fromkeys(found))


def _any_differ(pairs: list[tuple[Tensor, Tensor]]) -> bool:
    """Wait for each device once; NaN differs."""
    if any(a.device != b.device for a, b in pairs):
        return True
    if all(a.device.type == "cpu" for a, _ in pairs):
        return any(not torch.equal(a, b) for a, b in pairs)
    by_device: dict[torch.device, list[Tensor]] = {}
    for a, b in pairs:
        by_device.setdefault(a.device, []).append((a != b).any())
    return any(bool(torch.stack(each).any()) for each in by_device.values())


EXTRA = "_extra_state"


def keeps_extra_state(module: nn.Module) -> bool:
    """Return whether a module saves anything besides parameters and buffers."""
    return type(module).get_extra_state is not nn.Module.get_extra_state


def extra_state(module: nn.Module, name: str) -> object:
    """Return a copy of a module's extra state.

    Raises:
        InvalidArgument: If it cannot be copied, or not compared with its copy.
    """
    value = module.get_extra_state()
    copied = _attempt(lambda: copy.deepcopy(value))
    if not same(value, copied):
        raise _refused_extra(module, name)
    return copied


def _attempt(make: Callable[[], object]) -> object:
    try:
        return make()
    except Exception:  # any class may be copied as it likes
        return object()


def _refused_extra(module: nn.Module, name: str) -> InvalidArgument:
    return InvalidArgument(
        "model",
        f"{type(module).__name__} {name!r} with an extra state",
        "one whose extra state can be copied, compared and set: whether records move it cannot "
        "be told otherwise",
    )


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _full_name(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
