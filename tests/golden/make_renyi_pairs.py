"""Make renyi_pairs.json: Renyi divergences of pairs of laws that are written out, by mpmath.

With mass or density P, Q of the outputs with and without the record, and P' = (1-q) Q + q P,

    remove  D_a(P' || Q),      add  D_a(Q || P');

q is 1 where there is no sampling. Laplace's density is integrated between its kinks. The
discrete laws are summed until what is left is below 1e-40 of the moment.
"""

from __future__ import annotations

from collections.abc import Iterator

import golden_file
from mpmath import mp, mpf

mp.dps = 40

ORDERS = (1.001, 1.3, 2.0, 3.5, 8.0, 33.3, 128.0)
RATES = (1.0, 0.05, 1e-6, 0.999)

Laws = tuple[list[mpf], list[mpf]]


def pure(epsilon: float) -> Laws:
    likely = mp.exp(mpf(epsilon)) / (1 + mp.exp(mpf(epsilon)))
    return [likely, 1 - likely], [1 - likely, likely]


def responses(truth: float, categories: int) -> Laws:
    other = (1 - mpf(truth)) / (categories - 1)
    rest = [other] * (categories - 2)
    return [mpf(truth), other, *rest], [other, mpf(truth), *rest]


def discrete_laplace(scale: float, sensitivity: int) -> Laws:
    ratio = mp.exp(-1 / mpf(scale))
    reach = int(140 * scale) + 40 * sensitivity + 40
    norm = (1 - ratio) / (1 + ratio)
    outputs = range(-reach, reach + 1)
    return (
        [norm * ratio ** abs(x - sensitivity) for x in outputs],
        [norm * ratio ** abs(x) for x in outputs],
    )


def discrete_gaussian(scale: float, sensitivity: int) -> Laws:
    reach = int(25 * scale) + 130 * sensitivity + 5
    outputs = range(-reach, reach + 1)
    moved = [mp.exp(-(mpf(x - sensitivity) ** 2) / (2 * mpf(scale) ** 2)) for x in outputs]
    base = [mp.exp(-(mpf(x) ** 2) / (2 * mpf(scale) ** 2)) for x in outputs]
    whole = mp.fsum(base)
    return [x / whole for x in moved], [x / whole for x in base]


def of_sums(laws: Laws, rate: mpf, order: mpf) -> dict[str, mpf]:
    mixed = [(1 - rate) * base + rate * seen for seen, base in zip(*laws, strict=True)]
    pairs = list(zip(mixed, laws[1], strict=True))
    remove = mp.fsum(p**order * q ** (1 - order) for p, q in pairs)
    add = mp.fsum(q**order * p ** (1 - order) for p, q in pairs)
    return {"remove": mp.log(remove) / (order - 1), "add": mp.log(add) / (order - 1)}


def of_laplace(width: mpf, rate: mpf, order: mpf) -> dict[str, mpf]:
    """Integrate over Q of density exp(-|y|)/2, the loss being 2 y - w between 0 and w = width."""
    found = {}
    for direction, power in (("remove", order), ("add", 1 - order)):

        def weighed(loss: mpf, power: mpf = power) -> mpf:
            return (1 - rate + rate * mp.exp(loss)) ** power

        middle = mp.quad(
            lambda y, weighed=weighed: weighed(2 * y - width) * mp.exp(-y) / 2,
            mp.linspace(0, width, 9),
        )
        ends = weighed(-width) / 2 + weighed(width) * mp.exp(-width) / 2
        found[direction] = mp.log(ends + middle) / (order - 1)
    return found


def releases() -> Iterator[tuple[dict[str, object], object]]:
    for epsilon in (0.01, 1.0, 5.0):
        yield {"kind": "pure-dp", "epsilon": epsilon}, pure(epsilon)
    for truth, categories in ((0.75, 2), (0.5, 4)):
        named = {"kind": "randomized-response", "truth_probability": truth}
        yield named | {"categories": categories}, responses(truth, categories)
    for scale, sensitivity in ((1.0, 1), (0.3, 2), (20.0, 1), (1.0, 7)):
        named = {"kind": "discrete-laplace", "scale": scale, "sensitivity": sensitivity}
        yield named, discrete_laplace(scale, sensitivity)
    for scale, sensitivity in ((1.0, 1), (0.3, 2), (5.0, 1), (0.1, 1), (1.2, 3)):
        named = {"kind": "discrete-gaussian", "scale": scale, "sensitivity": sensitivity}
        yield named, discrete_gaussian(scale, sensitivity)
    for scale in (20.0, 1.0, 0.125):
        yield {"kind": "laplace", "scale": scale, "sensitivity": 1.0}, 1 / mpf(scale)


def main() -> None:
    values: list[dict[str, object]] = []
    for named, laws in releases():
        for rate in RATES if named["kind"] != "randomized-response" else (1.0,):
            for order in ORDERS:
                find = of_sums if isinstance(laws, tuple) else of_laplace
                found = find(laws, mpf(rate), mpf(order))
                sampled = {"kind": "poisson-sampled", "mechanism": named, "sampling_rate": rate}
                values.append(
                    {
                        "mechanism": sampled if rate < 1 else named,
                        "order": order,
                        "divergence": {
                            way: golden_file.digits(value) for way, value in found.items()
                        },
                    }
                )
    golden_file.write(__file__, "Renyi divergences of pairs of laws written out", values)


if __name__ == "__main__":
    main()
