"""Which thresholds on scores are looked at, and what that costs.

A threshold that was chosen on the scores that it is then judged by makes a bound invalid:
popular tools were measured at 10 to 94 false claims in 100 at a nominal 5. So it is fixed
beforehand, chosen on one half and judged on the other, or every threshold is paid for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.bounds.band import MOST_DENSE, local_level, places
from dpaudit.attacks.bounds.rates import upper_limit
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit
from dpaudit.vocabulary.estimators import GaussianBand

Array = NDArray[np.float64]

COARSENESS = 10  # numbers of scores are rounded up to a tenth of their first digit


@dataclass(frozen=True)
class ErrorLimits:
    """Upper limits of both error rates, each shape ``(thresholds,)``; all hold at once."""

    false_negative_rate: Array
    false_positive_rate: Array


class Thresholds(Protocol):
    """A way to choose thresholds."""

    @property
    def words(self) -> str:
        """How they were chosen."""

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Return limits that fail together with probability ``level`` at most."""


@dataclass(frozen=True)
class Fixed:
    """One threshold, known before the scores were read; a score above it means member."""

    threshold: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise InvalidArgument("threshold", self.threshold, "finite")

    @property
    def words(self) -> str:
        """How it was chosen."""
        return f"one threshold, {self.threshold:g}, fixed beforehand"

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Return Clopper and Pearson's limits, half the level each."""
        missed = int(np.count_nonzero(members <= self.threshold))
        accused = int(np.count_nonzero(nonmembers > self.threshold))
        return ErrorLimits(
            np.atleast_1d(upper_limit(missed, len(members), level / 2)),
            np.atleast_1d(upper_limit(accused, len(nonmembers), level / 2)),
        )


@dataclass(frozen=True)
class Split:
    """The threshold that is best on some of the scores, judged on the others.

    Attributes:
        rng: Draws which scores choose.
        share: How many of them do, in (0, 1).
        delta: The delta at which it should be best.
    """

    rng: np.random.Generator
    share: float = 0.5
    delta: float = 0.0

    def __post_init__(self) -> None:
        require_open_unit("share", self.share)

    @property
    def words(self) -> str:
        """How it was chosen."""
        return f"one threshold, chosen on {self.share:.0%} of the scores and judged on the others"

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Return the limits of the others' error rates."""
        choosing, judging = self._parted(members)
        choosing_out, judging_out = self._parted(nonmembers)
        threshold = self._best(choosing, choosing_out, level)
        return Fixed(threshold).limits(judging, judging_out, level)

    def _parted(self, scores: Array) -> tuple[Array, Array]:
        if len(scores) < 2:
            raise InvalidArgument("scores", f"{len(scores)} of a kind", "at least 2 to be split")
        mixed = self.rng.permutation(scores)
        size = min(len(scores) - 1, max(1, round(self.share * len(scores))))
        return mixed[:size], mixed[size:]

    def _best(self, members: Array, nonmembers: Array, level: float) -> float:
        """Return the threshold whose own limits would say most."""
        candidates = candidate_thresholds(members, nonmembers)
        missed, accused = _error_counts(members, nonmembers, candidates)
        fnr = upper_limit(missed, len(members), level / 2)
        fpr = upper_limit(accused, len(nonmembers), level / 2)
        gains = [(1 - self.delta - fnr) / fpr, (1 - self.delta - fpr) / fnr]
        return float(candidates[int(np.argmax(np.maximum(*gains)))])


@dataclass(frozen=True)
class Band:
    """Every threshold, under a band of equal local levels."""

    @property
    def words(self) -> str:
        """How they were chosen."""
        return "every threshold, under a simultaneous band (equal local levels)"

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Return Clopper and Pearson's limits at the local level of so many scores or more."""
        thresholds = candidate_thresholds(members, nonmembers)
        missed, accused = _error_counts(members, nonmembers, thresholds)
        return ErrorLimits(
            _band_limits(missed, len(members), level / 2),
            _band_limits(accused, len(nonmembers), level / 2),
        )


