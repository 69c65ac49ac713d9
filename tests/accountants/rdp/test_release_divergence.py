"""Every Renyi divergence, held against values to 20 digits and against slow, obvious sums."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln, logsumexp

from dpaudit.accountants import rdp
from dpaudit.accountants.rdp import random_allocation
from dpaudit.accountants.rdp.moment_excess import log_moment_excess
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants.golden import holds, values
from tests.accountants.mechanisms import between_powers, in_passing, noises, rates

ADD_OR_REMOVE, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE
orders = between_powers(-2, 1.8).map(lambda more: 1 + more)


def adjacency_of(mechanism: Mechanism) -> Adjacency:
    return REPLACE if isinstance(mechanism, RandomizedResponse) else ADD_OR_REMOVE


def each_pair() -> list[object]:
    return [
        pytest.param(
            msgspec.convert(value["mechanism"], Mechanism),
            value["order"],
            value["divergence"],
            id=f"{value['mechanism']}-{value['order']}",
        )
        for value in values("renyi_pairs")
    ]


@pytest.mark.parametrize(("mechanism", "order", "truth"), each_pair())
def test_each_pair_holds_the_larger_of_both_directions_and_is_narrow(mechanism, order, truth):
    answer = rdp.divergence(mechanism, order=order, adjacency=adjacency_of(mechanism))
    assert holds(answer, max(map(Decimal, truth.values())))
    assert answer.width <= 1e-4 * answer.upper


def test_removing_a_record_costs_no_less_than_adding_it():
    """What ``excess`` proves, to 20 digits."""
    for value in values("renyi_pairs"):
        truth = {way: Decimal(found) for way, found in value["divergence"].items()}
        assert truth["remove"] >= truth["add"] * (1 - Decimal("1e-19"))


@pytest.mark.parametrize("value", values("renyi"), ids=str)
def test_removing_a_record_from_a_gaussian_costs_no_less_than_adding_it(value):
    release = PoissonSampled(Gaussian(value["noise_multiplier"]), value["sampling_rate"])
    answer = rdp.divergence(release, order=value["order"])
    assert Decimal(value["divergence"]) <= Decimal(answer.upper)


@in_passing
@given(st.floats(1.01, 50), st.floats(0.01, 0.99), st.floats(0.5, 60))
def test_the_two_terms_of_the_proof_have_its_sign(ratio, rate, half_more):
    """sqrt(A) sinh(m log A) >= sqrt(r B) sinh(m log(r/B)) for every r >= 1, m >= 1/2."""
    mixed, mirrored = 1 - rate + rate * ratio, rate + (1 - rate) * ratio
    left = math.sqrt(mixed) * math.sinh(half_more * math.log(mixed))
    right = math.sqrt(ratio * mirrored) * math.sinh(half_more * math.log(ratio / mirrored))
    assert left >= right * (1 - 1e-10)


@in_passing
@given(st.fractions(1, 40), st.fractions(Fraction(-1, 2), 4))
def test_the_excess_of_a_power_has_its_digits(power, x):
    """(1 + x)^p - 1 - p x in exact arithmetic, for whole p, down to tiny x."""
    p, tiny = math.ceil(power) + 1, float(x) * 1e-9
    for at in (float(x), tiny):
        exact = (1 + Fraction(at)) ** p - 1 - p * Fraction(at)
        found = float(np.exp(log_moment_excess(np.array(float(p)), np.array(math.log1p(at)))))
        # log1p is itself rounded, once; what its last digit is worth is p log(1 + x) times more.
        assert found == pytest.approx(float(exact), rel=1e-12 * (1 + p))


def test_a_tiny_rate_keeps_its_digits():
    """At q = 1e-9 the divergence is a q^2 (e - 1)/2 to nine digits: 1e-18, not 0 or 1e-14."""
    for order in (1.5, 2.0, 7.5, 8.0):
        answer = rdp.divergence(PoissonSampled(Gaussian(1.0), 1e-9), order=order)
        truth = order * 1e-18 * math.expm1(1.0) / 2
        assert answer.lower <= truth * (1 + 1e-5)
        assert truth * (1 - 1e-8) <= answer.upper <= truth * (1 + 1e-5)


@pytest.mark.parametrize("order", [2.0, 40.0, 200.5, 1000.0, 5000.0])
def test_next_to_rate_one_a_sample_costs_what_everyone_does(order):
    """The direction that adds a record used to be vacuous here."""
    answer = rdp.divergence(PoissonSampled(Gaussian(1.0), 1 - 2**-53), order=order)
    assert answer.upper <= order / 2 * (1 + 1e-12)
    if order <= 1024:
        assert answer.lower >= order / 2 * (1 - 1e-12)


def test_a_hundred_exponential_mechanisms_cost_a_hundred():
    """A peer's Renyi accountant ignores the count."""
    one = rdp.divergence(Exponential(0.5), order=4.0)
    many = rdp.divergence(Repeated(Exponential(0.5), 100), order=4.0)
    assert many.upper == pytest.approx(100 * one.upper, rel=1e-12)


