"""Make pld_balls.json: 200 random ledgers, and delta of each as a ball: a value and a radius.

Drawn are Poisson-sampled Gaussians, one step to a million, runs of two of them, of one and
Laplace noise, and of Laplace noise alone, at epsilons that leave 1e-30 to 1e-3 of delta. With
S the sum of the losses, delta(epsilon) = E[(1 - e^(epsilon - S))+]. It is

 - of one step the closed form, in ball arithmetic;
 - of two steps the integral of that closed form against the other step's law, by a rigorous
   rule for integrals of balls; the contour below has to agree;
 - of more steps the integral along a contour that crosses the real line at some c > 0 alone,

       delta(epsilon) = (1 / 2 pi i) int exp(sum_i T_i log F_i(z) - z epsilon) / (z (z + 1)) dz,

   F_i(z) = E[exp(z L_i)], taken twice: the second time it crosses elsewhere, bends otherwise,
   and its F_i have other nodes along other lines. The radius holds the difference, rounding,
   the aliases of F_i, and what follows:
 - of Laplace noise alone make_laplace's closed form.

A heavy upper tail lets exp(z L) be too large for any use. Outputs x far out are therefore left
out, by the weight erfc((x - cut) / width) / 2, which is as analytic as the rest: delta falls by
at most the mass that is left out. F_i is a sum over equidistant nodes on a line x + i t. Of a
few lines that one is taken whose sum has the least aliases: e^(-2 pi d / spacing) times the sum
along a line d above, and another d below. A contour that bends towards where exp(-z epsilon)
falls off needs a few hundred nodes only.

It wants python-flint, and half an hour at most:

    python tests/golden/make_pld_balls.py
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import golden_file
import make_laplace
import numpy as np
from flint import acb, arb, ctx
from mpmath import mp, mpf
from scipy.special import log_ndtr

ctx.prec = 208  # bits: 62 digits

SEED = 20_240_613
TIMES = (1, 2, 3, 5, 10, 30, 100, 1000, 10_000, 100_000, 1_000_000)
PER_TIMES, TWO_SAMPLED, WITH_LAPLACE, LAPLACE_ALONE = 16, 8, 10, 6
LEAST, MOST = 1e-30, 1e-3
CLAIMED = 1e-12  # of delta, at most

WIDTHS = (0.1, 0.2, 0.35)  # of the soft cut, in sigmas
LINES = 8
SPARE = 15.0  # nats between the aliases of a line and what is asked for
SECONDS, NODES = 10.0, 6000  # for one contour, at most
PI, ROOT_2 = arb.pi(), arb(2).sqrt()

Way = str  # "remove" or "add"
Ledger = list[list[float]]  # [sampling rate, noise multiplier, steps], ..
Noises = list[list[float]]  # [scale of Laplace noise, steps], ..


class Failed(ArithmeticError):
    """This ledger is left out, and another one drawn."""


class LeansTooFar(Failed):
    """A contour that goes where aliases are larger than what is looked for."""


def normal_below(x: arb | acb) -> arb | acb:
    return (-x / ROOT_2).erfc() / 2


def up_to(radius: float | arb) -> arb:
    return arb(0, 1) * radius


# One step: the worst event is a half line.


def one_step(rate: arb, noise: arb, way: Way, power: acb, analytic: bool = False) -> acb:
    """Return delta where e^epsilon is ``power`` and some outputs have larger losses."""
    ratio = power if way == "remove" else 1 / power
    edge = noise**2 * ((ratio - 1 + rate) / rate).log(analytic=analytic) + arb(0.5)
    if way == "remove":
        base, moved = normal_below(-edge / noise), normal_below((1 - edge) / noise)
        return (1 - rate) * base + rate * moved - power * base
    base, moved = normal_below(edge / noise), normal_below((edge - 1) / noise)
    return base - power * ((1 - rate) * base + rate * moved)


def one_step_slope(rate: arb, noise: arb, way: Way, power: arb) -> arb:
    """Return the derivative in epsilon: -e^epsilon times the other law of the event."""
    ratio = power if way == "remove" else 1 / power
    edge = noise**2 * ((ratio - 1 + rate) / rate).log() + arb(0.5)
    if way == "remove":
        return -power * normal_below(-edge / noise)
    base, moved = normal_below(edge / noise), normal_below((edge - 1) / noise)
    return -power * ((1 - rate) * base + rate * moved)


# Two steps: a rigorous integral over the first output, up to where any second one is enough.


def integral(f: Callable[[acb, bool], acb], low: arb, high: arb, guess: float) -> arb:
    if not low < high:
        return arb(0)
    error = arb(guess) * arb(10) ** -18
    return acb.integral(f, low, high, abs_tol=error, depth_limit=400, eval_limit=200_000).real


def two_steps(ledger: Ledger, noises: Noises, way: Way, epsilon: float, guess: float) -> arb:
    """Return delta of two releases, the second of which is a sampled Gaussian."""
    rate, noise = arb(ledger[-1][0]), arb(ledger[-1][1])
    whole = arb(epsilon).exp()
    # What is left, e^(epsilon - first loss), is beyond this, or delta is 0 or simple.
    limit = 1 - rate if way == "remove" else 1 / (1 - rate)

    def second(left: acb, analytic: bool) -> acb:
        return one_step(rate, noise, way, left, analytic)

    gap = arb(10) ** -45
    if noises:
        size = 1 / arb(noises[0][0])

        def at(loss: acb, analytic: bool = False) -> acb:
            return second(whole * (-loss).exp(), analytic)

        def beyond(loss: acb) -> acb:
            return 1 - whole * (-loss).exp() if way == "remove" else acb(0)

        def inside(loss: arb) -> bool:
            left = whole * (-loss).exp()
            return bool(left > limit if way == "remove" else left < limit)

        def law(loss: acb) -> acb:
            return ((loss - size) / 2).exp() / 4

        total = arb(0)
        for loss, mass in ((size, arb(0.5)), (-size, (-size).exp() / 2)):
            total += mass * (at(acb(loss)) if inside(loss) else beyond(acb(loss))).real
        middle = whole.log() - limit.log()
        simple = [(lambda loss, _: law(loss) * beyond(loss)), -size, size]
        full = [(lambda loss, analytic: law(loss) * at(loss, analytic)), -size, size]
        if way == "remove":  # the larger the first loss, the less is left
            full[2] = min(size, middle - gap)
            simple[1] = max(-size, middle)
        else:
            full[1], simple[2] = max(-size, middle + gap), min(size, middle)
        return total + integral(*full, guess) + integral(*simple, guess) + up_to(gap)

    first_rate, first_noise = arb(ledger[0][0]), arb(ledger[0][1])

    def parts(x: acb) -> tuple[acb, acb]:
        """Return the density of the first output, and what it leaves of e^epsilon."""
        ratio = (1 - first_rate) + first_rate * ((2 * x - 1) / (2 * first_noise**2)).exp()
        density = (-(x**2) / (2 * first_noise**2)).exp() / (first_noise * (2 * PI).sqrt())
        if way == "remove":
            return density * ratio, whole / ratio
        return density, whole * ratio

    def full_part(x: acb, analytic: bool) -> acb:
        density, left = parts(x)
        return density * second(left, analytic)

    def simple_part(x: acb, _: bool) -> acb:
        density, left = parts(x)
        return density * (1 - left)

    reach = first_noise * arb(2 * (50 - math.log(guess))).sqrt()
    low, high = -reach, 1 + reach
    edge = ((whole / limit if way == "remove" else limit / whole) - 1 + first_rate) / first_rate
    cut = first_noise**2 * edge.log() + arb(0.5) if edge > 0 else low
    total = integral(full_part, low, min(high, cut - gap), guess)
    if way == "remove":
        total += integral(simple_part, max(low, cut), high, guess)
    return total + up_to(2 * gap) + up_to(arb(guess) * arb(10) ** -20)


# Any number of steps: a contour.


class SampledGaussian:
    """E[exp(z L)], outputs far out left out; first in double precision, then on lines."""

    def __init__(self, rate: float, noise: float, way: Way, log_left_out: float, width: float):
        self.rate, self.noise, self.sign = rate, noise, 1 if way == "remove" else -1
        self.width = width
        self.cut = 1 + noise * math.sqrt(-2 * log_left_out * (1 + width**2))

    def left_out(self) -> arb:
        spread = arb(self.noise) * (1 + arb(self.width) ** 2).sqrt()
        return normal_below((1 - arb(self.cut)) / spread)

    def rough(self) -> tuple[np.ndarray, np.ndarray]:
        """Return losses and their log masses."""
        s = self.noise
        x = np.linspace(-18 * s, self.cut + 15 * s, 1501)
        log_masses = -x * x / (2 * s * s)
        log_masses -= np.log(np.exp(log_masses).sum())
        log_masses += log_ndtr((self.cut - x) / (s * self.width))
        log_ratios = np.log1p(self.rate * np.expm1((2 * x - 1) / (2 * s * s)))
        return self.sign * log_ratios, log_masses + (log_ratios if self.sign > 0 else 0.0)

    def lay(self, nats: float, share: float, finer: float) -> None:
        """Lay lines for aliases of e^-nats; the two other arguments tell apart the two times."""
        s = self.noise
        self.nats = nats + SPARE
        top = share * min(0.6 * math.pi * s * s, 6 * s)
        far = min(0.97 * math.pi * s * s, 10 * s)  # the ratio of laws is 0 at pi s^2
        apart = min(0.4 * math.pi * s * s, 4 * s)
        growth = (2 * top * apart + apart**2) / (2 * s * s)
        spacing = (
            2
            * math.pi
            * min(apart / (self.nats + growth), self.width * s / math.sqrt(2 * self.nats))
        )
        self.spacing = arb(spacing / finer)
        step, self.lines = top / LINES, int(far / top * LINES)
        self.nodes = [self._line(step * k) for k in range(self.lines + 1)]
        lines = range(-self.lines, self.lines + 1)
        logs = [np.array([complex(log) for log, _ in line]) for line in self.nodes]
        weights = [np.array([float(weight.real) for _, weight in line]) for line in self.nodes]
        self.real = np.array([logs[abs(k)].real for k in lines])
        self.imaginary = np.array([math.copysign(1, k) * logs[abs(k)].imag for k in lines])
        self.weights = np.array([weights[abs(k)] for k in lines])
        fall = 2 * math.pi * step / float(self.spacing)
        away = np.subtract.outer(np.array(lines), np.array(lines)).T
        self.above = np.where(away > 0, -fall * away, np.inf)
        self.below = np.where(away < 0, fall * away, np.inf)

    def _line(self, height: float) -> list[tuple[acb, acb]]:
        """Return log ratios and log weights on the line at ``height``."""
        rate, s, width = arb(self.rate), arb(self.noise), arb(self.width * self.noise) * ROOT_2
        at_one = (self.spacing / (s * (2 * PI).sqrt())).log()
        reach = self.cut + 6 * self.noise + 10 * self.width * self.noise
        low = -int((self.cut + 3 * self.noise) / float(self.spacing))
        line = []
        for k in range(low, int(reach / float(self.spacing)) + 1):
            x = acb(k * self.spacing, self.sign * arb(height))
            ratio = (1 - rate) + rate * ((2 * x - 1) / (2 * s * s)).exp()
            weight = at_one - x * x / (2 * s * s)
            out = (x - self.cut) / width
            if float(out.real) > -math.sqrt(self.nats + 20 + float(out.imag) ** 2):
                weight += (out.erfc() / 2).log()
            line.append((ratio.log(), weight))
        return line

    def moment(self, z: acb) -> tuple[acb, float]:
        """Return E[exp(z L)] and the log of its aliases."""
        power = z + 1 if self.sign > 0 else -z
        rough = complex(power)
        turn = self.sign * rough.imag
        logs = rough.real * self.real - turn * self.imaginary + self.weights
        most = logs.max(axis=1)
        alias = np.maximum((most + self.above).min(axis=1), (most + self.below).min(axis=1))
        alias = np.maximum(alias, np.maximum(logs[:, 0], logs[:, -1])) + math.log(logs.shape[1])
        middle = slice(self.lines, self.lines + LINES + 1)
        chosen = int(np.argmin(np.maximum(alias[middle], most[middle] - self.nats)))
        row = self.lines + chosen
        line, total = self.nodes[chosen], acb(0)
        for k in np.flatnonzero(logs[row] > most[row] - self.nats - 5).tolist():
            log_ratio, weight = line[k]
            total += (power * log_ratio + weight).exp()
        return total, max(float(alias[row]), float(most[row]) - self.nats)


class Laplace:
    """E[exp(z L)] of Laplace noise at sensitivity 1."""

    def __init__(self, scale: float):
        self.size = 1 / arb(scale)

    def rough(self) -> tuple[np.ndarray, np.ndarray]:
        s = float(self.size)
        between = (np.arange(400) + 0.5) / 200 * s - s
        logs = (between - s) / 2 + math.log(s / 200 / 4)
        return np.append(between, [s, -s]), np.append(logs, [math.log(0.5), math.log(0.5) - s])

    def moment(self, z: acb) -> tuple[acb, float]:
        s, half = self.size, z + arb(0.5)
        atoms = ((z * s).exp() + (-(z + 1) * s).exp()) / 2
        return atoms + (-s / 2).exp() / 4 * ((half * s).exp() - (-half * s).exp()) / half, -1e3


@dataclass
class Tilts:
    """Chernoff's inequality in double precision: to choose a contour, and what to ask."""

    parts: list[tuple[SampledGaussian | Laplace, int]]

    def __post_init__(self) -> None:
        self.c = np.geomspace(1e-6, 1e13, 300)
        self.k, self.variance = np.zeros_like(self.c), np.zeros_like(self.c)
        for part, times in self.parts:
            losses, log_masses = part.rough()
            masses = np.exp(log_masses)
            for i, c in enumerate(self.c):
                logs = log_masses + c * losses
                tilted = np.exp(logs - logs.max())
                total = tilted.sum()
                if np.abs(c * losses[[0, -1]]).max() < 1:
                    log_moment = np.log1p(masses @ np.expm1(c * losses))
                else:
                    log_moment = logs.max() + np.log(total)
                off = losses - tilted @ losses / total
                self.k[i] += times * log_moment
                self.variance[i] += times * (tilted @ off**2) / total
        # The largest value of e^(-c u) (1 - e^-u).
        self.peak = self.c * np.log(self.c) - (1 + self.c) * np.log1p(self.c)

    def epsilon(self, delta: float) -> float:
        return float(np.min((self.k + self.peak - math.log(delta)) / self.c))

    def at(self, epsilon: float) -> tuple[float, float, float]:
        """Return the log of Chernoff's bound, its tilt, and the contour's width there."""
        logs = self.k + self.peak - self.c * epsilon
        best = int(np.argmin(logs))
        return float(logs[best]), float(self.c[best]), 1 / math.sqrt(self.variance[best] + 1e-300)


