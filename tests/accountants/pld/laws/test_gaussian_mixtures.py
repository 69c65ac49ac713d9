"""Pairs of Gaussian mixtures against quadrature, convolution and simulation of the mechanisms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import beta, binom, norm

from dpaudit.accountants import pld
from dpaudit.accountants.group_privacy import group_delta, group_epsilon
from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.laws.gaussian_mixtures import (
    MixturePair,
    lower_law,
    replaced_pair,
    sampled_pair,
    upper_law,
)
from dpaudit.accountants.pld.laws.loss_distribution import LossDistribution
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    Repeated,
    SampledWithoutReplacement,
    TruncatedPoisson,
)
from dpaudit.vocabulary.pairs import MixtureOfGaussians
from dpaudit.vocabulary.privacy_terms import Adjacency

Array = NDArray[np.float64]
RATIOS = np.array([0.05, 0.3, 0.8, 0.99, 1.0, 1.01, 1.2, 2.0, 5.0, 30.0])


def divergence(p: Array, q: Array, ratio: float) -> float:
    """Return the sum of (p - ratio q)+ over masses."""
    return float(np.maximum(p - ratio * q, 0).sum())


def line_masses(pair: MixturePair, step: float = 2e-3) -> tuple[Array, Array]:
    """Return the masses of a pair on cells of the axis, straight from the distribution function."""
    x = np.arange(-max(pair.left) - 11, max(pair.right) + 11, step)
    p = sum(
        w * np.diff(norm.cdf(x, c)) for c, w in zip(pair.right, pair.right_weights, strict=True)
    )
    q = sum(w * np.diff(norm.cdf(x, -d)) for d, w in zip(pair.left, pair.left_weights, strict=True))
    return np.asarray(p), np.asarray(q)


def mixture_density(weights: Sequence[float], shifts: Array, grids: Sequence[Array]) -> Array:
    """Return the density of a mixture of unit Gaussians on a grid of the line or the plane."""
    total = np.zeros([len(grid) for grid in grids])
    for weight, shift in zip(weights, shifts, strict=True):
        axes = [norm.pdf(grid, at) for grid, at in zip(grids, shift, strict=True)]
        total += weight * (axes[0] if len(axes) == 1 else np.outer(*axes))
    return total


def smooth_divergence(p: Array, q: Array, ratio: float) -> float:
    """Sum q softplus((p/q - ratio)/w) w: convex in p/q as (p - ratio q)+ is, but smooth.

    The trapezoid rule is accurate to rounding for smooth functions that decay at both ends.
    """
    width = 0.3 * ratio
    inside = q > 0
    p, q = p[inside], q[inside]
    return float((q * width * np.logaddexp(0, (p / q - ratio) / width)).sum())


def subsets(vectors: Array, rate: float) -> tuple[list[float], Array]:
    """Return the probability and the sum of every subset that coins may select."""
    weights, sums = [1.0], np.zeros((1, 2))
    for vector in vectors:
        weights = [w * (1 - rate) for w in weights] + [w * rate for w in weights]
        sums = np.concatenate([sums, sums + vector])
    return weights, sums


def binomial_pair(first: int, second: int, rate: float, shift: float) -> MixturePair:
    def side(records: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        counts = range(records + 1)
        return (
            tuple(shift * k for k in counts),
            tuple(float(binom.pmf(k, records, rate)) for k in counts),
        )

    return MixturePair(*side(first), *side(second))


PLANE_STEP, PLANE_ERROR = 0.1, 1e-9
GRID = np.arange(-12, 12, PLANE_STEP)


def exceeds(first: Array, second: Array, rate: float, pair: MixturePair) -> bool:
    """Return whether records of the plane are easier to tell apart than a pair says."""
    p, q = (mixture_density(*subsets(records, rate), (GRID, GRID)) for records in (first, second))
    above = mixture_density(pair.right_weights, np.array(pair.right)[:, None], (GRID,))
    below = mixture_density(pair.left_weights, -np.array(pair.left)[:, None], (GRID,))
    return any(
        smooth_divergence(p, q, t) * PLANE_STEP**2
        > smooth_divergence(above, below, t) * PLANE_STEP + PLANE_ERROR
        for t in RATIOS
    )


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 1), (1, 2), (3, 0), (2, 2)])
def test_no_records_of_the_plane_exceed_the_pair_of_opposite_ones(first: int, second: int) -> None:
    rng = np.random.default_rng(first * 10 + second)
    for rate, shift in ((0.05, 1.0), (0.4, 1.5), (0.9, 0.6)):
        pair = binomial_pair(first, second, rate, shift)
        for _ in range(3):
            angles = rng.uniform(0, 2 * math.pi, first + second)
            lengths = shift * rng.uniform(0, 1, first + second) ** 0.25
            records = np.stack([lengths * np.cos(angles), lengths * np.sin(angles)], axis=1)
            assert not exceeds(records[:first], records[first:], rate, pair)


@pytest.mark.parametrize(
    "planted",
    [
        replaced_pair(0.98, 0.3),  # records that are too short
        replaced_pair(1.0, 0.29),  # sampled too rarely
        sampled_pair(1.0, 0.3),  # the other record is forgotten
        MixturePair((0.0, 2.0), (0.7, 0.3)),  # both changes in one data set
    ],
)
def test_a_planted_pair_is_exceeded_by_opposite_records(planted: MixturePair) -> None:
    first, second = np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]])
    assert not exceeds(first, second, 0.3, replaced_pair(1.0, 0.3))
    assert exceeds(first, second, 0.3, planted)


EPSILONS = (0.0, 0.04, 0.5)


def rounded_convolution(pair: MixturePair, times: int) -> tuple[Array, Array]:
    """Enclose delta by convolution of losses that are rounded to a lattice, down and up."""
    step = 5e-4
    p, q = line_masses(pair, 1.25e-4)
    inside = (p > 1e-200) & (q > 1e-200)
    losses = np.log(p[inside] / q[inside])
    found = []
    for rounding, slack in ((np.floor, -1), (np.ceil, 1)):
        # A cell's loss varies by less than a lattice step around its mean.
        cells = rounding(losses / step).astype(int) + slack
        law = np.bincount(cells - cells.min(), p[inside])
        total, start = law, int(cells.min())
        for _ in range(times - 1):
            total, start = fftconvolve(total, law), start + int(cells.min())
        at = (start + np.arange(len(total))) * step
        found.append(hockey_sticks(at, total))
    return found[0] - 1e-12, found[1] + 1e-12


def hockey_sticks(losses: Array, masses: Array) -> Array:
    return np.array(
        [(masses * -np.expm1(np.minimum(epsilon - losses, 0))).sum() for epsilon in EPSILONS]
    )


def atoms_deltas(law: LossDistribution, times: int) -> Array:
    """Return delta of ``times`` laws of atoms, by direct sums over all pairs of losses."""
    losses, masses = law.atom_losses, law.atom_masses
    for _ in range(times - 1):
        losses = np.add.outer(losses, law.atom_losses).ravel()
        masses = np.multiply.outer(masses, law.atom_masses).ravel()
    return hockey_sticks(losses, masses) + times * law.truncated_mass


PAIRS = [
    replaced_pair(1.0, 0.2),
    sampled_pair(1.3, 0.05),
    binomial_pair(3, 1, 0.2, 0.5),
    MixturePair((0.5, 2.0), (0.9, 0.1)),
]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("pair", PAIRS[:3], ids=range(3))
def test_laws_enclose_convolutions_and_reject_a_perturbed_pair(
    pair: MixturePair, direction: Direction
) -> None:
    facing = pair.towards(direction)
    upper, lower = (law(pair, direction, 1e-8) for law in (upper_law, lower_law))
    stretched = MixturePair(
        tuple(1.05 * c for c in facing.right),
        facing.right_weights,
        tuple(1.05 * d for d in facing.left),
        facing.left_weights,
    )
    below, above = rounded_convolution(facing, 2)
    most = atoms_deltas(upper, 2)
    assert (atoms_deltas(lower, 2) <= above).all()
    assert (most >= below).all()
    planted, _ = rounded_convolution(stretched, 2)
    assert (most < planted).any(), "a pair that is 5% longer is told apart"


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("pair", PAIRS, ids=range(len(PAIRS)))
def test_a_single_release_is_enclosed_to_six_digits(
    pair: MixturePair, direction: Direction
) -> None:
    p, q = line_masses(pair.towards(direction), 1e-3)
    most, least = (atoms_deltas(law(pair, direction, 1e-20), 1) for law in (upper_law, lower_law))
    truth = np.array([divergence(p, q, math.exp(epsilon)) for epsilon in EPSILONS])
    assert (least <= truth * (1 + 1e-6) + 1e-12).all()
    assert (truth <= most * (1 + 1e-9) + 1e-13).all()
    assert (most - least <= 1e-4 * most + 1e-8).all()


# Truncated Poisson samples.

CUT = TruncatedPoisson(Gaussian(1.0), 0.3, dataset_size=6, largest_batch=2)


def cut_outputs(
    kept_others: Callable[[int], float], record: float, others: int, plan: TruncatedPoisson
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return weights and means of the outputs with and without a record.

    The batch keeps a uniform subset of ``largest_batch`` of the drawn records. All others
    contribute the same, so their number determines the sum.
    """
    rate, most = plan.sampling_rate, plan.largest_batch
    with_record, without = [], []
    for drawn in range(others + 1):
        chance = float(binom.pmf(drawn, others, rate))
        kept = rate * min(1.0, most / (drawn + 1))
        alone = kept_others(min(drawn, most))
        joined = kept_others(min(drawn, most - 1)) + record
        with_record += [(chance * (1 - kept), alone), (chance * kept, joined)]
        without.append((chance, alone))
    return with_record, without


