"""Bounds for non-interfering canaries, within the family of the claimed mechanism.

Under Poisson sampling, bounds that use (epsilon, delta) alone are weak: at a true epsilon of 4,
1,000 canaries give at most about 2.1. The bounds here assume more:

- the mechanism is the claimed one with all noise multiplied by some factor;
- each canary has a direction of its own, and the noise is independent between directions.

Orthogonal gradients under independent noise satisfy the second assumption by construction.
Records with overlapping gradients do not.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, chdtri, ndtri

from dpaudit.attacks.bounds.gaussian_dp import mu_from_sample_statistics, sample_statistics
from dpaudit.attacks.bounds.lower_bound import LowerBound, lower_limit, upper_limit
from dpaudit.attacks.bounds.mechanism_family import MechanismFamily, least_refuted
from dpaudit.attacks.bounds.one_run_bounds import require_guess_counts
from dpaudit.vocabulary.audit import BoundKind, SampleMoments
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

Array = NDArray[np.float64]

ASSUMES_NONINTERFERING_CANARIES = "non-interfering canaries, and the claimed family of mechanisms"
ASSUMES_RECORDED_BATCHES = (
    f"{ASSUMES_NONINTERFERING_CANARIES}; Poisson-sampled batches with recorded membership"
)
ASSUMES_NORMAL_NOISE = f"{ASSUMES_RECORDED_BATCHES}; normal noise"
ASSUMES_UNIT_SHIFT = "the claimed family of mechanisms; the shift of a canary is the clip norm"
STATES_LESS_NOISE = "the mechanism is not the claimed one with more noise than this"

# Share of the failure probability. The rest is for the false-positive rate, which is estimated
# from many more observations.
TRUE_POSITIVE_LEVEL_SHARE = 0.9


def total_variation(*, canaries: int, correct: int, confidence: float) -> float:
    """Compute a lower bound on the total variation between a canary's two distributions.

    These are the distributions of its score with the canary included and excluded. Given all
    scores of independent canaries, the inclusion bits are independent, and no rule guesses one
    of them correctly with probability above (1 + TV)/2. The number W of correct guesses is
    therefore stochastically at most Bin(m, (1 + TV)/2), however the scores chose the guesses.
    With p the Clopper-Pearson lower limit of W in m, TV >= 2p - 1.

    Args:
        canaries: Number of canaries, each included by a fair coin and guessed, m.
        correct: Number of correct guesses, W.
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The lower bound, in [0, 1].

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    Example:
        >>> round(total_variation(canaries=1000, correct=700, confidence=0.95), 4)
        0.3505
    """
    require_guess_counts(canaries, canaries, correct)
    require_open_unit("confidence", confidence)
    if correct == 0:
        return 0.0
    accuracy = float(betaincinv(correct, canaries - correct + 1, 1 - confidence))
    return max(0.0, 2 * accuracy - 1)


def tv_all_guesses(
    *, canaries: int, correct: int, confidence: float, family: MechanismFamily
) -> LowerBound:
    """Compute the lower bound from correct guesses of all canaries.

    The guesses may depend on all scores. A noise factor is refuted if its total variation is
    below the lower bound of ``total_variation``.

    Args:
        canaries: Number of canaries, each included by a fair coin and guessed, m.
        correct: Number of correct guesses.
        confidence: Probability with which the bound holds, in (0, 1).
        family: The claimed mechanism at every noise factor.

    Returns:
        The bound, conditional on non-interfering canaries and on the family.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    Example:
        One full-batch step with a claimed noise multiplier of 1, at delta 1e-5:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> bound = tv_all_guesses(canaries=1000, correct=800, confidence=0.95, family=family)
        >>> round(bound.epsilon, 1)
        7.2
    """
    distance = total_variation(canaries=canaries, correct=correct, confidence=confidence)
    factor = least_refuted(lambda factor: family.total_variation(factor) < distance)
    epsilon = family.epsilon_at(factor)
    kind = BoundKind.CONDITIONAL
    return LowerBound(
        epsilon, kind, confidence, ASSUMES_NONINTERFERING_CANARIES, STATES_LESS_NOISE, factor
    )


def tv_known_batches(
    *,
    hits: int,
    in_batch: int,
    false_alarms: int,
    out_of_batch: int,
    noise_multiplier: float,
    confidence: float,
    family: MechanismFamily,
) -> LowerBound:
    """Compute the lower bound from rates over all steps, with recorded batches.

    An observation of a canary at a step is the noise, plus a shift if the batch held the
    canary. With rho = shift / noise, no threshold has Phi_inv(TPR) - Phi_inv(FPR) above rho. A
    lower limit of the TPR and an upper limit of the FPR, at a threshold that was fixed
    beforehand, bound rho from below.

    Args:
        hits: Number of observations above the threshold with the canary in the batch.
        in_batch: Number of observations with the canary in the batch.
        false_alarms: Number of observations above the threshold without the canary.
        out_of_batch: Number of observations without the canary.
        noise_multiplier: The claimed noise multiplier of every step.
        confidence: Probability with which the bound holds, in (0, 1).
        family: The claimed mechanism at every noise factor.

    Returns:
        The bound, conditional on non-interfering canaries, Poisson sampling and the family.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    Example:
        One step with a claimed noise multiplier of 1, at delta 1e-5:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> bound = tv_known_batches(
        ...     hits=500, in_batch=1000, false_alarms=1500, out_of_batch=9000,
        ...     noise_multiplier=1.0, confidence=0.95, family=family,
        ... )
        >>> round(bound.epsilon, 1)
        3.7
    """
    for name, count, most in (
        ("hits", hits, in_batch),
        ("false_alarms", false_alarms, out_of_batch),
    ):
        require_count(name, count, least=0)
        if count > most:
            raise InvalidArgument(name, count, f"at most {most}")
    require_open_unit("confidence", confidence)
    if min(in_batch, out_of_batch) == 0:
        return _bound_of_shift(0.0, noise_multiplier, confidence, family, ASSUMES_RECORDED_BATCHES)
    level = 1 - confidence
    hit_rate = lower_limit(hits, in_batch, level * TRUE_POSITIVE_LEVEL_SHARE)
    alarm_rate = upper_limit(false_alarms, out_of_batch, level * (1 - TRUE_POSITIVE_LEVEL_SHARE))
    shift = float(ndtri(hit_rate) - ndtri(alarm_rate))
    return _bound_of_shift(shift, noise_multiplier, confidence, family, ASSUMES_RECORDED_BATCHES)


def t_known_batches(
    *,
    in_batch: Array,
    out_of_batch: Array,
    noise_multiplier: float,
    confidence: float,
    family: MechanismFamily,
) -> LowerBound:
    """Compute the lower bound from the means over all steps, with recorded batches.

    The pivot of the gap between the means, in standard deviations, is noncentral t, as for
    ``gaussian_pivot``.

    Args:
        in_batch: Observations with the canary in the batch, over the clip norm, shape ``(k,)``.
        out_of_batch: Observations without the canary, shape ``(n,)``.
        noise_multiplier: The claimed noise multiplier of every step.
        confidence: Probability with which the bound holds, in (0, 1).
        family: The claimed mechanism at every noise factor.

    Returns:
        The bound, conditional on normal noise and on the assumptions of ``tv_known_batches``.

    Raises:
        InvalidArgument: If an observation is not finite, or a number is out of range.

    Example:
        One step with half the claimed noise, at delta 1e-5:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> rng = np.random.default_rng(0)
        >>> bound = t_known_batches(
        ...     in_batch=rng.normal(1, 0.5, 1000), out_of_batch=rng.normal(0, 0.5, 9000),
        ...     noise_multiplier=1.0, confidence=0.95, family=family,
        ... )
        >>> 9 < bound.epsilon < 10
        True
    """
    moments = sample_statistics(in_batch), sample_statistics(out_of_batch)
    return t_known_batches_of_moments(
        *moments, noise_multiplier=noise_multiplier, confidence=confidence, family=family
    )


def t_known_batches_of_moments(
    in_batch: SampleMoments,
    out_of_batch: SampleMoments,
    *,
    noise_multiplier: float,
    confidence: float,
    family: MechanismFamily,
) -> LowerBound:
    """Compute the bound of ``t_known_batches`` from the sufficient statistics.

    Args:
        in_batch: Moments of the observations with the canary in the batch.
        out_of_batch: Moments of the other observations.
        noise_multiplier: The claimed noise multiplier of every step.
        confidence: Probability with which the bound holds, in (0, 1).
        family: The claimed mechanism at every noise factor.

    Returns:
        The bound, conditional on normal noise and on the assumptions of ``tv_known_batches``.

    Raises:
        InvalidArgument: If ``confidence`` is out of range.

    Example:
        One step with half the claimed noise, at delta 1e-5:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> bound = t_known_batches_of_moments(
        ...     SampleMoments(1000, 1.0, 0.25), SampleMoments(9000, 0.0, 0.25),
        ...     noise_multiplier=1.0, confidence=0.95, family=family,
        ... )
        >>> round(bound.epsilon, 1)
        9.6
    """
    require_open_unit("confidence", confidence)
    shift = mu_from_sample_statistics(in_batch, out_of_batch, 1 - confidence)
    return _bound_of_shift(shift, noise_multiplier, confidence, family, ASSUMES_NORMAL_NOISE)


def noise_chi_square(
    *, out_of_batch: Array, noise_multiplier: float, confidence: float, family: MechanismFamily
) -> LowerBound:
    """Compute the lower bound from the size of the noise alone.

    The sum of squares of n observations over their variance has a chi-square distribution with
    n degrees of freedom. It gives an upper confidence limit of the noise. Faults of clipping
    do not change this bound: the shift of a canary is assumed to be the clip norm.

    Args:
        out_of_batch: Observations without the canary, over the clip norm, at least one.
        noise_multiplier: The claimed noise multiplier of every step.
        confidence: Probability with which the bound holds, in (0, 1).
        family: The claimed mechanism at every noise factor.

    Returns:
        The bound, conditional on the family and on the shift of a canary.

    Raises:
        InvalidArgument: If there is no observation, one is not finite, or a number is out of
            range.

    Example:
        One step with half the claimed noise, at delta 1e-5:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> bound = noise_chi_square(
        ...     out_of_batch=np.random.default_rng(0).normal(0, 0.5, 9000),
        ...     noise_multiplier=1.0, confidence=0.95, family=family,
        ... )
        >>> 9 < bound.epsilon < 11
        True
    """
    require_open_unit("confidence", confidence)
    if out_of_batch.size == 0 or not np.isfinite(out_of_batch).all():
        raise InvalidArgument(
            "out_of_batch", f"shape {out_of_batch.shape}", "at least one finite observation"
        )
    squares = float(np.sum(out_of_batch**2))
    most_noise = math.sqrt(squares / float(chdtri(out_of_batch.size, confidence)))
    shift = 1 / most_noise if most_noise > 0 else math.inf
    return _bound_of_shift(shift, noise_multiplier, confidence, family, ASSUMES_UNIT_SHIFT)


def _bound_of_shift(
    shift: float, noise_multiplier: float, confidence: float, family: MechanismFamily, assumes: str
) -> LowerBound:
    """Return the bound of a shift of at least ``shift`` standard deviations of the noise.

    A factor f is refuted where the shift exceeds 1 / (f times the claimed noise multiplier).
    """
    epsilon = family.epsilon_refuted(lambda factor: factor * noise_multiplier * shift > 1)
    return LowerBound(epsilon, BoundKind.CONDITIONAL, confidence, assumes, STATES_LESS_NOISE)
