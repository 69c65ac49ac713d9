"""Max pooling in the order of memory that torch pools fastest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.composite_operations import LEAST_CHANNELS, max_pool2d

WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 2, "stride": 1},
    {"kernel_size": [2, 3], "stride": [2]},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": 1, "dilation": 2},
]


OVERLAPPING = {"kernel_size": 2, "stride": 1}


def pooled(function: Any, values: Tensor, window: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return maxima, and the input's gradient for output gradients of 1, 2, 4, 8 in turn."""
    own = values.clone().requires_grad_()
    maxima = function(own, **window)
    weights = 2.0 ** (torch.arange(maxima.numel()) % 4).view(maxima.shape)
    (gradient,) = torch.autograd.grad(maxima, own, weights)
    return maxima, gradient


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_maxima_and_their_gradients_are_bitwise_those_of_torch(
    window: dict[str, Any], *, ties: bool, kind: torch.dtype
) -> None:
    """Among equal entries, the same one gets the gradient."""
    values = torch.randn(3, LEAST_CHANNELS + 1, 7, 6, dtype=kind)
    if ties:
        values = values.round()
    found, expected = (
        pooled(max_pool2d, values, window),
        pooled(functional.max_pool2d, values, window),
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert found[0].is_contiguous()


def test_infinite_entries_and_nan_are_pooled_as_by_torch() -> None:
    values = torch.randn(2, LEAST_CHANNELS, 6, 6)
    values[0, 0, 2, 3], values[0, 1, 2, 3], values[1, 0] = torch.inf, torch.nan, -torch.inf
    found, expected = (
        pooled(max_pool2d, values, OVERLAPPING),
        pooled(functional.max_pool2d, values, OVERLAPPING),
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@pytest.mark.parametrize(
    ("values", "window"),
    [
        (torch.zeros(2, LEAST_CHANNELS - 1, 4, 4), OVERLAPPING),
        (torch.zeros(LEAST_CHANNELS, 4, 4), OVERLAPPING),
        (torch.zeros(2, LEAST_CHANNELS, 4, 4), {**OVERLAPPING, "return_indices": True}),
        (torch.zeros(2, LEAST_CHANNELS, 4, 4), {"kernel_size": 2}),
        (torch.zeros(2, LEAST_CHANNELS, 4, 4), {"kernel_size": 2, "stride": (2,)}),
        (
            torch.zeros(2, LEAST_CHANNELS, 4, 4).contiguous(memory_format=torch.channels_last),
            OVERLAPPING,
        ),
    ],
)
def test_other_inputs_are_left_to_torch(values: Tensor, window: dict[str, Any]) -> None:
    assert max_pool2d(values, **window) is NotImplemented


def test_indices_asked_for_by_position_are_left_to_torch() -> None:
    values = torch.zeros(2, LEAST_CHANNELS, 4, 4)
    assert max_pool2d(values, 2, 1, 0, 1, False, True) is NotImplemented
