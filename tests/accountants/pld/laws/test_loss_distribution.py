"""Moments and points of loss distributions, against integrals in long double."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld import closed_form
from dpaudit.accountants.pld.laws import loss_distribution
from dpaudit.accountants.pld.laws.dominating_pairs import DominatingPair, dominating_pair
from dpaudit.accountants.pld.laws.loss_distribution import (
    LossDistribution,
    poisson_loss_distribution,
    replaced_loss_distribution,
)
from dpaudit.vocabulary.mechanism import ApproximateDP, Gaussian, Laplace, PureDP
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants import oracles
from tests.accountants.pld import long_double

TAIL = 1e-40
RATES = (1e-6, 1e-3, 0.05, 0.5, 1.0)
SHIFTS = (0.01, 0.3, 1.0, 3.3)
ORDERS = (1e-2, 0.7, 12.0, 400.0, 1e5)


def gaussians(shift: float) -> DominatingPair:
    return dominating_pair(Gaussian(1 / shift), Adjacency.ADD_OR_REMOVE_ONE, TAIL)


def distribution_of(shift: float, rate: float, direction: Direction) -> LossDistribution:
    return poisson_loss_distribution(gaussians(shift), rate, direction, TAIL)


def tilted(distribution: LossDistribution, order: float):
    """Return the log of the tilted density at base losses, and the loss there."""
    (branch,) = distribution.branches
    sign, rate = branch.direction.value, branch.rate

    def loss(base):
        return sign * long_double.log_ratio(base, rate)

    def log_density(base):
        density = long_double.gaussian_log_density(base, branch.density.shift)
        return density + (branch.power * sign + order) * loss(base)

    return log_density, loss, branch.low, branch.high


CASES = [
    pytest.param(shift, rate, direction, id=f"{shift}-{rate}-{direction.name.lower()}")
    for shift in SHIFTS
    for rate in RATES
    for direction in Direction
]


@pytest.mark.parametrize(("shift", "rate", "direction"), CASES)
def test_moments_hold_the_integral(shift, rate, direction):
    distribution = distribution_of(shift, rate, direction)
    # One table up to each order: panels are divided for the largest one.
    for top in ORDERS:
        if top * distribution.largest > 1e5:
            continue  # beyond what panels resolve; delta below 1e-300 is refused
        orders = top * np.array([0.03, 0.5, 1.0])
        least, most = distribution.log_moments(orders)
        for order, low, high in zip(orders, least, most, strict=True):
            log_density, _, start, end = tilted(distribution, float(order))
            truth = long_double.log_integral(log_density, start, end)
            assert low <= truth <= high
            assert high - low <= (1e-8 if order < 1e3 else 0.1)


@pytest.mark.parametrize("wider", [3, 10])
@pytest.mark.parametrize(("shift", "rate", "direction"), CASES)
def test_panels_far_too_wide_widen_the_bounds_on_moments(
    monkeypatch, shift, rate, direction, wider
):
    for width in ("WIDTH_IN_SCALES", "WIDTH_IN_LOSSES", "WIDTH_IN_RADIANS"):
        monkeypatch.setattr(loss_distribution, width, wider * getattr(loss_distribution, width))
    distribution = distribution_of(shift, rate, direction)
    for order in (0.7, 30.0, 400.0):
        log_density, _, start, end = tilted(distribution, order)
        truth = long_double.log_integral(log_density, start, end)
        least, most = distribution.log_moments(np.array([order]))
        assert not least[0] > truth
        assert not most[0] < truth


@pytest.mark.parametrize(("shift", "rate", "direction"), CASES)
def test_points_have_the_characteristic_function_up_to_their_reach(shift, rate, direction):
    distribution = distribution_of(shift, rate, direction)
    for order in (0.02, 3.0, 90.0):
        deviation, farthest = spread_of(distribution, order)
        for turns in (0.5, 30.0):  # of what is typical, but not thousands of the whole range
            reach = min(turns / deviation, 1e3 / farthest)
            points = distribution.points(order, reach)
            log_density, loss, start, end = tilted(distribution, order)
            for frequency in (0.0, 0.37 * reach, reach):
                truth, mean = long_double.log_fourier(log_density, loss, start, end, frequency)
                angle = np.longdouble(frequency) * points.losses.astype(np.longdouble)
                found = complex(
                    (points.masses * np.cos(angle)).sum(), (points.masses * np.sin(angle)).sum()
                )
                # Both relative to the computed moment, as they enter the contour.
                scale = float(np.exp(truth - points.log_moment))
                turned = 2**-52 * frequency * float(points.masses @ np.abs(points.losses))
                assert abs(found - scale * mean) <= points.error + turned
            assert abs(points.log_moment - truth) <= points.error * 1.001
            assert points.error <= 1e-9


def spread_of(distribution: LossDistribution, order: float) -> tuple[float, float]:
    """Return the tilted standard deviation, and the largest distance from the mean."""
    points = distribution.points(order, 1.0)
    off = points.losses - points.masses @ points.losses
    return math.sqrt(points.masses @ off**2), float(np.abs(off).max())


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("rate", [1e-4, 0.3, 1.0])
@pytest.mark.parametrize("scale", [0.4, 3.0, 50.0])
def test_laplace_moments_hold_their_closed_form(scale, rate, direction):
    """At rate 1: e^(c s)/2 + e^(-(c+1) s)/2 + (e^(c s) - e^(-(c+1) s)) / (2 (2 c + 1))."""
    pair = dominating_pair(Laplace(scale), Adjacency.ADD_OR_REMOVE_ONE, TAIL)
    distribution = poisson_loss_distribution(pair, rate, direction, TAIL)
    s = np.longdouble(1) / np.longdouble(scale)
    for order in (0.1, 5.0, 300.0):
        c = np.longdouble(order)
        power = c + 1 if direction is Direction.REMOVED else -c

        def at(base, power=power):
            return power * long_double.log_ratio(np.asarray(base, np.longdouble), rate)

        inside = long_double.log_integral(
            lambda base, at=at: -(base + s) / 2 - np.log(np.longdouble(4)) + at(base), -s, s
        )
        top, bottom = at(s) - s - np.log(np.longdouble(2)), at(-s) - np.log(np.longdouble(2))
        truth = np.logaddexp(np.logaddexp(top, bottom), inside)
        least, most = distribution.log_moments(np.array([order]))
        assert least[0] <= truth <= most[0]
        assert most[0] - least[0] <= 1e-10
        if rate == 1:
            peak = c * s
            falls = np.exp(-(2 * c + 1) * s)
            closed = peak + np.log(0.5 + falls / 2 + (1 - falls) / (2 * (2 * c + 1)))
            assert float(closed) == pytest.approx(float(truth), rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("mechanism", [PureDP(0.7), ApproximateDP(0.7, 1e-3)])
@pytest.mark.parametrize("rate", [1e-5, 0.2, 0.999])
def test_distributions_of_atoms_hold_all_mass_and_moments_are_sums(mechanism, rate):
    pair = dominating_pair(mechanism, Adjacency.ADD_OR_REMOVE_ONE, TAIL)
    for direction in Direction:
        distribution = poisson_loss_distribution(pair, rate, direction, TAIL)
        assert float(distribution.atom_masses.sum()) + distribution.infinite_mass == pytest.approx(
            1, abs=1e-15
        )
        least, most = distribution.log_moments(np.array([0.5, 20.0]))
        for order, low, high in zip((0.5, 20.0), least, most, strict=True):
            terms = distribution.atom_masses * np.exp(order * distribution.atom_losses)
            assert low <= math.log(math.fsum(terms)) <= high
            assert high - low <= 1e-12


def tail_of(distribution: LossDistribution, epsilon: float) -> float:
    answer = closed_form.single_release_delta(distribution, epsilon)
    assert answer.upper - answer.lower <= 1e-13 + 1e-9 * answer.upper
    return (answer.lower + answer.upper) / 2


@pytest.mark.parametrize("rate", [1e-5, 0.02, 0.4, 0.999])
@pytest.mark.parametrize("noise", [0.5, 1.0, 8.0])
def test_a_record_replaced_in_a_batch_of_fixed_size_is_amplified_as_proven(rate, noise):
    """delta is q H_(1 + (g - 1)/q) of the whole pair where g = e^epsilon >= 1, and below it
    by symmetry H_g = 1 - g + g H_(1/g)."""
    pair = gaussians(2 / noise)
    distribution = replaced_loss_distribution(pair, rate, TAIL)
    for epsilon in (0.0, 0.01 * rate, 0.5, 3.0):
        base = math.log1p(math.expm1(epsilon) / rate)
        whole = oracles.one_step_delta(base, 1.0, noise / 2, "remove")
        assert tail_of(distribution, epsilon) == pytest.approx(rate * whole, rel=1e-10, abs=1e-14)
        mirrored = 1 - math.exp(-epsilon) + math.exp(-epsilon) * rate * whole
        assert tail_of(distribution, -epsilon) == pytest.approx(mirrored, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("rate", [1e-5, 0.02, 0.4, 1.0])
def test_a_replaced_record_has_total_mass_1_under_both_neighbours(rate):
    for pair in (
        gaussians(0.7),
        dominating_pair(Laplace(1.5), Adjacency.REPLACE_ONE, TAIL),
        dominating_pair(PureDP(0.3), Adjacency.REPLACE_ONE, TAIL),
    ):
        distribution = replaced_loss_distribution(pair, rate, TAIL)
        for order in (1e-300, -1.0):  # under P, and under Q: dQ = e^-L dP
            assert distribution.points(order, 0.0).log_moment == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rate", [1e-5, 0.3, 1.0])
@pytest.mark.parametrize("direction", Direction)
def test_a_split_distribution_holds_every_loss_once(rate, direction):
    distribution = distribution_of(1.3, rate, direction)
    for share in (-0.5, 0.01, 0.4, 0.9):
        below, above = distribution.split(share * distribution.largest)
        whole, low, high = (
            sum(
                (
                    math.exp(part.log_moments(np.array([0.3]))[side][0])
                    for part in parts
                    if part.branches
                ),
                0.0,
            )
            for parts, side in (((distribution,), 0), ((below, above), 1), ((below, above), 0))
        )
        assert low == pytest.approx(whole, rel=1e-12)
        assert high == pytest.approx(whole, rel=1e-12)
        assert below.largest <= share * distribution.largest
