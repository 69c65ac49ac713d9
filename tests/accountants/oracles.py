"""What the tests hold accountants against: slow, obvious, and written without their code."""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.special import ndtr

Release = tuple[float, float]  # sampling rate, noise multiplier


def one_step_delta(epsilon: float, rate: float, noise: float, direction: str) -> float:
    """Return the hockey-stick divergence of one Poisson-sampled Gaussian, any real epsilon.

    P = (1-q) N(0, s^2) + q N(1, s^2) against Q = N(0, s^2), or the two swapped (add). The
    ratio rises with the output, so the worst event is a half line.
    """
    ratio = math.exp(epsilon if direction == "remove" else -epsilon)  # P/Q, Q/P at the edge
    if ratio <= 1 - rate:  # the mixture is nowhere that much smaller than the base
        return 1 - math.exp(epsilon) if direction == "remove" else 0.0
    edge = noise**2 * math.log((ratio - 1 + rate) / rate) + 0.5
    if direction == "remove":
        base, moved = ndtr(-edge / noise), ndtr((1 - edge) / noise)
        return float((1 - rate) * base + rate * moved - math.exp(epsilon) * base)
    base, moved = ndtr(edge / noise), ndtr((edge - 1) / noise)
    return float(base - math.exp(epsilon) * ((1 - rate) * base + rate * moved))


def two_step_delta(epsilon: float, first: Release, second: Release, direction: str) -> float:
    """Return delta of two steps: the mean over the first output of the second step's delta."""
    rate, noise = first
    x = np.linspace(-12 * noise, 1 + 12 * noise, 20_001)

    def normal(mean: float) -> np.ndarray:
        return np.exp(-((x - mean) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi))

    base, mixture = normal(0), (1 - rate) * normal(0) + rate * normal(1)
    seen, other = (mixture, base) if direction == "remove" else (base, mixture)
    with np.errstate(divide="ignore", invalid="ignore"):
        losses = np.log(seen) - np.log(other)
    rest = [one_step_delta(epsilon - loss, *second, direction) for loss in losses]
    return float(np.sum(seen * rest) * (x[1] - x[0]))


def responses_delta(epsilon: float, truth: float, categories: int, times: int) -> float:
    """Return delta of a few randomized responses: the sum over every string of answers."""
    other = (1 - truth) / (categories - 1)
    with_record = [truth] + [other] * (categories - 1)
    replaced = [other, truth] + [other] * (categories - 2)
    total = 0.0
    for answers in itertools.product(range(categories), repeat=times):
        p = math.prod(with_record[answer] for answer in answers)
        q = math.prod(replaced[answer] for answer in answers)
        total += max(0.0, p - math.exp(epsilon) * q)
    return total
