"""delta(epsilon) and epsilon(delta) of a mechanism: chooses the form that fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpaudit.accountants import gaussian
from dpaudit.accountants.invert import largest_with_at_least, smallest_with_at_most
from dpaudit.accountants.pld.enclosure import grid
from dpaudit.accountants.pld.enclosure.laws import Direction, loss_law
from dpaudit.accountants.pld.two_answers import two_answers_of
from dpaudit.accountants.releases import (
    Releases,
    count_releases,
    require_meaning,
    shift_over_noise,
)
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    AccountingError,
    InvalidArgument,
    Unresolvable,
    require_delta,
)
from dpaudit.vocabulary.mechanism import Gaussian, Mechanism, PoissonSampled

LARGEST_EPSILON = 1e5  # on the grid


def profile(
    mechanism: Mechanism,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    relative_width: float = 0.005,
) -> GridProfile:
    """Return the privacy profile of ``mechanism``.

    Args:
        mechanism: A release or a composition whose schedule was fixed in advance.
        adjacency: Which data sets are neighbours.
        relative_width: Aim for the width of epsilon's interval over epsilon. The
            interval is valid whatever this is; closed forms are sharper by themselves.

    Raises:
        UnsupportedMechanism: a part has no valid statement under ``adjacency``.
        InvalidArgument: ``relative_width`` is not above 0 and at most 10.
    """
    if not 0 < relative_width <= 10:
        raise InvalidArgument("relative_width", relative_width, "above 0 and at most 10")
    releases = count_releases(mechanism)
    require_meaning(releases, adjacency)
    for release in releases:
        loss_law(release, adjacency, Direction.REMOVE)  # refuses what has no law here
    return GridProfile(releases, adjacency, relative_width)


@dataclass(frozen=True)
class GridProfile:
    """The worst delta(epsilon) over both directions of a neighbouring pair."""

    releases: Releases
    adjacency: Adjacency
    relative_width: float

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of the least epsilon at ``delta``, ``0 < delta < 1``."""
        require_delta("delta", delta)
        if (mu := self._gaussian_mu()) is not None:
            return gaussian.epsilon(delta, mu=mu)
        if (responses := two_answers_of(self.releases)) is not None:
            return responses.epsilon(delta)
        if self._ever_joins() <= delta:
            return Bound(0.0, 0.0)
        return _worst([self._epsilon_one_way(delta, way) for way in self._directions()])

    def delta(self, *, epsilon: float) -> Bound:
        """Return the interval of the least delta at ``epsilon``, ``0 <= epsilon``."""
        if not 0 <= epsilon < math.inf:
            raise InvalidArgument("epsilon", epsilon, "at least 0 and finite")
        if (mu := self._gaussian_mu()) is not None:
            return gaussian.delta(epsilon, mu=mu)
        if (responses := two_answers_of(self.releases)) is not None:
            return responses.delta(epsilon)
        if epsilon > LARGEST_EPSILON:  # delta falls
            return Bound(0.0, self.delta(epsilon=LARGEST_EPSILON).upper)
        found = _worst([self._delta_one_way(epsilon, way) for way in self._directions()])
        return Bound(found.lower, max(found.lower, min(found.upper, self._ever_joins())))

    def _gaussian_mu(self) -> float | None:
        if all(isinstance(release, Gaussian) for release in self.releases):
            return self._without_sampling()
        return None

    def _ever_joins(self) -> float:
        """Return at least the probability that a record takes part in anything at all.

        Where it does not, both neighbours give the same outputs: (0, that)-DP.
        """
        rates = (
            times * (release.sampling_rate if isinstance(release, PoissonSampled) else 1.0)
            for release, times in self.releases.items()
        )
        return sum(rates) * (1 + 1e-12)

    def _directions(self) -> tuple[Direction, ...]:
        if any(isinstance(release, PoissonSampled) for release in self.releases):
            return Direction.REMOVE, Direction.ADD
        return (Direction.REMOVE,)  # every other pair is its own mirror image

    def _laws(self, direction: Direction) -> grid.Laws:
        return [
            (loss_law(release, self.adjacency, direction), times)
            for release, times in self.releases.items()
        ]

    def _without_sampling(self) -> float:
        """Return the mu of the same Gaussians on all records, which dominate the sampled ones.

        The hockey-stick divergence is convex: a sampled pair lies below its unsampled one,
        and so do their compositions. Wide, and valid where the grid has nothing to say.
        """
        shifts = []
        for release, times in self.releases.items():
            match release:
                case (Gaussian() as inner) | PoissonSampled(Gaussian() as inner):
                    shifts.append(math.sqrt(times) * shift_over_noise(inner, self.adjacency))
                case _:
                    raise AccountingError(f"{release!r} is too far from private to be priced")
        return math.hypot(*shifts)

    def _epsilon_one_way(self, delta: float, direction: Direction) -> Bound:
        try:
            return self._epsilon_on_grid(self._laws(direction), delta)
        except Unresolvable:
            return Bound(0.0, gaussian.epsilon(delta, mu=self._without_sampling()).upper)

    def _delta_one_way(self, epsilon: float, direction: Direction) -> Bound:
        try:
            return self._delta_on_grid(self._laws(direction), epsilon)
        except Unresolvable:
            return Bound(0.0, gaussian.delta(epsilon, mu=self._without_sampling()).upper)

    def _epsilon_on_grid(self, laws: grid.Laws, delta: float) -> Bound:
        plan = grid.plan_for_delta(laws, delta)
        composition = grid.compose(laws, plan, self.relative_width)
        # Chernoff's epsilon is an upper bound up to what the lattice adds.
        ceiling = 1.1 * plan.epsilon_guess + 1.0
        eta = delta * grid.ETA_SHARE
        resolution = 0.01 * self.relative_width
        upper = smallest_with_at_most(composition.delta_upper, delta, 0.0, ceiling, resolution)
        lower = largest_with_at_least(
            lambda e: composition.delta_lower(e, eta), delta, 0.0, upper, resolution
        )
        return Bound(lower, upper)

    def _delta_on_grid(self, laws: grid.Laws, epsilon: float) -> Bound:
        plan = grid.plan_for_epsilon(laws, epsilon)
        composition = grid.compose(laws, plan, self.relative_width)
        upper = composition.delta_upper(epsilon)
        lower = composition.delta_lower(epsilon, max(upper * grid.ETA_SHARE, 1e-300))
        return Bound(lower, upper)


def _worst(ways: list[Bound]) -> Bound:
    return Bound(max(way.lower for way in ways), max(way.upper for way in ways))
