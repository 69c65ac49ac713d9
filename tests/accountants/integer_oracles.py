"""Slow, obvious calculations of integer noise, written without the accountants' code."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive

Array = NDArray[np.float64]


def discrete_gaussian_masses(scale: float, reach: int) -> Array:
    """Return the masses at -reach, ..., reach, by the definition."""
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x**2) / (2 * scale**2))
    return weights / weights.sum()


def sum_masses(scale: float, shares: int, reach: int) -> Array:
    """Return the masses of a sum of shares, by one convolution after the other."""
    one = discrete_gaussian_masses(scale, reach)
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    middle = len(total) // 2
    return total[middle - reach : middle + reach + 1]


def skellam_masses(variance: float, reach: int) -> Array:
    """Return e^-v I_|x|(v) at -reach, ..., reach."""
    return np.asarray(ive(np.abs(np.arange(-reach, reach + 1)), variance))


def moved(masses: Array, shift: int) -> tuple[Array, Array]:
    """Return the masses of the noise around ``shift`` and around 0, on one range."""
    zeros = np.zeros(shift)
    return np.concatenate([zeros, masses]), np.concatenate([masses, zeros])


def hockey_stick(p: Array, q: Array, epsilon: float) -> float:
    """Return the sum of (p - e^epsilon q)+."""
    return float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum())


def vector_delta(masses: Array, shifts: tuple[int, ...], epsilon: float) -> float:
    """Return delta of a vector whose coordinates move by ``shifts``: all outputs enumerated."""
    p, q = np.ones(1), np.ones(1)
    for shift in shifts:
        one_p, one_q = moved(masses, shift)
        p, q = np.outer(p, one_p).ravel(), np.outer(q, one_q).ravel()
    return hockey_stick(p, q, epsilon)


def sampled_delta(masses: Array, shift: int, rate: float, epsilon: float) -> float:
    """Return the larger delta of both directions of one Poisson sample."""
    p, q = moved(masses, shift)
    mixture = (1 - rate) * q + rate * p
    return max(hockey_stick(mixture, q, epsilon), hockey_stick(q, mixture, epsilon))


def allowed_changes(largest_l1: float, largest_l2: float, dimension: int) -> list[tuple[int, ...]]:
    """Return all integer vectors with non-negative, falling coordinates within both norms."""
    most = int(min(largest_l1, largest_l2))
    return [
        change
        for change in itertools.product(range(most, -1, -1), repeat=dimension)
        if sum(change) <= largest_l1
        and sum(x * x for x in change) <= largest_l2**2 * (1 + 1e-12)
        and all(a >= b for a, b in itertools.pairwise(change))
        and any(change)
    ]


def renyi(p: Array, q: Array, order: float) -> float:
    """Return log sum p^a q^(1 - a) / (a - 1) over outputs where both masses are positive."""
    both = (p > 0) & (q > 0)
    logs = order * np.log(p[both]) + (1 - order) * np.log(q[both])
    top = float(logs.max())
    return (top + math.log(float(np.exp(logs - top).sum()))) / (order - 1)