def tilts(ledger: Ledger, noises: Noises, way: Way, log_left_out: float, width: float) -> Tilts:
    parts: list[tuple[SampledGaussian | Laplace, int]] = [
        (SampledGaussian(rate, noise, way, log_left_out - math.log(steps), width), int(steps))
        for rate, noise, steps in ledger
    ]
    return Tilts(parts + [(Laplace(scale), int(steps)) for scale, steps in noises])


@dataclass
class Contour:
    """c + scale (lean (cosh tau - 1) + i sinh tau), by the trapezoid rule in tau."""

    parts: list[tuple[SampledGaussian | Laplace, int]]
    epsilon: float
    c: arb
    scale: arb
    lean: arb
    floor: float  # what may be left out of delta

    def __post_init__(self) -> None:
        self.aliases, self.deadline = 0.0, time.process_time() + SECONDS

    def value(self, tau: float) -> tuple[arb, arb]:
        """Return the integrand of delta and that of its derivative."""
        if time.process_time() > self.deadline:
            raise Failed("it takes too long")
        up = arb(tau).exp()
        cosh, sinh = (up + 1 / up) / 2, (up - 1 / up) / 2
        z = acb(self.c + self.scale * self.lean * (cosh - 1), self.scale * sinh)
        product, log_error = acb(1), -math.inf
        for part, times in self.parts:
            moment, alias = part.moment(z)
            product *= moment**times
            log_size = float(abs(moment).log().mid())
            log_error = max(log_error, math.log(times) + alias - log_size)
        step = acb(self.scale * self.lean * sinh, self.scale * cosh)
        term = product * (-z * self.epsilon).exp() / (z * (z + 1)) * step / PI
        size = abs(term).mid()
        error = size * arb(min(log_error, 1000.0)).exp()
        if not error < 1e5 * self.floor or not size < 1e30:
            raise LeansTooFar
        self.aliases = max(self.aliases, float(error))
        return term.imag, (-z * term).imag

    def integral(self) -> tuple[arb, arb]:
        spacing, nodes, small = 3 / 16, 1, 0  # exact in binary, as are its halves
        total, slope = (part / 2 for part in self.value(0.0))
        while small < 3:
            term, term_slope = self.value(nodes * spacing)
            total, slope = total + term, slope + term_slope
            small = small + 1 if abs(term) < self.floor else 0
            nodes += 1
            if nodes > NODES:
                raise Failed("it does not end")
        before, value = arb(math.inf), total * spacing
        while not abs(value - before) < max(1e-11 * abs(float(value)), 10 * self.floor):
            if 2 * nodes > NODES:
                raise Failed("it does not converge")
            spacing /= 2
            for k in range(1, 2 * nodes, 2):
                term, term_slope = self.value(k * spacing)
                total, slope = total + term, slope + term_slope
            nodes *= 2
            before, value = value, total * spacing
        return value + up_to(self.aliases * nodes * spacing), slope * spacing


