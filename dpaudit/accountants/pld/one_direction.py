"""Epsilon and delta of one pair in one direction, by the form that fits.

A single release takes one integral, one Gaussian and repeated two-valued answers a closed form,
and every other composition contour integrals. Where these cannot be certified, Gaussian releases
fall back to the same Gaussians without sampling, which bound them from above.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from functools import partial

from dpaudit.accountants import gdp
from dpaudit.accountants.numerics import CertifiedInterval
from dpaudit.accountants.pld import closed_form
from dpaudit.accountants.pld.attempts import OTHER_METHOD
from dpaudit.accountants.pld.closed_form import binary_responses_of
from dpaudit.accountants.pld.contour import solver
from dpaudit.accountants.pld.contour.inversion import epsilon_by_inversion
from dpaudit.accountants.pld.laws.comparisons import needs_comparison
from dpaudit.accountants.pld.laws.composition import Composition
from dpaudit.accountants.pld.laws.loss_query import BoundSide, LossQuery
from dpaudit.accountants.rounding_margins import ROUND_DOWN, ROUND_UP
from dpaudit.vocabulary.errors import Unresolvable
from dpaudit.vocabulary.privacy_terms import Bound

UNSAMPLED_METHOD = "same Gaussians without sampling"
LARGEST_LOSS_METHOD = "largest loss"
NARROW_WIDTH, ABSOLUTE_EPSILON_WIDTH = 1e-3, 1e-6
"""A wider interval of epsilon, relative to its upper end or absolutely, is narrowed by deltas."""
MOST_POINTS_TO_INVERT = 20_000
"""Quadrature points up to which a wide interval of epsilon is narrowed by evaluating delta."""


def epsilon_with_slack(
    query: LossQuery, delta: float, sufficient_upper: float
) -> CertifiedInterval:
    """Compute epsilon of releases that others replace up to a slack r.

        e^-r delta_below(epsilon + r) <= delta(epsilon) <= e^r delta_above(epsilon - r)

    See ``laws.comparisons``. Where no pair is known, the interval is trivial.

    Args:
        query: Releases, adjacency, direction and side.
        delta: The delta, above 0 and below 1.
        sufficient_upper: An upper end of at most this, in nats, is not narrowed further.

    Returns:
        The interval of epsilon, in nats.

    Raises:
        Unresolvable: If no interval can be certified.
    """
    if not any(needs_comparison(release) for release in query.releases):
        return _epsilon(query, delta, sufficient_upper)
    if query.is_trivial:
        return CertifiedInterval(0.0, math.inf, OTHER_METHOD)
    slack = query.compared.slack
    ratio = math.exp(-slack) * ROUND_DOWN if slack else 1.0
    match query.side:
        case BoundSide.ABOVE:
            answer = _epsilon(query, delta * ratio, sufficient_upper)
            if answer.upper == 0 and delta_with_slack(query, 0.0).upper <= delta:
                return answer
            return replace(answer, lower=0.0, upper=(answer.upper + slack) * ROUND_UP)
        case BoundSide.BELOW:
            answer = _epsilon(query, min(delta / ratio, 0.99), 0.0)
            lower = 0.0 if delta / ratio > 0.99 else answer.lower * ROUND_DOWN - slack
            return replace(answer, lower=max(0.0, lower), upper=math.inf)


def delta_with_slack(query: LossQuery, epsilon: float) -> CertifiedInterval:
    """Compute delta of releases that others replace up to a slack; see ``epsilon_with_slack``.

    For epsilon < r, delta_above(epsilon - r) is at most delta_above(0) + r - epsilon.

    Args:
        query: Releases, adjacency, direction and side.
        epsilon: Privacy loss in nats, at least 0.

    Returns:
        The interval of delta.

    Raises:
        Unresolvable: If no interval can be certified.
    """
    if not any(needs_comparison(release) for release in query.releases):
        return _delta(query, epsilon)
    if query.is_trivial:
        return CertifiedInterval(0.0, 1.0, OTHER_METHOD)
    slack = query.compared.slack
    grown = math.exp(slack) * ROUND_UP if slack else 1.0
    match query.side:
        case BoundSide.ABOVE:
            answer = _delta(query, max(0.0, epsilon - slack) * ROUND_DOWN)
            more = max(0.0, slack - epsilon)
            return replace(answer, lower=0.0, upper=min(1.0, (answer.upper + more) * grown))
        case BoundSide.BELOW:
            answer = _delta(query, (epsilon + slack) * ROUND_UP)
            return replace(answer, lower=answer.lower / grown, upper=1.0)


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
    if composition.largest <= 0 and composition.missing_mass * ROUND_UP <= delta:
        return CertifiedInterval.closed(Bound(0.0, 0.0), LARGEST_LOSS_METHOD)
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
    if composition.largest <= 0 or composition.infinite_mass >= 1:
        infinite, missing = composition.infinite_mass / ROUND_UP, composition.missing_mass
        bound = Bound(infinite, min(1.0, missing * ROUND_UP))
        return CertifiedInterval.closed(bound, LARGEST_LOSS_METHOD)
    match composition:
        case Composition(distributions=((_, 1),), gaussian=0.0):
            rough = _delta_of_one(composition, epsilon).upper
            # A lower bound by another pair may fit this delta, such as a Gaussian.
            return _delta_of_one(query.composition(max(rough, 1e-290)), epsilon)
        case Composition(distributions=()):
            return _delta_of_one(composition, epsilon)
        case _:
            return solver.delta_by_contour(query.composition, epsilon)


def _delta_of_one(composition: Composition, epsilon: float) -> CertifiedInterval:
    """Compute delta of a single release, or of releases that are one Gaussian."""
    for distribution, _ in composition.distributions:
        return closed_form.single_release_delta(distribution, epsilon)
    found = gdp.delta_of_mu(epsilon, mu=math.sqrt(composition.gaussian))
    return CertifiedInterval.closed(found, "one Gaussian, closed form")
