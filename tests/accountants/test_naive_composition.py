"""Basic, advanced and optimal composition, against exact arithmetic and against each other."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import gdp, naive, optimal_composition
from dpaudit.accountants import naive as discrete_gaussian
from dpaudit.vocabulary.errors import InvalidArgument, Unresolvable, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    PoissonSampled,
    PoissonTrials,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    Selected,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants.mechanisms import between_powers, deltas, in_passing, noises, rates

ADD_OR_REMOVE, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE
THEOREMS = [naive.compose_basic, naive.compose_advanced, naive.compose_optimal]
epsilons = between_powers(-3, 0.5)


def exact_optimal(epsilon: float, times: int, delta: float) -> Decimal:
    """Return Theorem 3.3 of arXiv:1311.0776, solved for epsilon, in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        e, best = Decimal(epsilon).exp(), Decimal(1)
        seen = base = Decimal(0)
        whole = (1 + e) ** times
        for low in range(times + 1):
            seen += math.comb(times, low) * e ** (times - low) / whole
            base += math.comb(times, low) * e**low / whole
            best = max(best, (seen - Decimal(delta)) / base)
        return best.ln()


@pytest.mark.parametrize("delta", [1e-2, 1e-6, 1e-30])
@pytest.mark.parametrize(("epsilon", "times"), [(1.0, 1), (0.1, 100), (2.0, 7), (0.01, 900)])
def test_equal_releases_hold_the_binomial_formula(epsilon, times, delta):
    found = naive.compose_optimal([(epsilon, 0.0, times)], delta=delta).upper
    truth = exact_optimal(epsilon, times, delta)
    assert Decimal(found) >= truth
    assert found <= float(truth) * (1 + 1e-9) + 1e-9


def every_string(parts: list[tuple[float, int]], delta: float) -> float:
    """Return the exact epsilon of a few different releases, from every string of answers."""
    losses = [own for own, times in parts for _ in range(times)]
    answers = []
    for signs in itertools.product((1, -1), repeat=len(losses)):
        loss = sum(sign * own for sign, own in zip(signs, losses, strict=True))
        p = math.prod(
            1 / (1 + math.exp(-sign * own)) for sign, own in zip(signs, losses, strict=True)
        )
        answers.append((loss, p))
    best = seen = base = 0.0
    for loss, p in sorted(answers, reverse=True):
        seen, base = seen + p, base + p * math.exp(-loss)
        if seen > delta:
            best = max(best, math.log((seen - delta) / base))
    return best


few_different = st.lists(st.tuples(st.floats(0.05, 2), st.integers(1, 3)), min_size=2, max_size=4)


@in_passing
@given(few_different, between_powers(-6, -1))
def test_different_releases_lie_just_above_every_string_of_answers(parts, delta):
    truth = every_string(parts, delta)
    found = naive.compose_optimal([(own, 0.0, times) for own, times in parts], delta=delta).upper
    assert truth <= found * (1 + 1e-12)
    assert found <= truth * 1.01 + 0.01


@in_passing
@given(epsilons, st.integers(2, 400), between_powers(-9, -2))
def test_releases_split_into_nearly_equal_groups_cost_nearly_the_same(epsilon, times, delta):
    half = times // 2
    split = [(epsilon, 0.0, half), (epsilon * (1 + 1e-9), 0.0, times - half)]
    whole = naive.compose_optimal([(epsilon, 0.0, times)], delta=delta).upper
    assert whole * (1 - 1e-9) - 1e-9 <= naive.compose_optimal(split, delta=delta).upper
    assert naive.compose_optimal(split, delta=delta).upper <= whole * 1.01 + 0.01


parts_of_all_kinds = st.lists(
    st.tuples(epsilons, st.just(0.0) | between_powers(-12, -6), st.integers(1, 200)),
    min_size=1,
    max_size=4,
)


@in_passing
@given(parts_of_all_kinds, between_powers(-3, -1))
def test_optimal_is_at_most_basic_and_advanced_for_the_same_releases(parts, delta):
    basic, advanced, best = (theorem(parts, delta=delta).upper for theorem in THEOREMS)
    assert best <= basic
    assert best <= advanced
    # By theory for equal epsilons, and not only because the least is taken.
    own = max(epsilon for epsilon, _, _ in parts)
    times = sum(times for _, _, times in parts)
    equal = [(own, 0.0, times)]
    alone = optimal_composition.optimal_epsilon({own: times}, delta)
    assert alone <= naive.compose_advanced(equal, delta=delta).upper * (1 + 1e-9) + 1e-12


