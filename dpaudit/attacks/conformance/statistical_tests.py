"""P-values and detectable effects of the statistical tests, their levels, effort and findings.

Every p-value is exact under the claim or an upper bound; none is asymptotic. Each test also reports
the smallest effect that it detects at 95% power. The levels of all tests add up to ``LEVEL``, the
false-alarm probability of a whole audit (Bonferroni). ``Effort`` sets how many samples are taken:
more of them make smaller effects detectable and leave the false-alarm probability unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from dpaudit.vocabulary.conformance import ConformanceFinding
from dpaudit.vocabulary.errors import require_count
from dpaudit.vocabulary.verdict import Outcome

Array = NDArray[np.float64]
NumericArray = NDArray[np.float64] | NDArray[np.int64]

POWER, HALVINGS = 0.95, 40

# P-values and detectable effects.


def variance_p_values(sums: Array, samples: NumericArray, shift: Array | float = 0.0) -> Array:
    """Compute two-sided p-values of sums of squares of standard normals.

    An unknown mean makes a sum stochastically larger, never smaller. So the lower tail is that of
    the central chi-square, and the upper tail that of the noncentral one with the largest mean.

    Args:
        sums: Sums of squares, shape ``(tests,)``.
        samples: Number of squares in each sum (degrees of freedom), shape ``(tests,)``.
        shift: Upper bound of the noncentrality: the sum of the squared means of the normals.

    Returns:
        Twice the smaller tail probability, at most 1, shape ``(tests,)``.
    """
    low = stats.chi2.cdf(sums, samples)
    shifted = stats.ncx2.sf(sums, samples, shift) if np.any(shift) else stats.chi2.sf(sums, samples)
    return np.asarray(np.minimum(1.0, 2 * np.minimum(low, shifted)))


def detectable_scale(samples: float, level: float) -> float:
    """Compute the relative reduction of the standard deviation that is detectable at 95% power.

    Args:
        samples: Number of squares in the sum.
        level: Two-sided level of the test.

    Returns:
        1 - factor, where noise of ``factor`` times the claimed standard deviation is rejected
        with probability 0.95.
    """
    # The sum is factor^2 times a chi-square, and is rejected below the quantile of level / 2.
    # So factor^2 is the ratio of the quantiles of level / 2 and of POWER.
    quantiles = stats.chi2.ppf([level / 2, POWER], samples)
    return float(1 - math.sqrt(quantiles[0] / quantiles[1]))


def squared_norm(row: Array) -> float:
    """Compute the sum of the squares of a row; infinite if it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.square(row).sum())


def low_variance_p_values(sums: Array, samples: NumericArray) -> Array:
    """Compute one-sided p-values of sums of squares of normals with at least unit variance.

    Small p-values reject noise that is too low. Sums that are too large have p-values near 1.

    Args:
        sums: Sums of squares, shape ``(tests,)``.
        samples: Number of squares in each sum.

    Returns:
        Lower tail probabilities of the chi-square distribution, shape ``(tests,)``.
    """
    return np.asarray(stats.chi2.cdf(sums, samples))


def detectable_low_scale(samples: float, level: float, shift: float = 0.0) -> float:
    """Compute the reduction of the standard deviation detectable by the one-sided test.

    The records' gradients may add to the noise and hide a part of the reduction.

    Args:
        samples: Number of squares in the sum.
        level: One-sided level of the test.
        shift: Upper bound of the squared norm that records add, over the claimed variance.

    Returns:
        The relative reduction that is detectable at 95% power, an upper bound of it if ``shift``
        is positive; 1.0 if not even the absence of all noise is detectable.

    References:
        Birge (2001), IMS Lecture Notes 36, Lemma 8.1: a noncentral chi-square with n degrees of
        freedom exceeds n + shift + 2 sqrt((n + 2 shift) x) + 2 x with probability at most exp(-x).
    """
    refuted = float(stats.chi2.ppf(level, samples))
    if shift == 0:
        return float(1 - math.sqrt(refuted / stats.chi2.ppf(POWER, samples)))
    x = -math.log(1 - POWER)

    # With noise of ``factor``, the sum is factor^2 times a chi-square of noncentrality
    # shift / factor^2. It is detected if the lemma's bound on that stays below the quantile.
    def detected(factor: float) -> bool:
        spread = factor**2 * (samples + 2 * x) + shift
        cross = 2 * factor * math.sqrt((factor**2 * samples + 2 * shift) * x)
        return spread + cross <= refuted

    low, high = 0.0, 1.0
    if not detected(low):
        return 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if detected(middle) else (low, middle)
    return 1 - low


