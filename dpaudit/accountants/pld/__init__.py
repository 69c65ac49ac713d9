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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from numbers import Real

from dpaudit.accountants import gdp
from dpaudit.accountants.numerics import CertifiedInterval, Direction, worst_direction
from dpaudit.accountants.pld import closed_form
from dpaudit.accountants.pld.closed_form import binary_responses_of
from dpaudit.accountants.pld.contour import solver
from dpaudit.accountants.pld.contour.inversion import epsilon_by_inversion
from dpaudit.accountants.pld.laws.comparisons import needs_comparison
from dpaudit.accountants.pld.laws.composition import BoundSide, Composition, LossQuery
from dpaudit.accountants.pld.other_bounds import OtherBounds
from dpaudit.accountants.releases import (
    ReleaseCounts,
    count_releases,
    gaussian_mu,
    require_supported_adjacency,
)
from dpaudit.accountants.rounding_margins import ROUND_DOWN, ROUND_UP
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    Unresolvable,
    require_delta,
    require_not_negative,
)
from dpaudit.vocabulary.mechanism import (
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

__all__ = ["PldProfile", "profile"]


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
ASYMMETRIC_RELEASES = (PoissonSampled, TruncatedPoisson, RandomAllocation)
UNSAMPLED_METHOD = "same Gaussians without sampling"
OTHER_METHOD = "bounds of other accountants"
LARGEST_LOSS_METHOD = "largest loss"
# A wider interval of epsilon, relative to its upper end or absolutely, is narrowed by deltas.
NARROW_WIDTH, ABSOLUTE_EPSILON_WIDTH = 1e-3, 1e-6
# A wider interval, relative to its upper end, is compared with the other accountants' bounds.
SETTLED_WIDTH = 1e-6
TRUNCATION_ROUNDS = 40
MOST_POINTS_TO_INVERT = 20_000
"""Quadrature points up to which a wide interval of epsilon is narrowed by evaluating delta."""


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


@dataclass(frozen=True)
class PldProfile:
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
        return worst_direction(self.explain_delta(epsilon=epsilon))

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
        attempts = _Attempts(math.inf, likely_delta=lambda above: delta)
        answers: list[CertifiedInterval] = []
        for direction in self._directions():
            solve = partial(_epsilon_with_slack, delta=delta, sufficient_upper=sufficient(answers))
            answers.append(self._answer(direction, attempts, solve))
        if not _is_narrow(answers, SETTLED_WIDTH, 0.0):
            most = self.others.epsilon(delta)
            answers = [answer.with_upper(most) for answer in answers]
        attempts.require_upper_ends(answers)
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
        attempts = _Attempts(1.0, likely_delta=lambda above: above.upper)
        solve = partial(_delta_with_slack, epsilon=epsilon)
        answers = [self._answer(one, attempts, solve) for one in self._directions()]
        most = self._participation_probability()
        if not _is_narrow(answers, SETTLED_WIDTH, 0.0):
            most = min(most, self.others.delta(epsilon))
        answers = [answer.with_upper(most) for answer in answers]
        attempts.require_upper_ends(answers)
        return tuple(answers)

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
            times * (release.sampling_rate if isinstance(release, PoissonSampled) else 1.0)
            for release, times in self.releases.items()
        )
        return min(1.0, sum(rates) * ROUND_UP)

    def _directions(self) -> tuple[Direction, ...]:
        """Return the directions to evaluate: both, unless every dominating pair is symmetric."""
        if any(isinstance(release, ASYMMETRIC_RELEASES) for release in self.releases):
            return Direction.REMOVED, Direction.ADDED
        return (Direction.REMOVED,)  # every other pair is symmetric

    def _answer(
        self, direction: Direction, attempts: _Attempts, solve: IntervalFunction
    ) -> CertifiedInterval:
        """Evaluate the dominating pair and, where it is not attained, an attained pair.

        The dominating pair gives the upper end. Where no neighbors attain it, the lower end comes
        from a second evaluation with a pair that some neighbors do attain.
        """
        above = LossQuery(self.releases, self.adjacency, direction, BoundSide.ABOVE)
        answer = attempts.evaluate(solve, above)
        if not above.exact:
            below = replace(above, side=BoundSide.BELOW, likely_delta=attempts.likely_delta(answer))
            answer = answer.with_lower(attempts.evaluate(solve, below))
        return replace(
            answer, direction=direction.name.lower() if len(self._directions()) > 1 else ""
        )


IntervalFunction = Callable[[LossQuery], CertifiedInterval]


def _largest_lower(answers: Sequence[CertifiedInterval]) -> float:
    """Return the largest lower end found so far: smaller upper ends cannot change the maximum."""
    return max((answer.lower for answer in answers), default=0.0)


def _epsilon(query: LossQuery, delta: float, sufficient_upper: float = 0.0) -> CertifiedInterval:
    """Compute epsilon in one direction, with the unsampled Gaussians as a fallback.

    An upper end of at most ``sufficient_upper`` is not narrowed further.
    """
    try:
        return _epsilon_by_form(query, delta, sufficient_upper)
    except Unresolvable:
        if (mu := query.unsampled) is None:
            raise
        return CertifiedInterval(0.0, gdp.epsilon_of_mu(delta, mu=mu).upper, UNSAMPLED_METHOD)