@in_passing
@given(parts_of_all_kinds, between_powers(-3, -1), between_powers(-3, -1))
def test_composed_epsilon_falls_with_delta(parts, one, other):
    less, more = sorted((one, other))
    for theorem in THEOREMS:
        assert theorem(parts, delta=more).upper <= theorem(parts, delta=less).upper * (1 + 1e-9)


def test_a_thousand_different_releases_are_composed_optimally():
    parts = [(0.01 + 1e-5 * i, 0.0, 1) for i in range(1000)]
    found = naive.compose_optimal(parts, delta=1e-6).upper
    assert exact_optimal(0.0141, 1000, 1e-6) < Decimal(found) < exact_optimal(0.0155, 1000, 1e-6)


@pytest.mark.parametrize("theorem", THEOREMS)
def test_own_deltas_are_spent_first(theorem):
    parts = [(0.1, 1e-6, 10)]
    with pytest.raises(Unresolvable, match="own deltas"):
        theorem(parts, delta=9e-6)
    assert theorem(parts, delta=2e-5).upper <= 1.0 + 1e-9


@pytest.mark.parametrize("theorem", THEOREMS)
@pytest.mark.parametrize(
    ("part", "name"),
    [
        ((math.nan, 0.0, 1), "epsilon"),
        ((math.inf, 0.0, 1), "epsilon"),
        ((-0.1, 0.0, 1), "epsilon"),
        ((0.1, math.nan, 1), "delta"),
        ((0.1, 1.0, 1), "delta"),
        ((0.1, 0.0, 0), "times"),
    ],
)
def test_what_is_no_release_is_refused_by_name(theorem, part, name):
    with pytest.raises(InvalidArgument, match=name):
        theorem([part], delta=1e-5)


# One release.


def discrete_gaussian_delta(scale: float, sensitivity: int, epsilon: float) -> float:
    x = np.arange(-int(40 * scale) - 5, int(40 * scale) + sensitivity + 6)
    base = np.exp(-(x**2) / (2 * scale**2))
    seen = np.exp(-((x - sensitivity) ** 2) / (2 * scale**2))
    return float(np.maximum(seen - math.exp(epsilon) * base, 0).sum() / base.sum())


@in_passing
@given(between_powers(-0.5, 2), st.integers(1, 5), between_powers(-9, -1))
def test_one_discrete_gaussian_holds_the_sum_over_its_law(scale, sensitivity, delta):
    found = discrete_gaussian.discrete_gaussian_epsilon(scale, sensitivity, delta)
    assert discrete_gaussian_delta(scale, sensitivity, found) <= delta * (1 + 1e-9)
    if found > 1e-6:
        assert discrete_gaussian_delta(scale, sensitivity, found * (1 - 1e-6)) >= delta * (1 - 1e-3)


def test_a_wide_discrete_gaussian_is_next_to_the_gaussian():
    for scale in (1000, 20_000):
        found = discrete_gaussian.discrete_gaussian_epsilon(float(scale), scale, 1e-5)
        assert found == pytest.approx(gdp.epsilon_of_mu(1e-5, mu=1.0).upper, rel=1e-6)
    wide = naive.profile(DiscreteGaussian(1e6, 10**6)).epsilon(delta=1e-5).upper
    assert gdp.epsilon_of_mu(1e-5, mu=1.0).lower <= wide <= 1.1 * found


PURE = [
    (Laplace(2.0), 0.5),
    (Laplace(4.0, 2.0), 0.5),
    (DiscreteLaplace(2.0), 0.5),
    (DiscreteLaplace(4.0, 2), 0.5),
    (Exponential(0.5), 0.5),
    (PureDP(0.5), 0.5),
    (ApproximateDP(0.5, 1e-9), 0.5),
]


@pytest.mark.parametrize(("release", "epsilon"), PURE, ids=str)
def test_pure_releases_cost_their_epsilon(release, epsilon):
    found = naive.profile(release).basic(delta=1e-5).upper
    assert epsilon <= found <= epsilon * (1 + 1e-9)
    hundred = naive.profile(Repeated(release, 100))
    assert hundred.basic(delta=1e-5).upper == pytest.approx(100 * epsilon, rel=1e-9)
    assert hundred.optimal(delta=1e-5).upper < hundred.advanced(delta=1e-5).upper


def test_a_hundred_exponential_mechanisms_cost_what_a_hundred_do():
    one = exact_optimal(0.5, 1, 1e-5)
    many = naive.profile(Repeated(Exponential(0.5), 100)).epsilon(delta=1e-5).upper
    assert many > 10 * float(one)
    assert Decimal(many) >= exact_optimal(0.5, 100, 1e-5)


