"""Bounds from four counts at one threshold that was fixed before the scores were read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaincinv

from dpaudit.attacks.bounds.gaussian import GAUSSIAN, epsilon_of_mu, mu_of_rates
from dpaudit.attacks.bounds.rates import Array, epsilon_both_ways, jeffreys_upper_limit, upper_limit
from dpaudit.attacks.bounds.result import TRIALS, LowerBound, require_delta_or_zero
from dpaudit.attacks.bounds.search import largest
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

POSTERIOR = "Jeffreys' prior: a credible region, no statement about repeated audits"
BELIEVED = "by this prior, a smaller epsilon has little probability; nothing is refuted"
MOST_EPSILON = 60.0
NODES = 20_000


@dataclass(frozen=True)
class _Errors:
    """How many members were missed and non-members accused, and of how many."""

    false_negatives: int
    members: int
    false_positives: int
    nonmembers: int


def clopper_pearson(
    *,
    true_positives: int,
    false_positives: int,
    members: int,
    nonmembers: int,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Return max(ln((1 - delta - FNR+)/FPR+), ln((1 - delta - FPR+)/FNR+), 0), certified.

    FPR+ and FNR+ are Clopper and Pearson's upper limits at half the failure probability each.
    The ceiling is about ln(n / ln(2/alpha)).

    Args:
        true_positives: Members above the threshold.
        false_positives: Non-members above it.
        members: How many members were scored, each in a run of its own.
        nonmembers: How many non-members.
        delta: In [0, 1).
        confidence: In (0, 1).

    Raises:
        InvalidArgument: the counts contradict each other, or a number is out of range.
    """
    errors = _errors(true_positives, false_positives, members, nonmembers, delta, confidence)
    level = (1 - confidence) / 2
    missed = upper_limit(errors.false_negatives, members, level)
    accused = upper_limit(errors.false_positives, nonmembers, level)
    epsilon = epsilon_both_ways(missed, accused, delta)
    return LowerBound(epsilon, BoundKind.CERTIFIED, confidence, TRIALS)


def jeffreys(
    *,
    true_positives: int,
    false_positives: int,
    members: int,
    nonmembers: int,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Return the same of the posteriors of Jeffreys' prior: an estimate, arguments as above."""
    errors = _errors(true_positives, false_positives, members, nonmembers, delta, confidence)
    level = (1 - confidence) / 2
    missed = jeffreys_upper_limit(errors.false_negatives, members, level)
    accused = jeffreys_upper_limit(errors.false_positives, nonmembers, level)
    epsilon = epsilon_both_ways(missed, accused, delta)
    return LowerBound(epsilon, BoundKind.ESTIMATE, confidence, POSTERIOR, BELIEVED)


def gaussian_threshold(
    *,
    true_positives: int,
    false_positives: int,
    members: int,
    nonmembers: int,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Return the bound of the Gaussian trade-off through both limits.

    Arguments as above, but ``delta`` above 0.
    """
    errors = _errors(true_positives, false_positives, members, nonmembers, delta, confidence)
    level = (1 - confidence) / 2
    missed = upper_limit(errors.false_negatives, members, level)
    accused = upper_limit(errors.false_positives, nonmembers, level)
    epsilon = epsilon_of_mu(mu_of_rates(missed, accused), delta)
    return LowerBound(epsilon, BoundKind.CONDITIONAL, confidence, f"{GAUSSIAN}; {TRIALS}")


def zanella_beguelin(
    *,
    true_positives: int,
    false_positives: int,
    members: int,
    nonmembers: int,
    delta: float,
    confidence: float,
) -> LowerBound:
    """Return the epsilon whose privacy region has posterior probability 1 - confidence.

    Zanella-Beguelin et al. 2023, arXiv:2206.05199: FNR and FPR have independent posteriors of
    Jeffreys' prior, and the region is what Kairouz et al.'s inequalities leave. An estimate;
    arguments as above.
    """
    errors = _errors(true_positives, false_positives, members, nonmembers, delta, confidence)

    def unlikely(epsilon: float) -> bool:
        return _probability_of_region(errors, epsilon, delta) <= 1 - confidence

    epsilon = largest(unlikely, 0.0, MOST_EPSILON) if unlikely(0.0) else 0.0
    return LowerBound(epsilon, BoundKind.ESTIMATE, confidence, POSTERIOR, BELIEVED)


def _probability_of_region(errors: _Errors, epsilon: float, delta: float) -> float:
    """Integrate over the quantiles of FPR the probability of the FNRs that are allowed there."""
    quantiles = (np.arange(NODES) + 0.5) / NODES
    right = errors.nonmembers - errors.false_positives
    accused = betaincinv(errors.false_positives + 0.5, right + 0.5, quantiles)
    gain = math.exp(epsilon)
    least = np.maximum(1 - delta - gain * accused, (1 - delta - accused) / gain)
    most = np.minimum(delta + gain * (1 - accused), 1 - (accused - delta) / gain)
    found = errors.members - errors.false_negatives

    def below(rate: Array) -> Array:
        return np.asarray(betainc(errors.false_negatives + 0.5, found + 0.5, np.clip(rate, 0, 1)))

    return float(np.mean(np.maximum(below(most) - below(least), 0.0)))


def _errors(
    true_positives: int,
    false_positives: int,
    members: int,
    nonmembers: int,
    delta: float,
    confidence: float,
) -> _Errors:
    require_count("members", members)
    require_count("nonmembers", nonmembers)
    require_count("true_positives", true_positives, least=0)
    require_count("false_positives", false_positives, least=0)
    if true_positives > members:
        raise InvalidArgument("true_positives", true_positives, f"at most {members} members")
    if false_positives > nonmembers:
        raise InvalidArgument(
            "false_positives", false_positives, f"at most {nonmembers} nonmembers"
        )
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)
    return _Errors(members - true_positives, members, false_positives, nonmembers)
