"""``fix`` replaces what mixes records, says so, and what it returns trains privately."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.independence import require_independent_losses
from dpaudit.trainer.models.factories import fix

MODELS = {
    "images": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        (3, 8, 8),
    ),
    "odd channels": (nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7)), (3, 8, 8)),
    "one channel": (nn.Sequential(nn.Conv2d(3, 1, 3), nn.BatchNorm2d(1)), (3, 8, 8)),
    "one dimension": (nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)), (6,)),
    "one feature": (nn.Sequential(nn.Linear(6, 1), nn.BatchNorm1d(1), nn.Linear(1, 4)), (6,)),
    "sequences": (nn.Sequential(nn.Conv1d(4, 5, 2), nn.BatchNorm1d(5)), (4, 9)),
    "volumes": (nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4, affine=False)), (2, 4, 4, 4)),
    "statistics": (nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True)), (4, 9)),
}


def total(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch).flatten(1)
    return out.square().sum(dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_fixed_keeps_records_apart_and_still_tells_them_apart(name: str) -> None:
    torch.manual_seed(1)
    model, shape = MODELS[name]
    repaired = fix(model)
    batch = torch.randn(5, *shape)
    require_independent_losses(repaired.model, total, batch)
    out = repaired.model(batch)
    assert out.shape == model(batch).shape
    assert (out[0] - out[1]).abs().max() > 1e-3


def test_every_change_is_reported_by_its_place() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4)), nn.ReLU(inplace=True), nn.Linear(2, 2))
    assert fix(model).changes == (
        "Sequential.0.0: BatchNorm2d is now GroupNorm of 2 groups",
        "Sequential.1: ReLU no longer works in place",
    )


def test_suitable_model_is_unchanged() -> None:
    assert fix(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))).changes == ()


def test_given_model_is_unchanged() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    fix(model)
    assert isinstance(model[0], nn.BatchNorm1d)


def test_scale_and_shift_are_kept() -> None:
    norm = nn.BatchNorm1d(4)
    nn.init.normal_(norm.weight)
    repaired = fix(nn.Sequential(norm)).model
    assert isinstance(repaired, nn.Sequential)
    assert torch.equal(repaired[0].weight, norm.weight)