def crossing(ledger: Ledger, noises: Noises, way: Way, epsilon: float, log_left_out: float):
    """Return the widest cut that costs little, its tilts, and where Chernoff's bound is least."""
    best = None
    for width in WIDTHS:
        found = tilts(ledger, noises, way, log_left_out, width)
        log_bound, c, scale = found.at(epsilon)
        if best is not None and log_bound > best[1] + 3:
            break
        best = found, log_bound, c, scale
    return best


def by_contour(
    ledger: Ledger, noises: Noises, way: Way, epsilon: float, guess: float, again: bool
) -> tuple[arb, arb]:
    """Return delta and its derivative, where delta is about ``guess``."""
    steps = sum(times for _, _, times in ledger)
    found, log_bound, c, scale = crossing(ledger, noises, way, epsilon, math.log(guess) - 45)
    floor = guess * 1e-18
    gaussians = [(part, times) for part, times in found.parts if isinstance(part, SampledGaussian)]
    for part, _ in gaussians:
        nats = max(log_bound - math.log(floor), 0.0) + 5 + math.log(steps)
        part.lay(nats, *((0.85, 1.1) if again else (1.0, 1.0)))
    place = arb(c * (0.9 if again else 1)), arb(min(c, scale))
    left_out = sum((times * part.left_out() for part, times in gaussians), arb(0))
    toward = (0.8 if again else 1.0) * (1 if way == "remove" else -1)
    for lean in [toward * 2.0**-k for k in range(1, 9)] + [0.0]:
        contour = Contour(found.parts, epsilon, *place, arb(lean), floor)
        with suppress(LeansTooFar):
            value, slope = contour.integral()
            return value + up_to(left_out), slope
    raise Failed("every contour leans too far")


