"""The smoothing that makes any contour end: delta's mean over nearby epsilons.

As a function of t = e^epsilon delta falls and is convex, so its mean g over e^v t, |v| <= h,
with weights that keep the mean of t,

    k(v) = p(v) e^(-v/2) / N,    p(v) = s I1(beta s),    s = sqrt(1 - (v/h)^2),

lies above it. Let a loss l lie x above epsilon. What smoothing adds to (1 - e^-x)+ is,
for x > 0 and as p is even for x < 0 as well,

    e^(-x/2) / N  int_|x|^h p(v) 2 sinh((v - |x|)/2) dv,

and that over k(x) falls with |x|: log p is concave in v, as log(sqrt(y) I1(beta sqrt(y)))
is concave and rises in y = s^2 (its power series has negative zeros alone). At x = 0, where
p(v) / p(0) <= exp(-beta v^2 / (2 h^2)), it is at most C = h^2 cosh(h/2) / beta. So

    g(epsilon) - C j(epsilon) <= delta(epsilon) <= g(epsilon),    j(epsilon) = E[k(L - epsilon)].

On the contour g has the factor kappa(z) = A(rho) / A(k0), with

    A(rho) = (rho cosh rho - sinh rho) / rho^3 = (1/4) int_-1^1 (1 - u^2) cosh(rho u) du,
    rho^2 = beta^2 + ((z + 1/2) h)^2,    k0^2 = beta^2 + h^2/4,

and j has it without delta's own 1 / (z (z + 1)). Beyond y = beta/h it is tiny, whatever the
losses are: |A(rho)| <= cosh(Re rho) min(1/3, 2 / |rho|^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ComplexArray = NDArray[np.complex128]

LARGEST_EXPONENT = 700.0
SMALL = 1.5  # |rho| up to which A is summed as a series: its numerator cancels there
SERIES = [2 * (k + 1) / math.factorial(2 * k + 3) for k in range(14)]
NUDGE = 1 + 1e-12


@dataclass(frozen=True)
class Kernel:
    """The smoothing: half width h in nats, and beta, how steeply its transform ends."""

    half_width: float
    beta: float

    @property
    def reach(self) -> float:
        """The frequency beyond which the transform is tiny."""
        return self.beta / self.half_width

    @property
    def excess(self) -> float:
        """C: smoothing adds at most this times j."""
        h = self.half_width
        return h * h * math.cosh(h / 2) / self.beta * NUDGE

    @property
    def _log_norm(self) -> float:
        """Log A(k0)."""
        k0 = math.hypot(self.beta, self.half_width / 2)
        fading = math.exp(-2 * k0)
        return k0 + math.log((k0 * (1 + fading) - (1 - fading)) / (2 * k0**3))

    def transform(self, z: ComplexArray) -> ComplexArray:
        """Return kappa(z)."""
        scaled = (z + 0.5) * self.half_width
        square = self.beta * self.beta + scaled * scaled
        rho = np.sqrt(square)
        near = np.abs(rho) < SMALL
        far = np.where(near, 1.0, rho)
        fading = np.exp(-2 * far)
        found = (
            np.exp(far - self._log_norm)
            * (far * (1 + fading) - (1 - fading))
            / (2 * far * far * far)
        )
        if near.any():
            found[near] = np.polyval(SERIES[::-1], square[near]) * math.exp(-self._log_norm)
        return np.asarray(found)

    def beyond_reach(self, order: float) -> float:
        """Bound |kappa(order + i y)| for every y from ``reach`` on."""
        return self._growth(order) / 3

    def beyond(self, order: float, last: float) -> float:
        """Bound (1/pi) sum spacing |kappa / (z (z + 1))| over frequencies beyond ``last``."""
        return self.beyond_reach(order) * math.asinh(1 / last) / math.pi

    def density_beyond(self, order: float) -> float:
        """Bound (1/pi) sum spacing |kappa| over frequencies beyond ``reach``.

        |rho|^2 >= (h y)^2 - b^2, b^2 = beta^2 + ((order + 1/2) h)^2: up to h y = w the bound
        with 1/3 is taken, from there on the other, whose integral is an area tangent.
        """
        b = math.hypot(self.beta, (order + 0.5) * self.half_width)
        w = math.sqrt(b * b + 6)
        area = (w - self.beta) / 3 + math.log((w + b) / (w - b)) / b
        return self._growth(order) * area * NUDGE / (math.pi * self.half_width)

    def _growth(self, order: float) -> float:
        """Bound cosh(Re rho) / A(k0) for every y from ``reach`` on."""
        side = (order + 0.5) * self.half_width
        real = math.sqrt((math.sqrt(side**4 + 4 * side**2 * self.beta**2) + side**2) / 2)
        return math.exp(min(LARGEST_EXPONENT, real - self._log_norm))  # cosh x <= e^x
