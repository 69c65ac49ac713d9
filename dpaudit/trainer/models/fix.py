"""Replace layers that mix records, so that a model can be trained privately.

A layer is changed in place within a copy of the model: every reference to it, every hook and
every tied use then sees the replacement.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from dpaudit.vocabulary.errors import InvalidArgument

MAX_GROUPS = 32
"""Largest number of groups of a group normalization."""

LEAST_CHANNELS = 16
"""Channels per group, where there are enough: a group is informative without a spatial extent."""

LEAST_VALUES = 8
"""Values of a record in one group below which normalization would leave little of them.

A group of n normalized values has n - 2 degrees of freedom: two values become 1 and -1.
"""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
REPLACED_FORWARDS = {_BatchNorm.forward, nn.SyncBatchNorm.forward}
TRIED_SHAPES = ((6, 1, 3, 3), (6, 1), (6, 1, 4), (6, 1, 2, 2, 2))
"""Shapes with one channel, of which some subclass of batch normalization accepts one."""


@dataclass(frozen=True)
class FixedModel:
    """A model with replaced layers.

    Attributes:
        model: The changed copy.
        changes: One sentence per changed module, which begins with the module's path.
    """

    model: nn.Module
    changes: tuple[str, ...]


class GroupNormThen(nn.GroupNorm):
    """Group normalization in the place of batch normalization.

    A record with fewer than ``LEAST_VALUES`` values in a group is scaled and shifted only. The
    modules named in ``then`` are applied to the result, in this order.
    """

    then: tuple[str, ...]

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each record by itself, and apply the modules that follow.

        Args:
            input: Shape ``(records, channels, ...)``.

        Returns:
            The same shape, unless a following module changes it.
        """
        values = self.num_channels // self.num_groups * math.prod(input.shape[2:])
        found = super().forward(input) if values >= LEAST_VALUES else self._scaled(input)
        for name in self.then:
            found = self.get_submodule(name)(found)
        return found

    def _scaled(self, values: Tensor) -> Tensor:
        """Return values times the weight plus the bias, per channel."""
        if not self.affine:
            return values
        shape = (1, -1, *(1 for _ in values.shape[2:]))
        return values * self.weight.view(shape) + self.bias.view(shape)

    def extra_repr(self) -> str:
        """Return the arguments, with the modules that follow."""
        after = f", then={', '.join(self.then)}" if self.then else ""
        return super().extra_repr() + after


def fix(model: nn.Module) -> FixedModel:
    """Return a copy of a model without batch normalization and running statistics.

    The given model is not changed. In the copy:

    - Batch normalization becomes group normalization with the same scale and shift. One- and
      two-channel groups, which would keep only a sign, do not occur. In one dimension there is
      one group, as in layer normalization.
    - A subclass that applies modules of its own after the normalization, such as an activation,
      keeps them. A subclass that does anything else is refused.
    - Instance normalization loses its running statistics.
    - In-place modules work out of place.

    Optimizers keep the parameters of the given model: make the optimizer from the copy. Other
    ways of mixing records are detected when training begins.

    Args:
        model: Any model.

    Returns:
        The changed copy, and the list of changes.

    Raises:
        InvalidArgument: If the model cannot be copied or has an uninitialized lazy module, or
            if a batch normalization is parametrized or belongs to a class that does more.

    Example:
        >>> from torch import nn
        >>> fixed = fix(nn.Sequential(nn.Linear(2, 64), nn.BatchNorm1d(64)))
        >>> fixed.changes
        ('Sequential.1: BatchNorm1d is now GroupNorm of 1 group',)
    """
    whole = _copied(model)
    root = type(model).__name__
    places: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in whole.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(f"{root}.{name}" if name else root)
        modules[id(module)] = module
    changes = [
        f"{' and '.join(places[key])}: {change}"
        for key, module in modules.items()
        for change in _changes(module, places[key][0])
    ]
    return FixedModel(whole, tuple(changes))


def _copied(model: nn.Module) -> nn.Module:
    """Return a deep copy; refuse a model without one."""
    if not isinstance(model, nn.Module):
        raise InvalidArgument("model", model, "a torch.nn.Module")
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin):
            _refuse_lazy(type(module).__name__, name or "the root")
    try:
        return copy.deepcopy(model)
    except Exception as error:  # an attribute of a user's class may raise anything
        given = f"{type(model).__name__} ({type(error).__name__}: {error})"
        raise InvalidArgument("model", given, "a model that copy.deepcopy can copy") from error


def _changes(module: nn.Module, place: str) -> Iterator[str]:
    """Change one module in place; yield what was changed."""
    kind = type(module).__name__
    match module:
        case _BatchNorm():
            yield f"{kind} is now {_replace(module, place)}"
        case _InstanceNorm() if module.track_running_stats:
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
            yield f"{kind} keeps no running statistics"
        case _:
            pass
    if getattr(module, "inplace", False) is True:
        module.inplace = False  # type: ignore[assignment]
        yield f"{kind} no longer works in place"


