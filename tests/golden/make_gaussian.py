"""Make gaussian.json: the closed form of mu-GDP, at 60 digits.

delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)
(Balle & Wang 2018, arXiv:1805.06530, Theorem 8).
"""

from __future__ import annotations

import golden_file
from mpmath import mp, mpf

mp.dps = 60

MUS = (0.02, 0.1, 0.5, 1.0, 3.0, 20.0)
DELTAS = (1e-3, 1e-5, 1e-8, 1e-15, 1e-30)
SIZES = (0.0, 1.0, 5.0, 12.0)  # epsilon = mu^2/2 + size * mu, where delta is about Phi(-size)


def log_delta(epsilon: mpf, mu: mpf) -> mpf:
    return mp.log(
        mp.ncdf(mu / 2 - epsilon / mu) - mp.exp(epsilon) * mp.ncdf(-mu / 2 - epsilon / mu)
    )


def epsilon_of(delta: float, mu: mpf) -> mpf:
    """Bisect: 200 halvings of an interval that certainly holds the root."""
    low, high = mpf(0), mu * mu / 2 + 40 * mu
    if log_delta(low, mu) <= mp.log(mpf(delta)):
        return low
    for _ in range(200):
        middle = (low + high) / 2
        if log_delta(middle, mu) > mp.log(mpf(delta)):
            low = middle
        else:
            high = middle
    return high


def main() -> None:
    values: list[dict[str, object]] = []
    for mu in MUS:
        for delta in DELTAS:
            epsilon = golden_file.digits(epsilon_of(delta, mpf(mu)))
            values.append({"mu": mu, "at_delta": delta, "epsilon": epsilon})
        for size in SIZES:
            at = mu * mu / 2 + size * mu
            delta_there = golden_file.digits(mp.exp(log_delta(mpf(at), mpf(mu))))
            values.append({"mu": mu, "at_epsilon": at, "delta": delta_there})
    golden_file.write(__file__, "mu-GDP, closed form at 60 digits", values)


if __name__ == "__main__":
    main()