@in_passing
@given(between_powers(-3, 1), orders)
def test_the_worst_choice_is_the_best_of_a_fine_grid(epsilon, order):
    """The closed form of the bounded range, against 20,000 values of t."""
    t = np.linspace(0, epsilon, 20_001)[1:-1]
    high, low = np.exp(t), np.exp(t - epsilon)
    likely = (1 - low) / (high - low)
    moments = likely * high**order + (1 - likely) * low**order
    best = math.log(moments.max()) / (order - 1)
    answer = rdp.divergence(Exponential(epsilon), order=order)
    assert best <= answer.upper + 1e-11 / (order - 1)
    assert answer.lower <= best * (1 + 1e-6) + 1e-11 / (order - 1)


@in_passing
@given(between_powers(-2, 0.7), rates, orders, st.floats(0.01, 0.99))
def test_no_sampled_choice_costs_more_than_its_bound(epsilon, rate, order, at):
    t = at * epsilon
    high, low = math.exp(t), math.exp(t - epsilon)
    base = np.array([(1 - low) / (high - low), (high - 1) / (high - low)])
    seen = base * np.array([high, low])
    bound = rdp.divergence(PoissonSampled(Exponential(epsilon), rate), order=order).upper
    mixed = (1 - rate) * base + rate * seen
    for p, q in ((mixed, base), (base, mixed)):
        assert renyi(p, q, order) <= bound + 1e-11 / (order - 1)


def renyi(p: np.ndarray, q: np.ndarray, order: float) -> float:
    return float(logsumexp(order * np.log(p) + (1 - order) * np.log(q))) / (order - 1)


NEARLY = 1e-10  # what the sums of doubles above may be wrong by, over order - 1


@in_passing
@given(between_powers(-1.5, 0.7), st.integers(1, 9), orders, st.data())
def test_no_batch_of_fixed_size_costs_more_than_its_bound(epsilon, batch, order, data):
    """Random laws A, P, P', any two of them epsilon-close, mixed as a batch mixes them."""
    weights = data.draw(
        st.lists(st.tuples(*[st.floats(-1, 1)] * 4), min_size=2, max_size=6), label="weights"
    )
    tilt = np.array(weights)
    # exp(s epsilon/4) over its sum is epsilon-close to any other such law.
    laws = [np.exp(tilt[:, i] * epsilon / 4 + tilt[:, 3] * 3) for i in range(3)]
    without, seen, replaced = (law / law.sum() for law in laws)
    rate = batch / 10
    p, q = (1 - rate) * without + rate * seen, (1 - rate) * without + rate * replaced
    release = SampledWithoutReplacement(PureDP(epsilon), batch, 10)
    bound = rdp.divergence(release, order=order, adjacency=REPLACE).upper
    assert renyi(p, q, order) <= bound + NEARLY / (order - 1)


def wang_balle_kasiviswanathan(rate: float, order: int, base) -> float:
    """Theorem 9 of arXiv:1808.00087 for a base without a largest loss, term by term."""
    j = np.arange(3, order + 1)
    log_choose = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
    logs = j * math.log(rate) + log_choose + (j - 1) * base(j) + math.log(2)
    square = math.log(rate**2 * order * (order - 1) / 2)
    second = square + min(math.log(4 * math.expm1(base(2))), base(2) + math.log(2))
    return float(logsumexp(np.concatenate([[0.0, second], logs]))) / (order - 1)


