"""Options of private steps: noise, clipping, users, views, optimizers, and what may fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from noise_words import fixed_noise
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpaudit.accountants import pld
from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.report.descriptions import claim_in_words
from dpaudit.runs.ledger_file import read_ledger
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.batches.grouped_records import RecordGroups, Users, Views, average_row_losses
from dpaudit.trainer.batches.samplers import BallsInBins, Cyclic, Truncated
from dpaudit.trainer.clip_rules import Quantile
from dpaudit.trainer.engine import Automatic, Engine, Flat, PerLayer
from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.trainer.noise.correlated_noise import Banded
from dpaudit.trainer.noise.gaussian_draws import normals
from dpaudit.trainer.noise.gradient_noise import GradientNoise, Independent, OnGrid, Prefetched
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import BudgetExceeded, InvalidArgument
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Composed,
    Gaussian,
    PoissonSampled,
    RandomAllocation,
    Repeated,
)

RECORDS, WIDTH = 40, 6
OptimizerOf = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 3))


def loss(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(net(x), y, reduction="none")


def data(records: int = RECORDS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(records, WIDTH, generator=generator)
    return x, torch.randint(0, 3, (records,), generator=generator)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.5)


def private(
    net: nn.Module | None = None, optimizer: OptimizerOf = sgd, **changes: object
) -> Private:
    net = net or model()
    given: dict[str, object] = {
        "noise_multiplier": 1.3,
        "clip_norm": 0.5,
        "sampling_rate": 0.25,
        "expected_batch_size": 10.0,
        "seed": 11,
        **changes,
    }
    return make_private(net, optimizer(list(net.parameters())), **given)  # type: ignore[arg-type]


def run(trainer: Private, steps: int, users: Users | None = None) -> Private:
    for batch in trainer.batches(data(), steps=steps, users=users):
        trainer.step(loss, batch)
    return trainer


def weights(trainer: Private) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_noise(monkeypatch, lambda stream, step, count: torch.zeros(count))


# Kinds of noise.


@pytest.mark.parametrize(("clip_norm", "noise_multiplier"), [(1e300, 1.0), (1.0, 1e31)])
def test_noise_beyond_float32_is_refused_before_a_ledger_exists(
    clip_norm: float, noise_multiplier: float, tmp_path: Path
) -> None:
    net = model()
    with pytest.raises(InvalidArgument, match="clip_norm must be at most"):
        make_private(
            net,
            torch.optim.SGD(net.parameters(), lr=0.1),
            noise_multiplier=noise_multiplier,
            clip_norm=clip_norm,
            sampling_rate=0.5,
            expected_batch_size=20,
            ledger=tmp_path / "ledger.jsonl",
        )
    assert list(tmp_path.iterdir()) == []


def test_prefetched_noise_equals_noise_on_demand() -> None:
    assert torch.equal(
        weights(run(private(noise=Prefetched()), 4)), weights(run(private(noise=Independent()), 4))
    )


def test_noise_on_a_grid_costs_what_independent_noise_costs() -> None:
    gridded, plain = (run(private(noise=noise), 4) for noise in (OnGrid(), Independent()))
    assert gridded.epsilon(delta=1e-5) == plain.epsilon(delta=1e-5)
    assert not torch.equal(weights(gridded), weights(plain))


@pytest.mark.parametrize(
    ("noise", "sampler"),
    [
        (Independent(), None),
        (Prefetched(), None),
        (OnGrid(), None),
        (Banded(4), Cyclic(4, 8)),
        (Banded(1), Cyclic(1, 8)),
    ],
)
def test_an_empty_batch_takes_a_step_with_every_kind_of_noise(
    noise: GradientNoise, sampler: Cyclic | None
) -> None:
    trainer = private(noise=noise, sampler=sampler)
    before = weights(trainer)
    nothing = tuple(tensor[:0] for tensor in data())
    for batch in trainer.batches(nothing, steps=1):
        trainer.step(loss, batch)
    assert (weights(trainer) - before).abs().min() > 0


def test_a_banded_run_is_recorded_once_and_priced_as_its_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    trainer = private(noise=Banded(4), sampler=Cyclic(4, 10), ledger=path)
    assert trainer.epsilon(delta=1e-5).upper == 0
    whole = BandedMatrixFactorization(Gaussian(1.3), 10, 4)
    for batch in trainer.batches(data(), steps=10):
        trainer.step(loss, batch)
        ledger = read_ledger(path)
        assert [release.mechanism for release in ledger.releases] == [whole]
    assert ledger.header.sampling is Sampling.CYCLIC_POISSON
    epsilon = trainer.epsilon(delta=1e-5)
    assert epsilon == pld.profile(whole).epsilon(delta=1e-5)
    # A record joins three of ten steps: three Gaussians.
    assert epsilon == pld.profile(Repeated(Gaussian(1.3), 3)).epsilon(delta=1e-5)
    assert claim_from_ledger(ledger, 1e-5, "pld").epsilon == epsilon


def test_groups_that_are_sampled_cost_less() -> None:
    half = run(private(noise=Banded(4), sampler=Cyclic(4, 8, 0.5)), 8)
    expected = pld.profile(Repeated(PoissonSampled(Gaussian(1.3), 0.5), 2)).epsilon(delta=1e-5)
    assert half.epsilon(delta=1e-5) == expected


def test_a_banded_run_ends_with_the_steps_that_were_recorded() -> None:
    trainer = private(noise=Banded(2), sampler=Cyclic(2, 4))
    run(trainer, 4)
    with pytest.raises(InvalidArgument, match="steps must be above 4"):
        run(trainer, 1)


def test_a_record_of_a_cyclic_run_joins_every_so_many_steps() -> None:
    trainer = private(noise=Banded(4), sampler=Cyclic(4, 12))
    joined: list[set[int]] = []
    for batch in trainer.batches((torch.arange(RECORDS), *data()), steps=12):
        joined.append(set(batch[0].tolist()))
        trainer.step(lambda net, b: loss(net, b[1:]), batch)
    assert set().union(*joined[:4]) == set(range(RECORDS))
    assert sum(len(group) for group in joined[:4]) == RECORDS
    assert joined[4:8] == joined[8:] == joined[:4]


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": Banded(4)},
        {"sampler": Cyclic(4, 8)},
        {"sampler": Cyclic(4, 8), "noise": Banded(3)},
        {"sampler": Cyclic(4, 8), "noise": OnGrid()},
    ],
)
def test_correlated_noise_and_groups_that_take_turns_need_each_other(
    changes: dict[str, object],
) -> None:
    with pytest.raises(InvalidArgument, match=r"noise .*Cyclic"):
        private(**changes)


def test_correlated_noise_under_a_schedule_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="constant"):
        private(sampler=Cyclic(4, 8), noise=Banded(4), noise_multiplier=lambda step: 1.0)


# Kinds of clipping.


@pytest.mark.parametrize("clipping", [Flat(0.5), Automatic(0.3), PerLayer.evenly(0.5, 4)])
def test_every_clipping_gives_the_engines_sum(
    monkeypatch: pytest.MonkeyPatch, clipping: Flat | Automatic | PerLayer
) -> None:
    without_noise(monkeypatch)
    trainer, net = private(clipping=clipping), model()
    (batch,) = trainer.batches(data(), steps=1)
    before = weights(trainer)
    trainer.step(loss, batch)
    sums = Engine(net, loss).clipped_sum(batch, clipping).sums
    expected = torch.cat([part.flatten() for part in sums.values()])
    assert torch.allclose(before - weights(trainer), 0.5 * expected / 10.0, atol=1e-6)
    assert trainer.header.clip_norm == clipping.sensitivity


@pytest.mark.parametrize(
    "changes",
    [
        {"clipping": Quantile(0.5, count_noise=1.0)},
        {"clipping": Quantile(0.5, count_noise=1.0), "noise": OnGrid()},
        {"clipping": Quantile(0.5, count_noise=1.0), "physical_batch_size": 3},
        {"clip_norm": lambda step: 0.5 / (1 + step)},
        {"clipping": Automatic(0.5)},
    ],
)
def test_how_gradients_are_clipped_does_not_change_the_cost(changes: dict[str, object]) -> None:
    trainer = run(private(**changes), 5)
    assert trainer._session.recorded == {PoissonSampled(Gaussian(1.3), 0.25): 5}
    assert torch.isfinite(weights(trainer)).all()


def test_adaptive_clip_norm_changes_with_correlated_noise() -> None:
    rule = Quantile(0.5, count_noise=1.0)
    trainer = run(private(clipping=rule, noise=Banded(2), sampler=Cyclic(2, 6)), 6)
    assert trainer.clip_rule != rule
    assert trainer._session.recorded == {BandedMatrixFactorization(Gaussian(1.3), 6, 2): 1}


def test_a_clip_schedule_may_end_with_the_training(tmp_path: Path) -> None:
    norms = [0.5, 0.4, 0.3]
    trainer = private(clip_norm=lambda step: norms[step], ledger=tmp_path / "ledger")
    run(trainer, 3)
    trainer.checkpoint(tmp_path / "checkpoints")
    assert trainer.header.clip_norm == 0.5


# Users and views.

OWNERS = [number % 13 for number in range(RECORDS)]


def test_a_users_records_are_protected_together_and_the_claim_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    trainer = run(private(unit="user", ledger=path), 4, Users(OWNERS, 3))
    ledger = read_ledger(path)
    assert ledger.header.unit == "user"
    claim = claim_from_ledger(ledger, 1e-5, "pld")
    assert claim.unit == "user"
    assert "one user with all of their records" in claim_in_words(claim)
    assert claim.epsilon == trainer.epsilon(delta=1e-5)
    steps = Repeated(PoissonSampled(Gaussian(1.3), 0.25), 4)
    assert claim.epsilon == pld.profile(steps).epsilon(delta=1e-5)


def test_a_step_on_users_is_the_sum_of_their_clipped_averages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_noise(monkeypatch)
    trainer, net = private(unit="user", sampling_rate=1.0, physical_batch_size=4), model()
    (batch,) = trainer.batches(data(), steps=1, users=Users(OWNERS, 4))
    assert isinstance(batch, RecordGroups)
    before = weights(trainer)
    trainer.step(loss, batch)
    x, y = data()
    expected = torch.zeros(len(before))
    for user in range(13):  # all have at most four records, so all of them count
        own = torch.tensor([record for record, owner in enumerate(OWNERS) if owner == user])
        gradients = torch.autograd.grad(loss(net, (x[own], y[own])).mean(), list(net.parameters()))
        flat = torch.cat([g.flatten() for g in gradients])
        expected += flat * min(1.0, 0.5 / float(flat.norm()))
    assert torch.allclose(before - weights(trainer), 0.5 * expected / 10.0, atol=1e-6)


def test_users_are_drawn_in_place_of_records() -> None:
    trainer, drawn = private(unit="user", sampling_rate=0.5), []
    everyone = (torch.tensor(OWNERS), *data())
    for batch in trainer.batches(everyone, steps=200, users=Users(OWNERS, 2)):
        owners = batch.rows[0]
        assert (owners == owners[:, :1]).all()
        assert len(set(owners[:, 0].tolist())) == len(owners)
        drawn.append(len(owners))
        trainer.step(lambda net, b: loss(net, b[1:]), batch)
    spread = math.sqrt(13 * 0.25 / 200)
    assert sum(drawn) / 200 == pytest.approx(6.5, abs=5 * spread)


@pytest.mark.parametrize("unit", ["record", "user"])
def test_a_unit_and_owners_need_each_other(unit: str) -> None:
    trainer = private(unit=unit)
    users = Users(OWNERS, 3) if unit == "record" else None
    with pytest.raises(InvalidArgument, match="users"):
        next(iter(trainer.batches(data(), steps=1, users=users)))


def test_owners_of_other_records_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="owners"):
        next(private(unit="user").batches(data(), users=Users(OWNERS[:-1], 3)))


def noised(batch: Batch) -> Batch:
    x, y = batch
    return x + 0.1 * torch.randn_like(x), y


@pytest.mark.parametrize("sampling_rate", [0.25, 1e-12])
def test_views_of_a_batch_are_one_step_of_the_same_cost(
    monkeypatch: pytest.MonkeyPatch, sampling_rate: float
) -> None:
    without_noise(monkeypatch)
    trainer, views = private(sampling_rate=sampling_rate), Views(noised, 4)
    (batch,) = trainer.batches(data(), steps=1)
    seen, before = views(batch), weights(trainer)
    trainer.step(loss, seen)
    sums = Engine(model(), average_row_losses(loss)).clipped_sum(seen, Flat(0.5)).sums
    expected = torch.cat([part.flatten() for part in sums.values()])
    assert torch.allclose(before - weights(trainer), 0.5 * expected / 10.0, atol=1e-6)
    assert trainer._session.recorded == {PoissonSampled(Gaussian(1.3), sampling_rate): 1}


def test_rows_that_were_made_records_are_refused_before_anything_is_recorded() -> None:
    """Views beside each other, or users taken apart, would each get a clip norm of their own."""
    trainer = private()
    (batch,) = trainer.batches(data(), steps=1)
    with pytest.raises(InvalidArgument, match="RecordGroups"):
        trainer.step(loss, tuple(torch.cat([tensor, tensor]) for tensor in batch))
    of_users = private(unit="user")
    (groups,) = of_users.batches(data(), steps=1, users=Users(OWNERS, 3))
    with pytest.raises(InvalidArgument, match="RecordGroups"):
        of_users.step(loss, tuple(tensor.flatten(0, 1) for tensor in groups.rows))
    assert trainer._session.recorded == of_users._session.recorded == {}
    trainer.step(loss, tuple(tensor[1:] for tensor in batch))  # fewer is fine


# Optimizers and what goes beside them.

OPTIMIZERS: dict[str, OptimizerOf] = {
    "momentum": lambda own: torch.optim.SGD(own, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda own: torch.optim.Adam(own, lr=0.1),
    "adamw": lambda own: torch.optim.AdamW(own, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda own: torch.optim.RMSprop(own, lr=0.01),
    "adagrad": lambda own: torch.optim.Adagrad(own, lr=0.1),
    "groups": lambda own: torch.optim.SGD([{"params": own[:2]}, {"params": own[2:], "lr": 0.01}],
                                          lr=0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_gets_the_noisy_mean_as_the_gradient_and_does_the_rest(name: str) -> None:
    """Held against the optimizer alone, fed with what plain descent was moved by."""
    trainer, plain, alone = private(optimizer=OPTIMIZERS[name]), private(), model()
    own = OPTIMIZERS[name](list(alone.parameters()))
    schedulers = [CosineAnnealingLR(o, T_max=5) for o in (trainer.optimizer, own)]
    for batch in trainer.batches(data(), steps=4):
        # The same key draws the same noise: the gradient at the parameters as they are.
        plain.model.load_state_dict(trainer.model.state_dict())
        plain.declare_change("the weights of the other trainer")
        (same,) = plain.batches(data(), steps=1)
        plain.step(loss, same)
        trainer.step(loss, batch)
        for parameter, other in zip(alone.parameters(), plain.model.parameters(), strict=True):
            parameter.grad = other.grad
        own.step()
        for scheduler in schedulers:
            scheduler.step()
    for mine, expected in zip(trainer.model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine, expected)
    assert trainer._session.recorded == {PoissonSampled(Gaussian(1.3), 0.25): 4}


def test_an_average_of_parameters_beside_it_is_a_model_like_any_other(tmp_path: Path) -> None:
    trainer = private()
    average = AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    by_hand = None
    for batch in trainer.batches(data(), steps=4):
        trainer.step(loss, batch)
        average.update_parameters(trainer.model)
        by_hand = weights(trainer) if by_hand is None else (by_hand + weights(trainer)) / 2
    found = torch.cat([p.detach().flatten() for p in average.module.parameters()])
    assert by_hand is not None
    assert torch.allclose(found, by_hand, atol=1e-6)
    torch.save(average.module.state_dict(), tmp_path / "average.pt")
    fresh = model()
    fresh.load_state_dict(torch.load(tmp_path / "average.pt"))
    x, _ = data()
    assert torch.equal(fresh(x), average(x))
    assert type(trainer.model) is nn.Sequential
    assert not any(module._forward_hooks for module in trainer.model.modules())


# Failures on the way.


class Failing(torch.optim.SGD):
    """Runs out of memory in its first step, as optimizers that make their state then may."""

    failed = False

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        if not self.failed:
            self.failed = True
            raise MemoryError("out of memory")
        super().step()


def test_noise_that_was_added_is_not_added_to_another_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Were the step taken again, the difference of two sums would be bare."""
    steps = []

    def noted(stream: Keystream, step: int, count: int) -> Tensor:
        steps.append(step)
        return normals(stream, Purpose.GRADIENT_NOISE, step, count)

    fixed_noise(monkeypatch, noted)
    trainer = private(optimizer=lambda own: Failing(own, lr=0.5))
    (batch,) = trainer.batches(data(), steps=1)
    with pytest.raises(MemoryError):
        trainer.step(loss, batch)
    with pytest.raises(InvalidArgument, match="not drawn"):
        trainer.step(loss, tuple(tensor[1:] for tensor in batch))
    run(trainer, 1)
    assert steps == [0, 1]
    assert trainer._session.recorded == {PoissonSampled(Gaussian(1.3), 0.25): 2}


