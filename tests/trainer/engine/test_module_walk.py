"""Own walks over modules list what torch lists, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from dpaudit.trainer.engine.module_walk import ModuleWalk, named_parameters, unique_modules


class Renamed(nn.Linear):
    def named_parameters(
        self, *given: object, **named: object
    ) -> Iterator[tuple[str, nn.Parameter]]:
        yield "own", self.weight


class Hidden(nn.Sequential):
    def named_modules(self, *given: object, **named: object) -> Iterator[tuple[str, nn.Module]]:
        yield "elsewhere", self


class Symmetric(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.triu() + x.triu(1).T


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    return model


def shared_module() -> nn.Module:
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.ModuleDict({"a": nn.Sequential(inner, nn.Linear(2, 2)), "b": inner, "c": inner[0]})
    model.register_parameter("own", nn.Parameter(torch.zeros(2)))
    model["a"].register_module("none", None)
    return model


def parametrized() -> nn.Module:
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return nn.Sequential(nn.Linear(3, 3), layer)


def cycle() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].add_module("above", model)
    return model


MODELS = (
    tied, shared_module, parametrized, cycle, nn.Identity,
    lambda: nn.Transformer(8, 2, 1, 1, 8), lambda: nn.LSTM(2, 3, 2, bidirectional=True),
    lambda: Renamed(2, 2), lambda: nn.Sequential(Renamed(2, 2)),
    lambda: nn.Sequential(nn.Linear(2, 2), Hidden(nn.Linear(2, 2))),
)  # fmt: skip


@pytest.mark.parametrize("make", MODELS)
def test_parameters_are_those_that_torch_lists(make: Callable[[], nn.Module]) -> None:
    model = make()
    found, expected = list(named_parameters(model).items()), list(model.named_parameters())
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert all(mine is theirs for (_, mine), (_, theirs) in zip(found, expected, strict=True))


@pytest.mark.parametrize("make", [tied, shared_module, parametrized, cycle])
def test_each_module_is_listed_once(make: Callable[[], nn.Module]) -> None:
    model = make()
    found = unique_modules(model)
    assert len(found) == len({*found})
    assert {*found} == {*model.modules()}


def require_as_torch(walk: ModuleWalk, model: nn.Module) -> None:
    assert {*walk.modules} == {*unique_modules(model)}
    assert walk.named_modules == [*model.named_modules()]
    mine, theirs = walk.named_parameters, dict(model.named_parameters())
    assert [*mine] == [*theirs]
    assert all(mine[name] is theirs[name] for name in mine)


def add_module(model: nn.Module) -> None:
    model.further = nn.Linear(1, 1)


def replace_parameter(model: nn.Module) -> None:
    module = next(each for each in model.modules() if each._parameters)
    name = next(iter(module._parameters))
    module._parameters[name] = nn.Parameter(torch.zeros(1))


def rename_parameter(model: nn.Module) -> None:
    module = next(each for each in model.modules() if each._parameters)
    name, parameter = module._parameters.popitem()
    module._parameters[f"{name}_again"] = parameter


def make_buffer_of_parameter(model: nn.Module) -> None:
    module = next(each for each in model.modules() if each._parameters)
    name, parameter = module._parameters.popitem()
    module._buffers[name] = parameter


CHANGES = (add_module, replace_parameter, rename_parameter, make_buffer_of_parameter)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", MODELS)
def test_kept_walk_lists_what_torch_lists_after_a_change(
    make: Callable[[], nn.Module], change: Callable[[nn.Module], None]
) -> None:
    model = make()
    model.last = nn.Linear(1, 1)
    walk = ModuleWalk(model)
    if not any(isinstance(module, Renamed) for module in model.modules()):
        require_as_torch(walk, model)
        change(model)
        walk.refresh()
    require_as_torch(walk, model)
    walk.refresh()
    require_as_torch(walk, model)


def test_kept_walk_does_not_walk_again_without_a_change() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    walk = ModuleWalk(model)
    before = walk.modules, walk.named_modules, walk.named_parameters
    with torch.no_grad():
        model[0].weight.add_(1)
    walk.refresh()
    after = walk.modules, walk.named_modules, walk.named_parameters
    assert all(one is other for one, other in zip(before, after, strict=True))
