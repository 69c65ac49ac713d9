"""Privacy loss distribution (PLD) accountant with certified two-sided intervals.

For a dominating pair (P, Q) the privacy loss is L = log(dP/dQ), distributed under P, and

    delta(epsilon) = E_P[(1 - e^(epsilon - L))+].

Composition adds independent losses. ``profile`` evaluates delta(epsilon) and epsilon(delta) by
a closed form where there is one. A single release takes one integral, every other composition
a contour integral. Truncation, aliasing, quadrature and rounding errors
are inside the returned intervals.

``enclosure`` computes the same quantities independently on a grid, with wider intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.accountants import gdp
from dpaudit.accountants.numerics import CertifiedInterval, Direction, worst_direction
from dpaudit.accountants.pld.allocation.cell_widths import (
    COARSE_CELLS,
    FIXED_CELLS,
    MOST_REFINEMENTS,
    cells_for_delta,
    cells_for_epsilon,
    cells_widen,
)
from dpaudit.accountants.pld.attempts import Attempts, IntervalFunction
from dpaudit.accountants.pld.closed_form import binary_responses_of
from dpaudit.accountants.pld.grids import (
    BoundArray,
    delta_curve,
    epsilon_curve,
    grid_of_plans,
    sampled_plan,
)
from dpaudit.accountants.pld.laws.comparisons import compare_from_above
from dpaudit.accountants.pld.laws.loss_query import BoundSide, LossQuery
from dpaudit.accountants.pld.many_plans import SampledPlans, deltas_of_many, epsilons_of_many
from dpaudit.accountants.pld.one_direction import (
    ABSOLUTE_EPSILON_WIDTH,
    LARGEST_LOSS_METHOD,
    NARROW_WIDTH,
    delta_with_slack,
    epsilon_with_slack,
)
from dpaudit.accountants.pld.other_bounds import OtherBounds
from dpaudit.accountants.pld.pair_builders import (
    from_densities,
    from_pmfs,
    from_privacy_profile,
    from_tradeoff,
)
from dpaudit.accountants.pld.replaced_record import ReplacedRecord, zeroed_releases
from dpaudit.accountants.profile_display import DisplayedProfile
from dpaudit.accountants.releases import (
    ReleaseCounts,
    count_releases,
    gaussian_mu,
    require_supported_adjacency,
)
from dpaudit.accountants.rounding_margins import ROUND_UP
from dpaudit.vocabulary import public_names
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    Unresolvable,
    require_delta,
    require_not_negative,
)
from dpaudit.vocabulary.mechanism import (
    BinnedMatrixFactorization,
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    TruncatedPoisson,
)
from dpaudit.vocabulary.pairs import DominatingPair, MixtureOfGaussians
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound, require_adjacency

__all__ = [
    "BoundArray",
    "PldProfile",
    "epsilon_grid",
    "from_densities",
    "from_pmfs",
    "from_privacy_profile",
    "from_tradeoff",
    "profile",
]

__dir__ = public_names(__name__)


# Privacy profile of a mechanism: delta(epsilon) and epsilon(delta), by the form that fits.
#
# With (P, Q) the dominating pair of one direction and L = log(dP/dQ) the privacy loss under P,
#
#     delta(epsilon) = max over directions of E_P[(1 - e^(epsilon - L))+].
#
# ``PldProfile`` takes the first form that applies:
#
# 1. All releases are Gaussian without sampling: one Gaussian with mu^2 = sum of mu_i^2.
# 2. One release with two opposite losses, repeated: a binomial sum.
# 3. For epsilon: 0, where a record participates in anything with probability at most delta.
# 4. Per direction: one integral for a single release, otherwise contour integrals.
#
# Noise on integer vectors and sparse vector techniques are replaced by releases with a dominating
# pair, from above and from below (``laws.comparisons``). Where no pair is known, or the interval is
# wider than ``SETTLED_WIDTH``, the least upper end of all accountants is taken (``other_bounds``).
#
# Where 4 cannot be certified, Gaussian releases fall back to the same Gaussians without
# sampling. That is an upper bound, because the hockey-stick divergence is convex.

# Under these samplings the dominating pairs of the two directions differ.
ASYMMETRIC_RELEASES = (
    PoissonSampled,
    TruncatedPoisson,
    RandomAllocation,
    MixtureOfGaussians,
    DominatingPair,
    BinnedMatrixFactorization,
)
ASYMMETRIC_WHERE_REPLACED = (RandomAllocation, MixtureOfGaussians, DominatingPair)
# A wider interval, relative to its upper end, is compared with the other accountants' bounds.
SETTLED_WIDTH = 1e-6
MANY_RELEASES = 10
"""Number of different releases from which on they are evaluated over arrays."""
ARRAY_METHOD = "contours over arrays"


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> PldProfile:
    """Return the privacy profile of a mechanism.

    Refuses (``UnsupportedMechanism``) a mechanism with a part that has no dominating pair under
    ``adjacency``.

    Args:
        mechanism: A release or a composition whose schedule was fixed in advance.
        adjacency: The relation of neighboring data sets.

    Returns:
        The profile, which evaluates epsilon and delta on demand.

    References:
        Zhu, Dong & Wang (2022), arXiv:2106.08567.

    Example:
        >>> from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
        >>> steps = Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000)
        >>> epsilon = profile(steps).epsilon(delta=1e-5)
        >>> f"{epsilon.lower:.5f} to {epsilon.upper:.5f}"
        '1.82824 to 1.82824'
    """
    releases = count_releases(mechanism)
    require_supported_adjacency(releases, adjacency)
    return PldProfile(releases, adjacency)


def epsilon_grid(
    sampling_rate: ArrayLike,
    noise_multiplier: ArrayLike,
    steps: ArrayLike,
    delta: ArrayLike,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> BoundArray:
    """Compute epsilon of every plan of a grid: Gaussian noise on Poisson samples.

    The arguments broadcast like numpy arrays. Most plans take about 2 ms of CPU time, and plans
    that differ in delta alone share their work. The intervals are as certified as those of
    ``profile``, with a relative width of at most 1e-3 wherever ``profile`` has it.

    Args:
        sampling_rate: Rates of Poisson sampling, above 0 and at most 1 (no sampling).
        noise_multiplier: Noise standard deviations over the clipping norm, above 0.
        steps: Numbers of steps, at least 1.
        delta: Deltas, at least 1e-300 and below 1.
        adjacency: The relation of neighboring data sets.

    Returns:
        Intervals of the broadcast shape, in nats. Where no epsilon can be certified, the
        upper bound is infinite.

    Raises:
        InvalidArgument: If an argument is NaN or out of range, or the shapes do not broadcast.

    Example:
        >>> import numpy as np
        >>> grid = epsilon_grid(0.01, np.array([[0.8], [1.0]]), [500, 1000], 1e-5)
        >>> grid.upper.round(3).tolist()
        [[2.399, 3.141], [1.326, 1.828]]
    """
    require_adjacency("adjacency", adjacency)

    def one(plan: Mechanism, target: float) -> Bound:
        return profile(plan, adjacency=adjacency).epsilon(delta=target)

    return grid_of_plans(sampling_rate, noise_multiplier, steps, delta, adjacency, one)


@dataclass(frozen=True)
class PldProfile(DisplayedProfile):
    """Certified delta(epsilon) of a mechanism: the larger of both directions of neighbors.

    Attributes:
        releases: How often each elementary release occurs.
        adjacency: The relation of neighboring data sets.

    Example:
        >>> from dpaudit.accountants.pld import profile
        >>> from dpaudit.vocabulary.mechanism import Gaussian
        >>> f"{profile(Gaussian(1.0)).delta(epsilon=1.0).upper:.5f}"
        '0.12694'
    """

    releases: ReleaseCounts
    adjacency: Adjacency

    def __post_init__(self) -> None:
        # A release that cannot be bounded is refused on construction, not on evaluation.
        if self._array_plan is not None:
            return  # sampled Gaussians have pairs at every parameter
        if not LossQuery(
            self.releases, self.adjacency, Direction.REMOVED, BoundSide.ABOVE
        ).compared.complete:
            self.others.require_renyi()
        with suppress(Unresolvable):
            LossQuery(
                self.releases, self.adjacency, Direction.REMOVED, BoundSide.ABOVE
            ).composition(1e-5)

    def epsilon(self, *, delta: float) -> Bound:
        """Compute the interval of the smallest epsilon at a given delta.

        Refuses a delta out of range, and delta 0 of an unbounded loss (``InvalidArgument``); and a
        delta at which no finite epsilon can be certified (``Unresolvable``).

        Args:
            delta: Between 1e-300 (inclusive) and 1 (exclusive); or 0, for pure epsilon.

        Returns:
            A certified interval of epsilon, in nats.
        """
        return worst_direction(self._epsilons(delta, _largest_lower))

    def delta(self, *, epsilon: float) -> Bound:
        """Compute the interval of the smallest delta at a given epsilon.

        Refuses an epsilon out of range (``InvalidArgument``), and an epsilon at which no
        interval can be certified (``Unresolvable``).

        Args:
            epsilon: Privacy loss in nats, finite and at least 0.

        Returns:
            A certified interval of delta, in [0, 1].
        """
        return worst_direction(self._deltas(epsilon, _largest_lower))

    def epsilons(self, *, deltas: ArrayLike) -> BoundArray:
        """Compute the intervals of epsilon at many deltas.

        Gaussians and Poisson-sampled Gaussians share characteristic functions between deltas:
        100 deltas take about 0.05 s. Other releases are evaluated one delta at a time.

        Args:
            deltas: At least 1e-300 and below 1, of any shape.

        Returns:
            Certified intervals of epsilon in nats, of the same shape, to a relative width of 1e-3.

        Raises:
            InvalidArgument: If a delta is NaN or out of range.
            Unresolvable: If no finite epsilon can be certified at a delta.
        """
        return epsilon_curve(self._array_plan, deltas, lambda one: self.epsilon(delta=one))

    def deltas(self, *, epsilons: ArrayLike) -> BoundArray:
        """Compute the intervals of delta at many epsilons.

        Args:
            epsilons: Privacy losses in nats, at least 0 and finite, of any shape.

        Returns:
            Certified intervals of delta, of the same shape, to a relative width of 1e-3.

        Raises:
            InvalidArgument: If an epsilon is NaN or out of range.
            Unresolvable: If no interval can be certified at an epsilon.
        """
        return delta_curve(self._array_plan, epsilons, lambda one: self.delta(epsilon=one))

    def explain_epsilon(self, *, delta: float) -> tuple[CertifiedInterval, ...]:
        """Compute epsilon at a given delta per direction, with method and error budget.

        Unlike ``epsilon``, every direction is narrowed to full precision.

        Args:
            delta: Between 1e-300 (inclusive) and 1 (exclusive); or 0, for pure epsilon.

        Returns:
            One interval of epsilon (nats) per direction; a single one where both directions agree.
        """
        return self._epsilons(delta, lambda answers: 0.0)

    def _epsilons(
        self, delta: float, sufficient: Callable[[Sequence[CertifiedInterval]], float]
    ) -> tuple[CertifiedInterval, ...]:
        """Compute epsilon of every direction in turn.

        ``sufficient`` maps the intervals found so far to an upper end that needs no narrowing: the
        answer is the maximum over directions, so a direction that surely is not the larger one may
        stay wide.
        """
        if isinstance(delta, Real) and not isinstance(delta, bool) and delta == 0:
            return (self._pure_epsilon(),)
        require_delta("delta", delta)
        if (mu := self._gaussian_mu()) is not None:
            return (
                CertifiedInterval.closed(
                    gdp.epsilon_of_mu(delta, mu=mu), "one Gaussian, closed form"
                ),
            )
        if (pair := binary_responses_of(self.releases)) is not None:
            return (CertifiedInterval.closed(pair.epsilon(delta), "binomial sum"),)
        if self._participation_probability() <= delta:
            return (
                CertifiedInterval.closed(
                    Bound(0.0, 0.0), "participation probability at most delta"
                ),
            )
        attempts = Attempts(math.inf, likely_delta=lambda above: delta, finer=cells_for_epsilon)
        answers = self._over_arrays(epsilons_of_many, delta, ABSOLUTE_EPSILON_WIDTH)
        for direction in () if answers else self._directions():
            attempts.sufficient_upper = sufficient(answers)
            solve = partial(
                epsilon_with_slack, delta=delta, sufficient_upper=attempts.sufficient_upper
            )
            answers.append(self._answer(direction, attempts, solve))
        settled = _is_narrow(answers, SETTLED_WIDTH, 0.0)
        most = self.others.exact_epsilon(delta) if settled else self.others.epsilon(delta)
        if not settled and self._zeroed_record is not None:
            most = min(most, self._zeroed_record.epsilon(delta))
        answers = [answer.with_upper(most) for answer in answers]
        attempts.require_upper_ends(answers, lambda: self._missing(delta))
        return tuple(answers)

    def explain_delta(self, *, epsilon: float) -> tuple[CertifiedInterval, ...]:
        """Compute delta at a given epsilon per direction, with method and error budget.

        Args:
            epsilon: Privacy loss in nats, finite and at least 0.

        Returns:
            One interval of delta per direction; a single one where both directions agree.

        Raises:
            InvalidArgument: If ``epsilon`` is negative, infinite or NaN.
        """
        return self._deltas(epsilon, lambda answers: 0.0)

    def _deltas(
        self, epsilon: float, sufficient: Callable[[Sequence[CertifiedInterval]], float]
    ) -> tuple[CertifiedInterval, ...]:
        """Compute delta of every direction in turn; ``sufficient`` is that of ``_epsilons``."""
        require_not_negative("epsilon", epsilon)
        if (mu := self._gaussian_mu()) is not None:
            return (
                CertifiedInterval.closed(
                    gdp.delta_of_mu(epsilon, mu=mu), "one Gaussian, closed form"
                ),
            )
        loss = self.others.largest_loss
        if loss is not None and loss.delta(epsilon) == 0:
            return (CertifiedInterval.closed(Bound(0.0, 0.0), LARGEST_LOSS_METHOD),)
        if (pair := binary_responses_of(self.releases)) is not None:
            return (CertifiedInterval.closed(pair.delta(epsilon), "binomial sum"),)
        attempts = Attempts(1.0, likely_delta=lambda above: above.upper, finer=cells_for_delta)
        solve = partial(delta_with_slack, epsilon=epsilon)
        answers = self._over_arrays(deltas_of_many, epsilon, 0.0)
        for direction in () if answers else self._directions():
            attempts.sufficient_upper = sufficient(answers)
            answers.append(self._answer(direction, attempts, solve))
        most = self._participation_probability()
        if not _is_narrow(answers, SETTLED_WIDTH, 0.0):
            most = min(most, self.others.delta(epsilon))
            if self._zeroed_record is not None:
                most = min(most, self._zeroed_record.delta(epsilon))
        answers = [answer.with_upper(most) for answer in answers]
        attempts.require_upper_ends(answers, lambda: self._missing(most))
        return tuple(answers)

    @cached_property
    def _array_plan(self) -> SampledPlans | None:
        """The releases for the array route; None where it does not cover them."""
        return sampled_plan(self.releases, self.adjacency)

    def _over_arrays(
        self,
        solve: Callable[[SampledPlans, NDArray[np.int64], NDArray[np.float64]], EndsOfDirections],
        value: float,
        absolute: float,
    ) -> list[CertifiedInterval]:
        """Answer a composition of many different releases over arrays; nothing where it is wide."""
        plan = self._array_plan
        if plan is None or len(self.releases) < MANY_RELEASES:
            return []
        lower, upper = solve(plan, np.zeros(1, dtype=np.int64), np.array([value]))
        answers = [
            CertifiedInterval(float(low), float(high), ARRAY_METHOD, direction=one.name.lower())
            for low, high, one in zip(lower[:, 0], upper[:, 0], Direction, strict=True)
        ]
        narrow = _is_narrow(answers, NARROW_WIDTH, absolute)
        return answers if narrow else []

    def _pure_epsilon(self) -> CertifiedInterval:
        """Return epsilon at delta 0, which is the largest loss."""
        loss = self.others.largest_loss
        if loss is None:
            allowed = "at least 1e-300 and below 1, as no bound of the privacy loss is known"
            raise InvalidArgument("delta", 0.0, allowed)
        return CertifiedInterval.closed(loss.epsilon, LARGEST_LOSS_METHOD)

    @cached_property
    def others(self) -> OtherBounds:
        """Upper bounds of the other accountants."""
        return OtherBounds(self.releases, self.adjacency)

    @cached_property
    def _zeroed_record(self) -> ReplacedRecord | None:
        """Upper bounds by way of a zeroed record; None unless an allocated one is replaced."""
        replaces = self.adjacency is Adjacency.REPLACE_ONE
        counts = zeroed_releases(self.releases) if replaces else None
        if counts is None:
            return None
        zeroed = PldProfile(counts, Adjacency.ZERO_OUT)
        return ReplacedRecord(zeroed._epsilons, zeroed._deltas)

    def _missing(self, delta: float) -> str:
        """Return which releases have no dominating pair, and why the others give no bound."""
        lacking = [
            type(release).__name__
            for release in self.releases
            if not compare_from_above({release: 1}, self.adjacency).complete
        ]
        return "; ".join(
            [f"pld has no dominating pair of {', '.join(lacking)}"] * bool(lacking)
            + self.others.reasons(delta)
        )

    def _gaussian_mu(self) -> float | None:
        """Return mu of the composed Gaussian, or None if any release is of another kind."""
        if all(isinstance(release, Gaussian) for release in self.releases):
            shifts = (
                math.sqrt(times) * gaussian_mu(release, self.adjacency)
                for release, times in self.releases.items()
                if isinstance(release, Gaussian)
            )
            return math.hypot(*shifts)
        return None

    def _participation_probability(self) -> float:
        """Return an upper bound on the probability that a record participates in any release.

        A record that participates in none leaves the outputs unchanged, so the mechanism is
        (0, p)-DP with p this probability.
        """
        rates = (
            times
            * (
                release.sampling_rate
                if isinstance(release, PoissonSampled | TruncatedPoisson)
                else 1.0
            )
            for release, times in self.releases.items()
        )
        return min(1.0, sum(rates) * ROUND_UP)

    def _directions(self) -> tuple[Direction, ...]:
        """Return the directions to evaluate: both, unless every dominating pair is symmetric."""
        # A replaced record and its opposite exchange the distributions of a Poisson sample.
        replaces = self.adjacency is Adjacency.REPLACE_ONE
        kinds: tuple[type, ...] = ASYMMETRIC_WHERE_REPLACED if replaces else ASYMMETRIC_RELEASES
        if any(isinstance(release, kinds) for release in self.releases):
            return Direction.REMOVED, Direction.ADDED
        return (Direction.REMOVED,)  # every other pair is symmetric

    def _answer(
        self, direction: Direction, attempts: Attempts, solve: IntervalFunction
    ) -> CertifiedInterval:
        """Evaluate the dominating pair and, where it is not attained, an attained pair.

        The dominating pair gives the upper end. Where no neighbors attain it, the lower end comes
        from a second evaluation with a pair that some neighbors do attain.
        """
        fineness = COARSE_CELLS if self._has_cells else FIXED_CELLS
        above = LossQuery(
            self.releases, self.adjacency, direction, BoundSide.ABOVE, fineness=fineness
        )
        answer = self._interval(above, attempts, solve)
        for _ in range(MOST_REFINEMENTS if self._has_cells else 0):
            finer = attempts.refine(answer, above)
            if finer is None:
                break
            above, wide = finer, answer
            answer = wide.intersect(self._interval(above, attempts, solve))
            if not cells_widen(wide, answer):
                break
        return replace(
            answer, direction=direction.name.lower() if len(self._directions()) > 1 else ""
        )

    def _interval(
        self, above: LossQuery, attempts: Attempts, solve: IntervalFunction
    ) -> CertifiedInterval:
        """Evaluate a dominating pair and, where it is not attained, an attained pair."""
        answer = attempts.evaluate(solve, above)
        if above.exact:
            return answer
        below = replace(above, side=BoundSide.BELOW, likely_delta=attempts.likely_delta(answer))
        return answer.with_lower(attempts.evaluate(solve, below))

    @property
    def _has_cells(self) -> bool:
        """Whether a release is bounded by cells whose width is chosen for the answer."""
        if self.adjacency is Adjacency.REPLACE_ONE:
            return False
        allocations = [one for one in self.releases if isinstance(one, RandomAllocation)]
        return bool(allocations) and all(one.selected == 1 for one in allocations)


EndsOfDirections = tuple[NDArray[np.float64], NDArray[np.float64]]


def _largest_lower(answers: Sequence[CertifiedInterval]) -> float:
    """Return the largest lower end found so far: smaller upper ends cannot change the maximum."""
    return max((answer.lower for answer in answers), default=0.0)


def _is_narrow(answers: Sequence[CertifiedInterval], relative: float, absolute: float) -> bool:
    """Return whether the interval of the maximum over directions is within a tolerance."""
    lower = max(answer.lower for answer in answers)
    upper = max(answer.upper for answer in answers)
    return upper - lower <= max(relative * upper, absolute) < math.inf