def masses_of(components: list[tuple[float, float]], x: Array) -> Array:
    return np.asarray(sum(w * np.diff(norm.cdf(x, mean)) for w, mean in components))


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("value", [-1.0, 0.0, 0.5, 1.0])
def test_no_records_exceed_the_pair_of_a_truncated_sample(value: float, epsilon: float) -> None:
    x = np.arange(-14, 14, 2e-3)
    found = pld.profile(CUT).delta(epsilon=epsilon)
    for others in (CUT.dataset_size, CUT.dataset_size - 1):
        first, second = cut_outputs(lambda n: n * value, 1.0, others, CUT)
        p, q = masses_of(first, x), masses_of(second, x)
        for one, other in ((p, q), (q, p)):
            assert divergence(one, other, math.exp(epsilon)) <= found.upper + 1e-12


def test_displaced_records_exceed_a_sample_without_truncation() -> None:
    """The planted error: accounting for the cut sample as if nothing was cut."""
    x = np.arange(-14, 14, 2e-3)
    often = TruncatedPoisson(Gaussian(1.0), 0.3, dataset_size=30, largest_batch=1)
    first, second = cut_outputs(lambda n: -n, 1.0, 30, often)
    attained = divergence(masses_of(first, x), masses_of(second, x), math.exp(0.2))
    planted = pld.profile(PoissonSampled(Gaussian(1.0), 0.3 / 30)).delta(epsilon=0.2)
    assert planted.upper < attained <= pld.profile(often).delta(epsilon=0.2).upper


