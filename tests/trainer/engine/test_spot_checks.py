"""Spot checks: right gradients pass, wrong ones and mixed records end the run."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpaudit.trainer.engine import Automatic, Clipping, Engine, Flat, PerLayer, PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.trainer.engine.gradient_forms import OuterProducts
from dpaudit.trainer.engine.spot_checks import (
    CHECKED_RECORDS,
    CHECKED_SHARE,
    FIRST_CHECKED_STEP,
    CheckSchedule,
)
from dpaudit.vocabulary.errors import GradientsDisagree
from tests.trainer.engine.networks import NETWORKS

WIDTH, RECORDS = 8, 6


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def some_records(records: int = RECORDS) -> tuple[Tensor, Tensor]:
    return torch.randn(records, 5), torch.arange(records) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Dropout(0.0), nn.Linear(WIDTH, 3))


class Always(CheckSchedule):
    """Checks every step."""

    def __init__(self) -> None:
        super().__init__(lambda _: 0.0, rate=1.0)

    def due(self, step: int) -> bool:
        return True


def checked_sum(
    model: nn.Module, loss: PerSampleLoss, batch: Batch, clipping: Clipping | None = None
) -> Engine:
    engine = Engine(model, loss, Always())
    for chunk in (None, 4):
        engine.clipped_sum(batch, clipping or Flat(0.5), chunk)
        assert engine.compared
    return engine


@pytest.mark.parametrize("clipping", [Flat(0.5), Automatic(0.5), PerLayer((0.1, 0.2, 0.3, 0.1))])
def test_right_gradients_pass(clipping: Clipping) -> None:
    engine = checked_sum(network(), losses, some_records(), clipping)
    assert engine.compared == CHECKED_RECORDS


@pytest.mark.parametrize("name", list(NETWORKS)[::12])
def test_networks_pass(name: str) -> None:
    built = NETWORKS[name].build()
    engine = Engine(built.model, built.loss, Always())
    engine.clipped_sum(built.batch, Flat(0.5))
    engine.clipped_sum(built.batch, Flat(0.5))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": torch.randn_like,
    "python": lambda x: torch.tensor([[random.gauss(0, 1) for _ in row] for row in x]),
}


@pytest.mark.parametrize("which", DRAWS)
def test_gradients_on_drawn_numbers_pass_and_draw_no_others(which: str) -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return losses(model, (batch[0] + DRAWS[which](batch[0]), batch[1]))

    model, batch, found = network(), some_records(), []
    for schedule in (None, Always()):
        engine = Engine(model, loss, schedule)
        engine.clipped_sum(batch, Flat(0.5))
        engine._single_checks_until = -1
        torch.manual_seed(1)
        random.seed(1)
        engine.clipped_sum(batch, Flat(0.5))
        found.append((random.random(), float(torch.rand(()))))
        assert bool(engine.compared) == (schedule is not None)
    assert found[0] == found[1]


def test_dropout_passes() -> None:
    model = network()
    model[2].p = 0.5
    assert checked_sum(model, losses, some_records()).compared == CHECKED_RECORDS


def test_a_loss_that_differentiates_passes() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0].clone().requires_grad_(True)
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return functional.cross_entropy(out, batch[1], reduction="none") + slope.square().sum(1)

    assert checked_sum(network(), loss, some_records()).compared == CHECKED_RECORDS


def test_a_record_without_finite_gradient_is_not_compared() -> None:
    x, y = some_records(3)
    x[1] = torch.inf
    engine = Engine(network(), losses, Always())
    engine.clipped_sum((x, y), Flat(0.5))
    assert engine.clipped_sum((x, y), Flat(0.5)).left_out == 1
    assert engine.compared == 2


def halved(norms: Tensor | None) -> Tensor:
    assert norms is not None
    return norms / 2


FAULTS: dict[str, tuple[str, Callable[[OuterProducts], object]]] = {
    "a norm is": ("norms_in_float32", lambda form: halved(form.norms_in_float32())),
    "a gradient differs": ("dense", lambda form: form.dense() * 1.5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_gradients_end_the_run(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong = FAULTS[fault]
    engine, batch = Engine(network(), losses, Always()), some_records()
    engine.clipped_sum(batch, Flat(0.5))
    right = getattr(OuterProducts, name)
    plain = type("Plain", (), {name: right})

    def changed(form: OuterProducts) -> object:
        with monkeypatch.context() as patched:
            patched.setattr(OuterProducts, name, getattr(plain, name))
            return wrong(form)

    with monkeypatch.context() as patched:
        patched.setattr(OuterProducts, name, changed)
        with pytest.raises(GradientsDisagree, match=fault):
            engine.clipped_sum(batch, Flat(0.5))
    with pytest.raises(GradientsDisagree, match=fault):  # the run has ended
        engine.clipped_sum(batch, Flat(0.5))


def test_a_sum_beyond_the_sensitivity_ends_the_run() -> None:
    class Broken(Flat):
        def factors(self, squares: Tensor) -> Tensor:
            return super().factors(squares) * 2

    engine, batch = Engine(network(), losses, Always()), some_records()
    with pytest.raises(GradientsDisagree, match="times the sensitivity"):
        engine.clipped_sum(batch, Broken(1e-3))


def test_records_that_begin_to_mix_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    mixes = [0.0]

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x)
            return out + mixes[0] * out.mean(dim=0)

    engine, batch = Engine(Mixing(), losses, Always()), some_records()
    engine.clipped_sum(batch, Flat(0.5))
    # Neither a changed global nor the loss of one record is looked at.
    monkeypatch.setattr(Engine, "require_independence", lambda *_: None)
    engine._single_checks_until = -1
    monkeypatch.setattr("dpaudit.trainer.engine.clipped_sums.SINGLE_CHECK_EVERY", 2**62)
    engine.clipped_sum(batch, Flat(0.5))
    mixes[0] = 0.3
    with pytest.raises(GradientsDisagree, match="changes the losses of others"):
        engine.clipped_sum(batch, Flat(0.5))


def test_checks_take_their_share_of_the_time_on_average() -> None:
    drawn = random.Random(0)
    schedule = CheckSchedule(lambda _: drawn.random())
    for step in range(200_000):
        checks = schedule.due(step)
        if checks:
            schedule.note_check(3.0)
        schedule.note_step(1.0)
    # Binomial: 533 checks expected, standard deviation 23; six of them.
    expected = CHECKED_SHARE * 200_000 / 3
    assert abs(schedule.checked - expected) < 6 * expected**0.5 + 10
    assert schedule.check_seconds < 0.0125 * schedule.step_seconds


def test_the_first_steps_are_not_checked_and_a_fixed_rate_ignores_costs() -> None:
    schedule = CheckSchedule(lambda _: 0.001)
    schedule.note_step(1.0)
    assert not any(schedule.due(step) for step in range(FIRST_CHECKED_STEP))
    assert schedule.due(FIRST_CHECKED_STEP)
    assert CheckSchedule(lambda _: 0.001, rate=0.002).due(0)
    assert CheckSchedule(lambda _: 0.0).probability == 0.0
