"""Make sampled_gaussian.json: Poisson-sampled Gaussians, one step and composed, to 20 digits.

One step has a closed form. T steps are a contour integral over Re z = c > 0,

    delta(epsilon) = (1 / 2 pi i) int exp(sum_i T_i log A_i(s) - z epsilon) / (z (z + 1)) dz,

with A(s) = E[r(X)^s], X ~ N(0, sigma^2), r(x) = 1 - q + q exp((2 x - 1)/(2 sigma^2)), and
s = z + 1 (remove) or s = -z (add). Both integrals are taken by the trapezoid rule, twice:
unless the finer one repeats 22 digits of the coarser one, nothing is written.
"""

from __future__ import annotations

import golden_file
import numpy as np
from mpmath import mp, mpc, mpf
from scipy.special import logsumexp

mp.dps = 55

AGREE = mpf(10) ** -22
NEGLIGIBLE = mpf(10) ** -40
LOG_ALIAS = 90.0  # what the trapezoid rule may alias is exp(-90) of the answer

Ledger = list[tuple[float, float, int]]  # sampling rate, noise multiplier, steps

LEDGERS: dict[str, Ledger] = {
    "A": [(0.01, 1.0, 1000)],
    "C": [(256 / 60000, 1.1, 14063)],
    "D": [(0.02, 0.7, 2000)],
    "F": [(0.25, 5.0, 100)],
    "mixed": [(0.01, 1.0, 500), (0.02, 2.0, 500), (1.0, 30.0, 10)],
    "B": [(0.001, 0.6, 10_000)],
    "G": [(1.0, 10.0, 100)],
    "rare": [(1e-4, 0.8, 2000), (0.003, 1.5, 5000), (0.2, 12.0, 300), (1.0, 40.0, 20)],
}
DELTAS = (1e-5, 1e-12, 1e-30)
BEYOND_THE_TILTS = {("B", 1e-30)}  # its saddle point is not among those that are tried

ONE_STEP = ((0.01, 1.0), (1e-6, 0.3), (3e-6, 7.0), (0.001, 0.5), (0.5, 50.0), (0.9, 2.0))
ONE_STEP_DELTAS = (1e-3, 1e-9, 1e-15, 1e-28)


def rough_cumulants(ledger: Ledger, direction: str, tilts: np.ndarray) -> np.ndarray:
    """Return sum_i T_i log A_i at real tilts, in double precision: to choose a contour."""
    total = np.zeros(len(tilts))
    for rate, noise, times in ledger:
        reach = 12 * noise + (tilts.max() + 1 if direction == "remove" else tilts.max())
        x = np.linspace(-reach, reach, 20001)
        with np.errstate(divide="ignore"):
            losses = np.logaddexp(np.log1p(-rate), np.log(rate) + (2 * x - 1) / (2 * noise**2))
        weights = -x * x / (2 * noise**2) + np.log((x[1] - x[0]) / noise / np.sqrt(2 * np.pi))
        powers = tilts + 1 if direction == "remove" else -tilts
        total += times * np.array([logsumexp(s * losses + weights) for s in powers])
    return total


def contour(ledger: Ledger, direction: str, delta: float) -> tuple[float, float, float]:
    """Return a tilt c near the saddle point, an epsilon near the root, and a period."""
    tilts = np.geomspace(0.05, 60, 400)
    k = rough_cumulants(ledger, direction, tilts)
    chernoff = (k - tilts * np.log1p(1 / tilts) - np.log1p(tilts) - np.log(delta)) / tilts
    best = int(np.argmin(chernoff))
    c, guess = float(tilts[best]), float(chernoff[best])
    # exp(c n B) delta(epsilon + n B) is what n = 1, 2, .. alias: Chernoff at a larger tilt.
    higher = tilts > c
    log_delta = np.log(delta) - 5
    above = np.min(
        (k[higher] - tilts[higher] * guess - log_delta + LOG_ALIAS) / (tilts[higher] - c)
    )
    below = (LOG_ALIAS - log_delta) / c
    return c, guess, float(max(above, below))


