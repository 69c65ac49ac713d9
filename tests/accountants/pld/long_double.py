"""Reference integrals in long double, by many small Gauss-Legendre panels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LongDouble = np.longdouble
POINTS, PANELS, SCANNED = 24, 100, 30_001
GONE = 70.0  # e^-70 of the peak is left out

Real = np.ndarray


def _legendre(count: int) -> tuple[Real, Real]:
    """Return nodes and weights on [-1, 1], by Newton from those in double precision."""
    x = np.polynomial.legendre.leggauss(count)[0].astype(LongDouble)
    for _ in range(3):
        before, value = np.ones_like(x), x.copy()
        for n in range(2, count + 1):
            before, value = value, ((2 * n - 1) * x * value - (n - 1) * before) / n
        slope = count * (x * value - before) / (x * x - 1)
        x -= value / slope
    before, value = np.ones_like(x), x.copy()
    for n in range(2, count + 1):
        before, value = value, ((2 * n - 1) * x * value - (n - 1) * before) / n
    slope = count * (x * value - before) / (x * x - 1)
    return x, 2 / ((1 - x * x) * slope * slope)


NODES, WEIGHTS = _legendre(POINTS)


def log_integral(log_f: Callable[[Real], Real], low: float, high: float) -> LongDouble:
    """Return the log of the integral of exp(log_f) on [low, high]."""
    return log_fourier(log_f, np.zeros_like, low, high, 0.0)[0]


def log_fourier(
    log_f: Callable[[Real], Real],
    loss: Callable[[Real], Real],
    low: float,
    high: float,
    frequency: float,
) -> tuple[LongDouble, complex]:
    """Return the log of the integral of exp(log_f), and E[exp(i y loss)] under that density."""
    scan = np.linspace(LongDouble(low), LongDouble(high), SCANNED)
    logs = log_f(scan)
    held = np.flatnonzero(logs > logs.max() - GONE)
    first, last = max(held[0] - 1, 0), min(held[-1] + 1, SCANNED - 1)
    turns = abs(
        frequency * float(loss(scan[last : last + 1])[0] - loss(scan[first : first + 1])[0])
    )
    edges = np.linspace(scan[first], scan[last], PANELS + int(turns / 4) + 1)
    half = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half) + half * NODES
    logs, weights = log_f(x), half * WEIGHTS
    peak = logs.max()
    terms = weights * np.exp(logs - peak)
    total = terms.sum()
    angle = LongDouble(frequency) * loss(x)
    mean = complex((terms * np.cos(angle)).sum() / total, (terms * np.sin(angle)).sum() / total)
    return peak + np.log(total), mean


def log_ratio(base: Real, rate: float) -> Real:
    """Return log(1 - q + q e^l)."""
    q = LongDouble(rate)
    return base.astype(LongDouble) if rate == 1 else np.log1p(q * np.expm1(base.astype(LongDouble)))


def gaussian_log_density(base: Real, shift: float) -> Real:
    """Return the log density of the base loss of N(shift, 1) over N(0, 1), under N(0, 1)."""
    s = LongDouble(shift)
    x = base / s + s / 2
    return -x * x / 2 - np.log(s * np.sqrt(2 * LongDouble("3.14159265358979323846")))