def _delta(query: LossQuery, epsilon: float) -> CertifiedInterval:
    """Compute delta in one direction, with the unsampled Gaussians as a fallback."""
    try:
        return _delta_by_form(query, epsilon)
    except Unresolvable:
        if (mu := query.unsampled) is None:
            raise
        return CertifiedInterval(0.0, gdp.delta_of_mu(epsilon, mu=mu).upper, UNSAMPLED_METHOD)


def _epsilon_by_form(query: LossQuery, delta: float, sufficient_upper: float) -> CertifiedInterval:
    """Compute epsilon by one integral, a closed form or contours."""
    if (pair := binary_responses_of(query.counts)) is not None:
        return CertifiedInterval.closed(pair.epsilon(delta), "binomial sum")
    composition = query.composition(delta)
    if composition.infinite_mass / ROUND_UP > delta:
        raise Unresolvable(
            "no epsilon is enough: with probability "
            f"{composition.infinite_mass:g} the privacy loss is infinite, which is more than "
            f"delta {delta:g}; use a larger delta"
        )
    match composition:
        case Composition(distributions=((distribution, 1),), gaussian=0.0):
            return closed_form.single_release_epsilon(distribution, delta)
        case Composition(distributions=()):
            found = gdp.epsilon_of_mu(delta, mu=math.sqrt(composition.gaussian))
            return CertifiedInterval.closed(found, "one Gaussian, closed form")
        case _:
            known = solver.epsilon_by_contour(composition, delta, sufficient_upper)
            cheap = composition.rough_points <= MOST_POINTS_TO_INVERT
            return _narrowed(query, delta, known, sufficient_upper) if cheap else known


def _narrowed(
    query: LossQuery, delta: float, known: CertifiedInterval, sufficient_upper: float
) -> CertifiedInterval:
    """Narrow a wide interval of epsilon by evaluating delta, which is certified more often."""
    settled = known.upper <= sufficient_upper or known.upper == math.inf
    if settled or known.is_narrow(NARROW_WIDTH, ABSOLUTE_EPSILON_WIDTH):
        return known
    with suppress(Unresolvable):
        return epsilon_by_inversion(
            partial(solver.delta_by_contour, query.composition),
            delta,
            known,
            lambda one: one.is_narrow(NARROW_WIDTH, ABSOLUTE_EPSILON_WIDTH),
        )
    return known


def _delta_by_form(query: LossQuery, epsilon: float) -> CertifiedInterval:
    """Compute delta by one integral, a closed form or contours."""
    if (pair := binary_responses_of(query.counts)) is not None:
        return CertifiedInterval.closed(pair.delta(epsilon), "binomial sum")
    composition = query.composition(1e-30)
    match composition:
        case Composition(distributions=((_, 1),), gaussian=0.0):
            rough = closed_form.single_release_delta(composition.distributions[0][0], epsilon).upper
            distribution = query.composition(max(rough, 1e-290)).distributions[0][0]
            return closed_form.single_release_delta(distribution, epsilon)
        case Composition(distributions=()):
            found = gdp.delta_of_mu(epsilon, mu=math.sqrt(composition.gaussian))
            return CertifiedInterval.closed(found, "one Gaussian, closed form")
        case _:
            return solver.delta_by_contour(query.composition, epsilon)


class _Attempts:
    """Evaluations of which some may fail, where another bound may take their place.

    Args:
        largest: The trivial upper end of a failed evaluation.
        likely_delta: Function from the interval by dominating pairs to about its delta, for
            which attained pairs are chosen.
    """

    def __init__(
        self, largest: float, *, likely_delta: Callable[[CertifiedInterval], float]
    ) -> None:
        self._largest = largest
        self._error: Unresolvable | None = None
        self.likely_delta = likely_delta

    def evaluate(self, solve: IntervalFunction, query: LossQuery) -> CertifiedInterval:
        """Return the interval of a query; where the evaluation fails, the trivial one."""
        try:
            return solve(query)
        except Unresolvable as error:
            self._error = self._error or error
        except (OverflowError, ZeroDivisionError) as error:
            self._error = self._error or Unresolvable(
                f"the computation leaves the range of floats: {error}"
            )
        return CertifiedInterval(0.0, self._largest, OTHER_METHOD)

    def require_upper_ends(self, answers: Iterable[CertifiedInterval]) -> None:
        """Raise the error of an evaluation whose place no other bound took."""
        trivial = any(answer.upper >= self._largest for answer in answers)
        if trivial and self._error is not None:
            raise self._error
        if trivial and self._largest == math.inf:
            raise Unresolvable(
                "no accountant gives an upper bound of epsilon at this delta: add noise, or use "
                "a larger delta"
            )


def _is_narrow(answers: Sequence[CertifiedInterval], relative: float, absolute: float) -> bool:
    """Return whether the interval of the maximum over directions is within a tolerance."""
    lower = max(answer.lower for answer in answers)
    upper = max(answer.upper for answer in answers)
    return upper - lower <= max(relative * upper, absolute) < math.inf


