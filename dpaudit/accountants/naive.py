"""Compute bounds by naive composition: bound each release by (epsilon, delta), then compose.

Release i is (e_i, d_i)-DP. With D = 1 - prod (1 - d_i), and d the rest of delta given by
1 - delta = (1 - D) (1 - d), three theorems give epsilon:

- Basic composition: sum e_i at d = 0 (Dwork, McSherry, Nissim & Smith 2006).
- Advanced composition: sum e_i (exp(e_i) - 1)/(exp(e_i) + 1) + sqrt(2 ln(1/d) sum e_i^2), and
  at most sum e_i (Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.5).
- Optimal composition: the least epsilon that holds for all releases with these e_i (Theorem
  3.3 there; see ``optimal_composition``).

Sampling at rate q takes (e, d) to (log(1 + q (exp(e) - 1)), q d). This holds for Poisson
samples where a record is added or removed, and for fixed-size batches where one is replaced
(Balle, Barthe & Gaboardi 2018, arXiv:1807.01647, Theorems 8 and 9). For a record replaced in a
Poisson sample, (e, d) of the base is needed for a removed record and for a replaced one
(Theorem 2 there).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dpaudit.accountants import gdp, optimal_composition, shuffling
from dpaudit.accountants.integer_noise import renyi_upper
from dpaudit.accountants.profile_display import DisplayedProfile
from dpaudit.accountants.rdp.conversion import rdp_to_epsilon
from dpaudit.accountants.releases import (
    ReleaseCounts,
    binned_from_above,
    count_releases,
    gaussian_mu,
    randomized_response_loss,
    refuse_given_pairs,
    require_supported_adjacency,
    truncation_probability,
)
from dpaudit.accountants.rounding_margins import ROUND_DOWN, ROUND_UP, UNIT_ROUNDOFF
from dpaudit.accountants.sparse_vector import guarantee_parts
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    Unresolvable,
    UnsupportedMechanism,
    require_count,
    require_delta,
    require_not_negative,
    require_rate,
    to_python_number,
)
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    BinnedMatrixFactorization,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    IntegerVectorNoise,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Release,
    SampledWithoutReplacement,
    Selected,
    Shuffled,
    SparseVectorMechanism,
    TruncatedPoisson,
)
from dpaudit.vocabulary.mechanism_words import mechanism_in_words
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

# Epsilon of one discrete Gaussian release, by a sum over its distribution.

LEAST_DISCRETE_SCALE = 1e-3  # below it exponents overflow
LARGEST_DISCRETE_SCALE = 20_000.0  # above it the sum has millions of terms
NEGLIGIBLE_LOG_MASS = 45.0


def discrete_gaussian_epsilon(scale: float, sensitivity: int, delta: float) -> float:
    """Compute an upper bound of epsilon at ``delta`` for one discrete Gaussian release.

    Let Q(x) be proportional to exp(-x^2/(2 scale^2)) on the integers, and P(x) =
    Q(x - sensitivity). The loss increases with x, so the optimal tests are thresholds:

        epsilon = max over x of log((P[X >= x] - delta)/Q[X >= x]).

    Args:
        scale: Parameter of the discrete Gaussian.
        sensitivity: Integer distance by which one record moves the value.
        delta: Above 0 and below 1.

    Returns:
        The upper bound in nats; infinite outside the scales for which the sum is computed.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010.
    """
    if not (
        LEAST_DISCRETE_SCALE <= scale <= LARGEST_DISCRETE_SCALE
        and sensitivity <= 50 * LARGEST_DISCRETE_SCALE
    ):
        return math.inf
    # Thresholds beyond this one are reached under P with less than delta.
    reach = math.ceil(scale * math.sqrt(2 * (NEGLIGIBLE_LOG_MASS - math.log(delta)))) + 2
    x = np.arange(-reach, sensitivity + reach + 1, dtype=np.float64)
    weight = np.exp(-((x / scale) ** 2) / 2)
    tails = np.cumsum(weight[::-1])[::-1]
    whole = float(tails[0])
    relative = UNIT_ROUNDOFF * (len(x) + 16) + 4 * UNIT_ROUNDOFF * (reach / scale) ** 2
    # P[X >= x] = Q[X >= x - sensitivity]; the mass beyond the sum is far below delta.
    upper_tail = tails[: len(x) - sensitivity] / whole * (1 + 2 * relative)
    upper_tail += delta * math.exp(-NEGLIGIBLE_LOG_MASS / 2)
    log_base = -((x[sensitivity:] / scale) ** 2) / 2
    with np.errstate(divide="ignore"):
        log_tails = np.logaddexp.accumulate(log_base[::-1])[::-1]
    spare = upper_tail - delta
    positive = spare > 0
    if not positive.any():
        return 0.0
    # log((P[X >= x] - delta)/Q[X >= x]), with Q rounded down and P rounded up.
    log_rounding = 4 * UNIT_ROUNDOFF * (len(x) + float(np.abs(log_base).max()))
    least = log_tails[positive] - math.log(whole) - log_rounding - relative
    largest = float((np.log(spare[positive]) - least).max())
    return max(0.0, largest * (1 + 1e-14) + 1e-14)


# Composition of (epsilon, delta) guarantees.

CountedGuarantee = tuple[float, float, int]  # epsilon, delta, count

# Shares of delta that the composition theorem uses itself; the best one counts.
DELTA_SHARES = (
    1e-4,
    1e-3,
    1e-2,
    0.05,
    0.1,
    0.2,
    0.35,
    0.5,
    0.65,
    0.8,
    0.9,
    0.97,
    0.99,
    0.999,
    1 - 1e-6,
)
COARSE_DELTA_SHARES = (0.05, 0.3, 0.7, 0.95)
MANY_RELEASES = 20
LEAST_SHARE = 1e-307  # the epsilon of a release is not computed at a smaller delta
CONVERSION_ORDERS = 1 + np.geomspace(1e-3, 1e4, 400)


def profile(
    mechanism: Mechanism, *, adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
) -> NaiveProfile:
    """Compute the naive upper bounds of a mechanism.

    Args:
        mechanism: A release, or a composition whose schedule was fixed in advance.
        adjacency: Neighbor relation.

    Returns:
        The profile; epsilon is computed when it is requested.

    Raises:
        UnsupportedMechanism: If a part has no valid bound under ``adjacency``.

    References:
        Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorems 3.3 and 3.5.

    Example:
        >>> from dpaudit.accountants import PureDP, Repeated, naive
        >>> profile = naive.profile(Repeated(PureDP(0.1), 100))
        >>> round(profile.basic(delta=1e-5).upper, 3)
        10.0
        >>> round(profile.optimal(delta=1e-5).upper, 3)
        4.307
    """
    releases = _with_guarantees(count_releases(mechanism))
    require_supported_adjacency(releases, adjacency)
    refuse_given_pairs(releases)
    for release in releases:
        _require_supported(release, adjacency)
    return NaiveProfile(releases, adjacency)


def _with_guarantees(releases: ReleaseCounts) -> ReleaseCounts:
    """Replace sparse vector techniques by the guarantees that compose them."""
    counts: Counter[Release] = Counter()
    for release, times in releases.items():
        parts = (
            guarantee_parts(release)
            if isinstance(release, SparseVectorMechanism)
            else ((release, 1),)
        )
        for part, each in parts:
            counts[part] += times * each
    return counts


@dataclass(frozen=True)
class NaiveProfile(DisplayedProfile):
    """Upper bounds by three composition theorems; all lower ends are 0.

    Attributes:
        releases: The elementary releases, each with its count.
        adjacency: Neighbor relation.
    """

    releases: ReleaseCounts
    adjacency: Adjacency

    def epsilon(self, *, delta: float) -> Bound:
        """Compute the interval of epsilon at ``delta`` by the best of the theorems.

        Args:
            delta: At least 1e-300 and below 1.

        Returns:
            From 0 to the upper bound, in nats.

        Raises:
            InvalidArgument: If ``delta`` is out of range.
            Unresolvable: If the releases' own deltas exceed ``delta``.
        """
        theorems = (self.basic, self.advanced, self.optimal)
        return Bound(0.0, min(theorem(delta=delta).upper for theorem in theorems))

    def basic(self, *, delta: float) -> Bound:
        """Compute the interval by basic composition; delta is split evenly.

        Args:
            delta: At least 1e-300 and below 1.

        Returns:
            From 0 to the upper bound, in nats.

        Raises:
            InvalidArgument: If ``delta`` is out of range.
            Unresolvable: If the releases' own deltas exceed ``delta``.
        """
        require_delta("delta", delta)
        total = sum(times * epsilon for epsilon, _, times in self.parts(self._left(delta)))
        return Bound(0.0, total * ROUND_UP)

    def advanced(self, *, delta: float) -> Bound:
        """Compute the interval by advanced composition, at most the sum of the same epsilons.

        Args:
            delta: At least 1e-300 and below 1. Several splits between the releases and the theorem
                are tried.

        Returns:
            From 0 to the upper bound, in nats.

        Raises:
            InvalidArgument: If ``delta`` is out of range.
            Unresolvable: If the releases' own deltas exceed ``delta``.
        """
        require_delta("delta", delta)
        left = self._left(delta)
        return Bound(
            0.0,
            min(
                _advanced(self.parts((1 - share) * left), share * left)
                for share in (DELTA_SHARES if self._takes_delta() else (1.0,))
            ),
        )

    def optimal(self, *, delta: float) -> Bound:
        """Compute the interval by optimal composition, at most that of the other two theorems.

        Args:
            delta: At least 1e-300 and below 1. Several splits between the releases and the theorem
                are tried.

        Returns:
            From 0 to the upper bound, in nats.

        Raises:
            InvalidArgument: If ``delta`` is out of range.
            Unresolvable: If the releases' own deltas exceed ``delta``.
        """
        require_delta("delta", delta)
        left = self._left(delta)
        if not self._takes_delta():
            best = _optimal(self.parts(0.0), left)
        else:
            brief = len(self.releases) > MANY_RELEASES
            best = min(
                _optimal(self.parts((1 - share) * left), share * left)
                for share in (COARSE_DELTA_SHARES if brief else DELTA_SHARES)
            )
        others = (self.basic(delta=delta).upper, self.advanced(delta=delta).upper)
        return Bound(0.0, min(best, *others))

    def parts(self, delta: float) -> list[CountedGuarantee]:
        """Return each release's (epsilon, delta) and its count.

        Args:
            delta: Split evenly among the releases whose epsilon depends on it. The other releases
                have a delta of their own, which is not part of this one.

        Returns:
            One (epsilon, delta, count) per kind of release; a single infinite epsilon where the
            shares are too small.
        """
        takers = self._takes_delta()
        share = delta / takers if takers else 0.0
        if takers and share < LEAST_SHARE:
            return [(math.inf, share, takers)]
        return [
            (
                release_epsilon(release, share, self.adjacency),
                share if _takes_delta(release) else fixed_delta(release),
                times,
            )
            for release, times in self.releases.items()
        ]

    def _takes_delta(self) -> int:
        """Return the number of releases whose epsilon depends on their share of delta."""
        return sum(times for release, times in self.releases.items() if _takes_delta(release))

    def _left(self, delta: float) -> float:
        """Return the rest of ``delta`` after the releases' own deltas are subtracted."""
        spent = sum(times * fixed_delta(release) for release, times in self.releases.items())
        return _left_of(delta, spent)