def binomial_p_values(
    successes: NumericArray, trials: NumericArray | int, probability: Array | float
) -> Array:
    """Compute two-sided p-values of binomial counts.

    Args:
        successes: Number of successes, shape ``(tests,)``.
        trials: Number of independent trials of each test.
        probability: Claimed probability of a success.

    Returns:
        Twice the smaller tail probability, at most 1, shape ``(tests,)``.
    """
    low = stats.binom.cdf(successes, trials, probability)
    high = stats.binom.sf(np.asarray(successes) - 1, trials, probability)
    return np.asarray(np.minimum(1.0, 2 * np.minimum(low, high)))


def detectable_rate(trials: int, probability: float, level: float) -> float:
    """Compute the smallest larger probability that the binomial test detects at 95% power.

    Args:
        trials: Number of trials.
        probability: Claimed probability of a success.
        level: Two-sided level of the test.

    Returns:
        A probability above ``probability``; 1.0 if no count of successes is rejected.
    """
    least = float(stats.binom.isf(level / 2, trials, probability)) + 1  # rejected from here on
    if least > trials:
        return 1.0
    return float(special.betaincinv(least, trials - least + 1, POWER))


def correlation_p_values(correlations: Array, pairs: NumericArray | int) -> Array:
    """Compute two-sided p-values of correlations between independent normals of mean 0.

    Args:
        correlations: Correlations about mean 0, shape ``(tests,)``.
        pairs: Number of pairs of each correlation.

    Returns:
        P-values, shape ``(tests,)``; 1 for fewer than two pairs.
    """
    # Conditional on one side, t = r sqrt(n - 1) / sqrt(1 - r^2) has Student's t distribution with
    # n - 1 degrees of freedom, for any two scales. No mean is estimated, so none is lost.
    r = np.clip(np.abs(correlations), 0.0, 1.0)
    freedom = np.maximum(np.asarray(pairs) - 1, 1)
    with np.errstate(divide="ignore"):
        t = r * np.sqrt(freedom) / np.sqrt(1 - r**2)
    p_values = np.minimum(1.0, 2 * stats.t.sf(t, freedom))
    return np.where(np.asarray(pairs) >= 2, p_values, 1.0)


def detectable_correlation(pairs: float, level: float) -> float:
    """Compute the smallest correlation detectable at about 95% power.

    Args:
        pairs: Number of pairs.
        level: Two-sided level of the test.

    Returns:
        The correlation, by Fisher's z approximation; 1.0 for fewer than five pairs.
    """
    if pairs < 5:
        return 1.0
    t = float(stats.t.isf(level / 2, pairs - 1))
    critical = t / math.sqrt(pairs - 1 + t**2)
    return math.tanh(math.atanh(critical) + float(stats.norm.ppf(POWER)) / math.sqrt(pairs - 3))


def uniform_p_value(values: Array) -> tuple[float, float]:
    """Test values for the uniform distribution on [0, 1] (Kolmogorov-Smirnov).

    Args:
        values: Independent values, shape ``(n,)``, at least one.

    Returns:
        The largest difference of the distribution functions, and an upper bound of its p-value.

    References:
        Massart (1990), The Annals of Probability 18(3), Corollary 1: the p-value is at most
        2 exp(-2 n gap^2), for every n.
    """
    ordered, n = np.sort(values), len(values)
    ranks = np.arange(n + 1) / n
    gap = float(max((ranks[1:] - ordered).max(), (ordered - ranks[:-1]).max()))
    return gap, min(1.0, 2 * math.exp(-2 * n * gap**2))


# Levels and effort.

