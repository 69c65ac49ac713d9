"""Models that mix records are refused, by the name of the module that does it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpaudit.trainer.engine.independence import require_independent_records
from dpaudit.trainer.models import cnn, linear, mlp
from dpaudit.vocabulary.errors import InvalidArgument


class MeanOfBatch(nn.Module):
    """No known class name: subtracts the batch's mean in plain tensor code."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("shape", "model"),
    [
        ((6,), linear((6,), 3)),
        ((6,), mlp((6,), 3)),
        ((20, 20), cnn((20, 20), 3)),
        ((6,), nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Dropout(0.5))),
        ((4, 8, 8), nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4))),
    ],
)
def test_models_that_keep_records_apart_pass(shape: tuple[int, ...], model: nn.Module) -> None:
    model.train()
    require_independent_records(model, shape)


def test_batch_normalisation_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    model.train()
    with pytest.raises(InvalidArgument, match="BatchNorm2d '1'"):
        require_independent_records(model, (3, 8, 8))


def test_mixing_without_a_module_of_its_own_is_found() -> None:
    with pytest.raises(InvalidArgument, match="MeanOfBatch"):
        require_independent_records(MeanOfBatch().train(), (6,))


def test_the_test_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidArgument):
        require_independent_records(model.train(), (6,))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