def compose_basic(parts: Iterable[CountedGuarantee], *, delta: float) -> Bound:
    """Compose (epsilon, delta) guarantees by basic composition.

    Args:
        parts: Each guarantee as (epsilon, delta, count).
        delta: Delta of the composition, at least 1e-300 and below 1.

    Returns:
        From 0 to the upper bound of epsilon, in nats.

    Raises:
        InvalidArgument: If a number is out of range.
        Unresolvable: If the deltas of the parts exceed ``delta``.

    Example:
        >>> from dpaudit.accountants import naive
        >>> round(naive.compose_basic([(0.1, 0.0, 100)], delta=1e-5).upper, 3)
        10.0
    """
    parts = _checked(parts, delta)
    _left_of(delta, _total_delta(parts), least=0.0)
    return Bound(0.0, sum(times * epsilon for epsilon, _, times in parts) * ROUND_UP)


def compose_advanced(parts: Iterable[CountedGuarantee], *, delta: float) -> Bound:
    """Compose (epsilon, delta) guarantees by advanced composition.

    Args:
        parts: Each guarantee as (epsilon, delta, count).
        delta: Delta of the composition, at least 1e-300 and below 1.

    Returns:
        From 0 to the upper bound of epsilon, in nats.

    Raises:
        InvalidArgument: If a number is out of range.
        Unresolvable: If the deltas of the parts exceed ``delta``.

    References:
        Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorem 3.5.

    Example:
        >>> from dpaudit.accountants import naive
        >>> round(naive.compose_advanced([(0.1, 0.0, 100)], delta=1e-5).upper, 3)
        5.298
    """
    parts = _checked(parts, delta)
    return Bound(0.0, _advanced(parts, _slack(delta, parts)))