def test_simulated_truncated_batches_stay_below_delta() -> None:
    """Draw batches, cut them and test events; bounds of probabilities fail 1e-9 of the time."""
    rng, trials, epsilon = np.random.default_rng(7), 200_000, 0.2
    drawn = rng.random((trials, CUT.dataset_size + 1)) < CUT.sampling_rate
    keys = np.where(drawn, rng.random(drawn.shape), 2.0)
    order = np.argsort(keys, axis=1)[:, : CUT.largest_batch]
    kept = np.take_along_axis(drawn, order, axis=1)
    joined = ((order == 0) & kept).any(axis=1)  # record 0 is the one that may be removed
    others = kept.sum(axis=1) - joined
    with_record = joined - 1.0 * others + rng.normal(size=trials)
    alone = np.minimum((drawn[:, 1:]).sum(axis=1), CUT.largest_batch)
    without = -1.0 * alone + rng.normal(size=trials)
    most = pld.profile(CUT).delta(epsilon=epsilon).upper
    for cut in (-1.0, 0.0, 1.0, 2.0):
        hits, misses = int((with_record > cut).sum()), int((without > cut).sum())
        least = float(beta.ppf(1e-10, hits, trials - hits + 1))
        largest = float(beta.ppf(1 - 1e-10, misses + 1, trials - misses))
        assert least - math.exp(epsilon) * largest <= most
    # The events have power: they contradict half of that delta.
    found = max(
        float((with_record > cut).mean() - math.exp(epsilon) * (without > cut).mean())
        for cut in (0.0, 0.5, 1.0)
    )
    assert found > most / 4


