"""Walks over modules that take less time than those of torch, as every step takes several."""

from __future__ import annotations

from functools import cache

from torch import nn

OVERRIDABLE = ("named_modules", "named_parameters", "_named_members")


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what ``model.named_parameters()`` yields, in the same order.

    Args:
        model: The model. Its own ``named_parameters`` is called if it, or a module in it, walks
            otherwise than ``torch.nn.Module``.

    Returns:
        The parameters by name; a tied one has the first of its names.
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    stack: list[tuple[str, nn.Module]] = [("", model)]
    while stack:
        prefix, module = stack.pop()
        if id(module) in seen:
            continue
        kind: type = type(module)
        if _walks_otherwise(kind):
            return dict(model.named_parameters())
        seen.add(id(module))
        for name, parameter in module._parameters.items() if module._parameters else ():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found[prefix + name] = parameter
        if module._modules:
            inside = [(f"{prefix}{n}.", m) for n, m in module._modules.items() if m is not None]
            stack += reversed(inside)
    return found


def unique_modules(model: nn.Module) -> list[nn.Module]:
    """Return a model and all modules below it, each once, in some fixed order.

    Args:
        model: The model.

    Returns:
        The modules.
    """
    found: dict[int, nn.Module] = {}
    stack: list[nn.Module | None] = [model]
    while stack:
        module = stack.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            if module._modules:
                stack.extend(module._modules.values())
    return list(found.values())


class ModuleWalk:
    """A model's modules and parameters, listed again only where it holds other ones.

    A comparison of what each module holds takes less time than a walk. ``refresh`` makes it; until
    then, everything is as it was at the last call.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules: list[nn.Module] = []
        self._held: list[object] | None = None
        # What the identities are of: kept alive, so that no other object gets the same.
        self._kept: list[object] = []
        self._named_modules: list[tuple[str, nn.Module]] | None = None
        self._named_parameters: dict[str, nn.Parameter] | None = None
        self.refresh()

    @property
    def modules(self) -> list[nn.Module]:
        """The model and all modules below it, each once."""
        return self._modules

    @property
    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """What ``model.named_modules()`` yields."""
        if self._named_modules is None:
            found = list(self._model.named_modules())
            if self._is_plain:
                self._named_modules = found
            return found
        return self._named_modules

    @property
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What ``model.named_parameters()`` yields; not to be changed."""
        if self._named_parameters is None:
            found = named_parameters(self._model)
            if self._is_plain:
                self._named_parameters = found
            return found
        return self._named_parameters

    @property
    def _is_plain(self) -> bool:
        """Whether no module lists modules or parameters in another way than torch."""
        kinds: set[type] = {type(module) for module in self._modules}
        return not any(map(_walks_otherwise, kinds))

    def refresh(self) -> None:
        """Walk again if any module holds other modules, parameters or buffers than before."""
        if self._held is not None and self._content() == self._held:
            return
        self._modules = unique_modules(self._model)
        self._held = self._content()
        self._kept = [held for module in self._modules for held in _holdings(module)]
        self._named_modules = self._named_parameters = None

    def _content(self) -> list[object]:
        """Return class, names and identities of what each module holds."""
        found: list[object] = []
        for module in self._modules:
            found.append(type(module))
            for held in (module._parameters, module._buffers, module._modules):
                found.append(len(held))
                if held:
                    found += held.keys()
                    found += map(id, held.values())
        return found


def _holdings(module: nn.Module) -> list[object]:
    """Return the parameters, buffers and modules of a module."""
    return [
        *module._parameters.values(), *module._buffers.values(), *module._modules.values(),
    ]  # fmt: skip


@cache
def _walks_otherwise(kind: type) -> bool:
    """Return whether a class changes how modules or parameters are listed."""
    return any(getattr(kind, name) is not getattr(nn.Module, name) for name in OVERRIDABLE)