def compose_optimal(parts: Iterable[CountedGuarantee], *, delta: float) -> Bound:
    """Compose (epsilon, delta) guarantees by optimal composition.

    Args:
        parts: Each guarantee as (epsilon, delta, count).
        delta: Delta of the composition, at least 1e-300 and below 1.

    Returns:
        From 0 to the upper bound of epsilon, in nats. It is exact up to rounding where all
        epsilons are equal. Otherwise it is an upper bound, at most that of basic and advanced
        composition.

    Raises:
        InvalidArgument: If a number is out of range.
        Unresolvable: If the deltas of the parts exceed ``delta``.

    References:
        Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorem 3.3.

    Example:
        >>> from dpaudit.accountants import naive
        >>> round(naive.compose_optimal([(0.1, 0.0, 100)], delta=1e-5).upper, 3)
        4.307
    """
    parts = _checked(parts, delta)
    slack = _slack(delta, parts)
    return Bound(0.0, min(_optimal(parts, slack), _advanced(parts, slack)))


def _checked(parts: Iterable[CountedGuarantee], delta: float) -> list[CountedGuarantee]:
    """Return the parts as a list; raise where a number is out of range."""
    require_delta("delta", delta)
    checked = [(epsilon, own, to_python_number(times)) for epsilon, own, times in parts]
    for epsilon, own, times in checked:
        require_not_negative("epsilon", epsilon)
        require_rate("delta", own)
        if own == 1:
            raise InvalidArgument("delta", own, "at least 0 and below 1")
        require_count("times", times)
    return checked