class Transform:
    """exp(sum T log A(s)) / (z (z + 1)) at z = c + i k h, k = 0, 1, .."""

    def __init__(
        self, ledger: Ledger, direction: str, c: float, period: float, per_sigma: int
    ) -> None:
        self.c, self.h = mpf(c), 2 * mp.pi / mpf(period)
        columns = [self._column(entry, direction, per_sigma) for entry in ledger]
        self.values: list[mpc] = []
        while not self.values or abs(self.values[-1]) > NEGLIGIBLE * abs(self.values[0]):
            z = mpc(self.c, len(self.values) * self.h)
            product = mpc(1)
            for column in columns:
                product *= next(column)
            self.values.append(product / (z * (z + 1)))

    def _column(self, entry: tuple[float, float, int], direction: str, per_sigma: int):
        """Yield A(s)^T along the contour: every node turns by the same angle each time."""
        rate, noise, times = mpf(entry[0]), mpf(entry[1]), entry[2]
        power = self.c + 1 if direction == "remove" else -self.c
        turn = 1j if direction == "remove" else -1j
        spacing = noise / per_sigma
        low = -16 * noise + min(mpf(0), power)
        high = 16 * noise + max(mpf(0), power)
        terms, turns = [], []
        for k in range(int(low / spacing), int(high / spacing) + 1):
            x = k * spacing
            loss = mp.log(1 - rate + rate * mp.exp((2 * x - 1) / (2 * noise**2)))
            weight = mp.exp(power * loss) * mp.npdf(x, 0, noise) * spacing
            if weight > mpf(10) ** -54:
                terms.append(mpc(weight))
                turns.append(mp.exp(turn * self.h * loss))
        while True:
            yield sum(terms, mpc(0)) ** times
            terms = [term * turn for term, turn in zip(terms, turns, strict=True)]

    def delta_and_slope(self, epsilon: mpf) -> tuple[mpf, mpf]:
        total, slope = mpf(0), mpf(0)
        term, turn = mp.exp(-self.c * epsilon), mp.exp(-1j * self.h * epsilon)
        for k, value in enumerate(self.values):
            share = term * value * (mpf(1) / 2 if k == 0 else 1)
            total += share.real
            slope -= (share * mpc(self.c, k * self.h)).real
            term *= turn
        return total * self.h / mp.pi, slope * self.h / mp.pi

    def epsilon(self, delta: float, guess: float) -> mpf:
        epsilon = mpf(guess)
        for _ in range(60):  # Newton on log delta, which is nearly straight
            value, slope = self.delta_and_slope(epsilon)
            step = mp.log(value / mpf(delta)) * value / slope
            epsilon -= step
            if abs(step) < AGREE * AGREE**0.5 * epsilon:
                return epsilon
        raise ArithmeticError("Newton's iteration did not converge")


def same(value: mpf, again: mpf) -> str:
    if not abs(value / again - 1) < AGREE:
        raise ArithmeticError(f"the finer rule says {again}, the coarser one {value}")
    return golden_file.digits(value)


def composed(name: str, delta: float) -> list[dict[str, object]]:
    """Return epsilon at ``delta`` both ways, and delta both ways at one epsilon."""
    ledger = LEDGERS[name]
    where: dict[str, object] = {"name": name, "ledger": ledger}
    at_delta, at_epsilon, at = {}, {}, 0.0
    for direction in ("add", "remove"):
        c, guess, period = contour(ledger, direction, delta)
        coarse = Transform(ledger, direction, c, period, per_sigma=10)
        fine = Transform(ledger, direction, c, 1.37 * period, per_sigma=15)
        epsilon = coarse.epsilon(delta, 0.98 * guess)
        at_delta[direction] = same(epsilon, fine.epsilon(delta, float(epsilon)))
        at = at or float(f"{float(epsilon):.3g}")  # where adding a record leaves about delta
        at_epsilon[direction] = same(
            coarse.delta_and_slope(mpf(at))[0], fine.delta_and_slope(mpf(at))[0]
        )
    return [
        where | {"at_delta": delta, "epsilon": at_delta},
        where | {"at_epsilon": at, "delta": at_epsilon},
    ]


def one_step_delta(rate: mpf, noise: mpf, direction: str, epsilon: mpf) -> mpf:
    """Return the hockey-stick divergence: r rises, so the worst event is a half line."""
    ratio = mp.exp(epsilon if direction == "remove" else -epsilon)
    if ratio <= 1 - rate:  # the mixture is nowhere that much smaller
        return mpf(0)
    edge = noise**2 * mp.log((ratio - 1 + rate) / rate) + mpf(1) / 2
    if direction == "remove":
        base, moved = mp.ncdf(-edge / noise), mp.ncdf((1 - edge) / noise)
        return (1 - rate) * base + rate * moved - ratio * base
    base, moved = mp.ncdf(edge / noise), mp.ncdf((edge - 1) / noise)
    return base - ((1 - rate) * base + rate * moved) / ratio


def one_step_epsilon(rate: float, noise: float, direction: str, delta: float) -> str:
    low, high = mpf(0), mpf(1000)
    if one_step_delta(mpf(rate), mpf(noise), direction, low) <= delta:
        high = low
    for _ in range(200):
        middle = (low + high) / 2
        if one_step_delta(mpf(rate), mpf(noise), direction, middle) > delta:
            low = middle
        else:
            high = middle
    return golden_file.digits(high)


def one_step(rate: float, noise: float, delta: float) -> dict[str, object]:
    return {
        "name": "one step",
        "ledger": [(rate, noise, 1)],
        "at_delta": delta,
        "epsilon": {way: one_step_epsilon(rate, noise, way, delta) for way in ("add", "remove")},
    }


def main() -> None:
    values = [one_step(*release, delta) for release in ONE_STEP for delta in ONE_STEP_DELTAS]
    for name in LEDGERS:
        for delta in DELTAS:
            if (name, delta) not in BEYOND_THE_TILTS:
                values += composed(name, delta)
    about = (
        "Poisson-sampled Gaussians; ledger: [[sampling rate, noise multiplier, steps], ..]; "
        "add-or-remove-one is the larger of both directions"
    )
    golden_file.write(__file__, about, values)


if __name__ == "__main__":
    main()
