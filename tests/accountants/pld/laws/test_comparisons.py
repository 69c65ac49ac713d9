"""Integer noise in the PLD accountant: intervals against enumeration, and planted errors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from dpaudit.accountants import pld, rdp
from dpaudit.accountants.pld.laws import comparisons
from dpaudit.accountants.pld.laws.comparisons import compare_from_above, compare_from_below
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    Composed,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Gaussian,
    PoissonSampled,
    Repeated,
    SampledWithoutReplacement,
    Skellam,
    VectorDiscreteGaussian,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants.integer_oracles import (
    allowed_changes,
    discrete_gaussian_masses,
    hockey_stick,
    moved,
    sampled_delta,
    skellam_masses,
    sum_masses,
    vector_delta,
)

few = settings(max_examples=20, deadline=None, derandomize=True)
ADD_OR_REMOVE = Adjacency.ADD_OR_REMOVE_ONE
EPSILONS = [0.0, 0.4, 1.3, 3.0]
ORACLE = 1e-13  # absolute rounding of the oracles' sums


def holds(bound: Bound, truth: float) -> bool:
    return bound.lower - ORACLE <= truth <= bound.upper + ORACLE


@pytest.mark.parametrize("variance", [0.3, 4.0, 250.0, 1e5])
@pytest.mark.parametrize("shift", [1, 3, 40])
def test_skellam_noise_on_one_coordinate_is_exact(variance, shift):
    masses = skellam_masses(variance, int(40 * math.sqrt(variance)) + 60)
    profile = pld.profile(Skellam(variance, float(shift), float(shift), 1))
    for epsilon in EPSILONS:
        bound, truth = profile.delta(epsilon=epsilon), hockey_stick(*moved(masses, shift), epsilon)
        assert holds(bound, truth)
        assert bound.upper - bound.lower <= 1e-7 * bound.upper + 1e-8  # errors of the table


@pytest.mark.parametrize(("scale", "shares"), [(0.4, 2), (0.4, 4), (0.8, 3), (1.5, 10), (5.0, 7)])
@pytest.mark.parametrize("shift", [1, 2])
def test_a_sum_of_shares_on_one_coordinate_is_exact(scale, shares, shift):
    masses = sum_masses(scale, shares, int(14 * scale * shares**0.5) + 20)
    profile = pld.profile(DistributedDiscreteGaussian(scale, shares, float(shift), float(shift), 1))
    for epsilon in EPSILONS:
        bound, truth = profile.delta(epsilon=epsilon), hockey_stick(*moved(masses, shift), epsilon)
        assert holds(bound, truth)
        assert bound.upper - bound.lower <= 1e-7 * bound.upper + 1e-13


def test_narrow_shares_cost_something_else_than_one_discrete_gaussian():
    """Planted error: taking the sum of narrow shares for one discrete Gaussian is detected."""
    shares = pld.profile(DistributedDiscreteGaussian(0.4, 2, 1.0, 1.0, 1)).delta(epsilon=1.0)
    one = pld.profile(DiscreteGaussian(0.4 * math.sqrt(2), 1)).delta(epsilon=1.0)
    assert shares.upper < one.lower or one.upper < shares.lower


@few
@given(st.floats(0.5, 30), st.integers(1, 8))
def test_a_smaller_shift_never_costs_more(variance, shift):
    """The largest shift is the worst case of log-concave noise."""
    masses = skellam_masses(variance, 200)
    for epsilon in EPSILONS:
        curve = [hockey_stick(*moved(masses, s), epsilon) for s in range(1, shift + 1)]
        assert all(a <= b + ORACLE for a, b in itertools.pairwise(curve))


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("scale", [0.7, 1.5, 4.0])
@pytest.mark.parametrize(("l2", "l1"), [(1.5, 2.0), (2.0, 9.0), (2.3, 3.0)])
def test_every_allowed_change_of_a_vector_costs_at_most_the_upper_end(dimension, scale, l2, l1):
    masses = discrete_gaussian_masses(scale, int(9 * scale) + 12)
    profile = pld.profile(VectorDiscreteGaussian(scale, l2, l1, dimension))
    for epsilon in EPSILONS:
        worst = max(
            vector_delta(masses, change, epsilon) for change in allowed_changes(l1, l2, dimension)
        )
        bound = profile.delta(epsilon=epsilon)
        assert bound.lower - ORACLE <= worst <= bound.upper + ORACLE


@pytest.mark.parametrize("variance", [2.0, 30.0])
def test_every_allowed_change_of_a_skellam_vector_costs_at_most_the_upper_end(variance):
    masses = skellam_masses(variance, int(12 * math.sqrt(variance)) + 25)
    profile = pld.profile(Skellam(variance, 3.0, 2.3, 2))
    for epsilon in EPSILONS:
        worst = max(vector_delta(masses, change, epsilon) for change in allowed_changes(3, 2.3, 2))
        bound = profile.delta(epsilon=epsilon)
        assert 0 < bound.lower <= worst + ORACLE
        assert worst <= bound.upper


def test_every_allowed_change_of_summed_shares_costs_at_most_the_upper_end():
    masses = sum_masses(1.2, 4, 40)
    profile = pld.profile(DistributedDiscreteGaussian(1.2, 4, 2.3, 3.0, 2))
    for epsilon in EPSILONS:
        worst = max(vector_delta(masses, change, epsilon) for change in allowed_changes(3, 2.3, 2))
        bound = profile.delta(epsilon=epsilon)
        assert bound.lower - ORACLE <= worst <= bound.upper + ORACLE


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_a_sample_of_one_coordinate_is_exact(rate):
    for mechanism, masses in (
        (Skellam(9.0, 2.0, 2.0, 1), skellam_masses(9.0, 120)),
        (DistributedDiscreteGaussian(1.0, 4, 2.0, 2.0, 1), sum_masses(1.0, 4, 40)),
    ):
        profile = pld.profile(PoissonSampled(mechanism, rate))
        for epsilon in EPSILONS:
            assert holds(profile.delta(epsilon=epsilon), sampled_delta(masses, 2, rate, epsilon))


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_a_sample_of_a_vector_lies_between_one_coordinate_and_the_upper_end(rate):
    masses = discrete_gaussian_masses(6.0, 80)
    profile = pld.profile(PoissonSampled(VectorDiscreteGaussian(6.0, 2.0, 4.0, 3), rate))
    p, q = np.ones(1), np.ones(1)
    for shift in (1, 1, 1):
        one_p, one_q = moved(masses, shift)
        p, q = np.outer(p, one_p).ravel(), np.outer(q, one_q).ravel()
    mixture = (1 - rate) * q + rate * p
    for epsilon in EPSILONS:
        bound = profile.delta(epsilon=epsilon)
        assert bound.lower <= sampled_delta(masses, 2, rate, epsilon) + ORACLE
        worst = max(hockey_stick(mixture, q, epsilon), hockey_stick(q, mixture, epsilon))
        assert worst <= bound.upper + ORACLE


def test_two_releases_compose_as_their_convolution():
    masses = skellam_masses(6.0, 90)
    delta = pld.profile(Repeated(Skellam(6.0, 2.0, 2.0, 1), 2)).delta(epsilon=1.0)
    truth = vector_delta(masses, (2, 2), 1.0)
    assert holds(delta, truth)
    assert delta.upper - delta.lower < 1e-3 * truth


def gaussian_delta(shift: float, epsilon: float) -> float:
    x = epsilon / shift - shift / 2
    return float(ndtr(-x) - math.exp(epsilon) * ndtr(-x - shift))


@pytest.mark.parametrize("shift", [10**4, 10**5, 10**6, 10**7])
def test_a_discrete_gaussian_of_scale_one_million_agrees_with_its_sums(shift):
    """The oracle sums the tails at the optimal threshold, in blocks of 64-bit floats."""
    scale, epsilon = 1e6, 0.5
    edge = math.ceil(scale**2 * epsilon / shift + shift / 2)
    x = np.arange(edge, edge + 12 * 10**6 + shift, dtype=np.float64)
    total = scale * math.sqrt(2 * math.pi)  # up to e^(-2 pi^2 scale^2)
    p = float(np.exp(-(((x - shift) / scale) ** 2) / 2).sum()) / total
    q = float(np.exp(-((x / scale) ** 2) / 2).sum()) / total
    bound = pld.profile(DiscreteGaussian(scale, shift)).delta(epsilon=epsilon)
    truth = p - math.exp(epsilon) * q
    assert bound.lower * (1 - 1e-10) - 1e-15 <= truth <= bound.upper * (1 + 1e-10) + 1e-15
    assert bound.upper - bound.lower <= 1e-9 * bound.upper + 1e-300


def test_the_comparison_agrees_with_the_table_where_both_exist(monkeypatch):
    mechanism = Composed(
        (
            Repeated(DiscreteGaussian(200.0, 100), 3),
            Repeated(PoissonSampled(DiscreteGaussian(300.0, 500), 0.1), 20),
        )
    )
    exact = pld.profile(mechanism).epsilon(delta=1e-6)
    monkeypatch.setattr(comparisons, "WIDE_SCALE", 64.0)
    comparisons._above.cache_clear()
    comparisons._below.cache_clear()
    compared = pld.profile(mechanism).epsilon(delta=1e-6)
    comparisons._above.cache_clear()
    comparisons._below.cache_clear()
    assert compared.lower <= exact.upper
    assert exact.lower <= compared.upper
    assert compared.upper - compared.lower < 1e-3 * exact.upper


@few
@given(st.floats(2.0, 1e4), st.integers(1, 100), st.integers(1, 10**6), st.integers(1, 10**4))
def test_the_slack_and_the_variances_follow_the_derivation(scale, l2, dimension, times):
    mechanism = VectorDiscreteGaussian(scale, float(l2), float(l2 * l2), dimension)
    if comparisons.integer_change(mechanism).coordinates == 1:
        return
    releases = {mechanism: times}
    above = compare_from_above(releases, ADD_OR_REMOVE)
    if not above.complete:
        assert rdp.profile(Repeated(mechanism, times)).epsilon(delta=1e-5).upper < math.inf
        return
    ((gaussian, count),) = above.counts.items()
    assert isinstance(gaussian, Gaussian)
    assert count == times
    change = comparisons.integer_change(mechanism)
    removed = scale**2 - gaussian.noise_multiplier**2 * change.l2_squared
    # The variance that is left for rounding, and the oscillation that it leaves.
    assert 0 < removed <= scale**2 / 2 * (1 + 1e-9)
    oscillation = comparisons.theta_oscillation(removed * (1 - 1e-9))
    if removed > 1e-6 * scale**2:  # otherwise the difference above has no digits
        assert above.slack >= 0.9 * times * change.coordinates * oscillation
    below = compare_from_below(releases, ADD_OR_REMOVE)
    if below.slack:
        ((larger, _),) = below.counts.items()
        assert isinstance(larger, Gaussian)
        shifts = change.attained_shifts()
        assert larger.noise_multiplier > scale / math.sqrt(sum(s * s for s in shifts))


def test_an_upper_end_without_slack_would_be_wrong():
    """Planted error: a Gaussian of the same variance is below the truth at some epsilon."""
    masses = discrete_gaussian_masses(1.0, 40)
    gaps = [
        hockey_stick(*moved(masses, 1), epsilon) - gaussian_delta(1.0, epsilon)
        for epsilon in np.linspace(0, 4, 81)
    ]
    assert max(gaps) > 1e-3
    profile = pld.profile(VectorDiscreteGaussian(1.0, 1.0, 1.0, 10))
    for epsilon in np.linspace(0, 4, 21):
        truth = hockey_stick(*moved(masses, 1), float(epsilon))
        assert truth <= profile.delta(epsilon=float(epsilon)).upper + ORACLE


def test_a_release_without_a_pair_is_never_left_out_of_an_upper_end():
    """A vector of Skellam noise beside a Gaussian: the Gaussian alone is no upper bound."""
    skellam = Skellam(100.0, 100.0, 10.0, 1000)
    alone = pld.profile(Gaussian(5.0)).epsilon(delta=1e-5)
    both = pld.profile(Composed((skellam, Gaussian(5.0))))
    by_rdp = rdp.profile(Composed((skellam, Gaussian(5.0))))
    assert both.epsilon(delta=1e-5).upper == by_rdp.epsilon(delta=1e-5).upper
    assert both.delta(epsilon=1.0).upper == by_rdp.delta(epsilon=1.0).upper
    assert both.epsilon(delta=1e-5).lower > 2 * alone.upper


def test_the_upper_end_is_the_least_of_both_accountants():
    for mechanism in (
        VectorDiscreteGaussian(2.0, 2.0, 4.0, 1000),
        VectorDiscreteGaussian(50.0, 20.0, 400.0, 1000),
        Repeated(DistributedDiscreteGaussian(0.6, 4, 2.0, 4.0, 1000), 10),
        PoissonSampled(VectorDiscreteGaussian(3.0, 2.0, 4.0, 1000), 0.1),
    ):
        by_pld, by_rdp = (one.profile(mechanism).epsilon(delta=1e-6) for one in (pld, rdp))
        assert 0 < by_pld.lower <= by_pld.upper <= by_rdp.upper


def test_large_vectors_are_tight():
    """A vector of the size of a model, at the noise of secure aggregation."""
    mechanism = Repeated(VectorDiscreteGaussian(1e4, 1e4, 1e7, 10**6), 100)
    bound = pld.profile(mechanism).epsilon(delta=1e-5)
    truth = pld.profile(Repeated(Gaussian(1.0), 100)).epsilon(delta=1e-5)
    assert bound.lower <= truth.upper
    assert truth.lower <= bound.upper
    assert bound.upper - bound.lower <= 1e-6 * bound.upper


def test_a_poisson_sample_under_replace_one_is_refused_by_name():
    for inner in (Skellam(9.0, 4.0, 2.0, 10), DiscreteGaussian(1e6, 10**6)):
        with pytest.raises(UnsupportedMechanism, match="replace-one"):
            pld.profile(PoissonSampled(inner, 0.1), adjacency=Adjacency.REPLACE_ONE)


def test_batches_of_a_fixed_size_are_bounded_or_refused():
    batch = SampledWithoutReplacement(DiscreteGaussian(1e6, 10**6), 10, 1000)
    same = SampledWithoutReplacement(Gaussian(1.0, Adjacency.REPLACE_ONE), 10, 1000)
    found, expected = (
        pld.profile(one, adjacency=Adjacency.REPLACE_ONE).epsilon(delta=1e-5)
        for one in (batch, same)
    )
    assert found.upper == pytest.approx(expected.upper, rel=1e-8)
    with pytest.raises(UnsupportedMechanism, match="Skellam"):
        pld.profile(
            SampledWithoutReplacement(Skellam(9.0, 4.0, 2.0, 10), 10, 1000),
            adjacency=Adjacency.REPLACE_ONE,
        )


def test_nothing_is_paid_below_the_participation_probability():
    sampled = PoissonSampled(VectorDiscreteGaussian(3.0, 2.0, 4.0, 1000), 1e-6)
    assert pld.profile(sampled).epsilon(delta=1e-5) == Bound(0.0, 0.0)


def test_a_release_of_almost_no_loss_has_epsilon_zero():
    assert pld.profile(DiscreteGaussian(1e6, 1)).epsilon(delta=1e-5) == Bound(0.0, 0.0)


def test_shares_too_narrow_for_a_table_keep_the_trivial_lower_end():
    bound = pld.profile(DistributedDiscreteGaussian(0.1, 2, 2.0, 2.0, 1)).delta(epsilon=1.0)
    assert bound.lower == 0
    assert bound.upper == 1