@in_passing
@given(st.integers(1, 400), noises, st.integers(2, 64))
def test_a_batch_of_fixed_size_costs_at_most_the_published_bound(batch, noise, order):
    rate = batch / 1000

    def base(orders: float) -> float:
        return orders * 2 / noise**2

    bound = wang_balle_kasiviswanathan(rate, order, base)
    for release, adjacency in (
        (SampledWithoutReplacement(Gaussian(noise), batch, 1000), REPLACE),
        (SampledWithoutReplacement(ZCDP(2 / noise**2), batch, 1000), REPLACE),
    ):
        found = rdp.divergence(release, order=order, adjacency=adjacency).upper
        assert found <= bound * (1 + 1e-9)


@in_passing
@given(rates, st.floats(0.5, 10), st.sampled_from([1.5, 2.0, 3.0, 5.5, 8.0, 20.0]))
def test_a_record_replaced_in_a_poisson_sample_costs_at_most_its_bound(rate, noise, order):
    """One record pulls the sum up by 1, the other down by 1, or across, or not at all."""
    y = np.linspace(-40 * noise, 40 * noise + 25, 60_001)

    def log_mixture(mean: float) -> np.ndarray:
        return np.logaddexp(
            math.log1p(-rate) - y**2 / (2 * noise**2) if rate < 1 else -np.inf * np.ones_like(y),
            math.log(rate) - (y - mean) ** 2 / (2 * noise**2),
        )

    step = math.log((y[1] - y[0]) / noise / math.sqrt(2 * math.pi))
    release = PoissonSampled(Gaussian(noise), rate)
    bound = rdp.divergence(release, order=order, adjacency=REPLACE).upper
    for other in (-1.0, 0.0, 0.4):
        logs = order * log_mixture(1.0) + (1 - order) * log_mixture(other)
        actual = float(logsumexp(logs) + step) / (order - 1)
        assert actual <= bound * (1 + 1e-6) + 1e-9


def test_a_record_replaced_in_a_small_sample_costs_little():
    """Twice the truth of the pair (1, -1), not the 20 times of the plain amplification."""
    release = PoissonSampled(Gaussian(1.0), 0.01)
    assert rdp.divergence(release, order=2.0, adjacency=REPLACE).upper < 2 * 0.0004576


@in_passing
@given(st.floats(0.6, 20), st.sampled_from([2, 3, 6, 10]))
def test_two_places_hold_the_integral_over_both(noise, order):
    y = np.linspace(-11, 10 + order / noise + 4, 1501)
    weight = np.exp(-y * y / 2) * (y[1] - y[0]) / math.sqrt(2 * math.pi)
    ratio = np.exp(y / noise - 1 / (2 * noise**2))
    mean = (ratio[:, None] + ratio) / 2
    removed = math.log(weight @ mean**order @ weight)
    added = math.log(weight @ mean ** (1.0 - order) @ weight)
    bounds = random_allocation.allocation_log_moments(1 / noise, 2)
    assert bounds[0][order] == pytest.approx(removed, rel=1e-6, abs=1e-9)
    assert added <= bounds[1][order] + 1e-9


def test_many_places_add_what_a_simulation_says():
    """A million means of 100 log-normals; where they are added the inequality of means is 19."""
    generator = np.random.default_rng(7)
    means = np.concatenate(
        [np.exp(generator.standard_normal((5000, 100)) - 0.5).mean(axis=1) for _ in range(40)]
    )
    for order in (2, 4, 8):
        simulated = means ** (1.0 - order)
        spread = simulated.std() / math.sqrt(len(means)) / simulated.mean()
        found = random_allocation.allocation_log_moments(1.0, 100)[1][order]
        assert found == pytest.approx(math.log(simulated.mean()), abs=5 * spread)


@in_passing
@given(noises, st.integers(1, 10_000), orders)
def test_a_pass_over_random_places_costs_at_most_everyone_and_at_least_one_place(
    noise, steps, order
):
    found = rdp.divergence(RandomAllocation(Gaussian(noise), steps), order=order).upper
    assert found <= order / (2 * noise**2) * (1 + 1e-12)
    whole = math.floor(order)
    if whole >= 2:  # its moment is at least that of the mean's square
        least = math.log1p(math.expm1(1 / noise**2) / steps) * whole / 2 / (whole - 1)
        assert found >= min(least, 1 / (2 * noise**2)) * (1 - 1e-9) * 0.5