LEVEL = 1e-4
"""Upper bound of the probability that an audit rejects a conforming trainer, all tests together."""

STATISTICAL_FINDINGS = 20
"""7 of noise, 6 of correlation, 6 of the sampler, 1 of a measured update scale.

Replay and provenance have no false alarms.
"""

LEVEL_PER_FINDING = LEVEL / STATISTICAL_FINDINGS


@dataclass(frozen=True)
class Effort:
    """How much of a trainer an audit runs.

    Larger values make smaller faults detectable. No value changes the false-alarm probability.

    Attributes:
        noise_samples: Number of noise samples: coordinates times steps without records. At the
            level of one finding, 100,000 detect 2% less noise at 99.99% power.
        most_noise_steps: Upper bound of the number of steps without records, which takes
            precedence over ``noise_samples`` for models of few coordinates.
        sampler_steps: Number of steps on the records, in which inclusions are counted.
        longest_run: Largest number of steps of one run. Correlations are tested at lags up to
            half of it.
        replays: Number of seeds under which each probe is replayed beside each base data set.
        longest_replay: Number of steps within which a probe must be included.
        search_steps: Step budget of the search for records that reach the clip norm. The search
            runs only if the usual probes do not reach it.
        kept: Largest number of noise values in memory. Beyond it, a fixed random subset of the
            coordinates is tested.

    Example:
        >>> from dpaudit.attacks.conformance import Effort
        >>> Effort(noise_samples=1_000_000).longest_run
        200
    """

    noise_samples: int = 100_000
    most_noise_steps: int = 20_000
    sampler_steps: int = 240
    longest_run: int = 200
    replays: int = 2
    longest_replay: int = 2_000
    search_steps: int = 3_000
    kept: int = 8_000_000

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            require_count(name, getattr(self, name))


# Findings.


def statistical_finding(
    *,
    check: str,
    name: str,
    tested: str,
    p_value: float,
    observed: str,
    violation: str,
    power: str,
    detectable: float | None,
) -> ConformanceFinding:
    """Convert the p-value of one test to a finding at the level of one finding.

    Args:
        check: The check that the test belongs to.
        name: Name of the test within the check.
        tested: What was tested, for the report.
        p_value: Upper bound of the p-value. NaN gives INCONCLUSIVE.
        observed: The reason to report if the claim is not rejected.
        violation: The reason to report if the claim is rejected.
        power: The smallest detectable effect, as a sentence.
        detectable: The number in ``power``; None if there is none.

    Returns:
        FAIL if the p-value is at most ``LEVEL_PER_FINDING``, else PASS.
    """
    outcome = Outcome.FAIL if p_value <= LEVEL_PER_FINDING else Outcome.PASS
    known = math.isfinite(p_value)
    return ConformanceFinding(
        check=check,
        name=name,
        outcome=outcome if known else Outcome.INCONCLUSIVE,
        tested=tested,
        why=violation if outcome is Outcome.FAIL else observed,
        power=power,
        p_value=p_value if known else None,
        level=LEVEL_PER_FINDING,
        detectable=detectable,
    )


def inconclusive_finding(check: str, name: str, tested: str, why: str) -> ConformanceFinding:
    """Build an INCONCLUSIVE finding for a test that could not run.

    Args:
        check: The check that the test belongs to.
        name: Name of the test within the check.
        tested: What would have been tested.
        why: Why it could not be, and what to do.

    Returns:
        The finding, with power ``none``.
    """
    return ConformanceFinding(
        check=check, name=name, outcome=Outcome.INCONCLUSIVE, tested=tested, why=why,
        power="none",
    )  # fmt: skip


def failed_finding(check: str, name: str, tested: str, why: str) -> ConformanceFinding:
    """Build a FAIL finding of a test without randomness.

    Args:
        check: The check that the test belongs to.
        name: Name of the test within the check.
        tested: What was tested.
        why: What violates the claim.

    Returns:
        The finding, without a p-value.
    """
    return ConformanceFinding(
        check=check, name=name, outcome=Outcome.FAIL, tested=tested, why=why,
        power="exact: the test is deterministic",
    )  # fmt: skip