def _total_delta(parts: list[CountedGuarantee]) -> float:
    """Return 1 - prod (1 - d_i), rounded up."""
    return -math.expm1(sum(times * math.log1p(-own) for _, own, times in parts)) * ROUND_UP


def _slack(delta: float, parts: list[CountedGuarantee]) -> float:
    """Return the d with 1 - delta = (1 - D) (1 - d), rounded down."""
    spent = _total_delta(parts)
    return _left_of(delta, spent) / (1 - spent) * ROUND_DOWN


def _left_of(delta: float, spent: float, least: float = 1e-300) -> float:
    """Return delta - spent, rounded down; raise where it is below ``least``."""
    left = (delta - spent) * (1 if spent == 0 else ROUND_DOWN)
    if not left >= least:
        raise Unresolvable(
            f"delta {delta!r} is too small: the releases' own deltas add up to {spent:.6g}; "
            "use a larger delta"
        )
    return left


def _advanced(parts: list[CountedGuarantee], slack: float) -> float:
    """Return the bound of advanced composition at the theorem's own delta ``slack``."""
    # (e^e - 1)/(e^e + 1) = tanh(e/2).
    drift = sum(times * e * math.tanh(e / 2) for e, _, times in parts)
    squares = sum(times * e * e for e, _, times in parts)
    spread = math.sqrt(-2 * math.log(slack) * squares)
    return min(drift + spread, sum(times * e for e, _, times in parts)) * ROUND_UP