@in_passing
@given(st.sampled_from([release for release, _ in PURE]), rates)
def test_a_sample_of_a_pure_release_is_amplified(release, rate):
    found = naive.profile(PoissonSampled(release, rate)).basic(delta=1e-5).upper
    assert found == pytest.approx(math.log1p(rate * math.expm1(0.5)), rel=1e-9)


@in_passing
@given(noises, rates, deltas)
def test_a_batch_of_fixed_size_is_priced_for_records_replaced(noise, rate, delta):
    batch = max(1, round(1000 * rate))
    release = SampledWithoutReplacement(Gaussian(noise), batch, 1000)
    found = naive.profile(release, adjacency=REPLACE).epsilon(delta=delta).upper
    if batch < 1000 and delta < batch / 1000:
        whole = gdp.epsilon_of_mu(delta * 1000 / batch, mu=2 / noise).upper
        assert found == pytest.approx(
            naive.amplify_epsilon(whole, batch / 1000), rel=1e-6, abs=1e-12
        )


def test_a_record_replaced_in_a_poisson_sample_costs_what_the_larger_pair_does():
    release = PoissonSampled(Gaussian(2.0), 0.1)
    found = naive.profile(release, adjacency=REPLACE).epsilon(delta=1e-5).upper
    y = np.linspace(-40, 40, 400_001)

    def mixture(mean: float) -> np.ndarray:
        return 0.9 * np.exp(-(y**2) / 8) + 0.1 * np.exp(-((y - mean) ** 2) / 8)

    for other in (-1.0, 0.0, 0.5):
        gap = np.maximum(mixture(1.0) - math.exp(found) * mixture(other), 0)
        assert gap.sum() * (y[1] - y[0]) / (2 * math.sqrt(2 * math.pi)) <= 1e-5


def test_cut_batches_leave_some_delta_to_what_is_cut():
    whole = naive.profile(PoissonSampled(Gaussian(1.0), 0.01)).epsilon(delta=1e-5).upper
    rarely = naive.profile(TruncatedPoisson(Gaussian(1.0), 0.01, 60_000, 900))
    assert rarely.epsilon(delta=1e-5).upper == pytest.approx(whole, rel=1e-6)
    often = naive.profile(TruncatedPoisson(Gaussian(1.0), 0.01, 60_000, 600))
    with pytest.raises(Unresolvable, match="allow larger batches"):
        often.epsilon(delta=1e-5)


def test_a_pass_over_random_places_costs_what_everyone_does():
    whole = naive.profile(Gaussian(2.0)).epsilon(delta=1e-5)
    assert naive.profile(RandomAllocation(Gaussian(2.0), 100)).epsilon(delta=1e-5) == whole


def test_zcdp_costs_at_least_its_example():
    found = naive.profile(ZCDP(0.125)).epsilon(delta=1e-5).upper
    assert gdp.epsilon_of_mu(1e-5, mu=0.5).upper <= found <= 1.1 * found


def test_pure_releases_leave_delta_to_the_others():
    """A Gaussian among a hundred answers has all of delta, not a share of a hundred and first."""
    mechanism = Composed((Gaussian(1.0), Repeated(PureDP(0.01), 100)))
    found = naive.profile(mechanism).basic(delta=1e-5).upper
    assert found == pytest.approx(gdp.epsilon_of_mu(1e-5, mu=1.0).upper + 1.0, rel=1e-9)


REFUSED = [
    (Selected(Gaussian(1.0), PoissonTrials(10.0)), ADD_OR_REMOVE, "use rdp"),
    (PoissonSampled(Laplace(1.0), 0.1), REPLACE, "record removed"),
    (PoissonSampled(Gaussian(1.0, set_for=REPLACE), 0.1), REPLACE, "record removed"),
    (SampledWithoutReplacement(Gaussian(1.0), 10, 100), ADD_OR_REMOVE, "use replace-one"),
    (RandomizedResponse(0.75), ADD_OR_REMOVE, "use replace-one"),
]


@pytest.mark.parametrize(("mechanism", "adjacency", "instead"), REFUSED)
def test_what_is_not_priced_is_refused_by_name(mechanism, adjacency, instead):
    with pytest.raises(UnsupportedMechanism, match=instead) as caught:
        naive.profile(mechanism, adjacency=adjacency)
    assert type(mechanism).__name__ in str(caught.value)
