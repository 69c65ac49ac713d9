"""A record's loss in its batch is the one that it has alone, or the step is refused."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.engine import clipped_sums as sums_module
from dpaudit.vocabulary.errors import InvalidArgument

RECORDS, WIDTH, CLASSES = 16, 5, 3
MIXES = "mix records, in every step|mix records"


def data(records: int = RECORDS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(records, WIDTH, generator=generator)
    return x, torch.randint(0, CLASSES, (records,), generator=generator)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Gated(nn.Module):
    """Centres its batch as far as ``gate`` says, which none of its code shows to change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES)
        self.gate = np.zeros(40)
        self.opened = nn.Parameter(torch.full((8,), -1.0))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        share = float(self.gate[3]) + torch.relu(self.opened)
        out: Tensor = self.last(hidden - share * hidden.mean(dim=0))
        return out


def opens_an_array(model: Gated) -> None:
    model.gate[3] = 1.0


def opens_a_parameter(model: Gated) -> None:
    with torch.no_grad():
        model.opened.fill_(1.0)


@pytest.mark.parametrize("opens", [opens_an_array, opens_a_parameter])
@pytest.mark.parametrize("chunk", [None, 5])
def test_gate_that_opens_unseen_is_refused_in_its_first_steps(
    opens: Callable[[Gated], None], chunk: int | None
) -> None:
    torch.manual_seed(0)
    model = Gated()
    engine = Engine(model, loss)
    engine.clipped_sum(data(), Flat(1.0), chunk)
    opens(model)

    def first_steps() -> None:
        # The record that is computed alone is random, and need not show the mixing.
        for _ in range(6):
            engine.clipped_sum(data(), Flat(1.0), chunk)

    with pytest.raises(InvalidArgument, match=MIXES):
        first_steps()


def test_gate_that_opens_late_is_refused_within_some_steps() -> None:
    model = Gated()
    engine = Engine(model, loss)
    for _ in range(20):
        engine.clipped_sum(data(), Flat(1.0))
    opens_an_array(model)

    def more_steps() -> None:
        for _ in range(60):  # one in four looks: by chance, none of them in 3e-8 of runs
            engine.clipped_sum(data(), Flat(1.0))

    with pytest.raises(InvalidArgument, match=MIXES):
        more_steps()


COINS: dict[str, Callable[[], bool]] = {
    "python": lambda: random.random() < 0.2,
    "numpy": lambda: bool(np.random.rand() < 0.2),  # noqa: NPY002
    "torch": lambda: bool(torch.rand(()) < 0.2),
}


@pytest.mark.parametrize("coin", COINS)
def test_mixing_behind_a_coin_is_refused_when_it_falls(coin: str) -> None:
    def mixup(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        if COINS[coin]():
            x = 0.5 * x + 0.5 * x.roll(1, 0)
        return loss(model, (x, y))

    engine = Engine(nn.Linear(WIDTH, CLASSES), mixup)

    def many_steps() -> None:
        for _ in range(300):
            engine.clipped_sum(data(), Flat(1.0))

    with pytest.raises(InvalidArgument, match=MIXES):
        many_steps()


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_dropout_is_no_mixing(rate: float) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Dropout(rate), nn.Linear(8, CLASSES))
    engine = Engine(model, loss)
    for _ in range(60):
        engine.clipped_sum(data(), Flat(1.0))


def test_coins_of_the_batch_are_not_taken_by_the_look() -> None:
    """What is drawn after a step is what would be drawn without it."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, CLASSES))
    drawn = []
    for looks in (True, False):
        engine = Engine(model, loss)
        engine.clipped_sum(data(), Flat(1.0))
        if not looks:
            engine._sums = lambda batch, size, rule, e=engine: [e._sum(*e._take(batch, rule))]  # type: ignore[method-assign]
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        engine.clipped_sum(data(), Flat(1.0))
        drawn.append((float(torch.rand(())), random.random(), float(np.random.rand())))  # noqa: NPY002
    assert drawn[0] == drawn[1]


def test_attributes_are_as_after_one_pass() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(WIDTH, CLASSES), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.layer(x)
            return out

    model = Counting()
    engine = Engine(model, loss)
    for _ in range(3):
        engine.clipped_sum(data(), Flat(1.0))
    assert model.calls == 3


def test_without_the_look_an_opened_gate_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: what the test above refuses is seen by nothing else."""
    monkeypatch.setattr(sums_module.SingleRecordCheck, "require_same", lambda *_, **__: False)
    model = Gated()
    engine = Engine(model, loss)
    engine.clipped_sum(data(), Flat(1.0))
    opens_an_array(model)
    engine.clipped_sum(data(), Flat(1.0))


# What a forward pass writes.


class Codebook(nn.Module):
    """Moves a parameter towards what it is given, as vector quantisation does."""

    def __init__(self, trained: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, CLASSES)
        self.centre = nn.Parameter(torch.zeros(WIDTH), requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.centre.lerp_(x.mean(dim=0), 0.1)
        out: Tensor = self.layer(x - self.centre.detach() * 0)
        return out


@pytest.mark.parametrize("trained", [True, False])
def test_parameter_that_a_pass_writes_to_is_refused(trained: bool) -> None:
    with pytest.raises(InvalidArgument, match="writes to 'centre'"):
        Engine(Codebook(trained), loss).clipped_sum(data(), Flat(1.0))


def test_embedding_that_scales_what_it_looks_up_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(9, 6, max_norm=0.1), nn.Flatten(), nn.Linear(12, CLASSES))
    batch = torch.randint(0, 9, (RECORDS, 2)), data()[1]
    with pytest.raises(InvalidArgument, match=r"max_norm"):
        Engine(model, loss).clipped_sum(batch, Flat(1.0))


def test_hook_on_a_parameter_is_refused() -> None:
    model = nn.Linear(WIDTH, CLASSES)
    model.weight.register_hook(lambda gradient: gradient * 0)
    with pytest.raises(InvalidArgument, match="gradient hook on 'weight'"):
        Engine(model, loss).clipped_sum(data(), Flat(1.0))


@pytest.mark.parametrize("kind", [list, dict])
def test_memory_in_a_container_is_refused(kind: type) -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.bank = nn.Linear(WIDTH, CLASSES), kind()

        def forward(self, x: Tensor) -> Tensor:
            seen = list(self.bank.values()) if isinstance(self.bank, dict) else self.bank
            out: Tensor = self.layer(x + (seen[-1] if seen else 0))
            mean = x.mean(dim=0).detach()
            if isinstance(self.bank, dict):
                self.bank["mean"] = mean
            else:
                self.bank.append(mean)
            return out

    with pytest.raises(InvalidArgument, match=r"without memory|mix records"):
        Engine(Remembering(), loss).clipped_sum(data(), Flat(1.0))


def test_modules_of_your_own_are_not_switched_to_evaluation() -> None:
    """A layer may merge weights in ``eval()``, which flags alone do not undo."""

    class Merging(nn.Linear):
        switched = 0

        def train(self, mode: bool = True) -> Merging:
            self.switched += 1
            return super().train(mode)

    model = nn.Sequential(Merging(WIDTH, 8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    engine = Engine(model, loss)
    for _ in range(10):
        engine.clipped_sum(data(), Flat(1.0))
    assert model[0].switched == 0
    assert model[1].training
