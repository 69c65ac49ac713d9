"""What a pass moves besides gradients: refused if records move it, else moved as by one pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.engine.model_state import ModuleState
from dpaudit.vocabulary.errors import InvalidArgument
from tests.trainer.engine.networks import cross_entropies, head, numbers
from tests.trainer.engine.oracle import per_record, relative_gap

CLIP = Flat(0.3)
ROUNDING = 1e-5


class Moving(nn.Module):
    """A linear layer beside a buffer that every pass in training moves."""

    def __init__(self, buffer: Tensor | None, move: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.move = head(), move
        self.register_buffer("kept", buffer)
        self.passes = 0
        self.memory = torch.zeros(6)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.move(self, x)
        return self.head(x)


class Saving(Moving):
    """The count of passes is saved, as an extra state."""

    def get_extra_state(self) -> Any:
        return {"passes": self.passes, "memory": [self.memory]}

    def set_extra_state(self, state: Any) -> None:
        self.passes, (self.memory,) = state["passes"], state["memory"]


def count_classes(net: Any, x: Tensor) -> None:
    net.kept += torch.bincount(net.head(x).argmax(dim=1), minlength=3)


def count_records(net: Any, x: Tensor) -> None:
    net.kept = net.kept + len(x)


def keep_largest(net: Any, x: Tensor) -> None:
    torch.maximum(net.kept, (1000 * x.amax(dim=0)).to(net.kept), out=net.kept)


def mark_signs(net: Any, x: Tensor) -> None:
    net.kept |= (x[:, 0] > 0.1).any()


def turn(net: Any, x: Tensor) -> None:
    net.kept.data.mul_(torch.exp(1j * x.mean()))


def move_codes(net: Any, x: Tensor) -> None:
    """As a codebook that follows its records does."""
    nearest = torch.cdist(x, net.memory[None].expand(4, 6)).argmin(dim=1)
    net.kept.mul_(0.9).add_(0.1 * torch.bincount(nearest, minlength=4))


def remember(net: Any, x: Tensor) -> None:
    net.memory = 0.9 * net.memory + 0.1 * x.detach().mean(dim=0)


def count_saved(net: Any, x: Tensor) -> None:
    net.passes += len(x)


KEEPING = {
    "counts of classes": lambda: Moving(torch.zeros(3, dtype=torch.int64), count_classes),
    "a count of records": lambda: Moving(torch.zeros((), dtype=torch.int32), count_records),
    "largest numbers": lambda: Moving(torch.zeros(6, dtype=torch.int16), keep_largest),
    "whether any was seen": lambda: Moving(torch.zeros((), dtype=torch.bool), mark_signs),
    "a complex phase": lambda: Moving(torch.ones((), dtype=torch.complex64), turn),
    "counts of a codebook": lambda: Moving(torch.zeros(4), move_codes),
    "a mean in an extra state": lambda: Saving(None, remember),
    "a count in an extra state": lambda: Saving(None, count_saved),
}


@pytest.mark.parametrize("records", [1, 2, 7])
@pytest.mark.parametrize("name", KEEPING)
def test_what_records_move_is_refused_and_left_as_it_was(name: str, records: int) -> None:
    model, batch = KEEPING[name](), numbers(6)(records)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidArgument, match=r"buffer 'kept'|extra state"):
        Engine(model, cross_entropies).clipped_sum(batch, CLIP)
    after = model.state_dict()
    assert str(before) == str(after)


def test_an_extra_state_that_cannot_be_compared_is_refused() -> None:
    class Opaque(Moving):
        def get_extra_state(self) -> Any:
            return object()

    with pytest.raises(InvalidArgument, match="extra state"):
        Engine(Opaque(None, count_saved), cross_entropies).clipped_sum(numbers(6)(4), CLIP)


def test_what_a_model_remembers_outside_of_buffers_is_refused_where_it_reads_it() -> None:
    class Remembering(Moving):
        def forward(self, x: Tensor) -> Tensor:
            out = self.head(x + self.memory)
            remember(self, x)
            return out

    with pytest.raises(InvalidArgument, match="memory"):
        Engine(Remembering(None, remember), cross_entropies).clipped_sum(numbers(6)(5), CLIP)


def test_a_model_may_hold_settings_that_refuse_to_be_changed() -> None:
    class Settings(dict[str, int]):  # as diffusers' models hold
        def update(self, *given: Any, **named: Any) -> None:
            raise TypeError("settings are read-only")

    model, batch = Moving(None, lambda module, x: None), numbers(6)(5)
    model.settings = Settings(layers=2)
    got = Engine(model, cross_entropies).clipped_sum(batch, CLIP).sums
    assert relative_gap(got, per_record(model, cross_entropies, batch).clipped_sum(CLIP)) < ROUNDING
    assert model.settings == {"layers": 2}


def test_a_list_that_a_pass_appends_to_is_put_back() -> None:
    def append(module: Any, x: Tensor) -> None:
        module.seen.append(len(module.seen))

    model, batch = Moving(None, append), numbers(6)(5)
    model.seen = [0]
    state = ModuleState(model)
    model(batch[0])
    assert model.seen == [0, 1]
    state.restore()
    assert model.seen == [0]


def test_what_a_model_only_shows_is_no_memory() -> None:
    model, batch = Moving(None, remember), numbers(6)(5)
    engine = Engine(model, cross_entropies)
    for _ in range(2):
        got = engine.clipped_sum(batch, CLIP).sums
        truth = per_record(model, cross_entropies, batch).clipped_sum(CLIP)
        assert relative_gap(got, truth) < ROUNDING


# --- what moves by itself


class Stepping(nn.Module):
    """A buffer counts passes and scales the outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Linear(6, 6), head()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.head(torch.tanh(self.inner(x)) / self.passes)


