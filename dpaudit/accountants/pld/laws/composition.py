"""Compositions of releases as loss distributions, and their cumulant generating functions.

A mechanism has two compositions of distributions: one of dominating pairs, for upper bounds,
and one of pairs that some neighbors attain, for lower bounds. Where the dominating pairs are
attained, both are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants import gdp
from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld import closed_form
from dpaudit.accountants.pld.allocation.allocated_distribution import allocated_loss_distribution
from dpaudit.accountants.pld.allocation.cell_widths import COARSE_CELLS
from dpaudit.accountants.pld.allocation.subset_law import subset_loss_distribution
from dpaudit.accountants.pld.laws.comparisons import (
    ComparedReleases,
    compare_from_above,
    compare_from_below,
    needs_comparison,
)
from dpaudit.accountants.pld.laws.dominating_pairs import DominatingPair, dominating_pair
from dpaudit.accountants.pld.laws.gaussian_mixtures import (
    MixturePair,
    lower_law,
    replaced_pair,
    upper_law,
)
from dpaudit.accountants.pld.laws.given_pairs import (
    lower_given_law,
    lower_truncated_law,
    mixture_pair,
    upper_given_law,
    upper_truncated_law,
)
from dpaudit.accountants.pld.laws.loss_distribution import (
    LossDistribution,
    poisson_loss_distribution,
    replaced_loss_distribution,
)
from dpaudit.accountants.pld.laws.shuffled_reports import (
    shuffled_pair_above,
    shuffled_pair_below,
)
from dpaudit.accountants.pld.laws.two_candidates import two_candidate_pair
from dpaudit.accountants.releases import ReleaseCounts, gaussian_mu
from dpaudit.accountants.rounding_margins import DOUBLE_EPSILON
from dpaudit.vocabulary.errors import Unresolvable, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    Exponential,
    Gaussian,
    PoissonSampled,
    PureDP,
    RandomAllocation,
    Release,
    SampledWithoutReplacement,
    Shuffled,
    TruncatedPoisson,
)
from dpaudit.vocabulary.pairs import DominatingPair as PairMechanism
from dpaudit.vocabulary.pairs import MixtureOfGaussians
from dpaudit.vocabulary.privacy_terms import Adjacency

# Cumulant generating functions of composed losses, and Chernoff bounds.
#
# K(c) = log E[e^(c S)] adds over releases. One Gaussian with mu^2 = g adds g c (c + 1) / 2,
# since its loss is N(g/2, g) under P. For c > 0 and u = S - epsilon,
#
#     delta(epsilon) = E[(1 - e^-u)+] <= E[e^(c u)] sup_u e^(-c u) (1 - e^-u).

Array = NDArray[np.float64]

# Orders of a table, as factors of its central order.
ORDER_FACTORS = np.concatenate(
    [np.geomspace(1 / 30, 0.8, 10), np.geomspace(0.88, 1.6, 9), [2, 2.7, 4]]
)
SCAN_FACTORS = np.geomspace(1e-4, 1e4, 72)
MAX_SCANS = 5
SKETCHED_DISTRIBUTIONS = 24


@dataclass(frozen=True)
class Composition:
    """Loss distributions with their counts, and all unsampled Gaussians as one.

    Attributes:
        distributions: Loss distribution of a release, and how often it is composed.
        gaussian: mu^2 of the Gaussians: the sum of times * shift^2.
        truncated_mass: Upper bound on the P-mass of finite losses that the distributions leave
            out, summed over all releases.
        infinite_mass: P-mass of infinite losses over all releases, exact up to rounding.
    """

    distributions: tuple[tuple[LossDistribution, int], ...]
    gaussian: float
    truncated_mass: float
    infinite_mass: float

    @property
    def missing_mass(self) -> float:
        """Upper bound on the part of delta, at any epsilon, that lies outside the distributions."""
        return self.truncated_mass + self.infinite_mass

    def split(self, loss: float) -> tuple[Composition, Composition]:
        """Split every distribution at a loss.

        Args:
            loss: Loss in nats.

        Returns:
            The composition of the losses up to ``loss``, with the Gaussian and the missing mass,
            and the composition of the losses above it.
        """
        pairs = [(distribution.split(loss), times) for distribution, times in self.distributions]
        below = tuple((pair[0], times) for pair, times in pairs)
        above = tuple((pair[1], times) for pair, times in pairs)
        return replace(self, distributions=below), Composition(above, 0.0, 0.0, 0.0)

    @property
    def mass(self) -> float:
        """Upper bound on the P-probability that any loss of the distributions occurs."""
        zero = np.zeros(1)
        return sum(
            times * math.exp(float(distribution.log_moments(zero)[1][0]))
            for distribution, times in self.distributions
            if distribution.branches or len(distribution.atom_losses)
        )

    @property
    def steps(self) -> int:
        """Number of releases that the distributions stand for."""
        return sum(times for _, times in self.distributions)

    @property
    def largest_order(self) -> float:
        """The largest order around which a table of cumulants is affordable."""
        least = min(
            (distribution.largest_order for distribution, _ in self.distributions), default=math.inf
        )
        return least / float(ORDER_FACTORS[-1])

    @property
    def supremum(self) -> float:
        """Upper bound on every finite composed loss, retained or not, in nats."""
        if self.gaussian:
            return math.inf
        return sum(times * distribution.supremum for distribution, times in self.distributions)

    @cached_property
    def sketch(self) -> Composition:
        """Approximately the same composition with few distributions: for searches, not for bounds.

        The distributions with the largest losses are kept, as a single one of them may dominate
        delta. Of the others, each kept one stands for several.
        """
        if len(self.distributions) <= 2 * SKETCHED_DISTRIBUTIONS:
            return self
        distributions = sorted(self.distributions, key=lambda entry: -entry[0].largest)
        # Every ``step``-th of the others stands for ``step`` of them.
        step = -(-(len(distributions) - SKETCHED_DISTRIBUTIONS) // SKETCHED_DISTRIBUTIONS)
        rest = tuple(
            (distribution, step * times)
            for distribution, times in distributions[SKETCHED_DISTRIBUTIONS::step]
        )
        return replace(self, distributions=(*distributions[:SKETCHED_DISTRIBUTIONS], *rest))

    @property
    def rough_points(self) -> int:
        """Number of points of the widest panels: what one evaluation costs, about."""
        return sum(len(distribution.rough[0]) for distribution, _ in self.distributions)

    @property
    def largest(self) -> float:
        """Largest retained composed loss in nats; infinite with a Gaussian."""
        if self.gaussian:
            return math.inf
        return sum(times * distribution.largest for distribution, times in self.distributions)


@dataclass(frozen=True)
class Cumulants:
    """The cumulant generating function K(c) = log E[exp(c S)] of a composed loss S.

    Attributes:
        orders: Rising orders c, shape ``(m,)``.
        upper: Upper bounds on K, shape ``(m,)``.
    """

    orders: Array
    upper: Array

    def log_chernoff(self, epsilon: float) -> Array:
        """Bound log delta(epsilon) from above, at every order.

            log delta(epsilon) <= K(c) - c epsilon + log(c^c / (1+c)^(1+c))

        Args:
            epsilon: Privacy loss in nats.

        Returns:
            Upper bounds, shape ``(m,)``.
        """
        return np.asarray(self.upper - self.orders * epsilon + log_chernoff_factor(self.orders))

    def curvature(self, order: float) -> float:
        """Estimate K''(order), the variance of the tilted loss.

        Args:
            order: An order inside the table.

        Returns:
            The estimate by second differences, positive.
        """
        x, y = self.orders, self.upper
        i = int(np.clip(np.searchsorted(x, order), 1, len(x) - 2))
        # Second divided difference on unequal steps.
        left = (y[i] - y[i - 1]) / (x[i] - x[i - 1])
        right = (y[i + 1] - y[i]) / (x[i + 1] - x[i])
        return float(max(2 * (right - left) / (x[i + 1] - x[i - 1]), 1e-300))

    def order_at(self, log_delta: float) -> float:
        """Estimate the saddle point of the contour at the epsilon with a given delta.

        The integrand exp(K(z) - z epsilon) / (z (z + 1)) has its saddle point c on the real
        axis where

            K'(c) = epsilon + 1/c + 1/(c + 1),

        and the saddle point approximation there is

            delta ~ exp(K(c) - c epsilon) / (c (c+1) sqrt(2 pi (K''(c) + 1/c^2 + 1/(c+1)^2))).

        Each order thus gives an epsilon and a delta; the order for ``log_delta`` is interpolated.

        Args:
            log_delta: Logarithm of delta.

        Returns:
            The order, inside the table.
        """
        c, first = self.orders, np.gradient(self.upper, self.orders)
        second = np.gradient(first, c) + 1 / c**2 + 1 / (c + 1) ** 2
        epsilon = first - 1 / c - 1 / (c + 1)
        logs = self.upper - c * epsilon - np.log(c * (c + 1))
        logs -= 0.5 * np.log(2 * math.pi * np.maximum(second, 1e-300))
        reached = np.flatnonzero(logs <= log_delta)
        if not len(reached) or reached[0] == 0:
            return float(c[int(np.argmin(np.abs(logs - log_delta)))])
        i = int(reached[0])
        share = (log_delta - logs[i - 1]) / (logs[i] - logs[i - 1])
        return float(c[i - 1] * (c[i] / c[i - 1]) ** share)


def log_chernoff_factor(order: Array) -> Array:
    """Return log sup over u of e^(-c u) (1 - e^-u), which is log(c^c / (1+c)^(1+c)).

    The supremum is at e^-u = c / (1 + c).

    Args:
        order: Orders c > 0, of any shape.

    Returns:
        Values at most 0, of the same shape.
    """
    return np.asarray(-order * np.log1p(1 / order) - np.log1p(order))


def cumulants_around(composition: Composition, order: float) -> Cumulants:
    """Bound the cumulant generating function at ``ORDER_FACTORS`` times an order.

    Args:
        composition: The composed losses.
        order: Central order c.

    Returns:
        The table, with rounding inside the upper bounds.
    """
    orders = order * ORDER_FACTORS
    upper = 0.5 * composition.gaussian * orders * (orders + 1) * (1 + 1e-15)
    for distribution, times in composition.distributions:
        upper = upper + times * distribution.log_moments(orders)[1]
    return Cumulants(
        orders, upper + DOUBLE_EPSILON * (4 + len(composition.distributions)) * (1 + np.abs(upper))
    )


def jump_cumulants_around(below: Composition, above: Composition, order: float) -> Cumulants:
    """Bound the cumulant generating function of what losses from ``above`` add to ``below``.

    With A_i and B_i the moments of both parts at order c, the measure has the moment

        prod (A_i + B_i)^T_i - prod A_i^T_i = prod A_i^T_i (exp(sum T_i log(1 + B_i/A_i)) - 1).

    Args:
        below: Composition of the losses up to a cap.
        above: Composition of the losses above it, from the same split.
        order: Central order c.

    Returns:
        The table, with rounding inside the upper bounds.
    """
    orders = order * ORDER_FACTORS
    upper = 0.5 * below.gaussian * orders * (orders + 1) * (1 + 1e-15)
    log_ratio = np.zeros(len(orders))
    for (low, times), (high, _) in zip(below.distributions, above.distributions, strict=True):
        least, most = low.log_moments(orders)
        upper = upper + times * most
        if high.branches or len(high.atom_losses):
            gap = high.log_moments(orders)[1] - least
            log_ratio += times * np.where(
                gap < 0, np.log1p(np.exp(np.minimum(gap, 0))), np.logaddexp(0, gap)
            )
    slack = DOUBLE_EPSILON * (16 + len(below.distributions)) * (1 + np.abs(upper))
    with np.errstate(over="ignore", divide="ignore"):
        grown = np.where(log_ratio > 500, log_ratio, np.log(np.expm1(np.minimum(log_ratio, 500))))
    return Cumulants(orders, upper + grown + slack)


def rough_cumulants(composition: Composition, guess: float) -> Cumulants:
    """Estimate K over eight powers of ten around an order: for searches, not for bounds.

    Args:
        composition: The composed losses.
        guess: Central order c.

    Returns:
        A table of estimates; here ``upper`` is no bound.
    """
    orders = guess * SCAN_FACTORS
    rough = 0.5 * composition.gaussian * orders * (orders + 1)
    for distribution, times in composition.sketch.distributions:
        rough = rough + times * distribution.rough_log_moments(orders)
    return Cumulants(orders, rough)


def order_for_delta(composition: Composition, log_delta: float) -> tuple[float, float]:
    """Estimate the order at the epsilon with a given delta.

    Args:
        composition: The composed losses.
        log_delta: Logarithm of delta.

    Returns:
        The order, and the mean of the composed loss tilted by it, in nats.
    """
    order, table = _scan_until_inside(
        composition, log_delta, lambda table: table.order_at(log_delta)
    )
    order = min(order, composition.largest_order)
    return order, float(np.interp(order, table.orders, np.gradient(table.upper, table.orders)))


def order_for_epsilon(composition: Composition, epsilon: float) -> float:
    """Estimate the order for delta at a given epsilon.

    Args:
        composition: The composed losses.
        epsilon: Privacy loss in nats.

    Returns:
        The order of a grid that minimises K(c) - c epsilon - log(c (c + 1)).
    """

    def best(table: Cumulants) -> float:
        c = table.orders
        return float(c[int(np.argmin(table.upper - c * epsilon - np.log(c * (c + 1))))])

    return min(_scan_until_inside(composition, -20.0, best)[0], composition.largest_order)


def _scan_until_inside(
    composition: Composition, log_delta: float, best: Callable[[Cumulants], float]
) -> tuple[float, Cumulants]:
    """Scan orders, and again around the best one while it lies at the end of the scan."""
    guess = _first_guess(composition, log_delta)
    for _ in range(MAX_SCANS):
        table = rough_cumulants(composition, guess)
        order = best(table)
        if SCAN_FACTORS[3] < order / guess < SCAN_FACTORS[-4]:
            break
        guess = order
    return order, table


def rough_deviation(composition: Composition) -> float:
    """Estimate the standard deviation of the composed loss: for searches, not for bounds.

    Args:
        composition: The composed losses.

    Returns:
        The estimate in nats, positive.
    """
    variance = composition.gaussian
    for distribution, times in composition.sketch.distributions:
        losses, log_masses = distribution.rough
        masses = np.exp(log_masses)
        mean = float(masses @ losses)
        variance += times * float(masses @ (losses - mean) ** 2)
    return math.sqrt(max(variance, 1e-300))


def _first_guess(composition: Composition, log_delta: float) -> float:
    """Return the order of a Gaussian with the same variance: delta ~ exp(-(c sigma)^2 / 2)."""
    variance = composition.gaussian
    for distribution, times in composition.sketch.distributions:
        losses, log_masses = distribution.rough
        # Capped, so that rare huge losses do not dominate the variance.
        variance += times * float(np.exp(log_masses) @ np.minimum(losses * losses, 100.0))
    return math.sqrt(-2 * min(log_delta, -1.0) / max(variance, 1e-30))


# Pairs of a composition. The truncated tails of all releases together are at most
# TAIL_SHARE of delta.
TAIL_SHARE = 1e-9
MIN_TAIL = 1e-318
FULL_RATE = 1.0


class BoundSide(Enum):
    """Which bound a composition serves."""

    ABOVE = "dominates the mechanism"
    BELOW = "is attained by neighbors of the mechanism"


@dataclass(frozen=True)
class LossQuery:
    """Releases under an adjacency, seen from one direction, for one of both bounds.

    Attributes:
        releases: How often each elementary release occurs.
        adjacency: The relation of neighboring data sets.
        direction: Whether the record is removed or added.
        side: Whether the pairs dominate the mechanism or are attained by it.
        likely_delta: About the delta of interest, where a pair is chosen for it; 0 for the delta
            that ``composition`` is called with.
        fineness: Width of the cells of a random allocation, in standard deviations of its loss.
        least_delta: Compositions are truncated for no smaller delta than this.
    """

    releases: ReleaseCounts
    adjacency: Adjacency
    direction: Direction
    side: BoundSide
    likely_delta: float = 0.0
    fineness: float = COARSE_CELLS
    least_delta: float = 0.0

    @cached_property
    def compared(self) -> ComparedReleases:
        """The releases with those replaced that have no dominating pair of their own."""
        match self.side:
            case BoundSide.ABOVE:
                return compare_from_above(self.releases, self.adjacency)
            case BoundSide.BELOW:
                return compare_from_below(self.releases, self.adjacency)

    @property
    def is_trivial(self) -> bool:
        """Whether the replacements say nothing: one is missing above, or none is left below."""
        match self.side:
            case BoundSide.ABOVE:
                return not self.compared.complete
            case BoundSide.BELOW:
                return not self.compared.counts

    @property
    def counts(self) -> ReleaseCounts:
        """The replacing releases; raises ``Unresolvable`` where one has no dominating pair."""
        if not self.compared.complete:
            raise Unresolvable(
                "a release has no known dominating pair: use the accountant rdp, or more noise"
            )
        return self.compared.counts

    def composition(self, delta: float) -> Composition:
        """Return the loss distributions, truncated where a tiny share of ``delta`` remains.

        Args:
            delta: Approximate delta of interest; ``TAIL_SHARE`` of it may be truncated.

        Returns:
            The composition.

        Raises:
            Unresolvable: If a Gaussian has so little noise that mu^2 overflows, or a release has
                no dominating pair, so that only other accountants bound it.
        """
        counts = self.counts
        steps = max(1, sum(counts.values()))
        tail = max(TAIL_SHARE * max(delta, self.least_delta) / steps, MIN_TAIL)
        distributions, gaussian = [], 0.0
        for release, times in counts.items():
            likely = self.likely_delta or delta
            pair = partial(self._pair, times=times, tail=tail, delta=likely)
            distribution = self._distribution(release, pair, tail)
            if isinstance(distribution, float):
                gaussian += times * distribution * distribution
            else:
                distributions.append((distribution, times))
        if not gaussian < math.inf:
            raise Unresolvable(
                "the noise of a Gaussian release is so small that mu^2 overflows: increase it"
            )
        truncated = sum(
            times * distribution.truncated_mass for distribution, times in distributions
        ) * (1 + 1e-12)
        # 1 - prod (1 - p_i)^T_i, without cancellation.
        log_finite = sum(
            times * _log_complement(distribution.infinite_mass)
            for distribution, times in distributions
        )
        return Composition(tuple(distributions), gaussian, truncated, abs(math.expm1(log_finite)))

    @property
    def exact(self) -> bool:
        """Whether neighbors attain the dominating pairs: one composition then gives both ends."""
        replaces = self.adjacency is Adjacency.REPLACE_ONE
        alone = sum(self.releases.values()) == 1
        return not any(
            isinstance(release, RandomAllocation | TruncatedPoisson | MixtureOfGaussians)
            or needs_comparison(release)
            or (not alone and _is_exponential(release))
            or (replaces and isinstance(release, PoissonSampled))
            or _is_given(release)
            for release in self.releases
        )

    @property
    def unsampled(self) -> float | None:
        """mu of the same Gaussians without sampling, which dominate the sampled ones; else None.

        The hockey-stick divergence is convex, so a sampled pair lies below its unsampled one, and
        so do their compositions. The bound is loose, but valid at every parameter.
        """
        if not self.compared.complete:
            return None
        shifts = []
        for release, times in self.counts.items():
            match release:
                case (
                    (Gaussian() as inner)
                    | PoissonSampled(Gaussian() as inner)
                    | RandomAllocation(inner, _, 1)
                ):
                    shifts.append(math.sqrt(times) * gaussian_mu(inner, self.adjacency))
                case TruncatedPoisson(inner):  # a record may displace another one
                    shifts.append(math.sqrt(times) * 2 * gaussian_mu(inner, self.adjacency))
                case MixtureOfGaussians():
                    pair = mixture_pair(release)
                    shifts.append(math.sqrt(times) * (max(pair.right) + max(pair.left)))
                case _:
                    return None
        return math.hypot(*shifts)

    def _distribution(
        self, release: Release, pair: Callable[[Release], DominatingPair], tail: float
    ) -> LossDistribution | float:
        """Return a release's loss distribution, or the shift mu of an unsampled Gaussian."""
        match release:
            case Gaussian():
                return gaussian_mu(release, self.adjacency)
            case RandomAllocation():
                return self._allocated(release, tail)
            case MixtureOfGaussians():
                return self._mixture(mixture_pair(release), tail)
            case PairMechanism():
                return self._given(release, FULL_RATE)
            case PoissonSampled(PairMechanism() as inner, rate) if self.adds_or_zeroes:
                return self._given(inner, rate)
            case PoissonSampled(inner, rate):
                return self._poisson(inner, rate, pair, tail)
            case TruncatedPoisson() if self.side is BoundSide.ABOVE:
                return upper_truncated_law(release, self.adjacency, self.direction, tail)
            case TruncatedPoisson():
                return lower_truncated_law(release, self.adjacency, self.direction, tail)
            case SampledWithoutReplacement(Exponential(epsilon), batch, size) if not self.exact:
                return replaced_loss_distribution(
                    self._symmetric_pair(epsilon, tail), batch / size, tail
                )
            case SampledWithoutReplacement(inner, batch, size):
                return replaced_loss_distribution(pair(inner), batch / size, tail)
            case _:
                return poisson_loss_distribution(pair(release), FULL_RATE, Direction.REMOVED, tail)

    @property
    def adds_or_zeroes(self) -> bool:
        """Whether one of both neighbors has no record, or one that contributes zero."""
        return self.adjacency is not Adjacency.REPLACE_ONE

    def _given(self, release: PairMechanism, rate: float) -> LossDistribution:
        """Return the distribution of a given pair, whose certificate has an upper and a lower."""
        if self.side is BoundSide.ABOVE:
            return upper_given_law(release, rate, self.direction)
        return lower_given_law(release, rate, self.direction)

    def _symmetric_pair(self, epsilon: float, tail: float) -> DominatingPair:
        """Return the pair of an exponential mechanism in a batch of fixed size.

        There both neighbors' pairs take part, so the candidates' losses must be +-epsilon/2.
        """
        if self.side is BoundSide.ABOVE:
            return dominating_pair(Exponential(epsilon), self.adjacency, tail)
        return dominating_pair(PureDP(epsilon / 2), self.adjacency, tail)

    def _pair(self, release: Release, *, times: int, tail: float, delta: float) -> DominatingPair:
        """Return the dominating pair; for a lower bound of choices, a pair that is attained.

        The curve of ``dominating_pair`` for the exponential mechanism is the envelope over all
        mechanisms of that range. Each epsilon has its own worst case, and no composition attains
        all of them. See ``two_candidates``.
        """
        if isinstance(release, Exponential) and not self.exact and self.side is BoundSide.BELOW:
            return two_candidate_pair(release.epsilon, times, delta)
        if isinstance(release, Shuffled):
            above = self.side is BoundSide.ABOVE
            return (shuffled_pair_above if above else shuffled_pair_below)(release, tail)
        return dominating_pair(release, self.adjacency, tail)

    def _poisson(
        self,
        inner: Release,
        rate: float,
        pair: Callable[[Release], DominatingPair],
        tail: float,
    ) -> LossDistribution:
        """Return the distribution of a Poisson sample.

        Under replace-one the worst replacement is the opposite record: equation 4 of
        docs/mathematics/dominating_pairs.md. Some neighbors attain it.
        """
        if self.adjacency is not Adjacency.REPLACE_ONE:
            return poisson_loss_distribution(pair(inner), rate, self.direction, tail)
        if not isinstance(inner, Gaussian):
            raise UnsupportedMechanism(
                PoissonSampled(inner, rate),  # type: ignore[arg-type]
                "under replace-one, Poisson sampling is supported for Gaussian releases only",
            )
        # gaussian_mu is the distance of both records, each of which has half of it as its norm.
        return self._mixture(replaced_pair(gaussian_mu(inner, self.adjacency) / 2, rate), tail)

    def _mixture(self, pair: MixturePair, tail: float) -> LossDistribution:
        """Return a loss distribution above or below that of a pair of Gaussian mixtures."""
        if self.side is BoundSide.ABOVE:
            return upper_law(pair, self.direction, tail)
        return lower_law(pair, self.direction, tail)

    def _allocated(self, release: RandomAllocation, tail: float) -> LossDistribution | float:
        """Return the distribution of one pass of random allocation.

        Under replace-one the upper bound is the Gaussian on all records, by joint convexity over
        the random step. The lower bound replaces a record at the clip norm by one at zero, or by
        the opposite one where only the sum of all outputs is seen.
        """
        above = self.side is BoundSide.ABOVE
        moved = gaussian_mu(release.mechanism, self.adjacency)
        if self.adds_or_zeroes:
            return self._allocated_by_law(release, moved, tail)
        if above:
            return moved
        law = self._allocated_by_law(release, moved / 2, tail)
        return _larger(law, _shift_of_sum(release, moved), tail)

    def _allocated_by_law(
        self, release: RandomAllocation, shift: float, tail: float
    ) -> LossDistribution | float:
        """Return the distribution of a pass by the law of its likelihood ratio, where it is known.

        Losses of hundreds of nats are not: sampling hardly changes them. From below, the first
        step alone is a Poisson sample.
        """
        above, steps = self.side is BoundSide.ABOVE, release.steps
        with suppress(Unresolvable):
            if release.selected > 1:
                law = subset_loss_distribution(shift, steps, release.selected, self.direction, tail)
                return _larger(law, _shift_of_sum(release, shift), tail)
            return allocated_loss_distribution(
                shift, steps, self.direction, above=above, fineness=self.fineness, tail=tail
            )
        if above:
            return shift
        pair = dominating_pair(Gaussian(1 / shift), Adjacency.ZERO_OUT, tail)
        return poisson_loss_distribution(pair, release.selected / steps, self.direction, tail)


