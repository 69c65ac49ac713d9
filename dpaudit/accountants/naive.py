"""Naive composition: bound each release by its own (epsilon, delta), then compose those.

With 1 - D the product of all 1 - d_i, and d the delta left: 1 - delta = (1 - D) (1 - d),

basic     sum e_i at d = 0 (Dwork, McSherry, Nissim & Smith 2006).
advanced  sum e_i (exp(e_i) - 1)/(exp(e_i) + 1) + sqrt(2 ln(1/d) sum e_i^2), at most the sum
          (Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.5).
optimal   the least that holds for every release of these e_i (Theorem 3.3 there, ``optimal``).

Sampling at rate q takes (e, d) to (log(1 + q (exp(e) - 1)), q d): Poisson samples for a
record added or removed, batches of a fixed size for one replaced (Balle, Barthe & Gaboardi
2018, arXiv:1807.01647, Theorems 8 and 9). For a record replaced in a Poisson sample that
needs (e, d) of the base both for a record removed and for one replaced (Theorem 2 there).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpaudit.accountants import discrete_gaussian, gaussian, optimal
from dpaudit.accountants.conversion import to_epsilon
from dpaudit.accountants.releases import (
    Releases,
    count_releases,
    require_meaning,
    response_loss,
    shift_over_noise,
)
from dpaudit.accountants.truncation import truncation_probability
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    Unresolvable,
    UnsupportedMechanism,
    require_count,
    require_delta,
)
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Release,
    SampledWithoutReplacement,
    Selected,
    TruncatedPoisson,
)

Part = tuple[float, float, int]  # epsilon, delta, how often

ROUND_UP = 1 + 1e-12
ROUND_DOWN = 1 - 1e-12
# Shares of delta that the composition theorem may keep for itself; the best one counts.
SHARES = (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.99, 0.999, 1 - 1e-6)
SHARES_IN_BRIEF = (0.05, 0.3, 0.7, 0.95)
MANY_RELEASES = 20
LEAST_SHARE = 1e-307  # no release's epsilon is known at a smaller delta
ORDERS = 1 + np.geomspace(1e-3, 1e4, 400)


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> NaiveProfile:
    """Return the naive upper bounds of ``mechanism``.

    Raises:
        UnsupportedMechanism: a part has no valid statement under ``adjacency``.
    """
    releases = count_releases(mechanism)
    require_meaning(releases, adjacency)
    for release in releases:
        _refuse_unpriced(release, adjacency)
    return NaiveProfile(releases, adjacency)


@dataclass(frozen=True)
class NaiveProfile:
    """Upper bounds by three composition theorems; from below they know 0 alone."""

    releases: Releases
    adjacency: Adjacency

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon at ``delta`` by the best of the theorems."""
        theorems = (self.basic, self.advanced, self.optimal)
        return Bound(0.0, min(theorem(delta=delta).upper for theorem in theorems))

    def basic(self, *, delta: float) -> Bound:
        """Return the interval by basic composition; delta is split evenly."""
        require_delta("delta", delta)
        total = sum(times * epsilon for epsilon, _, times in self.parts(self._left(delta)))
        return Bound(0.0, total * ROUND_UP)

    def advanced(self, *, delta: float) -> Bound:
        """Return the interval by advanced composition, never worse than its own sum."""
        require_delta("delta", delta)
        left = self._left(delta)
        return Bound(
            0.0,
            min(
                _advanced(self.parts((1 - share) * left), share * left)
                for share in (SHARES if self._takes_delta() else (1.0,))
            ),
        )

    def optimal(self, *, delta: float) -> Bound:
        """Return the interval by optimal composition, never worse than the other two."""
        require_delta("delta", delta)
        left = self._left(delta)
        if not self._takes_delta():
            best = _optimal(self.parts(0.0), left)
        else:
            brief = len(self.releases) > MANY_RELEASES
            best = min(
                _optimal(self.parts((1 - share) * left), share * left)
                for share in (SHARES_IN_BRIEF if brief else SHARES)
            )
        others = (self.basic(delta=delta).upper, self.advanced(delta=delta).upper)
        return Bound(0.0, min(best, *others))

    def parts(self, delta: float) -> list[Part]:
        """Return each release's (epsilon, delta), and how often it is.

        ``delta`` is split evenly among the releases that take some; the others spend
        their own, which is not counted here.
        """
        takers = self._takes_delta()
        share = delta / takers if takers else 0.0
        if takers and share < LEAST_SHARE:
            return [(math.inf, share, takers)]
        return [
            (
                release_epsilon(release, share, self.adjacency),
                share if _takes_delta(release) else own_delta(release),
                times,
            )
            for release, times in self.releases.items()
        ]

    def _takes_delta(self) -> int:
        return sum(times for release, times in self.releases.items() if _takes_delta(release))

    def _left(self, delta: float) -> float:
        """Return what of ``delta`` is left once the releases' own deltas are spent."""
        spent = sum(times * own_delta(release) for release, times in self.releases.items())
        return _left_of(delta, spent)


