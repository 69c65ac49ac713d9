"""The sandwich of a smoothed contour, and the parts that it is made of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import i0e

from dpaudit.accountants.pld.contour import Kernel, jump_transform, transform
from tests.accountants import forced, oracles

ORACLE = 1e-10
RULE = np.polynomial.legendre.leggauss(200)


def kernel_by_integral(kernel: Kernel, z: complex) -> complex:
    """Return the mean of e^(-z v), |v| <= h, with weights I0(beta sqrt(1 - (v/h)^2)) e^(-v/2)."""
    x, w = RULE
    v = kernel.half_width * x
    root = kernel.beta * np.sqrt(1 - x * x)
    weights = w * i0e(root) * np.exp(root - kernel.beta) * np.exp(-v / 2)
    return complex((weights * np.exp(-z * v)).sum() / weights.sum())


KERNELS = [Kernel(0.01, 18.0), Kernel(0.3, 20.0), Kernel(1e-6, 25.0), Kernel(2.0, 5.0)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernels_transform_is_the_integral(kernel):
    generator = np.random.default_rng(1)
    for _ in range(20):
        z = complex(generator.uniform(0, 5), generator.uniform(0, 2) * kernel.beta) / max(
            kernel.half_width, 0.01
        )
        found = complex(kernel.transform(np.array([z]))[0])
        # The integral's own rounding: terms of size e^(Re z h).
        own = 1e-12 * math.exp(abs(z.real) * kernel.half_width)
        assert abs(found - kernel_by_integral(kernel, z)) <= own


@pytest.mark.parametrize("kernel", KERNELS)
def test_smoothing_keeps_the_mean_and_the_mass(kernel):
    assert kernel.transform(np.array([0j, -1 + 0j])) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("order", [0.01, 1.0, 40.0])
def test_beyond_its_reach_the_kernel_lies_below_the_bound(kernel, order):
    y = kernel.reach * np.concatenate([np.linspace(1, 3, 4001), np.geomspace(3, 1e4, 2000)])
    assert np.abs(kernel.transform(order + 1j * y)).max() <= kernel.beyond_reach(order)


STEPS = [
    (rate, noise, direction)
    for rate, noise in [(0.01, 1.0), (1e-4, 0.5), (0.3, 3.0), (1e-6, 0.3), (0.9, 2.0)]
    for direction in ("remove", "add")
]


@pytest.mark.parametrize(("rate", "noise", "direction"), STEPS)
@pytest.mark.parametrize("share", [0.004, 0.02, 0.3])
def test_smoothing_one_step_encloses_the_closed_form(rate, noise, direction, share):
    ledger = forced.ledger_of([(rate, noise, 1)], direction)
    for part in (0.05, 0.3):
        epsilon = part * ledger.largest
        found = forced.smoothed(ledger, epsilon, share)
        if found is None:
            continue  # more frequencies than it may take
        for near in (epsilon, 0.99 * epsilon, 1.02 * epsilon):  # it holds wherever it is asked
            truth = oracles.one_step_delta(near, rate, noise, direction)
            assert found.lower(near) <= truth * (1 + ORACLE)
            assert truth * (1 - ORACLE) <= found.upper(near)


def test_smoothing_narrows_with_the_square_of_its_width():
    ledger = forced.ledger_of([(0.01, 1.0, 1)])
    widths = [
        found.upper(2.0) - found.lower(2.0)
        for share in (0.2, 0.02)
        for found in [forced.smoothed(ledger, 2.0, share)]
    ]
    assert widths[0] / widths[1] == pytest.approx(100, rel=0.3)


@pytest.mark.parametrize("entries", [[(0.01, 1.0, 30)], [(1e-4, 0.6, 500), (0.2, 5.0, 9)]])
def test_the_parts_of_a_split_add_up_to_the_whole(entries):
    """As transforms: A^T + ((A + B)^T - A^T) = (A + B)^T, at one order."""
    ledger = forced.ledger_of(entries)
    below, above = ledger.split(0.3)
    order, spacing, count = 2.0, 0.7, 300
    parts = [
        transform(below, order, spacing, count),
        jump_transform(below, above, order, spacing, count),
        transform(ledger, order, spacing, count),
    ]
    low, jumps, whole = (
        part.values
        * np.exp(1j * part.frequencies * part.mean + part.log_moment - parts[2].log_moment)
        for part in parts
    )
    error = sum(
        part.errors * math.exp(part.log_moment - parts[2].log_moment) + part.log_moment_error
        for part in parts
    )
    turned = 1e-15 * parts[2].frequencies * (1 + abs(parts[2].mean))
    assert (np.abs(low + jumps - whole) <= error + turned).all()
    assert error.max() < 1e-9


def test_aliases_lie_in_the_lower_end_alone():
    """The sum without its period's aliases is an upper bound: a shorter period raises it."""
    ledger = forced.ledger_of([(0.01, 1.0, 1000)])
    found = forced.plain_part(ledger, 1.8)
    assert found is not None
    order, spacing = found.transform.order, found.transform.spacing
    coarser = transform(ledger, order, 6 * spacing, len(found.transform.values) // 6 + 1)
    short = replace(found, transform=coarser)
    assert short.lower(1.8) <= found.lower(1.8) <= found.upper(1.8) <= short.upper(1.8)
    assert short.estimate(1.8) > found.estimate(1.8)
