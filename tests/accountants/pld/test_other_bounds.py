"""Bounds that pld takes from other accountants, and laws that all its answers obey."""

from __future__ import annotations

import math
import random
from contextlib import suppress
from itertools import pairwise

import pytest

from dpaudit.accountants import naive, pld, rdp, zcdp
from dpaudit.accountants.numerics import CertifiedInterval
from dpaudit.accountants.pld.contour.inversion import epsilon_by_inversion
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    Unresolvable,
    UnsupportedMechanism,
)
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    Composed,
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
    Release,
    Repeated,
    SampledWithoutReplacement,
)
from dpaudit.vocabulary.privacy_terms import Adjacency

ADD, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE
STEPS = Repeated(PoissonSampled(Gaussian(1.0), 0.01), 100)

PLANS: list[tuple[Mechanism, Adjacency]] = [
    (Repeated(Exponential(1.0), 100), ADD),
    (Repeated(Exponential(0.1), 3), ADD),
    (Repeated(PoissonSampled(Exponential(1.0), 0.1), 20), ADD),
    (Repeated(SampledWithoutReplacement(Exponential(1.0), 10, 100), 20), REPLACE),
    (Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000), REPLACE),
    (Repeated(PoissonSampled(Gaussian(5.0), 0.3), 10), REPLACE),
    (Composed([Laplace(0.001), STEPS]), ADD),
    (Repeated(DiscreteGaussian(1.0), 50), ADD),
    (Repeated(RandomAllocation(Gaussian(1.0), 100), 3), ADD),
    (Composed([RandomizedResponse(0.9), Laplace(2.0)]), REPLACE),
]


@pytest.mark.parametrize(("plan", "adjacency"), PLANS, ids=repr)
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.1])
def test_the_upper_end_is_the_least_of_all_accountants(
    plan: Mechanism, adjacency: Adjacency, delta: float
) -> None:
    found = pld.profile(plan, adjacency=adjacency).epsilon(delta=delta)
    for accountant in (naive, rdp, zcdp):
        try:
            other = accountant.profile(plan, adjacency=adjacency).epsilon(delta=delta)
        except (UnsupportedMechanism, AccountingError):
            continue
        assert found.upper <= other.upper * (1 + pld.SETTLED_WIDTH)
        assert found.lower <= other.upper * (1 + 1e-9)


def of_guarantees(rng: random.Random) -> Mechanism:
    """Return two or three different guarantees, one of them sampled, many times each."""
    sampled = PoissonSampled(PureDP(rng.uniform(0.001, 0.1)), 10 ** rng.uniform(-3, -0.5))
    others = [ApproximateDP(rng.uniform(0.01, 0.3), 10 ** rng.uniform(-12, -8))]
    if rng.random() < 0.5:
        others.append(PureDP(rng.uniform(0.01, 0.3)))
    return Composed([Repeated(one, rng.randint(2, 40)) for one in (sampled, *others)])


@pytest.mark.parametrize("seed", range(8))
def test_a_few_guarantees_end_where_composition_theorems_do(seed: int) -> None:
    rng = random.Random(seed)
    plan, delta = of_guarantees(rng), 10 ** rng.uniform(-6, -1)
    found = pld.profile(plan, adjacency=Adjacency.ZERO_OUT).epsilon(delta=delta)
    other = naive.profile(plan, adjacency=Adjacency.ZERO_OUT).epsilon(delta=delta)
    assert found.lower <= found.upper <= other.upper


@pytest.mark.parametrize(("plan", "adjacency"), PLANS, ids=repr)
def test_epsilon_falls_with_delta_and_delta_with_epsilon(
    plan: Mechanism, adjacency: Adjacency
) -> None:
    profile = pld.profile(plan, adjacency=adjacency)
    epsilons = [profile.epsilon(delta=delta) for delta in (1e-6, 1e-3, 0.05, 0.2)]
    for before, after in pairwise(epsilons):
        assert after.upper <= before.upper * (1 + 1e-9)
        assert after.lower <= before.upper
    for delta, epsilon in zip((1e-6, 1e-3, 0.05, 0.2), epsilons, strict=True):
        assert profile.delta(epsilon=epsilon.upper).lower <= delta * (1 + 1e-9)
        if epsilon.lower > 0:
            assert profile.delta(epsilon=epsilon.lower).upper >= delta * (1 - 1e-9)


def random_release(draw: random.Random) -> Release:
    """Return an elementary release, or a sampled one."""
    noise = math.exp(draw.uniform(math.log(0.3), math.log(30)))
    base = draw.choice(
        [
            Gaussian(noise),
            Laplace(noise),
            DiscreteGaussian(noise, draw.choice([1, 2])),
            DiscreteLaplace(noise, draw.choice([1, 3])),
            Exponential(draw.choice([0.01, 0.1, 1.0, 3.0])),
            PureDP(draw.choice([0.01, 0.5, 2.0])),
            ApproximateDP(draw.choice([0.0, 0.1, 1.0]), draw.choice([1e-9, 1e-6])),
            RandomizedResponse(draw.choice([0.6, 0.9])),
        ]
    )
    sampled = PoissonSampled(base, draw.choice([1e-4, 0.01, 0.2, 1.0]))
    fixed_size = SampledWithoutReplacement(base, 10, draw.choice([20, 1000]))
    return draw.choice([base, base, sampled, sampled, fixed_size])


