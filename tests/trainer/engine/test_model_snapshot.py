"""What was verified on an earlier batch is verified again when it may have changed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.engine.clipped_sums import Engine as Sums
from dpaudit.trainer.engine.model_snapshot import take_snapshot
from dpaudit.vocabulary.errors import InvalidArgument
from tests.trainer.engine.networks import cross_entropies, head, labels, numbers
from tests.trainer.engine.oracle import per_record, relative_gap

CLIP = Flat(0.3)
ROUNDING = 1e-5


def assert_right(engine: Engine, model: nn.Module, batch: Any, loss: Any = None) -> None:
    loss = loss or engine.loss
    got = engine.clipped_sum(batch, CLIP).sums
    assert relative_gap(got, per_record(model, loss, batch).clipped_sum(CLIP)) < ROUNDING


def layers(*more: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *more, nn.Linear(8, 3))


# --- what is trained


def freeze_bias(model: Any) -> None:
    model[0].bias.requires_grad_(requires_grad=False)


def unfreeze_bias(model: Any) -> None:
    model[2].bias.requires_grad_(requires_grad=True)


def freeze_layer(model: Any) -> None:
    model[2].requires_grad_(requires_grad=False)


def replace_parameter(model: Any) -> None:
    model[0].weight = nn.Parameter(torch.randn(8, 6))


def replace_layer(model: Any) -> None:
    model[1] = nn.Sequential(nn.ReLU(), nn.Linear(8, 8))


def tie(model: Any) -> None:
    model.append(nn.Linear(3, 3))
    model.append(nn.Linear(3, 3))
    model[-1].weight = model[-2].weight


CHANGES: list[Callable[[Any], None]] = [
    freeze_bias, unfreeze_bias, freeze_layer, replace_parameter, replace_layer, tie,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_sums_are_over_what_is_trained_now(change: Callable[[Any], None]) -> None:
    model, batch = layers(), numbers(6)(9)
    model[2].bias.requires_grad_(requires_grad=False)
    engine = Engine(model, cross_entropies)
    assert_right(engine, model, batch)
    change(model)
    for _ in range(2):
        assert_right(engine, model, batch)
    assert not engine.record_by_record


def test_an_embedding_may_be_frozen_and_unfrozen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(12, 3))
    engine, batch = Engine(model, cross_entropies), (torch.randint(0, 11, (7, 3)), labels(7))
    for trained in (True, False, True):
        model[0].requires_grad_(requires_grad=trained)
        assert_right(engine, model, batch)


# --- records that meet later


class Gated(nn.Module):
    """Records meet once ``gate`` is open."""

    def __init__(self, gate: Any, opening: Callable[[Any], Any] = lambda gate: gate) -> None:
        super().__init__()
        self.inner, self.head, self.opening = nn.Linear(6, 6), head(), opening
        if isinstance(gate, nn.Parameter):
            self.gate = gate
        elif isinstance(gate, Tensor):
            self.register_buffer("gate", gate)
        else:
            self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.head(h + self.opening(self.gate) * h.mean(dim=0))


class LowRank(nn.Module):
    """As LoRA begins: the second factor is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, 6))
        self.up = nn.Parameter(torch.zeros(6, 2))
        self.head = head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + ((x - x.mean(dim=0)) @ self.down.T) @ self.up.T)


WILL_MEET = {
    "a gate that starts at zero": lambda: Gated(nn.Parameter(torch.zeros(()))),
    "a gate per feature": lambda: Gated(nn.Parameter(torch.zeros(6))),
    "a gate that starts at one": lambda: Gated(nn.Parameter(torch.ones(())), lambda g: 1 - g),
    "a gate behind a rectifier": lambda: Gated(nn.Parameter(torch.zeros(())), torch.relu),
    "a factor of rank two": LowRank,
}


@pytest.mark.parametrize("records", [2, 9])
@pytest.mark.parametrize("name", WILL_MEET)
def test_records_that_will_meet_are_refused_at_the_first_step(name: str, records: int) -> None:
    torch.manual_seed(0)
    model = WILL_MEET[name]()
    versions = [p._version for p in model.parameters()]
    with pytest.raises(InvalidArgument, match="mix records"):
        Engine(model, cross_entropies).clipped_sum(numbers(6)(records), CLIP)
    assert [p._version for p in model.parameters()] == versions


def test_gates_between_layers_of_one_record_are_no_false_alarm() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.gate, self.head = (
                nn.Linear(6, 6),
                nn.Parameter(torch.zeros(())),
                head(),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.gate * self.inner(x))

    model, batch = Residual(), numbers(6)(9)
    engine = Engine(model, cross_entropies)
    assert_right(engine, model, batch)
    with torch.no_grad():
        model.gate.fill_(0.7)
    assert_right(engine, model, batch)


