"""The transform lies below the bounds for frequencies that are not computed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.contour import integrand
from dpaudit.accountants.pld.contour.integrand import characteristic_values
from dpaudit.accountants.pld.laws.dominating_pairs import dominating_pair
from dpaudit.accountants.pld.laws.loss_distribution import (
    LossDistribution,
    poisson_loss_distribution,
)
from dpaudit.vocabulary.mechanism import Exponential, Gaussian, Laplace
from dpaudit.vocabulary.privacy_terms import Adjacency

TAIL = 1e-25
RELEASES = [Gaussian(0.5), Gaussian(1.0), Gaussian(20.0), Laplace(0.7), Exponential(2.0)]
LAWS = [
    pytest.param(
        poisson_loss_distribution(
            dominating_pair(release, Adjacency.ADD_OR_REMOVE_ONE, TAIL), rate, direction, TAIL
        ),
        id=f"{release}-{rate}-{direction.name.lower()}",
    )
    for release in RELEASES
    for rate in (1e-4, 0.03, 0.6, 1.0)
    for direction in Direction
]
FREQUENCIES = 400


def moduli(
    distribution: LossDistribution, order: float, reach: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return frequencies up to ``reach``, at least |phi| there, and the log moment."""
    spacing = reach / FREQUENCIES
    points = distribution.points(order, reach * 1.01)
    mean = points.masses @ points.losses
    phi, error = characteristic_values(points.losses - mean, points.masses, spacing, FREQUENCIES)
    return spacing * np.arange(FREQUENCIES), np.abs(phi) - error - points.error, points.log_moment


def deviation(distribution: LossDistribution, order: float) -> float:
    points = distribution.points(order, 1.0)
    off = points.losses - points.masses @ points.losses
    return math.sqrt(points.masses @ off**2)


@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("order", [0.1, 4.0, 60.0])
def test_the_transform_lies_below_the_envelope(distribution, order):
    farthest = float(np.abs(distribution.points(order, 1.0).losses).max())
    for turns in (3.0, 300.0):
        reach = min(turns / deviation(distribution, order), 1e3 / farthest)
        frequencies, modulus, log_moment = moduli(distribution, order, reach)
        envelope = integrand.decay_envelope(distribution, order, log_moment)
        above = np.exp(envelope.log_upper_bound(frequencies[1:]))
        assert (modulus[1:] <= above).all()
        # The bound holds for every further frequency as well.
        assert (np.diff(above) <= 0).all()


@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("order", [0.1, 4.0, 60.0])
def test_between_samples_the_transform_lies_below_the_bound(distribution, order):
    """The checked frequencies are twenty times as dense as the samples."""
    farthest = float(np.abs(distribution.points(order, 1.0).losses).max())
    reach = min(40 / deviation(distribution, order), 1e3 / farthest)
    frequencies, modulus, _ = moduli(distribution, order, reach)
    step, samples = 20 * frequencies[1], FREQUENCIES // 20
    points = distribution.points(order, reach * 1.01)
    above = np.exp(integrand.log_modulus_between(points, step, samples))
    for k in range(samples - 1):
        assert modulus[20 * k : 20 * k + 21].max() <= above[k] * (1 + 1e-14)


@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("left_out", [1e-6, 0.03])
def test_mass_that_is_left_out_is_an_error_of_the_transform(distribution, left_out):
    order, count = 4.0, 50
    reach = 10 / deviation(distribution, order)
    whole, rest = (distribution.points(order, reach, share) for share in (0.0, left_out))
    centre, spacing = whole.masses @ whole.losses, reach / count
    (phi, error), (other, more) = (
        characteristic_values(one.losses - centre, one.masses, spacing, count)
        for one in (whole, rest)
    )
    changed, exact = np.abs(phi - other).max(), error + more + whole.error
    assert changed <= exact + rest.error
    if len(rest.losses) < len(whole.losses):
        assert changed > exact  # the error is not for nothing


def test_the_envelope_of_a_smooth_distribution_falls():
    distribution = poisson_loss_distribution(
        dominating_pair(Gaussian(1.0), Adjacency.ADD_OR_REMOVE_ONE, TAIL),
        1.0,
        Direction.REMOVED,
        TAIL,
    )
    far = integrand.decay_envelope(
        distribution, 1.0, distribution.points(1.0, 1.0).log_moment
    ).log_upper_bound(np.array([1e4, 1e6]))
    assert far[0] < math.log(0.05)
    assert far[1] < far[0]