def by_contours(
    ledger: Ledger, noises: Noises, way: Way, epsilon: float, guess: float
) -> tuple[arb, arb]:
    """Return delta and its derivative in epsilon, by two contours that agree."""
    while guess > 1e-42:
        value, slope = by_contour(ledger, noises, way, epsilon, guess, again=False)
        if value > arb(guess) * arb(10) ** -5:
            if value < LEAST and way == "remove":
                break
            other, _ = by_contour(ledger, noises, way, epsilon, guess, again=True)
            if not abs(value - other) < CLAIMED / 10 * value:
                raise Failed(f"two contours say {value} and {other}")
            return value.union(other) + up_to(2 * abs(value - other)), slope
        # It is far less than was thought: so is what may be left out.
        guess = max(float(value.mid()), guess * 1e-8)
    raise Failed("delta is too small")


def delta_one_way(
    ledger: Ledger, noises: Noises, way: Way, epsilon: float, guess: float
) -> tuple[arb, arb]:
    """Return delta and its derivative in epsilon."""
    if not noises and len(ledger) == 1 and ledger[0][2] == 1:
        rate, noise = arb(ledger[0][0]), arb(ledger[0][1])
        power = arb(epsilon).exp()
        if way == "add" and power * (1 - rate) >= 1:
            return arb(0), arb(0)
        value = one_step(rate, noise, way, acb(power)).real
        return value, one_step_slope(rate, noise, way, power)
    value, slope = by_contours(ledger, noises, way, epsilon, guess)
    if sum(steps for *_, steps in [*ledger, *noises]) == 2:
        twice = [ledger[0]] * 2 if len(ledger) == 1 and not noises else ledger
        ball = two_steps(twice, noises, way, epsilon, float(value.mid()))
        if not (ball.overlaps(value) and ball.rad() < CLAIMED * value):
            raise ArithmeticError(f"the contours say {value}, the integral of balls {ball}")
        return ball, slope
    return value, slope