SAMPLED = [
    PureDP(0.7),
    Exponential(0.7),
    Laplace(1.5),
    DiscreteLaplace(1.5),
    DiscreteGaussian(1.5),
    DiscreteGaussian(1e5, 10**5),
    Gaussian(1.5),
    ZCDP(0.2),
]


@pytest.mark.parametrize("inner", SAMPLED, ids=str)
@in_passing
@given(rate=rates, order=orders)
def test_a_sample_never_costs_more_than_everyone(inner, rate, order):
    whole = rdp.divergence(inner, order=order).upper * (1 + 1e-9)
    assert rdp.divergence(PoissonSampled(inner, rate), order=order).upper <= whole
    whole = rdp.divergence(inner, order=order, adjacency=REPLACE).upper * (1 + 1e-9)
    batch = SampledWithoutReplacement(inner, max(1, round(1000 * rate)), 1000)
    assert rdp.divergence(batch, order=order, adjacency=REPLACE).upper <= whole


@pytest.mark.parametrize("inner", SAMPLED, ids=str)
@in_passing
@given(one=rates, other=rates, order=orders)
def test_a_higher_rate_never_lowers_the_bound(inner, one, other, order):
    low, high = (
        rdp.divergence(PoissonSampled(inner, rate), order=order).upper
        for rate in sorted((one, other))
    )
    assert low <= high * (1 + 1e-6) + 1e-15


@in_passing
@given(st.sampled_from(SAMPLED), rates, orders, orders)
def test_a_divergence_rises_with_its_order(inner, rate, one, other):
    less, more = sorted((one, other))
    release = PoissonSampled(inner, rate)
    lower = rdp.divergence(release, order=less).lower
    assert lower <= rdp.divergence(release, order=more).upper


@in_passing
@given(between_powers(-1.5, 0.7), orders)
def test_pure_privacy_costs_no_less_than_what_is_pure(epsilon, order):
    worst = rdp.divergence(PureDP(epsilon), order=order).upper
    for release in (Laplace(1 / epsilon), DiscreteLaplace(1 / epsilon), Exponential(epsilon)):
        assert rdp.divergence(release, order=order).lower <= worst
    assert worst <= min(epsilon, order * epsilon**2 / 2) * (1 + 1e-9)


@in_passing
@given(between_powers(-2, -0.1), rates, orders)
def test_of_zcdp_the_gaussian_is_an_example(rho, rate, order):
    gaussian, guarantee = Gaussian((2 * rho) ** -0.5), ZCDP(rho)
    for one, other in (
        (gaussian, guarantee),
        (PoissonSampled(gaussian, rate), PoissonSampled(guarantee, rate)),
    ):
        example = rdp.divergence(one, order=order)
        assert example.lower <= rdp.divergence(other, order=order).upper


@pytest.mark.parametrize(
    "mechanism",
    [
        ApproximateDP(1.0, 1e-7),
        PoissonSampled(ApproximateDP(1.0, 1e-7), 0.1),
        TruncatedPoisson(Gaussian(1.0), 0.01, 60_000, 700),
    ],
)
def test_what_may_reveal_all_has_no_finite_divergence(mechanism):
    with pytest.raises(UnsupportedMechanism, match="profile"):
        rdp.divergence(mechanism, order=2.0)


@pytest.mark.parametrize("inner", [Laplace(1.0), PureDP(1.0), ZCDP(0.1)])
def test_a_record_replaced_in_a_poisson_sample_of_unknown_kind_is_refused_by_name(inner):
    with pytest.raises(UnsupportedMechanism, match="record removed"):
        rdp.profile(PoissonSampled(inner, 0.1), adjacency=REPLACE)


def test_noise_set_for_replaced_records_is_refused_in_a_poisson_sample():
    release = PoissonSampled(Gaussian(1.0, set_for=REPLACE), 0.1)
    with pytest.raises(UnsupportedMechanism, match="record removed"):
        rdp.profile(release, adjacency=REPLACE)