class Slowed(nn.Module):
    """A buffer is replaced in each pass, and a Python number counts them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.passes = head(), 0
        self.register_buffer("scale", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.scale = 0.9 * self.scale
        return self.head(x * self.scale) / self.passes


class SavingPasses(Slowed):
    def get_extra_state(self) -> Any:
        return self.passes

    def set_extra_state(self, state: Any) -> None:
        self.passes = state


def spectral() -> nn.Module:
    torch.manual_seed(0)
    normed = parametrizations.spectral_norm(nn.Linear(6, 8))
    return nn.Sequential(normed, nn.Tanh(), nn.Linear(8, 3))


MOVING: dict[str, Callable[[], nn.Module]] = {
    "spectral normalisation": spectral,
    "a count of passes": Stepping,
    "a buffer that is replaced": Slowed,
    "a count in an extra state": SavingPasses,
}


def state_of(model: nn.Module) -> dict[str, Any]:
    own = {name: value.clone() for name, value in model.named_buffers()}
    return {**own, "passes": int(getattr(model, "passes", 0))}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)


@pytest.mark.parametrize("chunk", [None, 1, 3])
@pytest.mark.parametrize("records", [0, 1, 7])
@pytest.mark.parametrize("name", MOVING)
def test_a_step_moves_it_as_one_pass_does(name: str, records: int, chunk: int | None) -> None:
    model = MOVING[name]()
    by_pass = copy.deepcopy(model)
    engine = Engine(model, cross_entropies)
    for number in range(3):
        batch = numbers(6)(records if number else 7)
        start = copy.deepcopy(model)
        got = engine.clipped_sum(batch, CLIP, chunk).sums
        by_pass(torch.zeros(2, 6))
        assert same(state_of(model), state_of(by_pass))
        if len(batch[0]):
            truth = one_at_a_time(start, batch)
            assert relative_gap(got, truth) < ROUNDING


@pytest.mark.parametrize("name", MOVING)
def test_an_empty_first_batch_moves_it_too(name: str) -> None:
    model = MOVING[name]()
    by_pass = copy.deepcopy(model)
    Engine(model, cross_entropies).clipped_sum(numbers(6)(0), CLIP)
    by_pass(torch.zeros(2, 6))
    assert same(state_of(model), state_of(by_pass))


def one_at_a_time(start: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Every record's gradient by a model in the state at the step's beginning."""
    total: dict[str, Tensor] = {}
    for record in range(len(batch[0])):
        own = tuple(part[record : record + 1] for part in batch)
        sums = per_record(copy.deepcopy(start), cross_entropies, own).clipped_sum(CLIP)
        total = {name: total.get(name, 0) + each for name, each in sums.items()}
    return total


def test_a_buffer_that_starts_to_move_is_refused() -> None:
    """By nothing that could be noticed before: the data decide."""

    def seldom(net: Any, x: Tensor) -> None:
        if bool((x > 50).any()):
            net.kept += 1

    model = Moving(torch.zeros(3), seldom)
    engine = Engine(model, cross_entropies)
    x, y = numbers(6)(5)
    engine.clipped_sum((x, y), CLIP)
    x[4, 0] = 100
    with pytest.raises(InvalidArgument, match="kept"):
        engine.clipped_sum((x, y), CLIP)


def test_a_count_of_passes_that_starts_to_count_records_is_refused() -> None:
    def count(net: Any, x: Tensor) -> None:
        net.kept += 1 + int((x > 50).sum())

    model = Moving(torch.zeros(3), count)
    engine = Engine(model, cross_entropies)
    x, y = numbers(6)(5)
    engine.clipped_sum((x, y), CLIP)
    assert model.kept.tolist() == [1, 1, 1]
    x[4, 0] = 100
    with pytest.raises(InvalidArgument, match="kept"):
        engine.clipped_sum((x, y), CLIP)


def test_dropout_beside_what_moves_is_drawn_as_ever() -> None:
    model = nn.Sequential(Stepping(), nn.Dropout(0.5), nn.Linear(3, 3))
    engine, batch = Engine(model, cross_entropies), numbers(6)(40)
    one, other = (engine.clipped_sum(batch, CLIP).losses for _ in range(2))
    assert not torch.equal(one, other)
    assert int(model[0].passes) == 2


def test_a_batch_norm_that_only_counts_batches_trains() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.GroupNorm(2, 6), head()
            self.register_buffer("num_batches_tracked", torch.tensor(0))

        def forward(self, x: Tensor) -> Tensor:
            self.num_batches_tracked.add_(1)
            return self.head(self.norm(x))

    model, batch = Counted(), numbers(6)(9)
    got = Engine(model, cross_entropies).clipped_sum(batch, CLIP, 2).sums
    assert int(model.num_batches_tracked) == 1
    assert relative_gap(got, per_record(model, cross_entropies, batch).clipped_sum(CLIP)) < ROUNDING