def both_ways(
    ledger: Ledger, noises: Noises, epsilon: float, guess: float
) -> dict[Way, tuple[arb, arb]]:
    """Return delta as a record is removed, and as one is added unless that is far less."""
    found = {"remove": delta_one_way(ledger, noises, "remove", epsilon, guess)}
    delta = float(found["remove"][0].mid())
    if not LEAST <= delta <= MOST:
        raise Failed("delta is not what was asked for")
    log_bound = crossing(ledger, noises, "add", epsilon, math.log(delta) - 45)[1]
    if math.exp(min(log_bound, 0.0)) > 1e-6 * delta:
        found["add"] = delta_one_way(ledger, noises, "add", epsilon, math.exp(log_bound))
    return found


# What is asked, and how it is written.


def ball_digits(ball: arb) -> list[str]:
    """Return 20 digits and a radius that holds what they leave out."""
    middle = ball.mid()
    radius = float(ball.rad()) * 1.01 + abs(float(middle)) * 1e-19
    return [middle.str(20, radius=False), f"{radius:.3e}"]


def entry(
    ledger: Ledger, noises: Noises, epsilon: float, ways: dict[Way, tuple[arb, arb]]
) -> dict[str, object]:
    """Return delta at epsilon, and epsilon at the double next to the larger delta.

    They differ by less than one rounding: so the tangent tells the second from the first.
    """
    for delta, _ in ways.values():
        if delta > 0 and not delta.rad() < CLAIMED * delta:
            raise Failed("the radius is too large")
    delta, slope = max(ways.values(), key=lambda both: float(both[0].mid()))
    at_delta = float(delta.mid())
    there = arb(epsilon) + (arb(at_delta) - delta) / slope
    return {
        "ledger": ledger,
        "laplace": noises,
        "at_epsilon": epsilon,
        "delta": {way: ball_digits(ball) for way, (ball, _) in ways.items() if ball > 0},
        "at_delta": at_delta,
        "epsilon": ball_digits(there),
    }


def rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def between(random: np.random.Generator, low: float, high: float) -> float:
    """Return a number whose logarithm is even between two."""
    return math.exp(random.uniform(math.log(low), math.log(high)))


def asked(random: np.random.Generator, ledger: Ledger, noises: Noises) -> dict[str, object]:
    joins = sum(rate * steps * math.erf(0.3536 / noise) for rate, noise, steps in ledger)
    most = MOST if noises else min(MOST, joins / 2)
    if not most > 10 * LEAST:
        raise Failed("delta is always tiny")
    target = between(random, 3 * LEAST, most)
    epsilon = rounded(
        tilts(ledger, noises, "remove", math.log(target) - 2.3, 0.1).epsilon(target), 6
    )
    if not epsilon > 0:
        raise Failed("delta is never that large")
    return entry(ledger, noises, epsilon, both_ways(ledger, noises, epsilon, target))


def laplace_alone(random: np.random.Generator) -> dict[str, object]:
    scale, times = rounded(between(random, 0.4, 30), 3), int(random.integers(2, 13))
    epsilon = rounded(random.uniform(0.05, 0.9) * times / scale, 4)
    size, step = 1 / mpf(scale), mpf(10) ** -25
    low, value, high = (make_laplace.delta(epsilon + k * step, size, times) for k in (-1, 0, 1))
    if not LEAST <= value <= MOST:
        raise Failed("delta is not what was asked for")
    ball, slope = (arb(mp.nstr(x, 45)) for x in (value, (high - low) / (2 * step)))
    ball += up_to(ball * arb(10) ** -40)
    return entry([], [[scale, times]], epsilon, {"remove": (ball, slope)})


