"""Sampling without a tight dominating pair: intervals contain independently computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr

from dpaudit.accountants import pld
from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.laws.loss_query import BoundSide, LossQuery
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    DiscreteGaussian,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    Repeated,
    SampledWithoutReplacement,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants import oracles

ADD, REPLACE, ZERO = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE, Adjacency.ZERO_OUT


def holds(answer: Bound, truth: float, error: float = 1e-9) -> bool:
    slack = error * truth + 1e-14
    return answer.lower <= truth + slack and truth - slack <= answer.upper


def one_replaced_delta(epsilon: float, rate: float, noise: float) -> float:
    """Return delta of one Poisson sample where a record at 1 is replaced by one at -1.

    (1-q) N(0) + q N(1) against (1-q) N(0) + q N(-1): their ratio rises, so the worst event
    is a half line; all are tried.
    """
    x = np.linspace(-3 - 10 * noise, 3 + 10 * noise, 400_001)
    rest = (1 - rate) * ndtr(-x / noise)
    p = rest + rate * ndtr((1 - x) / noise)
    q = rest + rate * ndtr((-1 - x) / noise)
    return max(0.0, float((p - math.exp(epsilon) * q).max()))


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5])
@pytest.mark.parametrize("noise", [0.7, 2.0])
def test_one_record_replaced_in_a_poisson_sample_lies_inside(rate, noise):
    profile = pld.profile(PoissonSampled(Gaussian(noise), rate), adjacency=REPLACE)
    for epsilon in (0.0, 0.3 * rate, 0.5, 2.0):
        truth = one_replaced_delta(epsilon, rate, noise)
        if truth > 1e-12:
            assert holds(profile.delta(epsilon=epsilon), truth)


@pytest.mark.parametrize("times", [1, 50])
def test_noise_set_for_replaced_records_is_not_doubled_again(times):
    both = [
        pld.profile(
            Repeated(PoissonSampled(Gaussian(noise, set_for=set_for), 0.1), times),
            adjacency=REPLACE,
        ).delta(epsilon=0.5)
        for noise, set_for in ((1.0, REPLACE), (2.0, ADD))
    ]
    assert both[0].lower == pytest.approx(both[1].lower, rel=1e-6)
    # Only of the second is the distance to an absent record known, which rdp uses.
    assert both[1].upper <= both[0].upper * (1 + 1e-6)


@pytest.mark.parametrize("rate", [1e-3, 0.2])
@pytest.mark.parametrize("times", [1, 40])
def test_a_record_replaced_costs_at_least_what_one_zeroed_out_costs(rate, times):
    mechanism = Repeated(PoissonSampled(Gaussian(1.0), rate), times)
    replaced = pld.profile(mechanism, adjacency=REPLACE).epsilon(delta=1e-6)
    zeroed = pld.profile(mechanism, adjacency=ZERO).epsilon(delta=1e-6)
    assert zeroed.upper <= replaced.upper
    assert zeroed.lower <= replaced.lower * (1 + 1e-3)


def allocated_delta(epsilon: float, steps: int, noise: float, direction: str) -> float:
    """Return delta of one pass by a sum over a grid of all steps' outputs."""
    x = np.linspace(-8 * noise, 1 + 8 * noise, {2: 1501, 3: 181}[steps])
    cell = (x[1] - x[0]) ** steps
    base = np.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))
    ratio = np.exp((2 * x - 1) / (2 * noise**2))
    q, mean = np.ones(()), np.zeros(())
    for _ in range(steps):
        q = np.multiply.outer(q, base)
        mean = np.add.outer(mean, ratio)
    p = q * mean / steps
    first, second = (p, q) if direction == "remove" else (q, p)
    return float(np.maximum(first - math.exp(epsilon) * second, 0).sum() * cell)


@pytest.mark.parametrize(("steps", "noise"), [(2, 1.0), (2, 3.0), (3, 1.5)])
def test_one_pass_of_random_allocation_lies_inside(steps, noise):
    profile = pld.profile(RandomAllocation(Gaussian(noise), steps))
    for epsilon in (0.0, 0.1, 0.5):
        truth = max(allocated_delta(epsilon, steps, noise, way) for way in ("remove", "add"))
        assert holds(profile.delta(epsilon=epsilon), truth, 1e-3)


