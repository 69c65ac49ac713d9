"""The releases of a session, counted; and the budget that stops it before it is exceeded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from dpaudit.accountants import calibrate, pld
from dpaudit.accountants.answers import require_recorded_sampling
from dpaudit.vocabulary.errors import (
    BudgetExceeded,
    InvalidArgument,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.ledger import LedgerHeader
from dpaudit.vocabulary.mechanism import Composed, Mechanism, Release, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

TRIAL_DELTA = 1e-5  # delta at which a further release is checked if there is no budget
ROOMS_KEPT = 64  # budgets of equal ledgers that are computed once


@dataclass(frozen=True)
class PrivacyBudget:
    """An upper limit of epsilon at a delta: training stops before the step that would exceed it.

    Attributes:
        epsilon: Upper limit, above 0.
        delta: Delta of the limit, in [1e-300, 1).
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_delta("delta", self.delta)


class ReleaseAccount:
    """Counts releases, and computes what is left of a budget.

    Args:
        header: The ledger's header: adjacency and sampling.
        releases: Releases recorded before.
        budget: The budget; None: there is none.
    """

    def __init__(
        self,
        header: LedgerHeader,
        releases: tuple[Release, ...] = (),
        budget: PrivacyBudget | None = None,
    ) -> None:
        self._header, self._budget = header, budget
        self._room: dict[Release, int] = {}  # how many more of each release the budget allows
        self._recorded: dict[Release, int] = {}
        for release in releases:
            self.count(release)

    @property
    def recorded(self) -> dict[Release, int]:
        """The number of times each release was recorded."""
        return dict(self._recorded)

    def count(self, release: Release) -> None:
        """Count a release; the room for any other release is computed again.

        Args:
            release: The mechanism that is recorded.
        """
        self._recorded[release] = self._recorded.get(release, 0) + 1
        self._room = {release: self._room.get(release, 0) - 1}

    def set_budget(self, budget: PrivacyBudget) -> None:
        """Set the budget, in place of an earlier one.

        Args:
            budget: The budget.
        """
        self._budget, self._room = budget, {}

    def epsilon(self, delta: float) -> Bound:
        """Return certified bounds of epsilon for all releases so far.

        Args:
            delta: Delta, in [1e-300, 1).

        Returns:
            Lower and upper bound of epsilon; both 0 if nothing was released.

        Raises:
            InvalidArgument: If delta is out of range.
        """
        require_delta("delta", delta)
        if not self._recorded:
            return Bound(0.0, 0.0)
        return pld.profile(self._spent(), adjacency=self._header.adjacency).epsilon(delta=delta)

    def require_room(self, what: str, release: Release) -> None:
        """Refuse a release that no claim can cover, or that would exceed the budget.

        Args:
            what: What is released.
            release: Its mechanism.

        Raises:
            InvalidArgument: If it is not a mechanism, or has no description.
            UnsupportedMechanism: If no accountant composes it with what this run records.
            BudgetExceeded: If it would exceed the budget.
        """
        if not isinstance(what, str) or not what.strip():
            raise InvalidArgument("what", what, "a text: what was released")
        if not isinstance(release, Release):
            raise InvalidArgument("release", release, "a mechanism, as Gaussian(2.0)")
        require_recorded_sampling(self._header, release)
        # A release that no accountant supports is refused before it is recorded.
        spent = pld.profile(self._spent(release, 1), adjacency=self._header.adjacency)
        if self._budget is None:
            spent.epsilon(delta=TRIAL_DELTA)
            return
        if not spent.epsilon(delta=self._budget.delta).upper <= self._budget.epsilon:
            raise BudgetExceeded(f"{what} would exceed the budget that was set")

    def has_room(self, release: Release | None, times: int = 1) -> bool:
        """Return whether the budget, if any, has room for a number of equal releases.

        The number of such releases that fit is computed once, and again when they are used up.

        Args:
            release: The release; None if an earlier release covers the step.
            times: Number of releases, at least 1.

        Returns:
            True if there is no budget, no release, or room for all of them.
        """
        if self._budget is None or release is None or self._room.get(release, 0) >= times:
            return True
        recorded = tuple(self._recorded.items())
        room = _releases_that_fit(recorded, release, self._budget, self._header.adjacency)
        self._room = {release: room}
        return room >= times

    def has_room_for(self, releases: tuple[Release, ...]) -> bool:
        """Return whether the budget, if any, has room for several different releases together.

        Args:
            releases: The releases.

        Returns:
            True if there is no budget, or room for all of them.
        """
        if self._budget is None:
            return True
        recorded = tuple(self._recorded.items())
        return _fit_together(recorded, releases, self._budget, self._header.adjacency)

    def _spent(self, more: Release | None = None, times: int = 0) -> Mechanism:
        """Return the composition of all releases so far, with ``times`` more of one."""
        return _composition(tuple(self._recorded.items()), more, times)


@lru_cache(maxsize=ROOMS_KEPT)
def _fit_together(
    recorded: tuple[tuple[Release, int], ...],
    releases: tuple[Release, ...],
    budget: PrivacyBudget,
    adjacency: Adjacency,
) -> bool:
    """Return whether a budget has room for several releases after the recorded ones."""
    parts = [Repeated(release, times) for release, times in recorded]
    together = Composed((*parts, *releases))
    spent = pld.profile(together, adjacency=adjacency).epsilon(delta=budget.delta)
    return spent.upper <= budget.epsilon


@lru_cache(maxsize=ROOMS_KEPT)
def _releases_that_fit(
    recorded: tuple[tuple[Release, int], ...],
    release: Release,
    budget: PrivacyBudget,
    adjacency: Adjacency,
) -> int:
    """Return how many more releases a budget allows; most participants have equal ledgers."""
    with suppress(InvalidArgument):  # not even one release fits
        return calibrate.steps(
            lambda count: _composition(recorded, release, count),
            target_epsilon=budget.epsilon,
            delta=budget.delta,
            adjacency=adjacency,
        ).value
    return 0


def _composition(
    recorded: tuple[tuple[Release, int], ...], more: Release | None, times: int
) -> Mechanism:
    """Return the composition of recorded releases, with ``times`` more of one."""
    parts = [Repeated(release, count) for release, count in recorded]
    return Composed((*parts, *([Repeated(more, times)] if more is not None else [])))
