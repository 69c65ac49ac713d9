"""Make a model fit for private training: replace what mixes records, and say what was done."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

MOST_GROUPS = 32


@dataclass(frozen=True)
class Repaired:
    """A model that was made fit, and what was changed in it, module by module."""

    model: nn.Module
    changes: tuple[str, ...]


def fix(model: nn.Module) -> Repaired:
    """Return a copy of ``model`` without batch normalisation and running statistics.

    Batch normalisation becomes group normalisation with the same scale and shift; instance
    normalisation loses its running statistics; operations in place become plain ones. The
    model itself is left as it is. What mixes records in other ways is found when training
    begins, and named.
    """
    changes: list[str] = []
    whole = copy.deepcopy(model)
    replaced = _fixed(whole, type(model).__name__, changes)
    return Repaired(replaced, tuple(changes))


def _fixed(module: nn.Module, name: str, changes: list[str]) -> nn.Module:
    """Return ``module`` or what stands in for it, its children fixed."""
    match module:
        case _BatchNorm():
            found = _instead_of_batch_norm(module)
            changes.append(f"{name}: {type(module).__name__} is now {_called(found)}")
            return found
        case _InstanceNorm() if module.track_running_stats:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
            changes.append(f"{name}: {type(module).__name__} keeps no running statistics")
        case _ if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
            changes.append(f"{name}: {type(module).__name__} no longer works in place")
        case _:
            pass
    for child_name, child in list(module.named_children()):
        setattr(module, child_name, _fixed(child, f"{name}.{child_name}", changes))
    return module


def _called(module: nn.Module) -> str:
    groups = f" of {module.num_groups} groups" if isinstance(module, nn.GroupNorm) else ""
    return type(module).__name__ + groups


def _instead_of_batch_norm(module: _BatchNorm) -> nn.Module:
    """Return group normalisation over as many groups as leave two channels in each.

    A single channel without space has nothing to be normalised by: it passes as it is.
    """
    channels = module.num_features
    if channels == 1 and isinstance(module, nn.BatchNorm1d):
        return nn.Identity()
    divisors = [g for g in range(1, min(MOST_GROUPS, channels // 2) + 1) if channels % g == 0]
    options: dict[str, Any] = {"eps": module.eps, "affine": module.affine}
    found = nn.GroupNorm(max(divisors, default=1), channels, **options)
    if module.affine:
        found = found.to(module.weight.device, module.weight.dtype)
        found.weight, found.bias = module.weight, module.bias
    return found.train(module.training)
