"""Upper bounds of the other accountants, which hold for the same epsilon and delta.

Each accountant's upper bound is proven. So an interval by privacy losses that is wide, or that
cannot be certified, need not end above the least of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

from dpaudit.accountants import naive, rdp, zcdp
from dpaudit.accountants.bounded_loss import LargestLoss, largest_loss
from dpaudit.accountants.releases import ReleaseCounts
from dpaudit.vocabulary.errors import AccountingError, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    Composed,
    Mechanism,
    PureDP,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

Profile = TypeVar("Profile")

FEW_RELEASES = 10
"""Different releases up to which composition theorems take a small part of an answer's time."""


@dataclass(frozen=True)
class OtherBounds:
    """The least upper bounds by composition theorems and by Renyi divergences.

    Attributes:
        releases: The elementary releases, each with its count.
        adjacency: Neighbor relation.
    """

    releases: ReleaseCounts
    adjacency: Adjacency

    @cached_property
    def largest_loss(self) -> LargestLoss | None:
        """Bounds of the largest loss; None where it is unbounded."""
        return largest_loss(self.releases, self.adjacency)

    @cached_property
    def renyi(self) -> rdp.RdpProfile | None:
        """The Renyi profile; None where a release has none."""
        return self._profile(rdp.profile)

    @cached_property
    def _concentrated(self) -> zcdp.ZcdpProfile | None:
        return self._profile(zcdp.profile)

    @cached_property
    def _naive(self) -> naive.NaiveProfile | None:
        return self._profile(naive.profile)

    def require_renyi(self) -> None:
        """Refuse releases that the accountant rdp does not cover.

        Raises:
            UnsupportedMechanism: If it does not; names the release.
        """
        with suppress(AccountingError):
            rdp.profile(self._mechanism, adjacency=self.adjacency)

    @property
    def _mechanism(self) -> Mechanism:
        return Composed(tuple(Repeated(release, times) for release, times in self.releases.items()))

    def _profile(self, make: Callable[..., Profile]) -> Profile | None:
        """Return an accountant's profile; None where it does not cover the releases."""
        with suppress(UnsupportedMechanism, AccountingError):
            return make(self._mechanism, adjacency=self.adjacency)
        return None

    def epsilon(self, delta: float) -> float:
        """Return the least upper bound of epsilon.

        Args:
            delta: Between 1e-300 (inclusive) and 1 (exclusive).

        Returns:
            In nats; infinite where no other accountant has a bound.
        """
        profiles = [one for one in (self.renyi, self._concentrated, self._naive) if one is not None]
        found = [*_uppers(partial(one.epsilon, delta=delta) for one in profiles)]
        if self.largest_loss is not None:
            found.append(self.largest_loss.epsilon.upper)
        return min(found, default=math.inf)

    def exact_epsilon(self, delta: float) -> float:
        """Return the bound of composition theorems where these are exact, or nearly so.

        They are exact, up to rounding, for one release and for equal guarantees (Kairouz, Oh &
        Viswanath 2015). For a few guarantees, sampled ones too, they may end within the width of
        a narrow interval.

        Args:
            delta: Between 1e-300 (inclusive) and 1 (exclusive).

        Returns:
            In nats; infinite where the theorems are not exact or give no bound.
        """
        single = list(self.releases.values()) == [1]
        few = len(self.releases) <= FEW_RELEASES and all(map(_is_guarantee, self.releases))
        if not (single or few) or self._naive is None:
            return math.inf
        return min(_uppers([partial(self._naive.epsilon, delta=delta)]), default=math.inf)

    def reasons(self, delta: float) -> list[str]:
        """Return why the accountants rdp and naive give no bound at a delta.

        Args:
            delta: Between 1e-300 (inclusive) and 1 (exclusive).

        Returns:
            A text for each of them that gives none, with its name.
        """
        found = []
        for name, accountant in (("rdp", rdp), ("naive", naive)):
            try:
                accountant.profile(self._mechanism, adjacency=self.adjacency).epsilon(delta=delta)
            except (UnsupportedMechanism, AccountingError) as error:
                found.append(f"{name}: {error}")
        return found

    def delta(self, epsilon: float) -> float:
        """Return the least upper bound of delta.

        Args:
            epsilon: Privacy loss in nats, finite and at least 0.

        Returns:
            At most 1.
        """
        profiles = [one for one in (self.renyi, self._concentrated) if one is not None]
        found = [*_uppers(partial(one.delta, epsilon=epsilon) for one in profiles)]
        if self.largest_loss is not None:
            found.append(self.largest_loss.delta(epsilon))
        return min(found, default=1.0)


def _is_guarantee(release: Mechanism) -> bool:
    """Return whether a release is known by an epsilon and a delta alone, sampled or not."""
    while (inner := getattr(release, "mechanism", None)) is not None:
        release = inner
    return isinstance(release, PureDP | ApproximateDP)


def _uppers(questions: Iterable[Callable[[], Bound]]) -> Iterator[float]:
    """Yield the upper end of each answer; an accountant without one is left out."""
    for ask in questions:
        with suppress(UnsupportedMechanism, AccountingError):
            yield ask().upper