def _shift_of_sum(release: RandomAllocation, moved: float) -> float:
    """Return mu of the sum of all outputs of a pass: it moves by k records, of variance t."""
    return moved * release.selected / math.sqrt(release.steps) * (1 - 1e-15)


def _larger(law: LossDistribution | float, shift: float, tail: float) -> LossDistribution | float:
    """Return the larger lower bound: a loss distribution, or a Gaussian of a shift mu."""
    if isinstance(law, float):
        return max(law, shift)
    delta = min(0.5, max(tail / TAIL_SHARE, 1e-290))
    by_law = closed_form.single_release_epsilon(law, delta).lower
    return shift if gdp.epsilon_of_mu(delta, mu=shift).lower > by_law else law


def _log_complement(probability: float) -> float:
    """Return log(1 - p), minus infinity for a probability of 1 or a rounding more."""
    return math.log1p(-probability) if probability < 1 else -math.inf


def _is_exponential(release: Release) -> bool:
    """Return whether the release is an exponential mechanism, sampled or not."""
    match release:
        case PoissonSampled(inner) | SampledWithoutReplacement(inner):
            return isinstance(inner, Exponential)
        case _:
            return isinstance(release, Exponential)


def _is_given(release: Release) -> bool:
    """Return whether the release is a pair given by the user, sampled or not."""
    match release:
        case PoissonSampled(inner):
            return isinstance(inner, PairMechanism)
        case _:
            return isinstance(release, PairMechanism)
