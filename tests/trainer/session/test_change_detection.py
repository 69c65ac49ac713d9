"""Every change between steps is noticed, also of what is kept from one step to the next."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dpaudit.trainer.session.change_detection import ChangeDetector


def model_with_buffers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2, bias=False))


def detector_of(model: nn.Module) -> ChangeDetector:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    detector = ChangeDetector({"": model}, optimizer)
    for _ in range(3):  # whatever is kept for the next time is kept by now
        detector.note(frozen=True)
        assert detector.changed(thoroughly=False) == ()
    return detector


def in_other_memory(model: nn.Sequential) -> None:
    model[0].weight.data = model[0].weight.data + 1


def transposed(model: nn.Sequential) -> None:
    weight = model[2].weight
    weight.data = weight.data.as_strided((5, 2), (1, 5))


def negated(model: nn.Sequential) -> None:
    model[0].weight.data = torch._neg_view(model[0].weight.data)


def by_a_view(model: nn.Sequential) -> None:
    model[0].weight.data.view(-1).numpy()[3] += 1


def another_parameter(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach() + 1)


def one_more(model: nn.Sequential) -> None:
    model[0].register_parameter("more", nn.Parameter(torch.ones(2)))


def one_less(model: nn.Sequential) -> None:
    model[0].bias = None


def another_buffer(model: nn.Sequential) -> None:
    model[1].running_mean = torch.ones(5)


def renamed(model: nn.Sequential) -> None:
    layer = model[2]
    del model[2]
    model.add_module("last", layer)


CHANGES = (
    in_other_memory, transposed, negated, by_a_view, another_parameter, one_more, one_less,
    another_buffer, renamed,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("thoroughly", [False, True])
def test_change_after_quiet_steps_is_noticed(
    change: Callable[[nn.Sequential], None], thoroughly: bool
) -> None:
    model = model_with_buffers()
    detector = detector_of(model)
    change(model)
    assert detector.changed(thoroughly=thoroughly)


@pytest.mark.parametrize("change", CHANGES)
def test_change_that_was_accepted_is_none(change: Callable[[nn.Sequential], None]) -> None:
    model = model_with_buffers()
    detector = detector_of(model)
    change(model)
    detector.note()
    assert detector.changed(thoroughly=True) == ()
    model[0].weight.data.add_(1)
    assert detector.changed(thoroughly=False) == ("0.weight",)


def test_extra_state_that_a_model_begins_to_save_is_noticed() -> None:
    model = model_with_buffers()
    detector = detector_of(model)

    def save_more(
        module: nn.Module, state: dict[str, torch.Tensor], prefix: str, local: object
    ) -> None:
        state[prefix + "saved"] = torch.ones(3)

    handle = model[0]._register_state_dict_hook(save_more)
    assert detector.changed(thoroughly=True) == ("0.saved",)
    handle.remove()
    assert detector.changed(thoroughly=True) == ()


def test_optimizer_state_in_other_memory_is_noticed() -> None:
    model = model_with_buffers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    detector = ChangeDetector({"": model}, optimizer)
    detector.note()
    detector.note()
    state = optimizer.state[model[0].weight]
    state["momentum_buffer"].data = state["momentum_buffer"].data + 1
    assert detector.changed(thoroughly=False) == ("the optimizer's state",)
