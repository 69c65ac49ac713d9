"""Plans over the steps of a run: made again when more is known, kept where noise is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpaudit.trainer.engine import Engine, Flat, PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.trainer.engine.planned_gradients import MAX_RETRIES, Retries
from tests.trainer.engine.oracle import per_record, relative_gap

RECORDS, WIDTH = 6, 8


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter, one factor of which starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Linear(5, WIDTH).requires_grad_(False)
        self.down, self.up = nn.Linear(5, 2, bias=False), nn.Linear(2, WIDTH, bias=False)
        nn.init.zeros_(self.up.weight)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.fixed(x) + self.up(self.down(x))))


class ZeroResidual(nn.Module):
    """A residual branch whose last norm starts with the scale zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 3)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.norm(torch.tanh(self.inner(x))))


def losses(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def some_records(records: int = RECORDS) -> tuple[Tensor, Tensor]:
    return torch.randn(records, 5), torch.arange(records) % 3


def descend(model: nn.Module, sums: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in sums:
                parameter.sub_(0.1 * sums[name])


@pytest.mark.parametrize("make", [Adapted, ZeroResidual])
def test_what_starts_at_zero_gets_rules_when_gradients_flow(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, batch = make(), some_records()
    engine, slow = Engine(model, losses), []
    for _ in range(3):
        expected = per_record(model, losses, batch).clipped_sum(Flat(0.7))
        found = engine.clipped_sum(batch, Flat(0.7)).sums
        assert relative_gap(found, expected) < 1e-5
        slow.append(engine.record_by_record)
        descend(model, found)
    assert slow[0]
    assert slow[-1] == ()


def test_retries_are_bounded_and_grow_apart() -> None:
    retries = Retries()
    made = [step for step in range(1, 10_000) if retries.due()]
    assert made == [2**n for n in range(MAX_RETRIES)]


def test_a_layer_that_never_gets_a_gradient_is_planned_a_bounded_number_of_times() -> None:
    torch.manual_seed(0)
    model, batch, planned = Adapted(), some_records(), 0
    engine = Engine(model, losses)
    make = engine._gradients._planned

    def count(*args: object) -> object:
        nonlocal planned
        planned += 1
        return make(*args)  # type: ignore[arg-type]

    engine._gradients._planned = count  # type: ignore[method-assign, assignment]
    for _ in range(40):
        engine.clipped_sum(batch, Flat(0.7))
    assert planned == 1 + 6  # at first, then before steps 1, 2, 4, 8, 16, 32 after it
    assert set(engine.record_by_record) == {"down.weight"}


@pytest.mark.parametrize("error", [RuntimeError("not now"), ValueError("not now")])
def test_a_plan_that_fell_back_is_made_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, batch = nn.Linear(5, 3), some_records()
    expected = per_record(model, losses, batch).clipped_sum(Flat(0.7))
    engine = Engine(model, losses)
    with monkeypatch.context() as patched:

        def fail(*_: object) -> None:
            raise error

        patched.setattr("dpaudit.trainer.engine.planned_gradients.make_plan", fail)
        assert relative_gap(engine.clipped_sum(batch, Flat(0.7)).sums, expected) < 1e-5
        assert set(engine.record_by_record) == {"weight", "bias"}
    for _ in range(3):
        assert relative_gap(engine.clipped_sum(batch, Flat(0.7)).sums, expected) < 1e-5
    assert engine.record_by_record == ()


def test_a_penalty_of_some_steps_leaves_the_others_fast() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    batch, number, slow = some_records(), [0], []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.enable_grad():
            x = batch[0].clone().requires_grad_(True)
            out = model(x)
            found = functional.cross_entropy(out, batch[1], reduction="none")
            if number[0] % 8:
                return found
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            return found + slope.square().sum(dim=1)

    engine = Engine(model, loss)
    for step in range(13):
        number[0] = step
        expected = per_record(model, loss, batch).clipped_sum(Flat(0.7))
        found = engine.clipped_sum(batch, Flat(0.7)).sums
        assert relative_gap(found, expected) < 1e-5
        slow.append(bool(engine.record_by_record))
    assert slow[0]
    assert slow[8]
    assert not all(slow[1:8])


HELD = {
    "torch": torch.Generator().manual_seed(1),
    "numpy": np.random.default_rng(1),
    "old numpy": np.random.RandomState(1),
    "python": random.Random(1),
}


def held_noise(which: str) -> Callable[[Tensor], Tensor]:
    generator = HELD[which]

    def draw(x: Tensor) -> Tensor:
        match generator:
            case torch.Generator():
                return torch.randn(x.shape, generator=generator)
            case np.random.Generator():
                return torch.from_numpy(generator.standard_normal(x.shape)).float()
            case np.random.RandomState():
                return torch.from_numpy(generator.standard_normal(x.shape)).float()
            case _:
                return torch.tensor([[generator.gauss(0, 1) for _ in row] for row in x])

    return draw


NOISES: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": torch.randn_like,
    "numpy": lambda x: torch.from_numpy(np.random.standard_normal(x.shape)).float(),  # noqa: NPY002
    "python": lambda x: torch.tensor([[random.gauss(0, 1) for _ in row] for row in x]),
    "one number for all records": lambda x: torch.full_like(x, random.random()),
    **{f"held by the loss: {which}": held_noise(which) for which in HELD},
}


def noisy(draw: Callable[[Tensor], Tensor]) -> PerSampleLoss:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return losses(model, (batch[0] + 0.5 * draw(batch[0]), batch[1]))

    return loss


@pytest.mark.parametrize("which", NOISES)
def test_noise_in_the_loss_keeps_the_rules(which: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    batch, loss = some_records(), noisy(NOISES[which])
    engine = Engine(model, loss)
    for _ in range(5):
        found = engine.clipped_sum(batch, Flat(1e9))
        assert engine.record_by_record == ()
    assert float(found.losses.std()) > 0


@pytest.mark.parametrize("which", NOISES)
def test_noise_in_the_loss_gives_the_gradient_on_the_numbers_it_drew(which: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    batch, kept = some_records(), []

    def draw(x: Tensor) -> Tensor:
        kept.append(NOISES[which](x))
        return kept[-1]

    engine = Engine(model, noisy(draw))
    engine.clipped_sum(batch, Flat(0.7))
    engine._single_checks_until = -1  # the batch itself is the last one that draws
    for _ in range(3):
        kept.clear()
        sums = engine.clipped_sum(batch, Flat(0.7)).sums
        noise = next(each for each in kept if len(each) == RECORDS)
        given = (batch[0] + 0.5 * noise, batch[1])
        assert relative_gap(sums, per_record(model, losses, given).clipped_sum(Flat(0.7))) < 1e-5


class Switched(nn.Module):
    """Dropout, and a layer that is used in every other pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.drop, self.head, self.longer = nn.Dropout(0.5), nn.Linear(WIDTH, 3), False

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.tanh(self.first(x)))
        return self.head(self.second(h) if self.longer else h)


def penalized(model: nn.Module, batch: Batch) -> Tensor:
    with torch.enable_grad():
        x = batch[0].clone().requires_grad_(True)
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return functional.cross_entropy(out, batch[1], reduction="none") + slope.square().sum(dim=1)


@pytest.mark.parametrize("loss", [losses, penalized])
def test_dropout_is_not_taken_for_mixing_where_a_batch_runs_twice(loss: PerSampleLoss) -> None:
    torch.manual_seed(0)
    model = Switched()
    engine = Engine(model, loss)
    for step in range(8):
        model.longer = step % 2 == 1
        engine._single_checks_until, engine._random_differences = 10**9, 0
        engine._gradients.plans = engine._gradients.plans[:1]  # that of the other path
        engine.clipped_sum(some_records(), Flat(0.7), chunk=4)


def test_planning_leaves_the_generators_where_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    engine = Engine(model, noisy(NOISES["numpy"]))
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    with engine._gradients.same_state():
        NOISES["numpy"](torch.zeros(3, 5))
        NOISES["python"](torch.zeros(3, 5))
    here = np.random.standard_normal(), random.random()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    assert here == (np.random.standard_normal(), random.random())  # noqa: NPY002