def as_float(model: Any) -> None:
    model.gate = 1.0


def as_buffer(model: Any) -> None:
    model.gate.fill_(1.0)


def as_data(model: Any) -> None:
    model.gate.data[...] = 1.0


SET: list[tuple[Any, Callable[[Any], None]]] = [
    (0.0, as_float), (False, as_float), (torch.zeros(()), as_buffer), (torch.zeros(6), as_data),
    (torch.zeros(64, 6)[:, :1].sum(0), as_buffer),
]  # fmt: skip


@pytest.mark.parametrize(("gate", "change"), SET)
def test_a_gate_that_is_set_by_hand_is_noticed(gate: Any, change: Callable[[Any], None]) -> None:
    torch.manual_seed(0)
    model, batch = Gated(copy.deepcopy(gate)), numbers(6)(9)
    engine = Engine(model, cross_entropies)
    assert_right(engine, model, batch)
    change(model)
    with pytest.raises(InvalidArgument, match="mix records"):
        engine.clipped_sum(batch, CLIP)


def test_a_gate_that_opens_as_the_model_counts_its_passes_is_noticed() -> None:
    class Counting(Gated):
        def forward(self, x: Tensor) -> Tensor:
            self.gate = self.gate + 1
            h = self.inner(x)
            return self.head(h + (h.mean(dim=0) if self.gate > 3 else 0))

    model, batch = Counting(0), numbers(6)(9)
    engine = Engine(model, cross_entropies)
    for _ in range(3):
        engine.clipped_sum(batch, CLIP, 4)
    assert model.gate == 3
    with pytest.raises(InvalidArgument, match="mix records"):
        engine.clipped_sum(batch, CLIP, 4)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (lambda: nn.BatchNorm2d(3), (3, 4, 4)),
        (lambda: nn.BatchNorm2d(3, track_running_stats=False).eval(), (3, 4, 4)),
        (lambda: nn.InstanceNorm2d(3, track_running_stats=True), (3, 4, 4)),
    ],
)
def test_a_norm_that_wakes_is_refused(norm: Callable[[], nn.Module], shape: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm(), nn.Flatten(), nn.Linear(48, 3))
    if isinstance(model[1], nn.BatchNorm2d) and not model[1].track_running_stats:
        with pytest.raises(InvalidArgument):
            Engine(model, cross_entropies).clipped_sum(numbers(*shape)(5), CLIP)
        return
    model[1].eval()
    engine, batch = Engine(model, cross_entropies), numbers(*shape)(5)
    assert_right(engine, model, batch)
    before = copy.deepcopy(model.state_dict())
    model.train()
    with pytest.raises(InvalidArgument, match=r"Norm2d '1'|running"):
        engine.clipped_sum(batch, CLIP)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("tokens", [False, True])
def test_a_first_batch_of_one_record_gives_the_same_refusal(tokens: bool) -> None:
    if tokens:
        model = nn.Sequential(
            nn.Embedding(9, 4), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)
        )
        batch: Any = (torch.randint(0, 9, (1, 3)), labels(1))
    else:
        model, batch = layers(nn.BatchNorm1d(8)), numbers(6)(1)
    with pytest.raises(InvalidArgument, match=r"BatchNorm1d|Sequential"):
        Engine(model, cross_entropies).clipped_sum(batch, CLIP)


# --- the loss


def penalised(weight: float) -> Any:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropies(model, batch) + weight * model(batch[0]).square().sum(dim=1)

    return loss


def test_the_same_code_with_the_same_values_is_the_same_loss() -> None:
    model = layers()
    one, other = take_snapshot(model, penalised(0.5)), take_snapshot(model, penalised(0.5))
    assert one == other
    annealed = take_snapshot(model, penalised(0.6))
    assert annealed.structure == one.structure
    assert annealed.values != one.values
    assert take_snapshot(model, partial(cross_entropies)).structure != one.structure


def test_a_new_closure_in_every_step_is_verified_once() -> None:
    model, batch = layers(), numbers(6)(9)
    engine = Engine(model, cross_entropies)
    with patch.object(Sums, "_verify", autospec=True, side_effect=Sums._verify) as full, \
            patch.object(Sums, "_verify_again", autospec=True) as light:  # fmt: skip
        for weight in (0.5, 0.5, 0.5, 0.7):
            engine.loss = penalised(weight)
            assert_right(engine, model, batch)
    assert (full.call_count, light.call_count) == (1, 1)


WEIGHT = {"penalty": 0.0}


