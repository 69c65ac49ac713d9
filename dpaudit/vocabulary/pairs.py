"""Mechanisms that are given by a dominating pair of output distributions (P, Q).

Any neighbors' outputs are at most as easy to tell apart as P and Q: for every t above 0,

    sup over events S of M(x)(S) - t M(x')(S)  <=  sup over S of P(S) - t Q(S).

P belongs to the data set with the record, Q to the one without it. The inequality for all t also
holds with both sides exchanged, so one pair covers a record that is added and one that is removed.

References:
    Zhu, Dong & Wang (2022), arXiv:2106.08567.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from itertools import accumulate
from typing import Any

import msgspec

from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_not_negative,
    require_positive,
    to_python_number,
)
from dpaudit.vocabulary.tagged import Tagged

SUM_TOLERANCE = 1e-12
"""How far probabilities may be from a sum of 1; they are divided by their sum."""
LARGEST_MASS_ERROR = 1e-3
LONGEST_REPR = 8
"""Outcomes up to which messages show all masses."""
CURVE_TOLERANCE = 1e-9
"""How far a lower curve may exceed an upper one by rounding, relative to it."""


class MixtureOfGaussians(Tagged, frozen=True, omit_defaults=True):
    """A sum with Gaussian noise, where what a user adds to it has a random length.

    The noise has the law N(0, standard_deviation^2) in every coordinate. The data of the user add
    a vector, which is drawn anew in every release. Its norm is at most ``sensitivities[i]`` with
    probability ``probabilities[i]``. The worst case is the pair

        P = sum_i probabilities[i] N(sensitivities[i], standard_deviation^2)
        Q = N(0, standard_deviation^2).

    The neighbor of it may also have data of its own, such as other records of the user. Their
    vector has the norm ``opposite_sensitivities[j]`` with probability
    ``opposite_probabilities[j]``, and in the worst case the opposite direction. Only such mixtures
    are defined under replace-one, with one exception. A mixture with one sensitivity above 0 is a
    Gaussian, or a Poisson sample of it, and is treated as such: its replacement has the same law.

    Attributes:
        standard_deviation: Of the noise, in the units of the sensitivities; above 0 and finite.
        sensitivities: Norms of what the data add, each at least 0 and one above 0. A list is
            accepted and becomes a tuple.
        probabilities: Their probabilities, each above 0, with the sum 1.
        opposite_sensitivities: Norms of what the neighbor's data add; none by default.
        opposite_probabilities: Their probabilities, each above 0, with the sum 1.

    Raises:
        InvalidArgument: If a number is out of its range, lengths differ, or probabilities do not
            sum to 1 within 1e-12.

    References:
        Choquette-Choo et al. (2023), arXiv:2310.15526.

    Example:
        >>> user = MixtureOfGaussians(1.0, [0.0, 1.0, 2.0], [0.98, 0.01, 0.01])
        >>> msgspec.json.decode(msgspec.json.encode(user), type=MixtureOfGaussians) == user
        True
    """

    standard_deviation: float
    sensitivities: tuple[float, ...]
    probabilities: tuple[float, ...]
    opposite_sensitivities: tuple[float, ...] = ()
    opposite_probabilities: tuple[float, ...] = ()

    def _require_valid(self) -> None:
        require_positive("standard_deviation", self.standard_deviation)
        for name in ("sensitivities", "opposite_sensitivities"):
            _as_numbers(self, name)
            for one in getattr(self, name):
                require_not_negative(name, one)
        for name in ("probabilities", "opposite_probabilities"):
            _as_numbers(self, name)
            for one in getattr(self, name):
                require_positive(name, one)
        _require_distribution("probabilities", self.sensitivities, self.probabilities)
        if self.opposite_sensitivities or self.opposite_probabilities:
            _require_distribution(
                "opposite_probabilities", self.opposite_sensitivities, self.opposite_probabilities
            )
        if not any(one > 0 for one in (*self.sensitivities, *self.opposite_sensitivities)):
            raise InvalidArgument("sensitivities", self.sensitivities, "not all 0")


def _as_numbers(struct: msgspec.Struct, name: str) -> None:
    """Turn a field into a tuple of Python numbers."""
    given: Any = getattr(struct, name)
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InvalidArgument(name, given, "a list of numbers")
    values = tuple(to_python_number(value) for value in given)
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise InvalidArgument(name, given, "a list of numbers")
    msgspec.structs.force_setattr(struct, name, tuple(float(value) for value in values))


def _require_distribution(
    name: str, values: tuple[float, ...], probabilities: tuple[float, ...]
) -> None:
    """Refuse probabilities that are not one per value, or that do not sum to 1."""
    if len(values) != len(probabilities) or not values:
        raise InvalidArgument(name, probabilities, f"{max(1, len(values))} numbers: one per value")
    total = math.fsum(probabilities)
    if not abs(total - 1) <= SUM_TOLERANCE:
        raise InvalidArgument(name, f"a sum of {total!r}", f"of sum 1 within {SUM_TOLERANCE:g}")


class PairMasses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two distributions on the same finitely many outcomes.

    Attributes:
        p: Masses under P, each at least 0, with the sum 1. A list or an array is accepted.
        q: Masses under Q, in the same order. An outcome that only one of them has is allowed.

    Raises:
        InvalidArgument: If a mass is negative or not finite, lengths differ, or masses do not sum
            to 1 within 1e-12. Put a mass that was left out into an outcome of its own.

    Example:
        >>> PairMasses(p=[0.75, 0.25], q=[0.25, 0.75]).delta(1.0)
        0.5
    """

    p: tuple[float, ...]
    q: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("p", "q"):
            _as_numbers(self, name)
            for one in getattr(self, name):
                require_not_negative(name, one)
        if len(self.p) != len(self.q):
            raise InvalidArgument("q", f"{len(self.q)} masses", f"{len(self.p)} masses, one per p")
        _require_distribution("p", self.p, self.p)
        _require_distribution("q", self.q, self.q)

    def __repr__(self) -> str:
        if len(self.p) > LONGEST_REPR:
            return f"PairMasses(<{len(self.p)} outcomes>)"
        return f"PairMasses(p={self.p!r}, q={self.q!r})"

    def delta(self, ratio: float) -> float:
        """Return the hockey-stick divergence sup over events S of P(S) - ratio Q(S).

        Args:
            ratio: e^epsilon, at least 0.

        Returns:
            The divergence, not rounded in either direction.
        """
        return math.fsum(max(0.0, p - ratio * q) for p, q in zip(self.p, self.q, strict=True))

    def is_below(self, other: PairMasses) -> bool:
        """Return whether the divergence is at most that of another pair at every ratio.

        Both curves are convex and linear between the ratios p/q of their outcomes. So they are
        compared at the ratios of the lower curve and at those of the upper one.

        Args:
            other: The pair that may dominate this one.

        Returns:
            True if it does, up to rounding.
        """
        ratios = sorted(
            {
                p / q
                for pair in (self, other)
                for p, q in zip(pair.p, pair.q, strict=True)
                if q > 0 and p / q < math.inf
            }
        )
        mine, others = self._deltas(ratios), other._deltas(ratios)
        return all(
            one <= more * (1 + CURVE_TOLERANCE) + SUM_TOLERANCE
            for one, more in zip(mine, others, strict=True)
        )

    def _deltas(self, ratios: list[float]) -> list[float]:
        """Return the divergence at rising ratios, from sums over the outcomes with larger ones."""
        # An outcome that neither has is at no ratio.
        outcomes = [pair for pair in zip(self.p, self.q, strict=True) if any(pair)]
        order = sorted(
            outcomes,
            key=lambda pair: -(pair[0] / pair[1] if pair[1] > 0 else math.inf),
        )
        p_sums = [0.0, *accumulate(p for p, _ in order)]
        q_sums = [0.0, *accumulate(q for _, q in order)]
        found, count = [], 0
        for ratio in reversed(ratios):
            while count < len(order) and order[count][0] > ratio * order[count][1]:
                count += 1
            found.append(p_sums[count] - ratio * q_sums[count])
        return found[::-1]