def _replace(module: _BatchNorm, place: str) -> str:
    """Turn batch normalization into group normalization; return its description."""
    _refuse_computed_weights(module, place)
    then = _rest(module, place)
    channels = module.num_features
    groups = _number_of_groups(module)
    for name in STATISTICS:
        module._buffers.pop(name, None)
        module.__dict__.pop(name, None)
    module.track_running_stats = False
    module.__class__ = GroupNormThen  # type: ignore[assignment]
    changed: GroupNormThen = module  # type: ignore[assignment]
    changed.num_groups, changed.num_channels, changed.then = groups, channels, then
    size = f"GroupNorm of {groups} group{'s' if groups > 1 else ''}"
    few = f" (scale and shift alone below {LEAST_VALUES} values)"
    after = f", followed by its own {' and '.join(then)}" if then else ""
    return size + (few if channels // groups < LEAST_VALUES else "") + after


def _number_of_groups(module: _BatchNorm) -> int:
    """Return the largest number of groups that have enough channels; one in one dimension."""
    channels = module.num_features
    if isinstance(module, nn.BatchNorm1d):
        return 1
    most = min(MAX_GROUPS, channels // LEAST_CHANNELS)
    return max((g for g in range(1, most + 1) if channels % g == 0), default=1)


def _refuse_lazy(kind: str, place: str) -> None:
    """Refuse a layer that does not know its shape yet."""
    allowed = "initialized: run the model once on a batch of any records, then call fix"
    raise InvalidArgument("model", f"{kind} at {place}", allowed)


def _refuse_computed_weights(module: _BatchNorm, place: str) -> None:
    """Refuse weights that another parameter determines."""
    plain = not module.affine or {"weight", "bias"} <= module._parameters.keys()
    if is_parametrized(module) or not plain:
        allowed = "batch normalization whose weight is a parameter: remove its parametrization"
        raise InvalidArgument("model", f"{type(module).__name__} at {place}", allowed)


# Subclasses: what a forward method does beside the normalization, found by running it.


def _rest(module: _BatchNorm, place: str) -> tuple[str, ...]:
    """Return the names of the modules that a subclass applies after the normalization."""
    own = "forward" not in module.__dict__
    if own and type(module).forward in REPLACED_FORWARDS:
        return ()
    children = tuple(name for name, child in module._modules.items() if child is not None)
    if own:
        for then in ((), children):
            if _is_norm_then(module, then):
                return then
    raise InvalidArgument(
        "model",
        f"{type(module).__name__} at {place}",
        "without a subclass of batch normalization whose forward method does more than to apply "
        "its modules in order: replace it by GroupNorm and what it does beside, by hand",
    )


def _is_norm_then(module: _BatchNorm, then: tuple[str, ...]) -> bool:
    """Return whether a module is batch normalization followed by the named modules.

    Both are run on random values, with random weights and statistics, in both modes.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return all(_agrees(module, then, training=training) for training in (False, True))


def _agrees(module: _BatchNorm, then: tuple[str, ...], *, training: bool) -> bool:
    """Return whether a module and its description agree in one mode, on every shape it takes."""
    trial = copy.deepcopy(module).train(training)
    for tensor in (*trial.parameters(recurse=False), *trial.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2.0)
    other = copy.deepcopy(trial)
    accepted = 0
    for shape in TRIED_SHAPES:
        like = next((t for t in trial.parameters()), torch.zeros(()))
        values = 3 * torch.randn(shape).expand(6, trial.num_features, *shape[2:]) + 1
        values = (values + torch.randn(values.shape)).to(like)
        found, expected = (
            _output(run, values) for run in (trial, lambda x: _described(other, then, x))
        )
        if found is None:
            continue
        accepted += 1
        if expected is None or found.shape != expected.shape:
            return False
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            return False
    return accepted > 0


def _output(run: object, values: Tensor) -> Tensor | None:
    """Return the output for values, with a fixed seed; None if it does not run."""
    torch.manual_seed(1)
    try:
        found = run(values.clone())  # type: ignore[operator]
    except Exception:  # a class of the user may raise anything on a shape
        return None
    return found if isinstance(found, Tensor) else None


def _described(module: _BatchNorm, then: tuple[str, ...], values: Tensor) -> Tensor:
    """Return batch normalization of values, followed by the named modules."""
    by_batch = module.training or module.running_mean is None
    found = nn.functional.batch_norm(
        values,
        module.running_mean,
        module.running_var,
        module.weight,
        module.bias,
        by_batch,
        0.0,
        module.eps,
    )
    for name in then:
        found = module.get_submodule(name)(found)
    return found
