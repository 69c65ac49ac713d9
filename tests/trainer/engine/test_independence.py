"""Models that mix records are refused, by the name of the module that does it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.engine.independence import require_independent_records
from dpaudit.trainer.models.factories import cnn_model, linear_model, mlp_model
from dpaudit.trainer.models.fix import fix
from dpaudit.trainer.tasks import cross_entropies
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
        ((6,), linear_model((6,), 3)),
        ((6,), mlp_model((6,), 3)),
        ((20, 20), cnn_model((20, 20), 3)),
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


class _Keeping(nn.Module):
    """Keeps statistics of its records, and mixes none."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(x).flatten(1))
        return out


@pytest.mark.parametrize("records", [1, 2, 5])
def test_running_statistics_that_would_be_released_without_noise_are_refused(records: int) -> None:
    model, batch = _Keeping().train(), (torch.randn(records, 2, 4), torch.zeros(records).long())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidArgument, match=r"norm\.running_mean"):
        Engine(model, cross_entropies).clipped_sum(batch, Flat(1.0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fixed = fix(model).model
    Engine(fixed, cross_entropies).clipped_sum(batch, Flat(1.0))


def test_counters_and_fixed_buffers_are_no_statistics() -> None:
    model = _Keeping().eval()
    Engine(model, cross_entropies).clipped_sum(
        (torch.randn(4, 2, 4), torch.zeros(4).long()), Flat(1.0)
    )
