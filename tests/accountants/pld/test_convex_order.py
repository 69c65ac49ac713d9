"""pld is held against an enclosure without transforms; and the enclosure notices its own errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from dpaudit.accountants import pld
from dpaudit.vocabulary.mechanism import (
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants import convex_order
from tests.accountants.convex_order import RatioAtoms

ADD, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE

Parts = Callable[[bool], Sequence[tuple[RatioAtoms, int]]]
STEP = 0.02


def poisson(noise: float, rate: float, step: float = STEP) -> Callable[[bool], RatioAtoms]:
    return lambda above: convex_order.sampled_gaussian(noise, rate, step, above=above)


def laplace(scale: float) -> Callable[[bool], RatioAtoms]:
    return lambda above: convex_order.laplace(scale, STEP, above=above)


def responses(truth: float, categories: int) -> RatioAtoms:
    other = (1 - truth) / (categories - 1)
    losses = [math.log(truth / other), 0.0, math.log(other / truth)]
    return convex_order.from_masses(losses, [truth, other * (categories - 2), other])


def integer_noise(log_weight: Callable[[float], float], reach: int) -> RatioAtoms:
    """Return the law of noise on integers that a record moves by one."""
    total = math.fsum(math.exp(log_weight(k)) for k in range(-reach, reach + 1))
    values = range(-reach + 1, reach + 1)
    losses = [log_weight(k) - log_weight(k - 1) for k in values]
    return convex_order.from_masses(losses, [math.exp(log_weight(k)) / total for k in values])


def one_pass(noise: float, doublings: int) -> Callable[[bool], RatioAtoms]:
    """Return the law of a pass of 2^doublings steps."""

    def law(above: bool) -> RatioAtoms:
        found = convex_order.sampled_gaussian(noise, 1.0, STEP, above=above)
        for _ in range(doublings):
            found = convex_order.mean(found, found, STEP, above=above)
        return found

    return law


def parts(*pairs: tuple[Callable[[bool], RatioAtoms], int]) -> Parts:
    return lambda above: [(law(above), times) for law, times in pairs]


# Mechanism, its law, adjacency, epsilon, step of the grid, and the largest relative width there.
LEDGERS: dict[str, tuple[Mechanism, Parts, Adjacency, float, float, float]] = {
    "one Poisson step": (
        PoissonSampled(Gaussian(1.0), 0.1), parts((poisson(1.0, 0.1), 1)), ADD, 0.5, STEP, 1e-3),
    "Poisson steps": (
        Repeated(PoissonSampled(Gaussian(0.8), 0.05), 30),
        parts((poisson(0.8, 0.05), 30)), ADD, 2.0, STEP, 0.02),
    "rare steps": (
        Repeated(PoissonSampled(Gaussian(0.8), 1e-3), 12),
        parts((poisson(0.8, 1e-3), 12)), ADD, 1.0, STEP, 0.02),
    "two kinds of steps": (
        Composed([
            Repeated(PoissonSampled(Gaussian(2.0), 0.3), 8), PoissonSampled(Gaussian(1.0), 0.02),
        ]),
        parts((poisson(2.0, 0.3), 8), (poisson(1.0, 0.02), 1)), ADD, 1.0, STEP, 0.02),
    "Gaussians": (
        Repeated(Gaussian(3.0), 5), parts((poisson(3.0, 1.0), 5)), ADD, 1.0, STEP, 0.01),
    "Laplace": (
        Repeated(Laplace(2.0), 9), parts((laplace(2.0), 9)), ADD, 2.0, STEP, 0.01),
    "Laplace and steps": (
        Composed([Repeated(Laplace(3.0), 4), Repeated(PoissonSampled(Gaussian(1.0), 0.1), 6)]),
        parts((laplace(3.0), 4), (poisson(1.0, 0.1), 6)), ADD, 1.5, STEP, 0.01),
    "discrete Laplace": (
        Repeated(DiscreteLaplace(2.0), 7),
        parts((lambda above: integer_noise(lambda k: -abs(k) / 2.0, 100), 7)),
        ADD, 1.2, STEP, 0.02),
    "discrete Gaussian": (
        Repeated(DiscreteGaussian(1.5), 4),
        parts((lambda above: integer_noise(lambda k: -k * k / 4.5, 30), 4)), ADD, 2.0, STEP, 0.02),
    "responses": (
        Repeated(RandomizedResponse(0.7, 3), 6),
        parts((lambda above: responses(0.7, 3), 6)), REPLACE, 3.0, STEP, 0.02),
    "one pass": (
        RandomAllocation(Gaussian(1.0), 8), parts((one_pass(1.0, 3), 1)), ADD, 1.5, STEP, 0.02),
    "passes": (
        Repeated(RandomAllocation(Gaussian(1.5), 16), 5),
        parts((one_pass(1.5, 4), 5)), ADD, 0.8, STEP, 0.06),
    "passes, steps and Laplace": (
        Composed([
            Repeated(RandomAllocation(Gaussian(1.5), 4), 2), Laplace(3.0),
            Repeated(PoissonSampled(Gaussian(1.0), 0.1), 3),
        ]),
        parts((one_pass(1.5, 2), 2), (laplace(3.0), 1), (poisson(1.0, 0.1), 3)),
        ADD, 1.5, STEP, 0.02),
}  # fmt: skip


@pytest.mark.parametrize("name", LEDGERS)
def test_the_intervals_overlap(name: str) -> None:
    mechanism, law, adjacency, epsilon, step, width = LEDGERS[name]
    lower, upper = convex_order.enclosed_delta(law, epsilon, step)
    assert upper - lower <= width * upper
    found = pld.profile(mechanism, adjacency=adjacency).delta(epsilon=epsilon)
    assert lower <= found.upper
    assert found.lower <= upper


def test_a_transform_that_loses_a_percent_is_noticed() -> None:
    mechanism, law, adjacency, epsilon, step, _ = LEDGERS["Laplace"]
    lower, upper = convex_order.enclosed_delta(law, epsilon, step)
    found = pld.profile(mechanism, adjacency=adjacency).delta(epsilon=epsilon)
    assert not lower <= 0.99 * found.upper or not found.lower <= upper
    assert not found.lower * 1.01 <= upper


def test_merging_lowers_and_spreading_raises_every_delta() -> None:
    draw = np.random.default_rng(3)
    losses = np.sort(draw.normal(0, 1, 200))
    p = draw.dirichlet(np.ones(200))
    atoms = convex_order.from_masses(losses.tolist(), p.tolist())
    merged, spread = (convex_order.regroup(atoms, 0.3, above=above) for above in (False, True))
    for epsilon in np.linspace(0, 3, 31):
        exact = convex_order.deltas(replace(atoms), float(epsilon), above=False)
        low = convex_order.deltas(merged, float(epsilon), above=False)
        high = convex_order.deltas(spread, float(epsilon), above=True)
        for lower, middle, upper in zip(low, exact, high, strict=True):
            assert lower <= middle * (1 + 1e-9) + 1e-15
            assert middle <= upper * (1 + 1e-9) + 1e-15