class PairSource(StrEnum):
    """What a dominating pair was computed from, which says how it bounds the truth.

    Attributes:
        ATOMS: Probability masses. Both ends are the pair itself.
        DENSITIES: Cells of an axis. Merged to their means below, spread to their ends above.
        TRADE_OFF_CURVE: Points of a curve. Chords below, prolonged chords above.
        PRIVACY_PROFILE: Points of delta(epsilon). Prolonged chords below, chords above.

    Example:
        >>> from dpaudit.accountants import pld
        >>> pld.from_pmfs([0.75, 0.25], [0.25, 0.75]).source
        <PairSource.ATOMS: 'atoms'>
    """

    ATOMS = "atoms"
    DENSITIES = "densities"
    TRADE_OFF_CURVE = "trade-off curve"
    PRIVACY_PROFILE = "privacy profile"


class DominatingPair(Tagged, frozen=True, omit_defaults=True):
    """Any mechanism with a known dominating pair (P, Q), enclosed by two finite pairs.

    ``dpaudit.accountants.pld`` builds one: ``from_pmfs``, ``from_densities``, ``from_tradeoff``
    and ``from_privacy_profile``. The pair holds under the adjacency that epsilon is computed for.

    The certificate: for every ratio t, the divergence P(S) - t Q(S) of the true pair lies between
    those of ``lower`` and ``upper``, where each mass of these two has a relative error of at most
    ``mass_error``. Composition and Poisson sampling keep this order, so epsilon is enclosed from
    both sides.

    Attributes:
        upper: A pair that dominates (P, Q).
        lower: A pair that (P, Q) dominates; the same for a pair of finitely many outcomes.
        source: What the pairs were computed from.
        mass_error: Bound on the relative error of the masses, from 0 to 1e-3.

    Raises:
        InvalidArgument: If a mass or the error is out of its range, or ``lower`` is not below
            ``upper``.

    Example:
        >>> masses = PairMasses(p=(0.75, 0.25), q=(0.25, 0.75))
        >>> pair = DominatingPair(upper=masses, lower=masses, source=PairSource.ATOMS)
        >>> msgspec.json.decode(msgspec.json.encode(pair), type=DominatingPair) == pair
        True
    """

    upper: PairMasses
    lower: PairMasses
    source: PairSource
    mass_error: float = 0.0

    def _require_valid(self) -> None:
        if not 0 <= self.mass_error <= LARGEST_MASS_ERROR:
            raise InvalidArgument("mass_error", self.mass_error, f"0 to {LARGEST_MASS_ERROR:g}")
        for name in ("upper", "lower"):
            if not isinstance(getattr(self, name), PairMasses):
                raise InvalidArgument(name, getattr(self, name), "a PairMasses")
        if not isinstance(self.source, PairSource):
            raise InvalidArgument("source", self.source, "a PairSource")
        if self.lower is not self.upper and not self.lower.is_below(self.upper):
            raise InvalidArgument("lower", "a pair that exceeds the upper one", "below it")