def draw(random: np.random.Generator, sort: int | str, part: float) -> dict[str, object]:
    """Return a ledger with its values; ``part`` of all sampling rates are smaller."""

    def sampled(steps: int, share: float) -> list[float]:
        rate = 10 ** (6 * share - 6)
        return [rounded(rate, 3), rounded(between(random, 0.3, 100), 3), steps]

    if sort == "laplace":
        return laplace_alone(random)
    if sort == "two":
        times = [int(steps) for steps in random.choice((1, 1, 3, 20, 400, 9000), 2)]
        return asked(random, [sampled(times[0], part), sampled(times[1], random.random())], [])
    if sort == "both":
        times = (1, 1) if random.random() < 0.4 else random.choice((1, 3, 10, 100, 3000), 2)
        noise = [rounded(between(random, 0.5, 50), 3), min(int(times[0]), 10)]
        return asked(random, [sampled(int(times[1]), part)], [noise])
    return asked(random, [sampled(int(sort), part)], [])


def spread(values: Sequence[dict[str, object]]) -> str:
    steps = Counter(
        str(value["ledger"][0][2])
        for value in values
        if len(value["ledger"]) == 1 and not value["laplace"]
    )
    rates = Counter(
        math.floor(math.log10(rate)) for value in values for rate, _, _ in value["ledger"]
    )
    return f"steps {dict(steps)}, powers of ten of sampling rates {dict(sorted(rates.items()))}"


def main() -> None:
    sorts: list[tuple[int | str, int]] = [(times, PER_TIMES) for times in TIMES]
    sorts += [("two", TWO_SAMPLED), ("both", WITH_LAPLACE), ("laplace", LAPLACE_ALONE)]
    values: list[dict[str, object]] = []
    left_out: Counter[str] = Counter()
    for place, (sort, count) in enumerate(sorts):
        began = time.process_time()
        for k in range(count):
            for attempt in itertools.count():
                random = np.random.default_rng([SEED, place, k, attempt])
                try:
                    values.append(draw(random, sort, (k + random.random()) / count))
                    break
                except Failed as failure:
                    left_out[str(failure)] += 1
        print(f"{sort}: {time.process_time() - began:.0f} s", flush=True)
    print(spread(values), dict(left_out))
    about = (
        "laplace: [[scale at sensitivity 1, steps], ..]; ledger: [[sampling rate, noise "
        "multiplier, steps], ..]; each value with its radius; what adding a record costs is "
        "left out where it is less than a millionth of what removing one does"
    )
    golden_file.write(__file__, about, values)


if __name__ == "__main__":
    main()