@pytest.mark.parametrize("adjacency", Adjacency)
def test_a_truncated_sample_costs_at_least_what_records_of_zero_attain(
    adjacency: Adjacency,
) -> None:
    plan = TruncatedPoisson(Gaussian(1.0), 0.01, dataset_size=10_000, largest_batch=150)
    cut = pld.profile(Repeated(plan, 1000), adjacency=adjacency).epsilon(delta=1e-6)
    whole = pld.profile(
        Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000), adjacency=adjacency
    ).epsilon(delta=1e-6)
    assert whole.lower * (1 - 1e-3) <= cut.lower <= whole.upper
    assert whole.lower <= cut.upper <= whole.upper * 1.01  # the chance of any cut is 0.1%


@pytest.mark.parametrize(("cap", "published"), [(130, 4.921), (140, 3.126), (150, 2.138)])
def test_truncated_samples_reach_the_values_of_dp_accounting(cap: int, published: float) -> None:
    plan = TruncatedPoisson(Gaussian(1.0), 0.01, dataset_size=10_000, largest_batch=cap)
    found = pld.profile(Repeated(plan, 1000)).epsilon(delta=1e-6)
    assert found.lower <= published <= found.upper * 1.001
    assert found.upper <= published * 1.01


# Groups of records.


def test_four_records_cost_what_their_binomial_mixture_attains() -> None:
    plan = Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000)
    found = group_epsilon(plan, size=4, delta=1e-6)
    assert 10.014 <= found.lower <= 10.0153 <= found.upper <= 10.0165  # dp_accounting: 10.015


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.5])
def test_a_group_is_enclosed_over_all_its_splits(size: int, epsilon: float) -> None:
    rate, noise = 0.2, 1.25
    found = group_delta(PoissonSampled(Gaussian(noise), rate), size=size, epsilon=epsilon)
    truths = [
        divergence(
            *line_masses(binomial_pair(first, size - first, rate, 1 / noise)), math.exp(epsilon)
        )
        for first in range(size + 1)
    ]
    assert found.lower <= max(truths) * (1 + 1e-5)
    assert max(truths) * (1 - 1e-6) <= found.upper <= max(truths) * (1 + 1e-4)


def test_other_releases_of_a_group_are_enlarged() -> None:
    run = Composed((Gaussian(8.0), PoissonSampled(Gaussian(1.0), 0.1)))
    found = group_delta(run, size=2, epsilon=0.5)
    mixture = MixtureOfGaussians(1.0, (0.0, 1.0, 2.0), (0.81, 0.18, 0.01))
    alone = pld.profile(Composed((Gaussian(4.0), mixture))).delta(epsilon=0.5)
    assert alone.lower <= found.upper
    assert found.lower <= alone.upper * (1 + 1e-3)


