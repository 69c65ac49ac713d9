"""Questions of one bound: releases under an adjacency as compositions of loss distributions.

A mechanism has two compositions of distributions: one of dominating pairs, for upper bounds,
and one of pairs that some neighbors attain, for lower bounds. Where the dominating pairs are
attained, both are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial

from dpaudit.accountants import gdp
from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld import closed_form
from dpaudit.accountants.pld.allocation.allocated_distribution import allocated_loss_distribution
from dpaudit.accountants.pld.allocation.cell_widths import COARSE_CELLS
from dpaudit.accountants.pld.allocation.far_pass import far_pass_distribution, log_choices
from dpaudit.accountants.pld.allocation.subset_law import subset_loss_distribution
from dpaudit.accountants.pld.laws.comparisons import (
    ComparedReleases,
    compare_from_above,
    compare_from_below,
    needs_comparison,
)
from dpaudit.accountants.pld.laws.composition import Composition
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

        Under replace-one the upper bound is a Gaussian: two sums of which a record joins one have
        the loss of their total, and the pass is a mean over all pairs of its sums (equation 25
        of docs/mathematics/random_allocation.md). The lower bound replaces a record at the clip
        norm by one at zero, or by the opposite one where only the sum of all outputs is seen.
        """
        above = self.side is BoundSide.ABOVE
        moved = gaussian_mu(release.mechanism, self.adjacency)
        if self.adds_or_zeroes:
            return self._allocated_by_law(release, moved, tail)
        if above:
            return moved if release.steps == 1 else moved / math.sqrt(2) * (1 + 1e-15)
        law = self._allocated_by_law(release, moved / 2, tail)
        return _larger(law, _shift_of_sum(release, moved), tail)

    def _allocated_by_law(
        self, release: RandomAllocation, shift: float, tail: float
    ) -> LossDistribution | float:
        """Return the distribution of a pass by the law of its likelihood ratio, where it is known.

        Losses of hundreds of nats are not: sampling hardly changes them. From below, a removed
        record has its own steps' share of the ratio, and the first step alone is a Poisson sample.
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
        if self.direction is Direction.REMOVED and _stands_out(release, shift):
            return far_pass_distribution(shift, steps, release.selected, tail)
        pair = dominating_pair(Gaussian(1 / shift), Adjacency.ZERO_OUT, tail)
        return poisson_loss_distribution(pair, release.selected / steps, self.direction, tail)


def _shift_of_sum(release: RandomAllocation, moved: float) -> float:
    """Return mu of the sum of all outputs of a pass: it moves by k records, of variance t."""
    return moved * release.selected / math.sqrt(release.steps) * (1 - 1e-15)


def _stands_out(release: RandomAllocation, shift: float) -> bool:
    """Return whether a record's steps are typically far more likely than all others together."""
    return log_choices(release.steps, release.selected) < release.selected * shift * shift / 8


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
