"""Make renyi.json: Renyi divergences of the Poisson-sampled Gaussian, by mpmath's quadrature.

With r(x) = 1 - q + q exp((2 x - 1)/(2 s^2)) and X ~ N(0, s^2):

    remove  D_a = log E[r(X)^a] / (a - 1),      add  D_a = log E[r(X)^(1-a)] / (a - 1).
"""

from __future__ import annotations

import golden_file
from mpmath import mp, mpf

mp.dps = 30

RELEASES = ((0.01, 1.0), (0.001, 0.6), (0.02, 0.7), (0.25, 5.0), (0.5, 50.0))
ORDERS = (1.25, 2.5, 8.0, 16.5, 64.0)


def divergence(rate: mpf, noise: mpf, order: mpf, direction: str) -> mpf:
    power = order if direction == "remove" else 1 - order

    def integrand(x: mpf) -> mpf:
        ratio = 1 - rate + rate * mp.exp((2 * x - 1) / (2 * noise**2))
        return ratio**power * mp.npdf(x, 0, noise)

    # Beyond 16 standard deviations of where the integrand can peak, 1e-50 is left.
    low, high = -16 * noise + min(mpf(0), power), 16 * noise + max(mpf(0), power)
    panels = int(mp.ceil((high - low) / (2 * noise)))
    moment = mp.quad(integrand, mp.linspace(low, high, panels + 1))
    return mp.log(moment) / (order - 1)


def main() -> None:
    values: list[dict[str, object]] = []
    for rate, noise in RELEASES:
        for order in ORDERS:
            for direction in ("remove", "add"):
                value = divergence(mpf(rate), mpf(noise), mpf(order), direction)
                values.append(
                    {
                        "sampling_rate": rate,
                        "noise_multiplier": noise,
                        "order": order,
                        "direction": direction,
                        "divergence": golden_file.digits(value),
                    }
                )
    golden_file.write(__file__, "Renyi divergences, Poisson-sampled Gaussian, quadrature", values)


if __name__ == "__main__":
    main()