def compose_basic(parts: Iterable[Part], *, delta: float) -> Bound:
    """Return the interval of epsilon at ``delta`` of releases given as (epsilon, delta, times)."""
    parts = _checked(parts, delta)
    _left_of(delta, _total_delta(parts), least=0.0)
    return Bound(0.0, sum(times * epsilon for epsilon, _, times in parts) * ROUND_UP)


def compose_advanced(parts: Iterable[Part], *, delta: float) -> Bound:
    """Return the interval by advanced composition of releases given as (epsilon, delta, times)."""
    parts = _checked(parts, delta)
    return Bound(0.0, _advanced(parts, _slack(delta, parts)))


def compose_optimal(parts: Iterable[Part], *, delta: float) -> Bound:
    """Return the interval by optimal composition of releases given as (epsilon, delta, times).

    Exact, but for rounding, where all epsilons are one; otherwise an upper bound, never
    worse than basic and advanced composition.
    """
    parts = _checked(parts, delta)
    slack = _slack(delta, parts)
    return Bound(0.0, min(_optimal(parts, slack), _advanced(parts, slack)))


def _checked(parts: Iterable[Part], delta: float) -> list[Part]:
    require_delta("delta", delta)
    checked = list(parts)
    for epsilon, own, times in checked:
        if not 0 <= epsilon < math.inf:
            raise InvalidArgument("epsilon", epsilon, "at least 0 and finite")
        if not 0 <= own < 1:
            raise InvalidArgument("delta", own, "at least 0 and below 1")
        require_count("times", times)
    return checked


def _total_delta(parts: list[Part]) -> float:
    """Return 1 - prod (1 - d_i), rounded up."""
    return -math.expm1(sum(times * math.log1p(-own) for _, own, times in parts)) * ROUND_UP


def _slack(delta: float, parts: list[Part]) -> float:
    """Return the d with 1 - delta = (1 - D) (1 - d), rounded down; never above what is left."""
    spent = _total_delta(parts)
    return _left_of(delta, spent) / (1 - spent) * ROUND_DOWN


def _left_of(delta: float, spent: float, least: float = 1e-300) -> float:
    left = (delta - spent) * (1 if spent == 0 else ROUND_DOWN)
    if not left >= least:
        raise Unresolvable(
            f"delta {delta!r} is spent: the releases' own deltas come to {spent:.6g}; "
            "ask for a larger delta"
        )
    return left


def _advanced(parts: list[Part], slack: float) -> float:
    drift = sum(times * e * math.tanh(e / 2) for e, _, times in parts)
    squares = sum(times * e * e for e, _, times in parts)
    spread = math.sqrt(-2 * math.log(slack) * squares)
    return min(drift + spread, sum(times * e for e, _, times in parts)) * ROUND_UP


def _optimal(parts: list[Part], slack: float) -> float:
    counts: Counter[float] = Counter()
    for epsilon, _, times in parts:
        counts[epsilon] += times
    return optimal.compose(counts, slack) * ROUND_UP


def own_delta(release: Release) -> float:
    """Return the delta that a release spends whatever is asked."""
    match release:
        case ApproximateDP(_, delta):
            return delta
        case PoissonSampled(inner, rate):
            return own_delta(inner) * rate
        case SampledWithoutReplacement(inner, batch, size):
            return own_delta(inner) * (batch / size) * ROUND_UP
        case _:
            return 0.0


def _takes_delta(release: Release) -> bool:
    """Say whether a release has an epsilon for each delta, and none without."""
    match release:
        case PoissonSampled(inner) | SampledWithoutReplacement(inner):
            return _takes_delta(inner)
        case Gaussian() | DiscreteGaussian() | ZCDP() | TruncatedPoisson() | RandomAllocation():
            return True
        case _:
            return False


