"""The sum of clipped per-record gradients, held against a loop over records."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpaudit.trainer.engine import PerRecordGradients, clipped_sum
from dpaudit.trainer.models import cnn, linear, mlp
from dpaudit.trainer.private_sgd import per_record_cross_entropy


class Tied(nn.Module):
    """One matrix used twice: for the embedding and for the output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.outer = nn.Linear(6, 6)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))


class Reused(nn.Module):
    """One layer applied three times, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.layer(x)) * self.scale
        return x


class Branching(nn.Module):
    """A branch that only some records take part in, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(x)
        return torch.where(x[:, :1] > 0, self.left(x), self.right(x))


MODELS = {
    "linear": ((6,), lambda: linear((6,), 6)),
    "mlp": ((6,), lambda: mlp((6,), 6)),
    "cnn": ((16, 16), lambda: cnn((16, 16), 6)),
    "colour cnn": ((3, 20, 20), lambda: cnn((3, 20, 20), 6)),
    "tied": ((6,), Tied),
    "reused": ((6,), Reused),
    "branching": ((6,), Branching),
    "group norm": (
        (4, 5),
        lambda: nn.Sequential(
            nn.Conv1d(4, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(12, 6)
        ),
    ),
}


def sum_by_loop(model: nn.Module, x: Tensor, y: Tensor, clip_norm: float) -> Tensor:
    """The slow, obvious way: one backward a record, one joint norm, clip, add."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for record, label in zip(x, y, strict=True):
        loss = per_record_cross_entropy(model(record[None]), label[None]).sum()
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        flat = torch.cat(
            [
                (torch.zeros_like(p) if part is None else part).flatten().double()
                for p, part in zip(parameters, parts, strict=True)
            ]
        )
        total += flat * min(1.0, clip_norm / float(flat.norm()))
    return total


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clip_norm", [0.01, 0.5, 1e6])
def test_the_sum_is_that_of_a_loop_over_records(name: str, clip_norm: float) -> None:
    torch.manual_seed(3)
    shape, make = MODELS[name]
    model = make()
    x, y = torch.randn(11, *shape), torch.randint(0, 6, (11,))
    expected = sum_by_loop(model, x, y, clip_norm)
    got = PerRecordGradients(model, per_record_cross_entropy).clipped_sum(x, y, clip_norm, 4)
    assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", MODELS)
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(name: str) -> None:
    torch.manual_seed(4)
    shape, make = MODELS[name]
    gradients = PerRecordGradients(make(), per_record_cross_entropy)
    x, y = 100 * torch.randn(9, *shape), torch.randint(0, 6, (9,))
    whole = gradients.clipped_sum(x, y, 0.5, 256).double()
    for left_out in range(len(x)):
        kept = torch.arange(len(x)) != left_out
        without = gradients.clipped_sum(x[kept], y[kept], 0.5, 256).double()
        assert (whole - without).norm() <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 100])
def test_the_chunk_is_a_matter_of_speed_alone(chunk: int) -> None:
    torch.manual_seed(5)
    gradients = PerRecordGradients(mlp((6,), 6), per_record_cross_entropy)
    x, y = torch.randn(7, 6), torch.randint(0, 6, (7,))
    one = gradients.clipped_sum(x, y, 0.5, 7)
    assert torch.allclose(one, gradients.clipped_sum(x, y, 0.5, chunk), rtol=1e-5, atol=1e-7)


def test_no_records_give_zeros() -> None:
    gradients = PerRecordGradients(linear((6,), 6), per_record_cross_entropy)
    nothing = gradients.clipped_sum(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long), 1.0, 8)
    assert torch.equal(nothing, torch.zeros(gradients.size))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_record_whose_gradient_is_not_finite_contributes_zero(bad: float) -> None:
    torch.manual_seed(6)
    gradients = PerRecordGradients(linear((6,), 6), per_record_cross_entropy)
    x, y = torch.randn(5, 6), torch.randint(0, 6, (5,))
    kept = torch.arange(5) != 2
    expected = gradients.clipped_sum(x[kept], y[kept], 0.5, 256)
    x[2, 3] = bad
    got = gradients.clipped_sum(x, y, 0.5, 256)
    assert torch.isfinite(got).all()
    assert torch.allclose(got, expected, rtol=1e-6)


def test_every_trainable_parameter_enters_once_and_no_frozen_one() -> None:
    model = Branching()
    names = PerRecordGradients(model, per_record_cross_entropy).names
    assert names == ["left.weight", "left.bias", "right.weight", "right.bias"]
    assert PerRecordGradients(Tied(), per_record_cross_entropy).size == 36 + 6 + 6


@given(st.floats(1e-30, 1e30), st.floats(1e-3, 1e3), st.integers(1, 400))
@settings(max_examples=200, deadline=None)
def test_no_row_is_longer_than_the_clip_norm(size: float, clip_norm: float, width: int) -> None:
    row = torch.full((1, width), size, dtype=torch.float32)
    assert clipped_sum([row], clip_norm).double().norm() <= clip_norm


@given(st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_a_row_inside_the_clip_norm_is_left_alone(size: float) -> None:
    row = torch.full((1, 4), size, dtype=torch.float32)
    assert torch.equal(clipped_sum([row], 2 * size * 1.001), row[0])
