"""A replaced record in random allocation: both ends against quadrature, and planted errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpaudit.accountants import gdp, pld
from dpaudit.accountants.pld import replaced_record
from dpaudit.accountants.pld.replaced_record import ReplacedRecord, zeroed_releases
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.mechanism import (
    BinnedMatrixFactorization,
    Composed,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

REPLACE = Adjacency.REPLACE_ONE


def epsilon(mechanism: Mechanism, delta: float = 1e-5) -> Bound:
    return pld.profile(mechanism, adjacency=REPLACE).epsilon(delta=delta)


def delta_of_two_steps(epsilon: float, shift: float) -> float:
    """Return delta of opposite records in a pass of two sums, by the trapezoidal rule."""
    axis = np.linspace(-9 - shift, 9 + shift, 2401)
    x, y = axis[:, None], axis[None, :]

    def mixture(moved: float) -> np.ndarray:
        first = np.exp(-((x - moved) ** 2) / 2 - y**2 / 2)
        return (first + np.exp(-(x**2) / 2 - (y - moved) ** 2 / 2)) / (4 * math.pi)

    gain = np.maximum(mixture(shift) - math.exp(epsilon) * mixture(-shift), 0.0)
    return float(gain.sum() * (axis[1] - axis[0]) ** 2)


def chained_delta(noise: float, epsilon: float) -> float:
    """Return the bound of equation 24 alone for a pass of two sums."""
    chain = pld.profile(RandomAllocation(Gaussian(noise), 2), adjacency=REPLACE)._zeroed_record
    assert chain is not None
    return chain.delta(epsilon)


@pytest.mark.parametrize(("noise", "at"), [(0.5, 4.0), (1.0, 0.5), (2.0, 3.0), (4.0, 0.2)])
def test_delta_of_two_steps_is_inside(noise: float, at: float) -> None:
    truth = delta_of_two_steps(at, 1 / noise)
    found = pld.profile(RandomAllocation(Gaussian(noise), 2), adjacency=REPLACE).delta(epsilon=at)
    assert found.lower <= truth * (1 + 1e-4)
    assert truth * (1 - 1e-4) <= found.upper <= truth * (1 + 1e-4)
    assert truth * (1 - 1e-4) <= chained_delta(noise, at)


@pytest.mark.parametrize(
    ("steps", "selected", "mu"),
    # Blocks of one sum cost 2/s, and blocks of more at most sqrt(2)/s.
    [(1, 1, 2.0), (2, 1, math.sqrt(2)), (3, 1, math.sqrt(2)), (3, 2, math.sqrt(6)), (5, 2, 2.0)],
)
@pytest.mark.parametrize("delta", [1e-2, 1e-8])
def test_a_pass_costs_at_most_a_mean_of_pairs_of_sums(steps, selected, mu, delta) -> None:
    found = epsilon(RandomAllocation(Gaussian(0.25), steps, selected), delta)
    most = gdp.epsilon_of_mu(delta, mu=4 * mu)
    assert 0 < found.lower <= found.upper <= most.upper * (1 + 1e-9)


def test_one_of_two_sums_is_exact() -> None:
    """The likelihood ratio of two sums is that of their total, in any number of passes."""
    plan = Composed((Repeated(RandomAllocation(Gaussian(1.0), 2), 3), Gaussian(2.0)))
    truth = gdp.epsilon_of_mu(1e-5, mu=math.sqrt(3 * 2 + 1))
    found = epsilon(plan)
    assert found.lower <= truth.upper
    assert truth.lower <= found.upper <= found.lower * (1 + 1e-9)


def test_a_chain_without_its_ratio_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted error: the second term of equation 24 without e^e_1."""

    def plain(self: ReplacedRecord, first: float, epsilon: float, sufficient) -> float:
        return self.deltas(epsilon - first, sufficient)[-1].upper

    truth = delta_of_two_steps(0.2, 1 / 4.0)
    assert truth * (1 - 1e-4) <= chained_delta(4.0, 0.2)
    monkeypatch.setattr(ReplacedRecord, "_added", plain)
    assert chained_delta(4.0, 0.2) < truth * 0.99