def _epsilon_with_slack(
    query: LossQuery, delta: float, sufficient_upper: float
) -> CertifiedInterval:
    """Compute epsilon of releases that others replace up to a slack r.

        e^-r delta_below(epsilon + r) <= delta(epsilon) <= e^r delta_above(epsilon - r)

    See ``laws.comparisons``. Where no pair is known or certified, the interval is trivial.
    """
    if not any(needs_comparison(release) for release in query.releases):
        return _epsilon_with_truncation(query, delta, sufficient_upper)
    if query.is_trivial:
        return CertifiedInterval(0.0, math.inf, OTHER_METHOD)
    slack = query.compared.slack
    ratio = math.exp(-slack) * ROUND_DOWN if slack else 1.0
    try:
        match query.side:
            case BoundSide.ABOVE:
                answer = _epsilon_with_truncation(query, delta * ratio, sufficient_upper)
                if answer.upper == 0 and _delta_with_slack(query, 0.0).upper <= delta:
                    return answer
                return replace(answer, lower=0.0, upper=(answer.upper + slack) * ROUND_UP)
            case BoundSide.BELOW:
                answer = _epsilon_with_truncation(query, min(delta / ratio, 0.99), 0.0)
                lower = 0.0 if delta / ratio > 0.99 else answer.lower * ROUND_DOWN - slack
                return replace(answer, lower=max(0.0, lower), upper=math.inf)
    except (Unresolvable, OverflowError):
        return CertifiedInterval(0.0, math.inf, OTHER_METHOD)


def _delta_with_slack(query: LossQuery, epsilon: float) -> CertifiedInterval:
    """Compute delta of releases that others replace up to a slack; see ``_epsilon_with_slack``.

    For epsilon < r, delta_above(epsilon - r) is at most delta_above(0) + r - epsilon.
    """
    if not any(needs_comparison(release) for release in query.releases):
        return _delta_with_truncation(query, epsilon)
    if query.is_trivial:
        return CertifiedInterval(0.0, 1.0, OTHER_METHOD)
    slack = query.compared.slack
    grown = math.exp(slack) * ROUND_UP if slack else 1.0
    try:
        match query.side:
            case BoundSide.ABOVE:
                answer = _delta_with_truncation(query, max(0.0, epsilon - slack) * ROUND_DOWN)
                more = max(0.0, slack - epsilon)
                return replace(answer, lower=0.0, upper=min(1.0, (answer.upper + more) * grown))
            case BoundSide.BELOW:
                answer = _delta_with_truncation(query, (epsilon + slack) * ROUND_UP)
                return replace(answer, lower=answer.lower / grown, upper=1.0)
    except (Unresolvable, OverflowError):
        return CertifiedInterval(0.0, 1.0, OTHER_METHOD)


def _epsilon_with_truncation(
    query: LossQuery, delta: float, sufficient_upper: float
) -> CertifiedInterval:
    """Compute epsilon of steps whose batches are truncated with total probability t.

    If truncation happens with probability at most t under either neighbor, then

        delta_truncated(epsilon) <= delta(epsilon) + t (1 + e^epsilon),

    so epsilon suffices at delta if the untruncated steps have it at delta - t (1 + e^epsilon).
    The inequality with the two profiles exchanged gives the lower end.

    Args:
        query: Releases, adjacency and direction.
        delta: Delta of the truncated steps.
        sufficient_upper: An upper end of at most this, in nats, is not narrowed further.
            Used only where no batch is truncated.

    Returns:
        The certified interval of epsilon, in nats.

    Raises:
        Unresolvable: If batches are truncated too often for this delta.
    """
    altered = query.altered
    if not altered:
        return _epsilon(query, delta, sufficient_upper)
    answer = _epsilon(query, delta)
    # Raise epsilon until it is consistent: left = delta - t (1 + e^upper), and the
    # untruncated steps have an epsilon of at most upper at left.
    for _ in range(TRUNCATION_ROUNDS):
        upper = answer.upper * ROUND_UP
        left = delta - altered * (1 + math.exp(min(upper, 700.0))) * ROUND_UP
        if not left > 0:
            break
        answer = _epsilon(query, left)
        if answer.upper <= upper:
            more = altered * (1 + math.exp(upper)) * ROUND_UP
            below = _epsilon(query, min(delta + more, 0.5))
            lower = below.lower if delta + more < 0.5 else 0.0
            return replace(answer, lower=min(lower, upper), upper=upper)
    raise Unresolvable(
        f"batches are truncated with probability {altered:g} over the run, too often for delta "
        f"{delta:g}: raise largest_batch"
    )


def _delta_with_truncation(query: LossQuery, epsilon: float) -> CertifiedInterval:
    """Compute delta and widen both ends by t (1 + e^epsilon): see ``_epsilon_with_truncation``."""
    answer = _delta(query, epsilon)
    more = query.altered * (1 + math.exp(min(epsilon, 700.0))) * ROUND_UP
    lower, upper = max(0.0, answer.lower - more), min(1.0, answer.upper + more)
    return replace(answer, lower=lower, upper=upper)