@pytest.mark.parametrize("times", [1, 20])
def test_random_allocation_costs_at_most_its_noise_on_all_records(times):
    whole = pld.profile(Repeated(Gaussian(2.0), times)).epsilon(delta=1e-6)
    spread = pld.profile(Repeated(RandomAllocation(Gaussian(2.0), 10), times)).epsilon(delta=1e-6)
    alone = pld.profile(Repeated(PoissonSampled(Gaussian(2.0), 0.1), times)).epsilon(delta=1e-6)
    assert spread.upper <= whole.upper * (1 + 1e-9)
    assert spread.lower <= whole.upper
    assert alone.lower <= spread.upper  # a step of it is a Poisson sample


def kept_rate(rate: float, others: int, largest: int) -> float:
    """Return the probability that a record is sampled and not removed by the truncation."""
    total = 0.0
    for more in range(others + 1):
        chance = math.comb(others, more) * rate**more * (1 - rate) ** (others - more)
        total += chance * min(1.0, largest / (more + 1))
    return rate * total


@pytest.mark.parametrize(("size", "largest"), [(4, 3), (12, 9), (40, 15)])
def test_a_truncated_batch_of_records_at_zero_lies_below_the_upper_end(size, largest):
    """All other records contribute nothing: the output is a sample at the reduced rate."""
    release = TruncatedPoisson(Gaussian(1.0), 0.05, size, largest)
    profile = pld.profile(release)
    rate = kept_rate(0.05, size - 1, largest)
    for epsilon in (0.01, 0.5):
        truth = max(oracles.one_step_delta(epsilon, rate, 1.0, way) for way in ("remove", "add"))
        assert profile.delta(epsilon=epsilon).upper >= truth * (1 - 1e-12)


def test_batches_that_are_never_truncated_are_poisson_samples():
    cut = pld.profile(Repeated(TruncatedPoisson(Gaussian(1.0), 0.01, 100, 101), 50))
    never = pld.profile(Repeated(PoissonSampled(Gaussian(1.0), 0.01), 50))
    assert cut.epsilon(delta=1e-6) == never.epsilon(delta=1e-6)


def test_rarely_truncated_batches_have_nearly_the_same_epsilon():
    cut = pld.profile(Repeated(TruncatedPoisson(Gaussian(1.0), 0.01, 1000, 80), 50))
    never = pld.profile(Repeated(PoissonSampled(Gaussian(1.0), 0.01), 50))
    for delta in (1e-6, 1e-9):
        one, other = cut.epsilon(delta=delta), never.epsilon(delta=delta)
        assert one.lower <= other.upper <= one.upper * (1 + 1e-3) + 1e-6
        assert one.upper <= other.upper * 1.01


@pytest.mark.parametrize("inner", [Laplace(1.0), DiscreteGaussian(1.0)])
def test_poisson_samples_of_other_noise_are_refused_where_a_record_is_replaced(inner):
    with pytest.raises(UnsupportedMechanism, match="PoissonSampled"):
        pld.profile(PoissonSampled(inner, 0.1), adjacency=REPLACE)


@pytest.mark.parametrize("adjacency", [ADD, ZERO])
def test_batches_of_a_fixed_size_are_refused_unless_a_record_is_replaced(adjacency):
    with pytest.raises(UnsupportedMechanism, match="SampledWithoutReplacement"):
        pld.profile(SampledWithoutReplacement(Gaussian(1.0), 1, 10), adjacency=adjacency)


QUESTIONS: list[tuple[Mechanism, Adjacency]] = [
    (PoissonSampled(Gaussian(1.0), 0.01), ADD),
    (PoissonSampled(Gaussian(1.0), 0.01), REPLACE),
    (PoissonSampled(DiscreteGaussian(3.0), 0.2), ADD),
    (PoissonSampled(ApproximateDP(0.1, 1e-9), 0.2), ADD),
    (SampledWithoutReplacement(Laplace(2.0), 3, 70), REPLACE),
]


@pytest.mark.parametrize("side", BoundSide)
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(("mechanism", "adjacency"), QUESTIONS, ids=repr)
def test_distributions_hold_all_mass_but_the_stated_tails(mechanism, adjacency, direction, side):
    query = LossQuery(count_releases(Repeated(mechanism, 100)), adjacency, direction, side)
    for delta in (1e-3, 1e-30):
        composition = query.composition(delta)
        assert composition.truncated_mass <= 1e-8 * delta
        for distribution, times in composition.distributions:
            held = math.exp(float(distribution.log_moments(np.zeros(1))[1][0]))
            assert times == 100
            assert held + distribution.truncated_mass + distribution.infinite_mass >= 1 - 1e-12
            assert held + distribution.infinite_mass <= 1 + 1e-12
