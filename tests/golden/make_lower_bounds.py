"""Make lower_bounds.json: every estimator from its definition, at 40 digits.

Limits of probabilities are quantiles of beta distributions, found by bisection of the
regularized incomplete beta function; binomial tails are sums term by term.
"""

from __future__ import annotations

from collections.abc import Callable

import golden_file
from mpmath import mp, mpf

mp.dps = 40

COUNTS = (  # true positives, false positives, members, nonmembers, delta
    (90, 5, 100, 100, "0"),
    (500, 0, 1000, 1000, "1e-5"),
    (1000, 0, 1000, 1000, "1e-5"),
    (600, 400, 1000, 1000, "1e-5"),
    (50, 50, 100, 100, "0"),
    (980, 120, 1000, 1000, "1e-5"),
    (70, 1, 120, 300, "1e-3"),
)
ONE_RUN = ((1000, 100, 95, "1e-5"), (300, 300, 225, "0"), (200, 50, 50, "1e-3"))
CURVES = ((1000, 100, 95, "1e-5"), (300, 300, 225, "1e-5"))
CONFIDENCE = mpf("0.95")


def root(rises: Callable[[mpf], bool], low: mpf, high: mpf) -> mpf:
    """Bisect to the last place where ``rises`` is still false."""
    for _ in range(110):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) else (middle, high)
    return low


def quantile(a: mpf, b: mpf, level: mpf) -> mpf:
    if b == 0:
        return mpf(1)
    return root(lambda x: mp.betainc(a, b, 0, x, regularized=True) > level, mpf(0), mpf(1))


def two_sided(missed: mpf, accused: mpf, delta: mpf) -> mpf:
    ways = ((1 - delta - missed) / accused, (1 - delta - accused) / missed)
    return max([mp.log(way) for way in ways if way > 1], default=mpf(0))


def epsilon_of_mu(mu: mpf, delta: mpf) -> mpf:
    def small(epsilon: mpf) -> bool:
        gain = mp.ncdf(mu / 2 - epsilon / mu)
        return gain - mp.exp(epsilon) * mp.ncdf(-mu / 2 - epsilon / mu) <= delta

    return root(small, mpf(0), mpf(80))


def normal_quantile(p: mpf) -> mpf:
    return root(lambda x: mp.ncdf(x) > p, mpf(-20), mpf(20))


def of_counts(tp: int, fp: int, members: int, nonmembers: int, text: str) -> dict[str, mpf]:
    delta, level = mpf(text), (1 - CONFIDENCE) / 2
    fn = members - tp
    missed = quantile(mpf(fn + 1), mpf(members - fn), 1 - level)
    accused = quantile(mpf(fp + 1), mpf(nonmembers - fp), 1 - level)
    half = mpf(1) / 2
    jeffreys = (
        quantile(fn + half, members - fn + half, 1 - level),
        quantile(fp + half, nonmembers - fp + half, 1 - level),
    )
    mu = -normal_quantile(accused) - normal_quantile(missed)
    found = {
        "clopper_pearson": two_sided(missed, accused, delta),
        "jeffreys": two_sided(*jeffreys, delta),
    }
    if delta > 0:
        found["gaussian_threshold"] = epsilon_of_mu(mu, delta) if mu > 0 else mpf(0)
    return found


def of_one_run(m: int, r: int, v: int, text: str) -> mpf:
    delta = mpf(text)

    def kept(epsilon: mpf) -> bool:
        q = mp.exp(epsilon) / (1 + mp.exp(epsilon))
        pmf = [mp.binomial(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
        below, most = mpf(0), mpf(0)
        for i in range(1, v + 1):
            below += pmf[v - i]
            most = max(most, below / i)
        return mp.fsum(pmf[v:]) + 2 * m * delta * most > 1 - CONFIDENCE

    return root(kept, mpf(0), mpf(20))


def of_curve(m: int, r: int, c: int, text: str) -> mpf:
    def kept(mu: mpf) -> bool:
        right, wrong = (1 - CONFIDENCE) * c / m, (1 - CONFIDENCE) * (r - c) / m
        for i in range(c - 1, -1, -1):
            if right >= 1:
                return False
            least = max(wrong, mp.ncdf(normal_quantile(right) - mu))
            right, wrong = right + mpf(i) / (r - i) * (least - wrong), least
        return right + wrong <= mpf(r) / m

    mu = mpf(0)
    low, high = mpf(0), mpf(4)
    for _ in range(32):  # nine digits
        mu = (low + high) / 2
        low, high = (low, mu) if kept(mu) else (mu, high)
    return epsilon_of_mu(low, mpf(text))


def main() -> None:
    values: list[dict[str, object]] = []
    for counts in COUNTS:
        names = ("true_positives", "false_positives", "members", "nonmembers", "delta")
        where = dict(zip(names, (*counts[:4], float(counts[4])), strict=True))
        for estimator, epsilon in of_counts(*counts).items():
            values.append(
                {"estimator": estimator} | where | {"epsilon": golden_file.digits(epsilon)}
            )
    for estimator, cases, make in (
        ("one_run", ONE_RUN, of_one_run),
        ("one_run_gaussian", CURVES, of_curve),
    ):
        for m, r, v, delta in cases:
            where = {"canaries": m, "guesses": r, "correct": v, "delta": float(delta)}
            epsilon = golden_file.digits(make(m, r, v, delta))
            values.append({"estimator": estimator} | where | {"epsilon": epsilon})
    golden_file.write(__file__, "Lower bounds at confidence 0.95, at 40 digits", values)


if __name__ == "__main__":
    main()