def test_a_replaced_group_replaces_all_its_records() -> None:
    step = PoissonSampled(Gaussian(1.5), 0.1)
    found = group_delta(step, size=2, epsilon=0.3, adjacency=Adjacency.REPLACE_ONE)
    p, q = line_masses(binomial_pair(2, 2, 0.1, 1 / 1.5))
    truth = divergence(p, q, math.exp(0.3))
    assert found.lower <= truth * (1 + 1e-5)
    assert truth * (1 - 1e-6) <= found.upper <= truth * (1 + 1e-4)


# The public mechanism.

USER = MixtureOfGaussians(1.0, [0.0, 1.0, 2.0], [0.98, 0.01, 0.01])


def test_a_mixture_reaches_the_value_of_dp_accounting() -> None:
    found = pld.profile(Repeated(USER, 200)).epsilon(delta=1e-5)
    assert 8.161 <= found.lower <= 8.1628 <= found.upper <= 8.165


@pytest.mark.parametrize(
    ("mixture", "same"),
    [
        (MixtureOfGaussians(2.0, [1.0], [1.0]), Gaussian(2.0)),
        (MixtureOfGaussians(2.0, [0.0, 1.0], [0.9, 0.1]), PoissonSampled(Gaussian(2.0), 0.1)),
        (MixtureOfGaussians(1.0, [1.0, 1.0], [0.5, 0.5]), Gaussian(1.0)),
        (
            PoissonSampled(MixtureOfGaussians(2.0, [4.0], [1.0]), 0.3),
            PoissonSampled(Gaussian(0.5), 0.3),
        ),
    ],
)
def test_mixtures_of_one_shift_are_sampled_gaussians(mixture: Mechanism, same: Mechanism) -> None:
    found = pld.profile(mixture).delta(epsilon=0.4)
    truth = pld.profile(same).delta(epsilon=0.4)
    assert found.upper == pytest.approx(truth.upper, rel=1e-9)
    assert found.lower == pytest.approx(truth.lower, rel=1e-9)


def test_a_mixture_on_a_sample_rests_more_often() -> None:
    sampled = pld.profile(PoissonSampled(USER, 0.5)).delta(epsilon=0.1)
    merged = MixtureOfGaussians(1.0, [0.0, 1.0, 2.0], [0.99, 0.005, 0.005])
    truth = pld.profile(merged).delta(epsilon=0.1)
    assert sampled.lower <= truth.upper
    assert truth.lower <= sampled.upper <= truth.upper * (1 + 1e-4)


def test_opposite_mixtures_are_a_replaced_record() -> None:
    mixture = MixtureOfGaussians(1.0, [0.0, 1.0], [0.8, 0.2], [0.0, 1.0], [0.8, 0.2])
    replaced = pld.profile(
        PoissonSampled(Gaussian(1.0), 0.2), adjacency=Adjacency.REPLACE_ONE
    ).delta(epsilon=0.5)
    for adjacency in Adjacency:
        found = pld.profile(mixture, adjacency=adjacency).delta(epsilon=0.5)
        assert found.upper == pytest.approx(replaced.upper, rel=1e-6)
        assert found.lower == pytest.approx(replaced.lower, rel=1e-6)


def test_replaced_records_cost_less_by_poisson_than_by_fixed_batches() -> None:
    """Both take part with the same probability; a fixed batch has one of the two for sure."""
    poisson = pld.profile(
        Repeated(PoissonSampled(Gaussian(1.0), 0.01), 100), adjacency=Adjacency.REPLACE_ONE
    ).epsilon(delta=1e-6)
    fixed = pld.profile(
        Repeated(SampledWithoutReplacement(Gaussian(1.0), 10, 1000), 100),
        adjacency=Adjacency.REPLACE_ONE,
    ).epsilon(delta=1e-6)
    assert poisson.upper < fixed.upper