@dataclass(frozen=True)
class Bonferroni:
    """Every threshold, the level shared out among as many as there are scores."""

    @property
    def words(self) -> str:
        """How they were chosen."""
        return "every threshold, by Bonferroni's inequality"

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Return Clopper and Pearson's limits at a level for each score."""
        thresholds = candidate_thresholds(members, nonmembers)
        missed, accused = _error_counts(members, nonmembers, thresholds)
        return ErrorLimits(
            upper_limit(missed, len(members), level / 2 / len(members)),
            upper_limit(accused, len(nonmembers), level / 2 / len(nonmembers)),
        )


@dataclass(frozen=True)
class Dkw:
    """Every threshold, by the inequality of Dvoretzky, Kiefer & Wolfowitz (Massart 1990)."""

    @property
    def words(self) -> str:
        """How they were chosen."""
        return "every threshold, by the inequality of Dvoretzky, Kiefer and Wolfowitz"

    def limits(self, members: Array, nonmembers: Array, level: float) -> ErrorLimits:
        """Return counted rates plus sqrt(ln(2/level)/(2 n)): one side each, half the level."""
        missed, accused = _error_counts(
            members, nonmembers, candidate_thresholds(members, nonmembers)
        )
        return ErrorLimits(
            _raised(missed, len(members), level / 2), _raised(accused, len(nonmembers), level / 2)
        )


def errors_at_every_threshold(members: Array, nonmembers: Array) -> GaussianBand:
    """Return how many members are missed, and others accused, at every threshold."""
    thresholds = candidate_thresholds(members, nonmembers)
    missed, accused = _error_counts(members, nonmembers, thresholds)
    return GaussianBand(
        len(members), len(nonmembers), tuple(missed.tolist()), tuple(accused.tolist())
    )


def limits_of_counts(errors: GaussianBand, level: float) -> ErrorLimits:
    """Return what ``Band`` does, from the counts alone."""
    return ErrorLimits(
        _band_limits(np.array(errors.missed), errors.members, level / 2),
        _band_limits(np.array(errors.accused), errors.nonmembers, level / 2),
    )


def _band_limits(errors: NDArray[np.int64], trials: int, level: float) -> Array:
    """Return limits for these numbers of errors, which hold at once.

    With e errors the rate is at most the (e + 1)-th smallest of ``trials`` uniform numbers.
    """
    chosen = places(trials)
    of_each = np.append(upper_limit(chosen - 1, trials, _band_level(trials, level)), 1.0)
    return np.asarray(of_each[np.searchsorted(chosen, errors + 1)])


def _band_level(scores: int, level: float) -> float:
    """Return a level that is kept: numbers of scores that are near each other share one.

    More scores have a lower local level, so that of a few more is valid. Of very many scores a
    part of the limits is used, which depends on their number: these do not share a level.
    """
    if scores > MOST_DENSE:
        return local_level(scores, level)
    step = max(1, 10 ** (len(str(scores)) - 1) // COARSENESS)
    return local_level(step * math.ceil(scores / step), level)


def _raised(errors: NDArray[np.int64], trials: int, level: float) -> Array:
    # Massart's constant needs a level of at most one half.
    more = math.sqrt(math.log(1 / min(level, 0.5)) / (2 * trials))
    return np.minimum(1.0, errors / trials + more)


def candidate_thresholds(members: Array, nonmembers: Array) -> Array:
    """Return a threshold for every way that scores can be told apart, falling.

    The first, the largest score, accuses nobody, and the last everybody.
    """
    values = np.unique(np.concatenate([members, nonmembers]))[::-1]
    return np.append(values, np.nextafter(values[-1], -np.inf))


def _error_counts(
    members: Array, nonmembers: Array, thresholds: Array
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return members at or below, and non-members above each threshold."""
    missed = np.searchsorted(np.sort(members), thresholds, side="right")
    accused = len(nonmembers) - np.searchsorted(np.sort(nonmembers), thresholds, side="right")
    return missed, accused