@pytest.mark.parametrize(
    "seed", [0, 1, 3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, *range(4, 12)))]
)
def test_no_bound_of_a_random_ledger_contradicts_or_undercuts_another(seed: int) -> None:
    draw = random.Random(seed)
    answered = 0
    for _ in range(30):
        parts = [
            Repeated(random_release(draw), draw.choice([1, 2, 30, 1000]))
            for _ in range(draw.choice([1, 1, 2, 3]))
        ]
        plan, adjacency = Composed(parts), draw.choice(list(Adjacency))
        delta = draw.choice([1e-10, 1e-6, 1e-3, 0.1])
        try:
            profile = pld.profile(plan, adjacency=adjacency)
            found = profile.epsilon(delta=delta)
        except (UnsupportedMechanism, Unresolvable):
            continue
        answered += 1
        for accountant in (naive, rdp, zcdp):
            with suppress(UnsupportedMechanism, AccountingError):
                other = accountant.profile(plan, adjacency=adjacency).epsilon(delta=delta)
                assert found.lower <= other.upper * (1 + 1e-9), plan
                assert found.upper <= other.upper * (1 + pld.SETTLED_WIDTH), plan
        assert profile.delta(epsilon=found.upper).lower <= delta * (1 + 1e-9), plan
    assert answered >= 5


PURE: list[tuple[Mechanism, float]] = [
    (Repeated(Laplace(1.0), 3), 3.0),
    (Composed([Laplace(0.0625), PureDP(0.25)]), 16.25),
    (Repeated(Exponential(0.5), 4), 2.0),
    (Repeated(DiscreteLaplace(4.0, 2), 6), 3.0),
    (Repeated(PoissonSampled(Laplace(1.0), 0.5), 2), 2 * math.log1p(0.5 * math.expm1(1.0))),
]


def test_randomized_response_under_replace_one_has_its_log_odds() -> None:
    profile = pld.profile(RandomizedResponse(0.75), adjacency=REPLACE)
    found = profile.epsilon(delta=0.0)
    assert found.lower <= math.log(3) <= found.upper <= math.log(3) + 1e-10
    assert profile.delta(epsilon=found.upper).upper == 0


@pytest.mark.parametrize(("plan", "epsilon"), PURE, ids=repr)
def test_epsilon_at_delta_zero_is_the_largest_loss(plan: Mechanism, epsilon: float) -> None:
    found = pld.profile(plan).epsilon(delta=0.0)
    assert found.lower <= epsilon <= found.upper
    assert found.upper - found.lower <= 1e-10 * epsilon


@pytest.mark.parametrize(("plan", "epsilon"), PURE, ids=repr)
def test_delta_is_zero_at_the_largest_loss(plan: Mechanism, epsilon: float) -> None:
    profile = pld.profile(plan)
    assert profile.delta(epsilon=epsilon).upper <= 1e-11 * epsilon
    assert profile.delta(epsilon=profile.epsilon(delta=0.0).upper).upper == 0
    assert profile.delta(epsilon=0.9 * epsilon).upper > 0
    # 1 - e^(epsilon - S) bounds delta just below S.
    assert profile.delta(epsilon=epsilon * (1 - 1e-9)).upper <= 2e-9 * epsilon


@pytest.mark.parametrize(
    "plan", [Gaussian(1.0), STEPS, ApproximateDP(1.0, 1e-6), DiscreteGaussian(2.0)], ids=repr
)
def test_an_unbounded_loss_has_no_epsilon_at_delta_zero(plan: Mechanism) -> None:
    with pytest.raises(InvalidArgument, match="no bound of the privacy loss"):
        pld.profile(plan).epsilon(delta=0.0)


def test_a_boolean_is_no_delta() -> None:
    with pytest.raises(InvalidArgument, match="delta"):
        pld.profile(Laplace(1.0)).epsilon(delta=False)


def test_a_release_that_cannot_be_certified_leaves_the_bounds_of_the_others() -> None:
    plan = Composed([Laplace(0.001), STEPS])
    found = pld.profile(plan).epsilon(delta=1e-5)
    assert 1000 <= found.upper <= rdp.profile(plan).epsilon(delta=1e-5).upper * (1 + 1e-12)


def test_delta_far_beyond_all_retained_losses_does_not_rise() -> None:
    profile = pld.profile(STEPS)
    deltas = [profile.delta(epsilon=epsilon).upper for epsilon in (20.0, 100.0, 700.0, 1000.0, 1e4)]
    for before, after in pairwise(deltas):
        assert after <= before * (1 + 1e-9)


def test_bounds_that_contradict_each_other_are_an_error() -> None:
    interval = CertifiedInterval(1.0, 2.0, "test")
    assert interval.with_upper(1.5).upper == 1.5
    with pytest.raises(AccountingError, match="contradict"):
        interval.with_upper(0.9)


def test_inversion_finds_the_epsilon_of_a_known_curve() -> None:
    def delta_at(epsilon: float) -> CertifiedInterval:
        exact = math.exp(-epsilon)
        return CertifiedInterval(exact * (1 - 1e-7), exact * (1 + 1e-7), "exponential")

    for delta in (0.5, 1e-3, 1e-9):
        known = CertifiedInterval(0.0, 100.0, "wide")
        found = epsilon_by_inversion(
            delta_at, delta, known, lambda one: one.upper - one.lower <= 1e-5
        )
        assert found.lower <= -math.log(delta) <= found.upper
        assert found.upper - found.lower <= 1e-4 * found.upper
