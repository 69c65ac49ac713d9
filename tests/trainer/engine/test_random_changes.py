"""Random changes of mode, freezing, shape, modules and loss in mid-run: right, or refused.

After each change, the clipped sum must be that of a loop over the records, in float64; or
the engine must refuse the step with an error of its own. Never may it return anything else.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dpaudit.trainer.engine import Automatic, Clipping, Engine, Flat
from dpaudit.trainer.engine.batch_structure import count_records
from dpaudit.trainer.engine.spot_checks import CheckSchedule
from dpaudit.vocabulary.errors import DpauditError
from tests.trainer.engine.oracle import per_record, relative_gap

WIDTH, CLASSES = 6, 3
UNCLIPPED = Flat(1e9)
TOLERANCE, CLIPPED_TOLERANCE = 1e-9, 1e-5
"""Of sums in float64. Norms are rounded up by some 2^-21, so clip factors are a little smaller."""


def block(kind: int) -> nn.Module:
    """Return a module that maps ``(records, positions, WIDTH)`` to the same shape."""
    makes: list[Callable[[], nn.Module]] = [
        lambda: nn.Linear(WIDTH, WIDTH),
        lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh()),
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True),
        Recurrent,
        Convolved,
        Scaled,
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(2), nn.Tanh()),
        lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(WIDTH, WIDTH)),
        Mixing,
    ]
    return makes[kind % len(makes)]().double()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.inner = nn.Parameter(torch.zeros(WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * torch.tanh(self.inner(x))


class Mixing(nn.Module):
    """Attention across the batch behind a gate that may be zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.gate = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.gate * x.mean(dim=0)


