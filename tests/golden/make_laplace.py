"""Make laplace.json: composed Laplace noise, in closed form, at 80 digits.

With s = sensitivity / scale, one release's loss is s with probability 1/2, -s with
probability e^-s / 2, and between them has the density e^((l - s)/2) / 4. So of T releases
a lie at the top, b at the bottom, and the sum of the other k has the density

    4^-k e^(-k s / 2) e^(x / 2) V_k(x),
    V_k(x) = sum_j (-1)^j binomial(k, j) (x + k s - 2 s j)+^(k-1) / (k-1)!,

the volume of the slice of a cube. delta(epsilon) = E[(1 - e^(epsilon - loss))+] is then a
sum of integrals of e^(+-x/2) against powers, which integration by parts solves.
"""

from __future__ import annotations

import golden_file
from mpmath import mp, mpf

mp.dps = 80

SCALES = (0.5, 2.0, 10.0)
TIMES = (1, 2, 5, 12)
DELTAS = (1e-3, 1e-5, 1e-12, 1e-30)
SHARES = ("0.1", "0.6")  # of the largest loss


def antiderivative(rate: mpf, power: int, x: mpf) -> mpf:
    """Return the sum of (-1)^i e^(rate x) x^(power - i) / ((power - i)! rate^(i + 1))."""
    total, sign, scale = mpf(0), 1, rate
    for i in range(power + 1):
        total += sign * x ** (power - i) / mp.factorial(power - i) / scale
        sign, scale = -sign, scale * rate
    return total * mp.exp(rate * x)


def slice_integral(rate: mpf, k: int, s: mpf, least: mpf) -> mpf:
    """Return the integral of e^(rate x) V_k(x) from ``least`` on."""
    top, total = k * s, mpf(0)
    for j in range(k + 1):
        start = 2 * s * j - k * s
        low = max(start, least)
        if low < top:
            whole = antiderivative(rate, k - 1, top - start)
            part = whole - antiderivative(rate, k - 1, low - start)
            total += (-1) ** j * mp.binomial(k, j) * mp.exp(rate * start) * part
    return total


def delta(epsilon: mpf, s: mpf, times: int) -> mpf:
    total = mpf(0)
    for k in range(times + 1):
        for a in range(times - k + 1):
            b = times - k - a
            ways = mp.binomial(times, k) * mp.binomial(times - k, a)
            left = epsilon - (a - b) * s
            if k == 0:
                excess = 1 - mp.exp(left) if left < 0 else mpf(0)
            elif left < k * s:
                least = max(left, -k * s)
                half = mpf(1) / 2
                up, down = (slice_integral(rate, k, s, least) for rate in (half, -half))
                excess = (up - mp.exp(left) * down) * mp.exp(-k * s / 2) / mpf(4) ** k
            else:
                continue
            total += ways * mp.exp(-b * s) / mpf(2) ** (a + b) * excess
    return total


def epsilon_of(target: float, s: mpf, times: int) -> mpf:
    """Bisect, then take secants inside the bracket; delta falls to 0 at the largest loss."""
    low, high = mpf(0), times * s
    if delta(low, s, times) <= target:
        return low
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle, s, times) > target else (low, middle)
    found = mp.findroot(
        lambda e: delta(e, s, times) / target - 1, (low, high), solver="illinois", tol=1e-50
    )
    if not abs(delta(found, s, times) / target - 1) < mpf(10) ** -24:
        raise ArithmeticError("the root was not found")
    return found


def main() -> None:
    values: list[dict[str, object]] = []
    for scale in SCALES:
        for times in TIMES:
            s = 1 / mpf(scale)
            where = {"scale": scale, "times": times}
            for target in DELTAS:
                epsilon = golden_file.digits(epsilon_of(target, s, times))
                values.append(where | {"at_delta": target, "epsilon": epsilon})
            for share in SHARES:
                at = float(mpf(share) * times * s)
                there = golden_file.digits(delta(mpf(at), s, times))
                values.append(where | {"at_epsilon": at, "delta": there})
    golden_file.write(__file__, "Laplace noise at sensitivity 1, closed form at 80 digits", values)


if __name__ == "__main__":
    main()
