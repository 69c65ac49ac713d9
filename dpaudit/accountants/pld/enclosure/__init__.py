"""Enclosure of delta and epsilon on a grid of losses: coarse, and independent of the contour.

Upper bounds replace each release's loss distribution by a dominating lattice distribution.
Lower bounds limit by Hoeffding's inequality what rounding to the lattice may have added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpaudit.accountants import gdp
from dpaudit.accountants.numerics import (
    Direction,
    certified_lower_crossing,
    certified_upper_crossing,
)
from dpaudit.accountants.pld.closed_form import binary_responses_of
from dpaudit.accountants.pld.enclosure import lattice_composition
from dpaudit.accountants.pld.enclosure.lattice_distribution import (
    cell_distribution,
)
from dpaudit.accountants.releases import (
    ReleaseCounts,
    count_releases,
    gaussian_mu,
    require_supported_adjacency,
)
from dpaudit.vocabulary import public_names
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    Unresolvable,
    require_delta,
    require_not_negative,
)
from dpaudit.vocabulary.mechanism import Gaussian, Mechanism, PoissonSampled
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

__all__ = ["GridProfile", "profile"]

__dir__ = public_names(__name__)


# Privacy profile on a grid: delta(epsilon) and epsilon(delta), with certified intervals.
#
# Unsampled Gaussians and repeated two-valued answers have closed forms. Everything else is
# composed on a lattice, per direction. Where no lattice is fine enough, Gaussian releases fall
# back to the same Gaussians without sampling, an upper bound.

LARGEST_EPSILON = 1e5  # nats; above it delta is bounded by its value there


def profile(
    mechanism: Mechanism,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    relative_width: float = 0.005,
) -> GridProfile:
    """Return the privacy profile of a mechanism on a grid.

    Also refuses (``UnsupportedMechanism``) a release that has no distribution here.

    Args:
        mechanism: A release or a composition whose schedule was fixed in advance.
        adjacency: The relation of neighboring data sets.
        relative_width: Target for the width of epsilon's interval relative to epsilon. The
            interval is valid for any value; closed forms are narrower.

    Returns:
        The profile, which evaluates epsilon and delta on demand.

    Raises:
        InvalidArgument: If ``relative_width`` is not above 0 and at most 10.

    Example:
        >>> from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
        >>> steps = Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000)
        >>> epsilon = profile(steps, relative_width=0.1).epsilon(delta=1e-5)
        >>> f"{epsilon.lower:.2f} to {epsilon.upper:.2f}"
        '1.62 to 1.83'
    """
    if not 0 < relative_width <= 10:
        raise InvalidArgument("relative_width", relative_width, "above 0 and at most 10")
    releases = count_releases(mechanism)
    require_supported_adjacency(releases, adjacency)
    for release in releases:
        cell_distribution(
            release, adjacency, Direction.REMOVED
        )  # refuses releases without a distribution here
    return GridProfile(releases, adjacency, relative_width)


@dataclass(frozen=True)
class GridProfile:
    """delta(epsilon) of a mechanism on a grid: the larger of both directions of neighbors.

    Attributes:
        releases: How often each elementary release occurs.
        adjacency: The relation of neighboring data sets.
        relative_width: Target for the width of epsilon's interval relative to epsilon.

    Example:
        >>> from dpaudit.accountants.pld.enclosure import profile
        >>> from dpaudit.vocabulary.mechanism import Gaussian
        >>> f"{profile(Gaussian(1.0)).delta(epsilon=1.0).upper:.5f}"
        '0.12694'
    """

    releases: ReleaseCounts
    adjacency: Adjacency
    relative_width: float

    def epsilon(self, *, delta: float) -> Bound:
        """Compute the interval of the smallest epsilon at a given delta.

        Refuses a delta out of range (``InvalidArgument``).

        Args:
            delta: Between 1e-300 (inclusive) and 1 (exclusive).

        Returns:
            A certified interval of epsilon, in nats.
        """
        require_delta("delta", delta)
        if (mu := self._gaussian_mu()) is not None:
            return gdp.epsilon_of_mu(delta, mu=mu)
        if (responses := binary_responses_of(self.releases)) is not None:
            return responses.epsilon(delta)
        if self._participation_probability() <= delta:
            return Bound(0.0, 0.0)
        return _worst_direction(
            [self._epsilon_in_direction(delta, direction) for direction in self._directions()]
        )

    def delta(self, *, epsilon: float) -> Bound:
        """Compute the interval of the smallest delta at a given epsilon.

        Args:
            epsilon: Privacy loss in nats, finite and at least 0.

        Returns:
            A certified interval of delta, in [0, 1].

        Raises:
            InvalidArgument: If ``epsilon`` is negative, infinite or NaN.
        """
        require_not_negative("epsilon", epsilon)
        if (mu := self._gaussian_mu()) is not None:
            return gdp.delta_of_mu(epsilon, mu=mu)
        if (responses := binary_responses_of(self.releases)) is not None:
            return responses.delta(epsilon)
        if epsilon > LARGEST_EPSILON:  # delta falls with epsilon
            return Bound(0.0, self.delta(epsilon=LARGEST_EPSILON).upper)
        found = _worst_direction(
            [self._delta_in_direction(epsilon, direction) for direction in self._directions()]
        )
        return Bound(
            found.lower, max(found.lower, min(found.upper, self._participation_probability()))
        )

    def _gaussian_mu(self) -> float | None:
        """Return mu of the composed Gaussian, or None if any release is of another kind."""
        if all(isinstance(release, Gaussian) for release in self.releases):
            return self._without_sampling()
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
        return sum(rates) * (1 + 1e-12)

    def _directions(self) -> tuple[Direction, ...]:
        """Return the directions to evaluate: both, unless every dominating pair is symmetric."""
        if any(isinstance(release, PoissonSampled) for release in self.releases):
            return Direction.REMOVED, Direction.ADDED
        return (Direction.REMOVED,)  # every other pair is symmetric

    def _distributions(self, direction: Direction) -> lattice_composition.CountedDistributions:
        """Return the loss distributions of all releases in one direction, with their counts."""
        return [
            (cell_distribution(release, self.adjacency, direction), times)
            for release, times in self.releases.items()
        ]

    def _without_sampling(self) -> float:
        """Return mu of the same Gaussians without sampling, which dominate the sampled ones.

        The hockey-stick divergence is convex, so a sampled pair lies below its unsampled one, and
        so do their compositions. The bound is loose, but valid where the grid has no answer.
        """
        shifts = []
        for release, times in self.releases.items():
            match release:
                case (Gaussian() as inner) | PoissonSampled(Gaussian() as inner):
                    shifts.append(math.sqrt(times) * gaussian_mu(inner, self.adjacency))
                case _:
                    raise AccountingError(f"the losses of {release!r} are too large for the grid")
        return math.hypot(*shifts)

    def _epsilon_in_direction(self, delta: float, direction: Direction) -> Bound:
        """Compute epsilon in one direction, with the unsampled Gaussians as a fallback."""
        try:
            return self._epsilon_on_grid(self._distributions(direction), delta)
        except Unresolvable:
            return Bound(0.0, gdp.epsilon_of_mu(delta, mu=self._without_sampling()).upper)

    def _delta_in_direction(self, epsilon: float, direction: Direction) -> Bound:
        """Compute delta in one direction, with the unsampled Gaussians as a fallback."""
        try:
            return self._delta_on_grid(self._distributions(direction), epsilon)
        except Unresolvable:
            return Bound(0.0, gdp.delta_of_mu(epsilon, mu=self._without_sampling()).upper)

    def _epsilon_on_grid(
        self, distributions: lattice_composition.CountedDistributions, delta: float
    ) -> Bound:
        """Compute epsilon from the lattice composition by certified bisection."""
        plan = lattice_composition.plan_for_delta(distributions, delta)
        composition = lattice_composition.compose_on_lattice(
            distributions, plan, self.relative_width
        )
        # Chernoff's epsilon on the coarse lattice is an upper bound, up to lattice rounding.
        ceiling = 1.1 * plan.epsilon_guess + 1.0
        eta = delta * lattice_composition.ETA_SHARE
        resolution = 0.01 * self.relative_width
        upper = certified_upper_crossing(composition.delta_upper, delta, 0.0, ceiling, resolution)
        lower = certified_lower_crossing(
            lambda e: composition.delta_lower(e, eta), delta, 0.0, upper, resolution
        )
        return Bound(lower, upper)

    def _delta_on_grid(
        self, distributions: lattice_composition.CountedDistributions, epsilon: float
    ) -> Bound:
        """Compute delta from the lattice composition."""
        plan = lattice_composition.plan_for_epsilon(distributions, epsilon)
        composition = lattice_composition.compose_on_lattice(
            distributions, plan, self.relative_width
        )
        upper = composition.delta_upper(epsilon)
        lower = composition.delta_lower(epsilon, max(upper * lattice_composition.ETA_SHARE, 1e-300))
        return Bound(lower, upper)


def _worst_direction(bounds: list[Bound]) -> Bound:
    """Return the interval of the maximum over directions."""
    return Bound(max(bound.lower for bound in bounds), max(bound.upper for bound in bounds))
