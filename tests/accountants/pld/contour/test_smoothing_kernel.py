"""The smoothing kernel: its transform, its excess and its tail beyond the reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import i1e

from dpaudit.accountants.pld.contour.integrand import SmoothingKernel

RULE = np.polynomial.legendre.leggauss(200)
KERNELS = [
    SmoothingKernel(0.01, 18.0),
    SmoothingKernel(0.3, 24.0),
    SmoothingKernel(1e-6, 25.0),
    SmoothingKernel(1.0, 5.0),
]


def on_a_rule(kernel: SmoothingKernel, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points v in [low, high] and k(v) dv, before it is scaled to a mass of 1."""
    x, w = RULE
    v = (high + low) / 2 + (high - low) / 2 * x
    return v, (high - low) / 2 * w * unscaled(kernel, v)


def unscaled(kernel: SmoothingKernel, v: np.ndarray) -> np.ndarray:
    s = np.sqrt(1 - np.minimum((v / kernel.half_width) ** 2, 1.0))
    return s * i1e(kernel.beta * s) * np.exp(kernel.beta * (s - 1)) * np.exp(-v / 2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernels_transform_is_the_integral(kernel):
    generator = np.random.default_rng(1)
    v, weights = on_a_rule(kernel, -kernel.half_width, kernel.half_width)
    for _ in range(20):
        z = complex(generator.uniform(0, 5), generator.uniform(0, 2) * kernel.beta) / max(
            kernel.half_width, 0.01
        )
        found = complex(kernel.transform(np.array([z]))[0])
        integral = complex((weights * np.exp(-z * v)).sum() / weights.sum())
        # The integral's own rounding: terms of size e^(Re z h).
        assert abs(found - integral) <= 1e-12 * math.exp(abs(z.real) * kernel.half_width)


def test_the_series_and_the_closed_form_agree_where_they_meet():
    kernel = SmoothingKernel(1.0, 5.0)
    below, above = (
        kernel.transform(np.array([1j * math.sqrt(25.25 - rho * rho) - 0.5 + 0j]))[0]
        for rho in (1.4999999, 1.5000001)
    )
    assert above == pytest.approx(below, rel=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_smoothing_keeps_the_mean_and_the_mass(kernel):
    assert kernel.transform(np.array([0j, -1 + 0j])) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("kernel", KERNELS)
def test_smoothing_adds_at_most_the_stated_excess(kernel):
    """For a loss x above epsilon, by the definitions, without the use of symmetry."""
    h = kernel.half_width
    mass = on_a_rule(kernel, -h, h)[1].sum()
    most = 0.0
    for x in h * np.linspace(-0.95, 0.95, 191):
        v, weights = on_a_rule(kernel, -h, x)
        smoothed = float(weights @ -np.expm1(v - x)) / mass
        added = smoothed + min(math.expm1(-x), 0.0)
        density = float(unscaled(kernel, np.array([x]))[0]) / mass
        rounding = 1e-15 * h
        assert added <= kernel.excess * density + rounding
        assert added >= -rounding
        most = max(most, added / density if added > 1e3 * rounding else 0.0)
    assert most >= 0.6 * kernel.excess  # the bound is not loose


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("order", [0.01, 1.0, 40.0])
def test_kernel_outside_its_range_is_below_the_bound(kernel, order):
    y = kernel.reach * np.concatenate([np.linspace(1, 3, 4001), np.geomspace(3, 1e4, 2000)])
    assert np.abs(kernel.transform(order + 1j * y)).max() <= kernel.beyond_reach(order)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("order", [0.01, 1.0, 40.0])
def test_sums_beyond_the_reach_lie_below_their_bounds(kernel, order):
    y = kernel.reach * (1 + 1e-3 * np.arange(1, 500_000))
    spacing = 1e-3 * kernel.reach
    moduli = np.abs(kernel.transform(order + 1j * y))
    z = order + 1j * y
    total = float((spacing * moduli).sum()) / math.pi
    assert total <= kernel.density_beyond(order)
    weighted = float((spacing * moduli / np.abs(z * (z + 1))).sum()) / math.pi
    assert weighted <= kernel.beyond(order, kernel.reach)