def _refuse_unpriced(release: Release, adjacency: Adjacency) -> None:
    replaces = adjacency is Adjacency.REPLACE_ONE
    match release:
        case Selected():
            raise UnsupportedMechanism(
                release, "naive composition does not price a private choice among runs: use rdp"
            )
        case PoissonSampled(Gaussian(set_for=set_for)) | TruncatedPoisson(
            Gaussian(set_for=set_for)
        ) if not (replaces and set_for is Adjacency.REPLACE_ONE):
            pass
        case PoissonSampled() | TruncatedPoisson() if replaces:
            raise UnsupportedMechanism(
                release,
                "what it hides of a record replaced in a Poisson sample needs its guarantee for "
                "a record removed as well: use add-or-remove-one, zero-out, or batches of a "
                "fixed size",
            )
        case _:
            pass


@lru_cache(maxsize=8192)
def release_epsilon(release: Release, delta: float, adjacency: Adjacency) -> float:
    """Return an epsilon at which one release alone is (epsilon, delta)-DP.

    A release that does not take delta is (epsilon, own delta)-DP instead, whatever ``delta``.
    """
    match release:
        case PoissonSampled(inner, rate):
            return _sampled(inner, rate, delta, adjacency)
        case SampledWithoutReplacement(inner, batch, size):
            return _sampled(inner, batch / size * (1 + 1e-15), delta, adjacency)
        case TruncatedPoisson():
            return _truncated(release, delta, adjacency)
        case RandomAllocation(inner):  # a pass without sampling costs no less
            return release_epsilon(inner, delta, adjacency)
        case _ if _takes_delta(release):
            return _noise_epsilon(release, delta, adjacency)
        case _:
            return _pure_epsilon(release) * ROUND_UP


def _noise_epsilon(release: Release, delta: float, adjacency: Adjacency) -> float:
    match release:
        case Gaussian():
            return gaussian.epsilon(delta, mu=shift_over_noise(release, adjacency)).upper
        case DiscreteGaussian(scale, sensitivity):
            shift = sensitivity / scale
            by_moments = _of_rho(shift * shift / 2 * (1 + 1e-15), delta)
            return min(by_moments, discrete_gaussian.epsilon(scale, sensitivity, delta))
        case ZCDP(rho):
            return _of_rho(rho, delta)
        case _:
            raise UnsupportedMechanism(
                release, "naive composition does not price it: use rdp or pld"
            )


def _pure_epsilon(release: Release) -> float:
    match release:
        case Laplace(scale, sensitivity) | DiscreteLaplace(scale, sensitivity):
            return sensitivity / scale
        case RandomizedResponse():
            return response_loss(release)
        case Exponential(epsilon) | PureDP(epsilon) | ApproximateDP(epsilon):
            return epsilon
        case _:
            raise UnsupportedMechanism(
                release, "naive composition does not price it: use rdp or pld"
            )


def _of_rho(rho: float, delta: float) -> float:
    return float(to_epsilon(ORDERS, ORDERS * rho, delta).min())


def _sampled(inner: Release, rate: float, delta: float, adjacency: Adjacency) -> float:
    if _takes_delta(inner) and delta >= rate:  # the record joins with that probability at most
        return 0.0
    epsilon = release_epsilon(inner, delta / rate * ROUND_DOWN, adjacency)
    return amplified(epsilon, min(1.0, rate)) * ROUND_UP


def _truncated(release: TruncatedPoisson, delta: float, adjacency: Adjacency) -> float:
    """Leave t (1 + e^epsilon) of delta to batches that are cut: see ``outside``."""
    failing = truncation_probability(release, adjacency)
    sampled = PoissonSampled(release.mechanism, release.sampling_rate)
    for share in (1 - 1e-9, 1 - 1e-6, 1 - 1e-3, 0.99, 0.9, 0.5, 0.1, 0.01):
        epsilon = release_epsilon(sampled, share * delta, adjacency)
        if epsilon < 700 and share * delta + failing * (1 + math.exp(epsilon)) * ROUND_UP <= delta:
            return epsilon
    raise Unresolvable(
        f"{release!r}: its batches are cut with probability up to {failing:.3g}, too often for "
        f"delta {delta:.3g}: allow larger batches, or ask for a larger delta"
    )


def amplified(epsilon: float, sampling_rate: float) -> float:
    """Return log(1 + q (exp(epsilon) - 1)) without overflow."""
    if epsilon < 30:
        return math.log1p(sampling_rate * math.expm1(epsilon))
    # log(q e^eps (1 + (1-q) e^-eps / q))
    return (
        epsilon + math.log(sampling_rate) + math.log1p((1 / sampling_rate - 1) * math.exp(-epsilon))
    )
