"""Where frequencies are not computed, bounds stand in: the transform lies below them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpaudit.accountants.pld import decay
from dpaudit.accountants.pld.losses import LossLaw, Way, sampled_losses
from dpaudit.accountants.pld.pairs import pair_of
from dpaudit.accountants.pld.transform import characteristic
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.mechanism import Exponential, Gaussian, Laplace

TAIL = 1e-25
RELEASES = [Gaussian(0.5), Gaussian(1.0), Gaussian(20.0), Laplace(0.7), Exponential(2.0)]
LAWS = [
    pytest.param(
        sampled_losses(pair_of(release, Adjacency.ADD_OR_REMOVE_ONE, TAIL), rate, way, TAIL),
        id=f"{release}-{rate}-{way.name.lower()}",
    )
    for release in RELEASES
    for rate in (1e-4, 0.03, 0.6, 1.0)
    for way in Way
]
FREQUENCIES = 400


def moduli(law: LossLaw, order: float, reach: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return frequencies up to ``reach``, at least |phi| there, and the log moment."""
    spacing = reach / FREQUENCIES
    points = law.points(order, reach * 1.01)
    mean = points.masses @ points.losses
    phi, error = characteristic(points.losses - mean, points.masses, spacing, FREQUENCIES)
    return spacing * np.arange(FREQUENCIES), np.abs(phi) - error - points.error, points.log_moment


def deviation(law: LossLaw, order: float) -> float:
    points = law.points(order, 1.0)
    off = points.losses - points.masses @ points.losses
    return math.sqrt(points.masses @ off**2)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("order", [0.1, 4.0, 60.0])
def test_the_transform_lies_below_the_envelope(law, order):
    farthest = float(np.abs(law.points(order, 1.0).losses).max())
    for turns in (3.0, 300.0):
        reach = min(turns / deviation(law, order), 1e3 / farthest)
        frequencies, modulus, log_moment = moduli(law, order, reach)
        envelope = decay.envelope(law, order, log_moment)
        above = np.exp(envelope.log_above(frequencies[1:]))
        assert (modulus[1:] <= above).all()
        # It is for every further frequency as well.
        assert (np.diff(above) <= 0).all()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("order", [0.1, 4.0, 60.0])
def test_between_samples_the_transform_lies_below_the_bound(law, order):
    """The samples are apart by every twentieth of those that are looked at."""
    farthest = float(np.abs(law.points(order, 1.0).losses).max())
    reach = min(40 / deviation(law, order), 1e3 / farthest)
    frequencies, modulus, _ = moduli(law, order, reach)
    step, samples = 20 * frequencies[1], FREQUENCIES // 20
    points = law.points(order, reach * 1.01)
    above = np.exp(decay.log_between(points, step, samples))
    for k in range(samples - 1):
        assert modulus[20 * k : 20 * k + 21].max() <= above[k] * (1 + 1e-14)


def test_the_envelope_of_a_smooth_law_falls():
    law = sampled_losses(
        pair_of(Gaussian(1.0), Adjacency.ADD_OR_REMOVE_ONE, TAIL), 1.0, Way.REMOVED, TAIL
    )
    far = decay.envelope(law, 1.0, law.points(1.0, 1.0).log_moment).log_above(np.array([1e4, 1e6]))
    assert far[0] < math.log(0.05)
    assert far[1] < far[0]
