"""Characteristic functions lie within their returned error bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpaudit.accountants.pld.contour import integrand

LongDouble = np.longdouble


def sums(losses: np.ndarray, masses: np.ndarray, spacing: float, at: np.ndarray) -> np.ndarray:
    """Return sum_j masses_j exp(i k spacing losses_j) for every k in ``at``, in long double."""
    phases = np.multiply.outer(LongDouble(spacing) * at.astype(LongDouble), losses)
    real = (np.cos(phases) * masses).sum(axis=1)
    imaginary = (np.sin(phases) * masses).sum(axis=1)
    return real.astype(complex) + 1j * imaginary.astype(complex)


def random_points(generator: np.random.Generator, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points with a few heavy ones or none, and losses of any scale, centred."""
    losses = generator.normal(size=points) * 10 ** generator.uniform(-6, 2)
    if generator.random() < 0.5:
        losses = losses**3
    masses = generator.exponential(size=points) ** generator.choice([1, 4, 12])
    masses /= masses.sum()
    return losses - masses @ losses, masses


@pytest.mark.parametrize("by", ["matrices", "spreading"])
@pytest.mark.parametrize("points", [1, 2, 63, 64, 65, 700, 5000])
@pytest.mark.parametrize("count", [50, 333, 1500])
def test_the_error_holds_the_sum_in_long_double(monkeypatch, by, points, count):
    monkeypatch.setattr(integrand, "MATRIX_LIMIT", math.inf if by == "matrices" else 0.0)
    generator = np.random.default_rng([points, count])
    for _ in range(3):
        losses, masses = random_points(generator, points)
        # From far below one turn of the largest loss to many.
        spacing = 10 ** generator.uniform(-3, 1) / max(float(np.abs(losses).max()), 1e-9)
        found, error = integrand.characteristic_values(losses, masses, spacing, count)
        at = np.unique([0, count - 1, *generator.integers(0, count, 12)])
        assert np.abs(found[at] - sums(losses, masses, spacing, at)).max() <= error
        assert error <= 1e-9 + 1e-15 * spacing * count * float(np.abs(losses).max())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_the_error_holds_the_sum_in_long_double_for_many_distributions(monkeypatch, seed):
    generator = np.random.default_rng(seed)
    monkeypatch.setattr(integrand, "MATRIX_LIMIT", math.inf if seed % 2 else 0.0)
    losses, masses = random_points(generator, int(10 ** generator.uniform(0, 4.5)))
    count = int(10 ** generator.uniform(1.5, 4))
    spacing = 10 ** generator.uniform(-4, 1.5) / max(float(np.abs(losses).max()), 1e-9)
    found, error = integrand.characteristic_values(losses, masses, spacing, count)
    at = np.unique(generator.integers(0, count, 50))
    assert np.abs(found[at] - sums(losses, masses, spacing, at)).max() <= error


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_frequencies_hold_the_sum(count):
    losses, masses = random_points(np.random.default_rng(count), 100)
    found, error = integrand.characteristic_values(losses, masses, 0.3, count)
    assert np.abs(found - sums(losses, masses, 0.3, np.arange(count))).max() <= error


def test_at_frequency_0_it_is_the_mass():
    losses, masses = random_points(np.random.default_rng(1), 1000)
    found, error = integrand.characteristic_values(losses, masses, 0.1, 10)
    assert abs(found[0] - 1) <= error