class Net(nn.Module):
    """Blocks on tokens or vectors, with switches that change its path."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.embed, self.project = nn.Embedding(9, WIDTH), nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(block(draw.randrange(6)) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.saves, self.skips, self.scale = False, False, 1.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.project(x.to(self.project.weight)) if x.is_floating_point() else self.embed(x)
        for number, one in enumerate(self.blocks):
            if self.skips and number == 0:
                continue
            if self.saves == "reentrant, by hand":  # torch passes no gradient on to such inputs
                with torch.set_grad_enabled(h.requires_grad):
                    found = one(h)
            elif self.saves:
                found = checkpoint(one, h, use_reentrant=self.saves == "reentrant")
            else:
                found = one(h)
            h = h + self.scale * found
        return self.head(h.mean(dim=1))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def squared(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1][:, None]).square().sum(dim=1)


def penalized(model: nn.Module, batch: Any) -> Tensor:
    with torch.enable_grad():
        x = batch[0].double().requires_grad_(True)
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    losses = functional.cross_entropy(out, batch[1], reduction="none")
    return losses + slope.square().sum(dim=(1, 2))


def of_the_batch(model: nn.Module, batch: Any) -> Tensor:
    losses = cross_entropy(model, batch)
    return losses - losses.mean()


LOSSES = [cross_entropy, squared, penalized, of_the_batch]


@dataclass
class Run:
    """One run in which the model, the loss and the batches change.

    Attributes:
        draw: Where the changes come from.
        model: The model.
        engine: Its engine, which lasts for the whole run.
        results: How many steps were right, and how many refused.
    """

    draw: random.Random
    model: Net = field(init=False)
    engine: Engine = field(init=False)
    loss: Callable[..., Tensor] = cross_entropy
    records: int = 5
    positions: int = 2
    tokens: bool = False
    dtype: torch.dtype = torch.float64
    clipping: Clipping = UNCLIPPED
    chunk: int | None = None
    results: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.model = Net(self.draw).double()
        schedule = CheckSchedule(lambda _: self.draw.random(), self.draw.choice([0.0, 0.5]))
        self.engine = Engine(self.model, self.loss, schedule)

    def change(self) -> str:
        """Make one random change, and return its name."""
        name = self.draw.choice([each for each in dir(self) if each.startswith("_change")])
        getattr(self, name)()
        return name

    def _change_mode(self) -> None:
        self.draw.choice(list(self.model.modules())).train(self.draw.random() < 0.5)

    def _change_mode_of_all(self) -> None:
        self.model.train(self.draw.random() < 0.5)

    def _change_freezing(self) -> None:
        one = self.draw.choice(list(self.model.parameters()))
        one.requires_grad_(not one.requires_grad)

    def _change_freezing_of_module(self) -> None:
        self.draw.choice(list(self.model.modules())).requires_grad_(self.draw.random() < 0.7)

    def _change_records(self) -> None:
        self.records = self.draw.choice([0, 1, 2, 3, 5, 8])

    def _change_positions(self) -> None:
        self.positions = self.draw.choice([1, 2, 2, 3, 5])

    def _change_inputs(self) -> None:
        self.tokens = not self.tokens

    def _change_type_of_inputs(self) -> None:
        self.dtype = self.draw.choice([torch.float64, torch.float32, torch.float16])

    def _change_block(self) -> None:
        place = self.draw.randrange(len(self.model.blocks))
        self.model.blocks[place] = block(self.draw.randrange(9))

    def _change_activation(self) -> None:
        self.model.head = nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, CLASSES)).double()

    def _change_loss(self) -> None:
        self.loss = self.draw.choice(LOSSES)
        self.engine.loss = self.loss

    def _change_path(self) -> None:
        self.model.skips = not self.model.skips

    def _change_scale(self) -> None:
        self.model.scale = self.draw.choice([0.0, 0.5, 1.0])

    def _change_checkpointing(self) -> None:
        self.model.saves = self.draw.choice([False, "plain", "reentrant"])

    def _change_clipping(self) -> None:
        self.clipping = self.draw.choice([UNCLIPPED, UNCLIPPED, Flat(0.5), Automatic(0.5)])

    def _change_chunk(self) -> None:
        self.chunk = self.draw.choice([None, 1, 2, 3])

    def _change_parameter(self) -> None:
        with torch.no_grad():
            one = self.draw.choice(list(self.model.parameters()))
            one.add_(0.3 * torch.randn_like(one))

    def _change_tying(self) -> None:
        one, other = self.model.blocks
        if type(one) is nn.Linear and type(other) is nn.Linear:
            other.weight = one.weight

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return new records."""
        shape = (self.records, self.positions)
        x = torch.randint(0, 9, shape) if self.tokens else torch.randn(*shape, 4).to(self.dtype)
        return x, torch.randint(0, CLASSES, (self.records,))

    def step(self) -> None:
        """Take one sum, which must be right or refused."""
        batch = self.batch()
        try:
            found = self.engine.clipped_sum(batch, self.clipping, self.chunk)
        except DpauditError as error:
            self.results[f"refused: {type(error).__name__}"] += 1
            self.require_refusable(str(error))
            self.repair()
            return
        self.results["right"] += 1
        if any(isinstance(m, nn.Dropout) and m.p and m.training for m in self.model.modules()):
            return  # each record would draw other numbers alone
        names = {name for name, p in self.model.named_parameters() if p.requires_grad}
        assert found.sums.keys() == names
        if not count_records(batch):
            assert not any(part.any() for part in found.sums.values())
            return
        expected = self.expected(batch)
        most = TOLERANCE if self.clipping is UNCLIPPED else CLIPPED_TOLERANCE
        assert relative_gap(found.sums, expected.clipped_sum(self.clipping)) < most
        assert torch.allclose(found.norms, expected.norms, rtol=1e-5, atol=1e-12)
        # Norms are upper bounds, up to rounding in float64.
        assert (found.norms >= expected.norms * (1 - 1e-12) - 1e-15).all()

    def expected(self, batch: tuple[Tensor, Tensor]) -> Any:
        """Return the records' own gradients, by means that do without checkpointing."""
        saves = self.model.saves
        self.model.saves = "reentrant, by hand" if saves == "reentrant" else False
        try:
            return per_record(self.model, self.loss, batch)
        finally:
            self.model.saves = saves

    def require_refusable(self, why: str) -> None:
        """Refusals have a reason: something that mixes, or a call that does not run."""
        mixes = any(isinstance(m, nn.BatchNorm1d | Mixing) for m in self.model.modules())
        frozen = not any(p.requires_grad for p in self.model.parameters())
        unused = "depend on no trained parameter" in why
        unfit = "per_sample_loss" in why  # shapes that do not fit, tokens under a penalty
        assert mixes or frozen or unused or unfit or self.loss is of_the_batch, why

    def repair(self) -> None:
        """Make the model trainable again, so that most steps are taken."""
        for place, one in enumerate(self.model.blocks):
            if any(isinstance(m, nn.BatchNorm1d | Mixing) for m in one.modules()):
                self.model.blocks[place] = block(self.draw.randrange(6))
        self.model.requires_grad_(True)
        self.model.train()
        self.loss = self.engine.loss = cross_entropy
        self.model.saves = False


def run(seed: int, changes: int) -> Counter[str]:
    """Make some changes in one run, with a step after each; return how many were right."""
    torch.manual_seed(seed)
    one = Run(random.Random(seed))
    one.step()
    history = []
    for _ in range(changes):
        history.append(one.change())
        try:
            one.step()
        except BaseException as error:
            raise AssertionError(f"seed {seed}, after {history[-8:]} of {len(history)}") from error
    return one.results


CHANGES = 25


def run_all(seeds: range) -> Counter[str]:
    total: Counter[str] = Counter()
    for seed in seeds:
        total += run(seed, CHANGES)
    return total


@pytest.mark.filterwarnings("ignore")
def test_random_changes_are_right_or_refused() -> None:
    total = run_all(range(4))
    assert sum(total.values()) == 4 * (CHANGES + 1)
    assert total["right"] > 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_thousand_random_changes_are_right_or_refused() -> None:
    total = run_all(range(100, 180))
    print(dict(total))
    assert sum(total.values()) == 80 * (CHANGES + 1)
    assert total["right"] > 1200