def test_a_loss_that_fails_can_be_mended_and_the_step_taken() -> None:
    trainer = private()
    (batch,) = trainer.batches(data(), steps=1)
    with pytest.raises(ZeroDivisionError):
        trainer.step(lambda net, b: loss(net, b) / (1 // 0), batch)
    trainer.step(loss, batch)
    assert torch.equal(weights(trainer), weights(run(private(), 1)))


def test_after_data_that_were_refused_others_can_be_given() -> None:
    with pytest.warns(UserWarning, match="."):
        trainer = private(sampler=Truncated(0.25, RECORDS, 25))
    with pytest.raises(InvalidArgument, match="dataset_size"):
        next(iter(trainer.batches(data(RECORDS + 1), steps=1)))
    assert run(trainer, 2).steps == 2


def test_the_budget_holds_where_a_release_covers_many_steps() -> None:
    trainer = private(sampler=BallsInBins(4), noise_multiplier=3.0)
    trainer.stop_at(epsilon=3.0, delta=1e-5)
    run(trainer, 1000)
    passes = trainer.steps // 4
    assert trainer.steps == 4 * passes > 0
    allocation = RandomAllocation(Gaussian(3.0), 4)
    assert trainer._session.recorded == {allocation: passes}
    more = Repeated(allocation, passes + 1)
    assert trainer.epsilon(delta=1e-5).upper <= 3.0 < pld.profile(more).epsilon(delta=1e-5).upper


# Records that are not finite.

GOOD, BAD = 100, 100
POISON = {
    "infinite features": lambda x, scale: x.fill_(math.inf),
    "features of minus infinity": lambda x, scale: x.fill_(-math.inf),
    "features that are no numbers": lambda x, scale: x.fill_(math.nan),
    "infinite losses": lambda x, scale: scale.fill_(math.inf),
    "losses of minus infinity": lambda x, scale: scale.fill_(-math.inf),
    "losses that are no numbers": lambda x, scale: scale.fill_(math.nan),
}


@pytest.mark.parametrize("name", POISON)
@pytest.mark.parametrize(
    "changes",
    [{}, {"physical_batch_size": 7}, {"clipping": Quantile(0.5, count_noise=2.0)}],
)
def test_records_that_are_not_finite_contribute_nothing(
    name: str, changes: dict[str, object]
) -> None:
    x, y = data(GOOD + BAD)
    scale = torch.ones(GOOD + BAD)
    POISON[name](x[GOOD:], scale[GOOD:])

    def scaled(net: nn.Module, batch: Batch) -> Tensor:
        return loss(net, batch[:2]) * batch[2]

    def trained(records: int) -> Private:
        # The same coins for the first hundred: a coin depends on its record's place alone.
        trainer = private(sampling_rate=0.5, expected_batch_size=50.0, **changes)
        for batch in trainer.batches((x[:records], y[:records], scale[:records]), steps=3):
            trainer.step(scaled, batch)
        return trainer

    whole, without = trained(GOOD + BAD), trained(GOOD)
    assert torch.isfinite(weights(whole)).all()
    assert torch.allclose(weights(whole), weights(without), atol=1e-6)
    assert whole._session.recorded == {PoissonSampled(Gaussian(1.3), 0.5): 3}
    assert whole.clip_rule.learned_clip_norm == without.clip_rule.learned_clip_norm


def test_a_ledger_of_groups_that_take_turns_can_be_claimed(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    trainer = private(sampler=Cyclic(2, 6, 0.5), noise=Banded(2), ledger=path)
    run(trainer, 6)
    claim = claim_from_ledger(read_ledger(path), 1e-5, "pld")
    assert claim.epsilon == trainer.epsilon(delta=1e-5)
    assert claim.sampling is Sampling.CYCLIC_POISSON


def test_what_no_claim_covers_is_written_down(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    run(private(ledger=path, unaccounted=["hyperparameter-tuning"]), 1)
    assert claim_from_ledger(read_ledger(path), 1e-5, "pld").unaccounted == (
        "hyperparameter-tuning",
    )


def test_what_else_is_released_is_recorded_and_counts(tmp_path: Path) -> None:
    trainer = run(private(ledger=tmp_path / "ledger"), 3)
    before = trainer.epsilon(delta=1e-5)
    trainer.also_released("accuracy", Gaussian(2.0))
    assert read_ledger(tmp_path / "ledger").releases[-1].what == "accuracy"
    steps = Repeated(PoissonSampled(Gaussian(1.3), 0.25), 3)
    whole = pld.profile(Composed((steps, Gaussian(2.0)))).epsilon(delta=1e-5)
    assert trainer.epsilon(delta=1e-5) == whole
    assert whole.lower > before.upper
    trainer.stop_at(epsilon=whole.upper + 0.01, delta=1e-5)
    with pytest.raises(BudgetExceeded, match="accuracy"):
        trainer.also_released("accuracy", Gaussian(2.0))
    assert trainer.epsilon(delta=1e-5) == whole


def test_what_else_is_released_leaves_less_room_for_steps() -> None:
    trainer = private()
    trainer.stop_at(epsilon=2.0, delta=1e-5)
    run(trainer, 1)
    trainer.also_released("count", Gaussian(8.0))
    run(trainer, 1000)
    assert trainer.epsilon(delta=1e-5).upper <= 2.0