PLANS: dict[str, tuple[Mechanism, float]] = {
    "one pass": (RandomAllocation(Gaussian(1.0), 100), 1.16),
    "wide noise": (Repeated(RandomAllocation(Gaussian(5.0), 10), 10), 1.58),
    "many passes": (Repeated(RandomAllocation(Gaussian(2.0), 50), 40), 4.2),
    "two of ten": (RandomAllocation(Gaussian(2.0), 10, 2), 2.8),
    "bins": (BinnedMatrixFactorization(Gaussian(2.0), 40, 2, 20), 2.9),
}


@pytest.mark.parametrize("name", PLANS)
def test_epsilon_is_far_below_that_of_unsampled_noise(name: str) -> None:
    plan, most = PLANS[name]
    found = epsilon(plan)
    zeroed = pld.profile(plan, adjacency=Adjacency.ZERO_OUT).epsilon(delta=1e-5)
    assert zeroed.lower * 0.98 <= found.lower <= found.upper <= most


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-8])
def test_delta_at_epsilon_is_at_most_delta(delta: float) -> None:
    """Where both terms of equation 24 balance, their sum is that of the answer for epsilon."""
    plan = Repeated(RandomAllocation(Gaussian(2.0), 5), 3)
    back = pld.profile(plan, adjacency=REPLACE).delta(epsilon=epsilon(plan, delta).upper)
    assert back.lower <= delta
    assert back.upper <= delta * 1.01  # the delta of an epsilon is within a percent


@pytest.mark.parametrize("delta", [1e-300, 1.9e-300, 1e-299, 1e-298])
def test_half_of_a_delta_may_be_less_than_the_least_delta(delta: float) -> None:
    found = epsilon(RandomAllocation(Gaussian(1.0), 10), delta)
    whole = pld.profile(Gaussian(1.0), adjacency=REPLACE).epsilon(delta=delta)
    assert 0 < found.lower <= found.upper <= whole.upper * (1 + 1e-9)


def test_noise_set_for_replaced_records_is_the_same_noise_in_other_units() -> None:
    once, twice = Gaussian(1.0, REPLACE), Gaussian(2.0)
    found = [epsilon(RandomAllocation(noise, 20)) for noise in (once, twice)]
    assert found[0].upper == pytest.approx(found[1].upper, rel=1e-9)
    both = count_releases(Composed((RandomAllocation(once, 20), RandomAllocation(twice, 20))))
    assert zeroed_releases(both) == {RandomAllocation(twice, 20): 2}
    mixed = Composed((RandomAllocation(once, 20), RandomAllocation(twice, 20)))
    assert epsilon(mixed).upper == pytest.approx(
        epsilon(Repeated(RandomAllocation(twice, 20), 2)).upper, rel=1e-9
    )


def test_next_to_other_releases_the_chain_holds_where_all_noise_is_gaussian() -> None:
    poisson = Repeated(PoissonSampled(Gaussian(1.0), 0.01), 50)
    allocated = RandomAllocation(Gaussian(2.0), 20)
    mixed = epsilon(Composed((allocated, poisson)))
    assert epsilon(poisson).lower <= mixed.upper < 2.5
    assert zeroed_releases(count_releases(Composed((allocated, Laplace(1.0))))) is None
    assert zeroed_releases(count_releases(poisson)) is None


def test_hardly_any_noise_keeps_the_bound_without_sampling() -> None:
    found = epsilon(RandomAllocation(Gaussian(0.02), 5))
    whole = pld.profile(Gaussian(0.02), adjacency=REPLACE).epsilon(delta=1e-5)
    assert 0 < found.lower <= found.upper <= whole.upper * (1 + 1e-9)


def test_as_much_noise_as_floats_hold_is_accepted() -> None:
    (noise,) = zeroed_releases({RandomAllocation(Gaussian(1.7e308, REPLACE), 3): 1}) or ()
    assert math.isfinite(noise.mechanism.noise_multiplier)


def test_splits_are_few() -> None:
    """A delta asks for both terms once per split, and once more at the best one."""
    asked: list[float] = []
    real = pld.PldProfile(count_releases(RandomAllocation(Gaussian(2.0), 10)), Adjacency.ZERO_OUT)

    def deltas(at: float, sufficient):
        asked.append(at)
        return real._deltas(at, sufficient)

    assert 0 < ReplacedRecord(real._epsilons, deltas).delta(1.0) < 1
    assert len(asked) <= 2 * (replaced_record.MOST_SPLITS + 1)