def of_a_global(model: nn.Module, batch: Any) -> Tensor:
    losses = cross_entropies(model, batch)
    if WEIGHT["penalty"]:
        losses = losses + WEIGHT["penalty"] * (model(batch[0]).mean(dim=0)).sum()
    return losses


def test_a_global_that_the_loss_reads_is_noticed() -> None:
    model, batch = layers(), numbers(6)(9)
    engine = Engine(model, of_a_global)
    with patch.dict(WEIGHT):
        assert_right(engine, model, batch)
        WEIGHT["penalty"] = 1.0
        with pytest.raises(InvalidArgument, match="mix records"):
            engine.clipped_sum(batch, CLIP)


# --- losses that take gradients


def slope(model: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return found


def by_grad(weight: Callable[[], float], model: nn.Module, batch: Any) -> Tensor:
    losses = cross_entropies(model, batch)
    return losses + weight() * slope(model, batch[0]).square().sum(dim=1)


def behind_if(weight: Callable[[], float], model: nn.Module, batch: Any) -> Tensor:
    losses = cross_entropies(model, batch)
    if weight():
        losses = losses + weight() * slope(model, batch[0]).square().sum(dim=1)
    return losses


def by_jacrev(weight: Callable[[], float], model: nn.Module, batch: Any) -> Tensor:
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(batch[0])
    return cross_entropies(model, batch) + weight() * jacobians.square().sum(dim=(1, 2))


def by_jvp(weight: Callable[[], float], model: nn.Module, batch: Any) -> Tensor:
    _, along = torch.func.jvp(model, (batch[0],), (torch.ones_like(batch[0]),))
    return cross_entropies(model, batch) + weight() * along.square().sum(dim=1)


def by_backward(weight: Callable[[], float], model: nn.Module, batch: Any) -> Tensor:
    with torch.enable_grad():
        x = batch[0].clone().requires_grad_()
        model(x).sum().backward(create_graph=True, inputs=[x])
    assert x.grad is not None
    return cross_entropies(model, batch) + weight() * x.grad.square().sum(dim=1)


def of_parameters(weight: Callable[[], float], model: nn.Module, batch: Any) -> Tensor:
    with torch.enable_grad():
        losses = cross_entropies(model, batch)
        found = [
            sum(g.square().sum() for g in torch.autograd.grad(own, [*model.parameters()],
                                                              create_graph=True))
            for own in losses
        ]  # fmt: skip
    return losses + weight() * torch.stack(found)  # type: ignore[arg-type]


def of_one_pass(weight: Callable[[], float], model: nn.Module, batch: Any) -> Tensor:
    with torch.enable_grad():
        x = batch[0].clone().requires_grad_()
        out = model(x)
        (found,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    losses = functional.cross_entropy(out, batch[1], reduction="none")
    return losses + weight() * found.square().sum(dim=1)


TAKING = [of_one_pass, by_grad, behind_if, by_jacrev, by_jvp, by_backward, of_parameters]


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("taking", TAKING)
def test_a_penalty_on_gradients_is_right_at_every_weight(taking: Any, chunk: int | None) -> None:
    model, batch = layers(), numbers(6)(7)
    now = [0.0]
    loss = partial(taking, lambda: now[0])
    engine = Engine(model, loss)
    for weight in (0.0, 0.1, 1.0, 10.0):
        now[0] = weight
        got = engine.clipped_sum(batch, CLIP, chunk).sums
        truth = per_record(model, loss, batch).clipped_sum(CLIP)
        assert relative_gap(got, truth) < ROUNDING


def test_an_attack_on_the_inputs_stays_fast() -> None:
    def attacked(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        with torch.enable_grad():
            moved = x.clone().requires_grad_()
            (found,) = torch.autograd.grad(cross_entropies(model, (moved, y)).sum(), moved)
        return cross_entropies(model, (x + 0.1 * found.sign(), y))

    model, batch = layers(), numbers(6)(7)
    engine = Engine(model, attacked)
    assert_right(engine, model, batch)
    assert not engine._gradients.differentiates


def test_a_penalty_in_training_only_is_not_dropped() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        losses = cross_entropies(model, batch)
        return losses + slope(model, batch[0]).square().sum(dim=1) if model.training else losses

    model = layers().train()
    assert_right(Engine(model, loss), model, numbers(6)(7))


@pytest.mark.parametrize("error", [RuntimeError("bad"), KeyError("bad"), ValueError("bad")])
def test_a_loss_that_fails_is_a_typed_error(error: Exception) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise error

    with pytest.raises(InvalidArgument, match=f"{type(error).__name__}.*bad"):
        Engine(layers(), loss).clipped_sum(numbers(6)(7), CLIP)


def test_the_rules_are_not_asked_where_they_would_be_wrong() -> None:
    """The planted bug: nobody watches whether gradients are taken."""
    model, batch = layers(), numbers(6)(7)
    now = [0.0]
    loss = partial(of_one_pass, lambda: now[0])
    with patch("dpaudit.trainer.engine.tape.DifferentiationWatch.watch"), \
            patch.object(Sums, "_verify_again"):  # fmt: skip
        engine = Engine(model, loss)
        engine.clipped_sum(batch, CLIP)
        now[0] = 10.0
        got = engine.clipped_sum(batch, CLIP).sums
    truth = per_record(model, loss, batch).clipped_sum(CLIP)
    assert relative_gap(got, truth) > 0.01


def test_annealed_weight_is_detected_by_the_short_comparison() -> None:
    """Even if nobody watched: plans are held against plain gradients when values change."""
    model, batch = layers(), numbers(6)(7)
    now = [0.0]
    loss = partial(of_one_pass, lambda: now[0])
    with patch("dpaudit.trainer.engine.tape.DifferentiationWatch.watch"):
        engine = Engine(model, loss)
        engine.clipped_sum(batch, CLIP)
        now[0] = 10.0
        engine.clipped_sum(batch, CLIP)
    assert engine.record_by_record or engine._gradients.differentiates


def test_without_a_snapshot_an_unfrozen_layer_would_be_missed() -> None:
    """The planted bug: premises that never change."""
    model, batch = layers(), numbers(6)(9)
    model[0].requires_grad_(requires_grad=False)
    engine = Engine(model, cross_entropies)
    same = take_snapshot(model, cross_entropies)
    with patch("dpaudit.trainer.engine.clipped_sums.take_snapshot", return_value=same):
        engine.clipped_sum(batch, CLIP)
        model[0].requires_grad_(requires_grad=True)
        got = engine.clipped_sum(batch, CLIP).sums
    truth = per_record(model, cross_entropies, batch).clipped_sum(CLIP)
    assert relative_gap(got, truth) > 0.1


def test_records_of_other_shapes_are_looked_at() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        h = x.mean(dim=1)
        if x.shape[1] > 3:
            h = h - h.mean(dim=0)
        return functional.cross_entropy(model(h), y, reduction="none")

    model = layers()
    engine = Engine(model, loss)
    assert_right(engine, model, numbers(2, 6)(7))
    assert_right(engine, model, numbers(3, 6)(7))
    with pytest.raises(InvalidArgument, match="mix records"):
        engine.clipped_sum(numbers(4, 6)(7), CLIP)


def everything_frozen(model: nn.Module, batch: Any) -> Tensor:
    model.requires_grad_(requires_grad=False)
    return cross_entropies(model, batch)


@pytest.mark.parametrize("loss", [torch.no_grad()(cross_entropies), everything_frozen])
def test_a_step_that_would_release_noise_alone_is_refused(loss: Any) -> None:
    with pytest.raises(InvalidArgument, match="trained parameter"):
        Engine(layers(), loss).clipped_sum(numbers(6)(7), CLIP)


def test_a_model_without_a_trained_parameter_is_refused() -> None:
    model = layers()
    engine = Engine(model, cross_entropies)
    engine.clipped_sum(numbers(6)(7), CLIP)
    model.requires_grad_(requires_grad=False)
    with pytest.raises(InvalidArgument, match="trained parameter"):
        engine.clipped_sum(numbers(6)(7), CLIP)


class Dropping(nn.Module):
    """A layer that is left out at random, by Python's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), head()

    def forward(self, x: Tensor) -> Tensor:
        keeps = random.random() < 0.5 or not self.training
        return self.head(x + self.inner(x) if keeps else x)


def test_layers_that_are_left_out_at_random_do_not_look_as_if_they_mixed() -> None:
    torch.manual_seed(0)
    random.seed(1)
    model, batch = Dropping(), numbers(6)(7)
    engine = Engine(model, cross_entropies)
    norms = {round(float(engine.clipped_sum(batch, CLIP).norms.sum()), 4) for _ in range(20)}
    assert len(norms) == 2


def hooked(model: Any) -> None:
    model[0].register_forward_hook(lambda module, args, out: out - out.mean(dim=0))


def patched(model: Any) -> None:
    forward = model[0].forward
    model[0].forward = lambda x: forward(x) - forward(x).mean(dim=0)


@pytest.mark.parametrize("change", [hooked, patched])
def test_a_model_that_is_patched_between_steps_is_verified_again(change: Any) -> None:
    model, batch = layers(), numbers(6)(7)
    engine = Engine(model, cross_entropies)
    assert_right(engine, model, batch)
    change(model)
    with pytest.raises(InvalidArgument, match="mix records"):
        engine.clipped_sum(batch, CLIP)