def _optimal(parts: list[CountedGuarantee], slack: float) -> float:
    """Return the bound of optimal composition at the theorem's own delta ``slack``."""
    counts: Counter[float] = Counter()
    for epsilon, _, times in parts:
        counts[epsilon] += times
    return optimal_composition.optimal_epsilon(counts, slack) * ROUND_UP


def fixed_delta(release: Release) -> float:
    """Return the delta that a release has by itself, whatever the delta of the composition."""
    match release:
        case ApproximateDP(_, delta):
            return delta
        case PoissonSampled(inner, rate):
            return fixed_delta(inner) * rate
        case SampledWithoutReplacement(inner, batch, size):
            return fixed_delta(inner) * (batch / size) * ROUND_UP
        case _:
            return 0.0


def _takes_delta(release: Release) -> bool:
    """Return whether a release has an epsilon for each delta above 0, and none at 0."""
    match release:
        case PoissonSampled(inner) | SampledWithoutReplacement(inner):
            return _takes_delta(inner)
        case (
            Gaussian()
            | DiscreteGaussian()
            | ZCDP()
            | TruncatedPoisson()
            | RandomAllocation()
            | BinnedMatrixFactorization()
            | Shuffled()
        ):
            return True
        case _:
            return isinstance(release, IntegerVectorNoise)


def _require_supported(release: Release, adjacency: Adjacency) -> None:
    """Raise UnsupportedMechanism if naive composition has no bound for a release."""
    replaces = adjacency is Adjacency.REPLACE_ONE
    match release:
        case Selected():
            raise UnsupportedMechanism(
                release, "naive composition has no bound for private selection: use rdp"
            )
        case PoissonSampled(Gaussian(set_for=set_for)) | TruncatedPoisson(
            Gaussian(set_for=set_for)
        ) if not (replaces and set_for is Adjacency.REPLACE_ONE):
            pass
        case PoissonSampled() | TruncatedPoisson() if replaces:
            raise UnsupportedMechanism(
                release,
                "a bound for a record replaced in a Poisson sample also needs the guarantee for "
                "a record removed: use add-or-remove-one, zero-out, or batches of a fixed size",
            )
        case _:
            pass


@lru_cache(maxsize=8192)
def release_epsilon(release: Release, delta: float, adjacency: Adjacency) -> float:
    """Return an epsilon at which one release alone is (epsilon, delta)-DP.

    Args:
        release: An elementary release.
        delta: Its share of delta. A release with a delta of its own ignores it, and is
            (epsilon, own delta)-DP instead.
        adjacency: Neighbor relation.

    Returns:
        The epsilon in nats, rounded up.

    Raises:
        UnsupportedMechanism: If the release has no known (epsilon, delta).
        Unresolvable: If batches are truncated too often for ``delta``.
    """
    match release:
        case PoissonSampled(inner, rate):
            return _sampled_epsilon(inner, rate, delta, adjacency)
        case SampledWithoutReplacement(inner, batch, size):
            return _sampled_epsilon(inner, batch / size * (1 + 1e-15), delta, adjacency)
        case TruncatedPoisson():
            return _truncated_epsilon(release, delta, adjacency)
        case BinnedMatrixFactorization():
            return release_epsilon(binned_from_above(release), delta, adjacency)
        case RandomAllocation(inner, _, 1):  # a pass costs at most one release without sampling
            return release_epsilon(inner, delta, adjacency)
        case RandomAllocation(inner, _, selected):
            # At most ``selected`` releases without sampling: one Gaussian of so much less noise.
            shift = gaussian_mu(inner, adjacency) * math.sqrt(selected) * ROUND_UP
            return gdp.epsilon_of_mu(delta, mu=shift).upper
        case _ if _takes_delta(release):
            return _noise_epsilon(release, delta, adjacency)
        case _:
            return _pure_epsilon(release) * ROUND_UP


