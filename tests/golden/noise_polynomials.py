"""Fit the polynomials of dpaudit/trainer/noise/kernels.c, and print them as C literals.

float32: Lawson's iteration towards the polynomial of the least relative error.
float64: Taylor polynomials, whose highest terms are replaced by Chebyshev's lower ones.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
from numpy.typing import NDArray

QUARTER = np.pi / 4
Floats = NDArray[np.float64]


def fit(function: Callable[[Floats], Floats], low: float, high: float, degree: int) -> Floats:
    """Return coefficients, lowest first; weights grow where the relative error is largest."""
    x = (low + high) / 2 + (high - low) / 2 * np.cos(np.linspace(0, np.pi, 3001))
    y = function(x)
    weights = np.ones_like(x)
    powers = np.vander(x, degree + 1, increasing=True)
    for _ in range(80):
        scaled = np.sqrt(weights) / np.abs(y)
        found = np.linalg.lstsq(powers * scaled[:, None], y * scaled, rcond=None)[0]
        error = np.abs(powers @ found - y) / np.abs(y)
        weights *= error / error.max() + 1e-3
        weights /= weights.sum()
    print(f"/* largest relative error {error.max():.1e} */")
    return np.asarray(found)


def log_quotient(f: Floats) -> Floats:
    safe = np.where(f == 0, 1.0, f)
    return np.where(np.abs(f) < 1e-8, 1 - f / 2, np.log1p(safe) / safe)


def sine_quotient(square: Floats) -> Floats:
    t = np.sqrt(np.maximum(square, 1e-18))
    return np.asarray(np.sin(QUARTER * t) / t)


def cosine(square: Floats) -> Floats:
    return np.asarray(np.cos(QUARTER * np.sqrt(np.abs(square))))


def economized(series: list[mpmath.mpf], most: mpmath.mpf, degree: int) -> list[mpmath.mpf]:
    """Lower the degree of a power series on [0, most]: subtract multiples of Chebyshev's T_n."""
    while len(series) - 1 > degree:
        n = len(series) - 1
        # T_n(2 q / most - 1), lowest coefficient first.
        shifted = [c / most**k for k, c in enumerate(shifted_chebyshev(n))]
        top = series[n] / shifted[n]
        series = [c - top * s for c, s in zip(series[:-1], shifted[:-1], strict=True)]
    return series


def shifted_chebyshev(n: int) -> list[mpmath.mpf]:
    """Return the coefficients of T_n(2 x - 1), lowest first."""
    return list(mpmath.taylor(lambda x: mpmath.chebyt(n, 2 * x - 1), 0, n))


def main() -> None:
    mpmath.mp.prec = 300
    fits = {
        "log": fit(log_quotient, np.sqrt(0.5) - 1, np.sqrt(2.0) - 1, 8),
        "sine": fit(sine_quotient, 0.0, 1.0, 3),
        "cosine": fit(cosine, 0.0, 1.0, 3),
    }
    for name, coefficients in fits.items():
        print(name, ", ".join(f"{np.float32(c):.9g}f" for c in coefficients))
    quarter = (mpmath.pi / 4) ** 2
    largest_s = (mpmath.sqrt(2) - 1) / (mpmath.sqrt(2) + 1)
    doubles = {
        "artanh(s) / s": ([1 / mpmath.mpf(2 * k + 1) for k in range(24)], largest_s**2),
        "sin(y) / y": ([(-1) ** k / mpmath.factorial(2 * k + 1) for k in range(14)], quarter),
        "cos(y)": ([(-1) ** k / mpmath.factorial(2 * k) for k in range(14)], quarter),
    }
    for name, (series, most) in doubles.items():
        print(name, ", ".join(float(c).hex() for c in economized(series, most, 6)))


if __name__ == "__main__":
    main()
