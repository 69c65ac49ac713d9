"""Clip norms over the steps: what one record moves, what is released and learnt of norms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from noise_words import fixed_noise
from torch import Tensor, nn

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.clip_rules import (
    WITHIN_CLIP_NORM,
    ClipRule,
    ConstantClipping,
    Quantile,
    Scheduled,
)
from dpaudit.trainer.engine import Automatic, ClippedSums, Engine, Flat, PerLayer
from dpaudit.trainer.engine.batch_structure import Batch, slice_records
from dpaudit.trainer.noise.gradient_noise import Independent, NoiseContext
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import InvalidArgument

FLOAT32 = 2.0**-24  # largest relative error of one rounding


def clipped_of(norms: Tensor, left_out: int = 0) -> ClippedSums:
    """Return the sum over records of which only the norms count."""
    sums = {"weight": torch.zeros(2)}
    return ClippedSums(sums, norms.double(), torch.zeros(len(norms)), left_out)


def noiseless(rule: Quantile, norms: Tensor, noise_multiplier: float = 1.0) -> dict[str, Tensor]:
    return rule.extra_coordinates(clipped_of(norms), noise_multiplier)


# What one record moves.

CLIP_NORMS = st.floats(1e-3, 1e3)
MULTIPLIERS = st.floats(0.1, 20.0)
OVER = st.floats(1.0001, 1.01) | st.floats(1.01, 1e4)  # count_noise over its least
SIZES = st.floats(1e-3, 1e4)


@given(
    rows=st.lists(st.tuples(SIZES, st.integers(0, 10**6)), min_size=1, max_size=6),
    clip_norm=CLIP_NORMS,
    noise_multiplier=MULTIPLIERS,
    over=OVER,
)
@settings(max_examples=50)
def test_one_record_moves_gradients_and_count_together_by_the_sensitivity_at_most(
    rows: list[tuple[float, int]], clip_norm: float, noise_multiplier: float, over: float
) -> None:
    rule = Quantile(clip_norm, count_noise=noise_multiplier / 2 * over)
    records = []
    for size, seed in rows:
        way = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        records.append(size * clip_norm * way / way.norm())
    net = nn.Linear(4, 1, bias=False)
    engine = Engine(net, lambda model, batch: model(batch)[:, 0])  # the record is its gradient

    def released(batch: Tensor) -> Tensor:
        clipped = engine.clipped_sum(batch, rule.at(0))
        return torch.cat(
            [
                clipped.sums["weight"][0],
                rule.extra_coordinates(clipped, noise_multiplier)[WITHIN_CLIP_NORM],
            ]
        )

    batch = torch.stack(records)
    most = rule.sensitivity(0, noise_multiplier)
    alone = released(batch[:1]).double()
    assert float(alone.norm()) <= most
    # Of the sums over many, the roundings of float32 come on top: of each addition.
    moved = released(batch).double() - released(batch[1:]).double()
    assert float(moved.norm()) <= most * (1 + 2 * FLOAT32 * len(rows) * len(rows))


@given(CLIP_NORMS, MULTIPLIERS, OVER)
def test_the_bound_on_one_record_is_reached(
    clip_norm: float, noise_multiplier: float, over: float
) -> None:
    rule = Quantile(clip_norm, count_noise=noise_multiplier / 2 * over)
    net = nn.Linear(4, 1, bias=False)
    engine = Engine(net, lambda model, batch: model(batch)[:, 0])
    clipped = engine.clipped_sum(torch.full((1, 4), 3 * clip_norm), rule.at(0))
    count = rule.extra_coordinates(clipped, noise_multiplier)[WITHIN_CLIP_NORM]
    moved = math.hypot(float(clipped.sums["weight"].double().norm()), float(count))
    assert moved >= rule.sensitivity(0, noise_multiplier) * (1 - 1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_excluded_record_contributes_zero(bad: float) -> None:
    rule = Quantile(1.0, count_noise=3.0)
    norms = torch.tensor([0.5, 2.0, 0.1])
    with_bad = torch.cat([norms, torch.tensor([bad])])
    assert torch.equal(
        noiseless(rule, norms)[WITHIN_CLIP_NORM], noiseless(rule, with_bad)[WITHIN_CLIP_NORM]
    )


def test_no_records_count_for_nothing() -> None:
    assert noiseless(Quantile(1.0, count_noise=3.0), torch.zeros(0))[WITHIN_CLIP_NORM].tolist() == [
        0.0
    ]


# What noise there is.


@given(CLIP_NORMS, MULTIPLIERS, OVER)
def test_noise_is_that_of_andrew_and_others(
    clip_norm: float, noise_multiplier: float, over: float
) -> None:
    """Theorem 1 of arXiv:1905.03871, which gives the gradients' noise from the count's."""
    count_noise = noise_multiplier / 2 * over
    rule = Quantile(clip_norm, count_noise)
    deviation = noise_multiplier * rule.sensitivity(0, noise_multiplier)
    z_delta = (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5
    # Next to the least count_noise the difference cancels: of 2e-4, at the lowest here.
    assert deviation == pytest.approx(z_delta * clip_norm, rel=1e-11)
    assert deviation >= noise_multiplier * clip_norm


@pytest.mark.parametrize(("noise_multiplier", "count_noise"), [(1.0, 5.0), (4.0, 2.1), (0.5, 40.0)])
def test_the_counts_noise_is_of_as_many_records_as_was_asked(
    noise_multiplier: float, count_noise: float
) -> None:
    rule, steps = Quantile(0.7, count_noise), 4000
    norm = rule.sensitivity(0, noise_multiplier)
    stream = Keystream.seeded(2)
    one_record = float(noiseless(rule, torch.tensor([0.1]), noise_multiplier)[WITHIN_CLIP_NORM]) * 2
    counts = torch.empty(steps)
    for step in range(steps):
        sums = {"weight": torch.zeros(3), WITHIN_CLIP_NORM: torch.zeros(1)}
        context = NoiseContext(stream, step)
        noisy = Independent().add_noise(sums, context, noise_multiplier, norm)
        counts[step] = noisy[WITHIN_CLIP_NORM] / one_record
    # The deviation of a deviation over n draws is 1 / sqrt(2 n) of it: five of them.
    assert float(counts.std()) == pytest.approx(count_noise, rel=5 / math.sqrt(2 * steps))
    assert abs(float(counts.mean())) < 5 * count_noise / math.sqrt(steps)


@pytest.mark.parametrize("count_noise", [0.75, 0.7, 1e-9])
def test_a_count_with_less_noise_than_half_the_multiplier_is_refused(count_noise: float) -> None:
    rule = Quantile(1.0, count_noise)
    with pytest.raises(
        InvalidArgument, match=r"count_noise .* above half of noise_multiplier 1\.5"
    ):
        rule.sensitivity(0, 1.5)
    with pytest.raises(InvalidArgument, match="count_noise"):
        trainer_of(rule, noise_multiplier=1.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip_norm", 0.0),
        ("clip_norm", math.nan),
        ("count_noise", -1.0),
        ("count_noise", math.inf),
        ("target", 0.0),
        ("target", 1.0),
        ("learning_rate", 0.0),
    ],
)
def test_bad_numbers_are_named(name: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match=name):
        Quantile(**{"clip_norm": 1.0, "count_noise": 3.0, name: value})


# What is learnt.


def followed(
    target: float, steps: int, count_noise: float, start: float, noise: bool
) -> tuple[list[float], Tensor]:
    """Return the clip norms over steps on norms of one law, and many of those norms."""
    rule = Quantile(start, count_noise, target)
    random, stream, found = np.random.default_rng(5), Keystream.seeded(3), []
    for step in range(steps):
        norms = torch.from_numpy(random.lognormal(1.0, 0.7, random.poisson(200)))
        sums = {"weight": torch.zeros(2), **noiseless(rule, norms)}
        if noise:
            norm = rule.sensitivity(step, 1.0)
            sums = Independent().add_noise(sums, NoiseContext(stream, step), 1.0, norm)
        rule = rule.updated(sums, 1.0, 200)
        found.append(rule.clip_norm)
    return found, torch.from_numpy(random.lognormal(1.0, 0.7, 100_000))


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("start", [0.01, 100.0])
@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
def test_the_clip_norm_goes_to_the_quantile_of_the_norms(
    target: float, start: float, noise: bool
) -> None:
    """Of the law of all norms: the share of them within the clip norm is the target."""
    found, norms = followed(target, 300, count_noise=10.0, start=start, noise=noise)
    share = float(np.mean([float((norms <= c).double().mean()) for c in found[200:]]))
    # One step's share is off by at most sqrt(1 / 4 / 200) sampling, as much again for the
    # number of records, and 10 / 200 noise: 0.07 together, which 100 steps average; what
    # they share, by the learning rate, is worth about 10 steps.
    assert share == pytest.approx(target, abs=5 * 0.07 / math.sqrt(100 / 10))
    first = float((norms <= start).double().mean())
    assert abs(share - target) < abs(first - target) / 2


def test_without_noise_a_clip_norm_at_the_target_stays() -> None:
    rule = Quantile(1.0, count_noise=3.0, target=0.25)
    norms = torch.tensor([0.5, 2.0, 3.0, 4.0])
    after = rule.updated(noiseless(rule, norms), 1.0, 4)
    assert after.clip_norm == pytest.approx(1.0, rel=1e-6)


@given(st.floats(0.05, 0.95), st.floats(0.01, 1.0), st.floats(0, 1))
def test_the_step_is_that_of_algorithm_1(target: float, learning_rate: float, share: float) -> None:
    records = 64
    within = round(share * records)
    norms = torch.tensor([0.5] * within + [2.0] * (records - within))
    rule = Quantile(1.0, 3.0, target, learning_rate)
    expected = math.exp(-learning_rate * (within / records - target))
    after = rule.updated(noiseless(rule, norms), 1.0, records).clip_norm
    assert after == pytest.approx(expected, rel=1e-6)


@given(st.floats(-1e30, 1e30), st.floats(1e-3, 1e3))
def test_no_noise_carries_the_clip_norm_far_in_one_step(drawn: float, learning_rate: float) -> None:
    rule = Quantile(1.0, count_noise=3.0, learning_rate=learning_rate)
    after = rule.updated({WITHIN_CLIP_NORM: torch.tensor([drawn])}, 1.0, 10).clip_norm
    assert math.exp(-2) * (1 - 1e-12) <= after <= math.exp(2) * (1 + 1e-12)


def test_what_a_checkpoint_keeps_is_what_was_learnt() -> None:
    rule = Quantile(1.0, count_noise=3.0, target=0.3, learning_rate=0.1)
    learnt = rule.updated({WITHIN_CLIP_NORM: torch.tensor([5.0])}, 1.0, 10)
    assert rule.with_clip_norm(learnt.learned_clip_norm) == learnt != rule
    for fixed in (ConstantClipping(Flat(0.5)), Scheduled(lambda step: 1.0)):
        assert fixed.learned_clip_norm is None
        assert fixed.with_clip_norm(None) is fixed


# Through steps.


def trainer_of(
    rule: ClipRule, noise_multiplier: float = 1.0, expected_batch_size: float = 1.0
) -> Private:
    torch.manual_seed(0)
    net = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(net.weight)
    return make_private(
        net,
        torch.optim.SGD(net.parameters(), lr=1.0),
        noise_multiplier=noise_multiplier,
        clipping=rule,
        sampling_rate=1.0,
        expected_batch_size=expected_batch_size,
        noise=Independent(),
        seed=4,
    )


def own_value(net: nn.Module, batch: Batch) -> Tensor:
    """Return a loss whose gradient is the record."""
    return net(batch)[:, 0]


def moves(
    monkeypatch: pytest.MonkeyPatch, trainer: Private, records: Tensor, steps: int
) -> list[Tensor]:
    """Return by how much each step moves the weights, without any noise."""
    fixed_noise(monkeypatch, lambda stream, step, count: torch.zeros(count))
    found = []
    for batch in trainer.batches(records, steps=steps):
        before = trainer.model.weight.detach().clone()
        trainer.step(own_value, batch)
        found.append(before - trainer.model.weight.detach())
    return found


def test_a_schedule_of_clip_norms_is_used_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = [1.0, 0.25, 2.0]
    trainer = trainer_of(Scheduled(lambda step: norms[step]))
    found = moves(monkeypatch, trainer, torch.tensor([[3.0, 0, 0, 0]]), 3)
    assert [float(moved.norm()) for moved in found] == pytest.approx(norms, rel=1e-5)


def test_a_schedule_scales_the_noise_with_the_clip_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_noise(monkeypatch, lambda stream, step, count: torch.ones(count))
    norms = [1.0, 0.25, 2.0]
    trainer = trainer_of(Scheduled(lambda step: norms[step]), noise_multiplier=3.0)
    before = trainer.model.weight.detach().clone()
    for norm, batch in zip(norms, trainer.batches(torch.zeros(1, 4), steps=3), strict=True):
        trainer.step(own_value, batch)
        after = trainer.model.weight.detach().clone()
        assert torch.allclose(before - after, torch.full((1, 4), 3.0 * norm))
        before = after


@pytest.mark.parametrize("clipping", [Flat(0.5), Automatic(0.5), PerLayer((0.5,))])
def test_always_clips_the_same_way(
    monkeypatch: pytest.MonkeyPatch, clipping: Flat | Automatic | PerLayer
) -> None:
    trainer = trainer_of(ConstantClipping(clipping))
    records = torch.tensor([[3.0, 0, 0, 0], [0, 40.0, 0, 0]])
    for moved in moves(monkeypatch, trainer, records, 3):
        squares = records.double().square().sum(dim=1)[None]
        expected = (records * clipping.factors(squares)[0][:, None]).sum(dim=0)
        assert torch.allclose(moved[0].double(), expected, rtol=1e-6)


def test_a_quantile_is_followed_in_training() -> None:
    """Half the records have norm 1, half 4: what lies between has the target's share."""
    rule = Quantile(50.0, count_noise=2.0, target=0.5, learning_rate=0.5)
    trainer = trainer_of(rule, expected_batch_size=80.0)
    records = torch.eye(4).repeat(20, 1) * torch.tensor([1.0, 4.0]).repeat(40)[:, None]
    for batch in trainer.batches(records, steps=60):
        trainer.step(own_value, batch)
    # A step goes past the middle by exp(0.5 * 0.5) at most, as a share is off by a half.
    assert math.exp(-0.25) < trainer.clip_rule.at(0).sensitivity < 4 * math.exp(0.25)


def test_a_record_moves_a_step_and_what_it_learns_by_the_sensitivity_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the whole step: the same noise, with a record and without it."""
    taken: list[dict[str, Tensor]] = []
    plain = Independent.add_noise

    def noted(self: Independent, sums: dict[str, Tensor], *others: object) -> dict[str, Tensor]:
        taken.append({name: value.clone() for name, value in sums.items()})
        return plain(self, sums, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Independent, "add_noise", noted)
    rule = Quantile(0.5, count_noise=1.0)
    records = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    for some in (records, slice_records(records, 0, 5)):
        trainer = trainer_of(rule)
        for batch in trainer.batches(some, steps=1):
            trainer.step(own_value, batch)
    whole, less = (torch.cat([v.flatten() for v in sums.values()]).double() for sums in taken)
    assert whole.shape == (5,)
    assert 0 < float((whole - less).norm()) <= rule.sensitivity(0, 1.0)
