"""Bugs are planted in the accounting of federated releases: the oracles notice every one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from dpaudit.accountants import integer_noise, pld, rdp, sparse_vector
from dpaudit.accountants.pld.laws import comparisons, noise_tables
from dpaudit.accountants.pld.other_bounds import OtherBounds
from dpaudit.accountants.rdp import release_divergence
from dpaudit.vocabulary.errors import DpauditError
from dpaudit.vocabulary.mechanism import (
    Composed,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    Gaussian,
    Mechanism,
    PoissonSampled,
    Skellam,
    SparseVector,
    VectorDiscreteGaussian,
)
from tests.accountants.integer_oracles import (
    discrete_gaussian_masses,
    hockey_stick,
    moved,
    renyi,
    sampled_delta,
    skellam_masses,
    sum_masses,
    vector_delta,
)
from tests.accountants.test_sparse_vector import log_chance_of_run

Plant = Callable[[pytest.MonkeyPatch], None]
EPSILONS = (0.0, 0.2, 0.7, 1.1, 1.9, 3.0)
ORACLE = 1e-12


def contains(mechanism: Mechanism, truth: Callable[[float], float]) -> bool:
    profile = pld.profile(mechanism)
    return all(
        bound.lower - ORACLE <= truth(epsilon) <= bound.upper + ORACLE
        for epsilon in EPSILONS
        for bound in [profile.delta(epsilon=epsilon)]
    )


def divergences_hold() -> bool:
    """Renyi bounds lie above sums over the masses."""
    cases = [
        (Skellam(30.0, 5.0, 5.0, 1), skellam_masses(30.0, 400), 5),
        (Skellam(0.4, 1.0, 1.0, 1), skellam_masses(0.4, 80), 1),
        (DistributedDiscreteGaussian(0.55, 2, 1.0, 1.0, 1), sum_masses(0.55, 2, 40), 1),
        (DistributedDiscreteGaussian(0.7, 3, 2.0, 2.0, 1), sum_masses(0.7, 3, 60), 2),
    ]
    return all(
        renyi(*moved(masses, shift), order)
        <= rdp.divergence(mechanism, order=order).upper * (1 + 1e-12)
        for mechanism, masses, shift in cases
        for order in (1.2, 2.0, 3.0, 6.0)
    )


def profiles_hold() -> bool:
    """Certified intervals contain sums over all outputs."""
    dg = discrete_gaussian_masses(1.6, 30)
    wide = discrete_gaussian_masses(6.0, 100)
    shares = sum_masses(0.5, 2, 40)
    skellam = skellam_masses(9.0, 100)
    root = math.sqrt(2.0)
    return all(
        (
            contains(
                VectorDiscreteGaussian(1.6, root, 2.0, 2), lambda e: vector_delta(dg, (1, 1), e)
            ),
            contains(
                VectorDiscreteGaussian(6.0, 5.0, 7.0, 2),
                lambda e: max(vector_delta(wide, change, e) for change in ((5,), (4, 3))),
            ),
            contains(Skellam(9.0, 2.0, root, 2), lambda e: vector_delta(skellam, (1, 1), e)),
            contains(Skellam(9.0, 3.0, 3.0, 1), lambda e: vector_delta(skellam, (3,), e)),
            contains(
                DistributedDiscreteGaussian(0.5, 2, 1.0, 1.0, 1),
                lambda e: hockey_stick(*moved(shares, 1), e),
            ),
            contains(
                PoissonSampled(Skellam(9.0, 2.0, 2.0, 1), 0.2),
                lambda e: sampled_delta(skellam, 2, 0.2, e),
            ),
        )
    )


def comparison_holds() -> bool:
    """A Gaussian above and one below enclose a discrete Gaussian of scale 1.3."""
    masses = discrete_gaussian_masses(1.3, 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparisons, "WIDE_SCALE", 1.0)
        patch.setattr(OtherBounds, "renyi", None)
        patch.setattr(OtherBounds, "_concentrated", None)
        patch.setattr(OtherBounds, "_naive", None)
        return contains(DiscreteGaussian(1.3, 1), lambda e: hockey_stick(*moved(masses, 1), e))


def nothing_is_left_out() -> bool:
    """A vector of Skellam noise, which has no pair, beside a Gaussian."""
    masses = skellam_masses(30.0, 150)
    mechanism = Composed((Skellam(30.0, 8.0, 4.0, 1000), Gaussian(20.0)))
    return all(
        vector_delta(masses, (4,), e) <= pld.profile(mechanism).delta(epsilon=e).upper
        for e in EPSILONS
    )


def runs_hold() -> bool:
    """The loss of a long stream of comparisons is within the guarantee."""
    ((pure, times),) = sparse_vector.guarantee_parts(SparseVector(2.0, 4.0, answers=3))
    one = log_chance_of_run(3.0, 3000, -30.0, 2.0, 4.0)
    other = log_chance_of_run(4.0, 3000, -31.0, 2.0, 4.0)
    return 3 * (one - other) <= times * pure.epsilon + 1e-5


CHECKS = (divergences_hold, profiles_hold, comparison_holds, nothing_is_left_out, runs_hold)


def clear_caches() -> None:
    for cached in (
        comparisons._above,
        comparisons._below,
        noise_tables.noise_table,
        noise_tables._convolved_table,
        integer_noise.sum_oscillation,
        rdp.cached_release_divergence,
    ):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def fresh_caches():
    clear_caches()
    yield
    clear_caches()


def all_hold() -> bool:
    def holds(check: Callable[[], bool]) -> bool:
        try:
            return check()
        except (DpauditError, ArithmeticError, ValueError):
            return False

    return all(holds(check) for check in CHECKS)


def test_every_oracle_agrees_without_a_bug():
    assert all_hold()


def variance_of_one_poisson(patch):
    """The parameter of the theorem is the variance, not the mean of one Poisson draw."""
    honest = integer_noise._skellam_at_integers

    def planted(mechanism, orders):
        return honest(
            Skellam(
                2 * mechanism.variance,
                mechanism.l1_sensitivity,
                mechanism.l2_sensitivity,
                mechanism.dimension,
            ),
            orders,
        )

    patch.setattr(integer_noise, "_skellam_at_integers", planted)


def shares_as_one_discrete_gaussian(patch):
    patch.setattr(integer_noise, "sum_oscillation", lambda scale, shares: 0.0)
    patch.setattr(noise_tables, "sum_oscillation", lambda scale, shares: 0.0)


def shares_counted_twice(patch):
    honest = integer_noise.noise_square
    patch.setattr(integer_noise, "noise_square", lambda mechanism: 2 * honest(mechanism))


def table_of_half_the_variance(patch):
    honest = noise_tables._skellam_table
    patch.setattr(
        noise_tables, "_skellam_table", lambda variance, reach: honest(variance / 2, reach)
    )


def table_off_by_one(patch):
    honest = noise_tables.NoiseTable.at
    patch.setattr(noise_tables.NoiseTable, "at", lambda self, x: honest(self, np.abs(x) // 1 - 1))


def norms_exchanged(patch):
    honest = integer_noise.integer_change

    def planted(mechanism):
        change = honest(mechanism)
        return dataclasses.replace(change, l2_squared=change.l1)

    for module in (integer_noise, comparisons):
        patch.setattr(module, "integer_change", planted)


def attained_change_too_long(patch):
    patch.setattr(
        integer_noise.IntegerChange,
        "attained_shifts",
        lambda self: (self.largest_shift,) * self.coordinates,
    )


def same_variance_without_slack(patch):
    patch.setattr(comparisons, "square_for_oscillation", lambda oscillation: 1e-9)
    patch.setattr(comparisons, "theta_oscillation", lambda square: 0.0)


def release_without_a_pair_left_out(patch):
    patch.setattr(comparisons, "NO_PAIR", comparisons.Comparison(()))
    patch.setattr(OtherBounds, "renyi", None)
    patch.setattr(OtherBounds, "_concentrated", None)
    patch.setattr(OtherBounds, "_naive", None)


def sample_of_half_the_rate(patch):
    honest = comparisons._sampled

    def planted(release, found):
        half = PoissonSampled(release.mechanism, release.sampling_rate / 2)
        return honest(half, found)

    patch.setattr(comparisons, "_sampled", planted)


def query_noise_counted_once(patch):
    honest = sparse_vector._run_epsilon
    patch.setattr(
        sparse_vector,
        "_run_epsilon",
        lambda one: honest(one) - one.sensitivity / one.query_scale,
    )


def threshold_noise_is_free(patch):
    honest = sparse_vector._run_epsilon
    patch.setattr(
        sparse_vector,
        "_run_epsilon",
        lambda one: honest(one) - one.sensitivity / one.threshold_scale,
    )


def renyi_of_no_noise(patch):
    patch.setattr(release_divergence, "renyi_upper", lambda mechanism, orders: 0.0 * orders)


PLANTS: list[Plant] = [
    variance_of_one_poisson,
    shares_as_one_discrete_gaussian,
    shares_counted_twice,
    table_of_half_the_variance,
    table_off_by_one,
    norms_exchanged,
    attained_change_too_long,
    same_variance_without_slack,
    release_without_a_pair_left_out,
    sample_of_half_the_rate,
    query_noise_counted_once,
    threshold_noise_is_free,
    renyi_of_no_noise,
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_a_bug_in_the_accounting_of_federated_releases_is_noticed(monkeypatch, plant: Plant):
    plant(monkeypatch)
    assert not all_hold()