def _noise_epsilon(release: Release, delta: float, adjacency: Adjacency) -> float:
    """Return epsilon at ``delta`` of unsampled Gaussian noise or of a zCDP guarantee."""
    match release:
        case Gaussian():
            return gdp.epsilon_of_mu(delta, mu=gaussian_mu(release, adjacency)).upper
        case DiscreteGaussian(scale, sensitivity):
            shift = sensitivity / scale
            by_moments = _zcdp_epsilon(shift * shift / 2 * (1 + 1e-15), delta)
            return min(by_moments, discrete_gaussian_epsilon(scale, sensitivity, delta))
        case ZCDP(rho):
            return _zcdp_epsilon(rho, delta)
        case Shuffled(_, participants):
            local = shuffling.clones_of(release).loss
            return shuffling.closed_form_epsilon(local, participants, delta=delta)
        case _ if isinstance(release, IntegerVectorNoise):
            rdp = renyi_upper(release, CONVERSION_ORDERS)
            return float(rdp_to_epsilon(CONVERSION_ORDERS, rdp, delta).min())
        case _:
            raise UnsupportedMechanism(
                release, "naive composition has no bound for it: use rdp or pld"
            )


def _pure_epsilon(release: Release) -> float:
    """Return the epsilon of a release with bounded loss."""
    match release:
        case Laplace(scale, sensitivity) | DiscreteLaplace(scale, sensitivity):
            return sensitivity / scale
        case RandomizedResponse():
            return randomized_response_loss(release)
        case Exponential(epsilon) | PureDP(epsilon) | ApproximateDP(epsilon):
            return epsilon
        case _:
            raise UnsupportedMechanism(
                release, "naive composition has no bound for it: use rdp or pld"
            )


def _zcdp_epsilon(rho: float, delta: float) -> float:
    """Return epsilon at ``delta`` of rho-zCDP, by the best order of D_a <= a rho."""
    return float(rdp_to_epsilon(CONVERSION_ORDERS, CONVERSION_ORDERS * rho, delta).min())


def _sampled_epsilon(inner: Release, rate: float, delta: float, adjacency: Adjacency) -> float:
    """Return log(1 + q (e^e - 1)) with e the epsilon of ``inner`` at delta/q."""
    if _takes_delta(inner) and delta >= rate:  # the record joins with probability at most delta
        return 0.0
    epsilon = release_epsilon(inner, delta / rate * ROUND_DOWN, adjacency)
    return amplify_epsilon(epsilon, min(1.0, rate)) * ROUND_UP


def _truncated_epsilon(release: TruncatedPoisson, delta: float, adjacency: Adjacency) -> float:
    """Return epsilon of a truncated Poisson sample.

    Truncation with probability t adds t (1 + e^epsilon) to delta of the untruncated sample; see
    ``rdp.infinite_divergence``. The largest share of delta that leaves room for it is used.
    """
    failing = truncation_probability(release, adjacency)
    sampled = PoissonSampled(release.mechanism, release.sampling_rate)
    for share in (1 - 1e-9, 1 - 1e-6, 1 - 1e-3, 0.99, 0.9, 0.5, 0.1, 0.01):
        epsilon = release_epsilon(sampled, share * delta, adjacency)
        if epsilon < 700 and share * delta + failing * (1 + math.exp(epsilon)) * ROUND_UP <= delta:
            return epsilon
    raise Unresolvable(
        f"{mechanism_in_words(release)}: batches are truncated with probability up to "
        f"{failing:.3g}, too often for delta {delta:.3g}: "
        "allow larger batches, or use a larger delta"
    )


def amplify_epsilon(epsilon: float, sampling_rate: float) -> float:
    """Return log(1 + q (exp(epsilon) - 1)), amplification by sampling at rate q.

    Args:
        epsilon: Epsilon without sampling, in nats, at least 0.
        sampling_rate: The rate q, above 0 and at most 1.

    Returns:
        The amplified epsilon in nats; large epsilons do not overflow.
    """
    if epsilon < 30:
        return math.log1p(sampling_rate * math.expm1(epsilon))
    # For large epsilon: log(q e^epsilon (1 + (1/q - 1) e^-epsilon)).
    return (
        epsilon + math.log(sampling_rate) + math.log1p((1 / sampling_rate - 1) * math.exp(-epsilon))
    )
