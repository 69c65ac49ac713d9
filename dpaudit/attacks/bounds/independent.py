"""Bounds for canaries that do not touch each other, given the claimed family.

Under Poisson sampling no bound that looks at (epsilon, delta) alone can say much: at a true
epsilon of 4, none rises above 2.1 from 1,000 canaries. These take the claimed mechanism with
its noise scaled by a factor as the family, and canaries in directions of their own with
noise that is independent between them: so by construction for orthogonal gradients under
independent noise, and not for records that share gradients.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, chdtri, ndtri

from dpaudit.attacks.bounds.family import Family, least_refuted
from dpaudit.attacks.bounds.gaussian import mu_of_moments, sample_of
from dpaudit.attacks.bounds.one_run import require_guesses
from dpaudit.attacks.bounds.rates import lower_limit, upper_limit
from dpaudit.attacks.bounds.result import LowerBound
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit
from dpaudit.vocabulary.estimators import Sample

Array = NDArray[np.float64]

INDEPENDENT = "canaries that do not touch each other, and the claimed family of mechanisms"
SEEN = f"{INDEPENDENT}; Poisson-sampled batches whose members were written down"
NORMAL = f"{SEEN}; normal noise"
NOISE_ALONE = "the claimed family of mechanisms; the shift of a canary is the clip norm"
LESS_NOISE = "the mechanism is not the claimed one with more noise than this"

SHARE_OF_HITS = 0.9  # of the failure probability; false alarms are counted on many more cells


def total_variation(*, canaries: int, correct: int, confidence: float) -> float:
    """Return a lower bound on the total variation between a canary's two laws.

    Given all scores of independent canaries, the bits are independent, and no rule is
    right on one of them with probability above (1 + TV)/2: so the number of right guesses
    is stochastically below Bin(m, (1 + TV)/2), however the guesses were chosen from the
    scores. This inverts that binomial test by Clopper and Pearson's limit.
    """
    require_guesses(canaries, canaries, correct)
    require_open_unit("confidence", confidence)
    if correct == 0:
        return 0.0
    accuracy = float(betaincinv(correct, canaries - correct + 1, 1 - confidence))
    return max(0.0, 2 * accuracy - 1)


def tv_rank(*, canaries: int, correct: int, confidence: float, family: Family) -> LowerBound:
    """Return the bound from how many of all canaries were guessed right, by rank.

    Guesses may be chosen from all scores: here "in" for the highest ones, as many as the
    claimed mechanism says.

    Args:
        canaries: How many canaries had a fair coin, all guessed, m.
        correct: How many guesses were right.
        confidence: In (0, 1).
        family: The claimed mechanism at every noise factor.

    Raises:
        InvalidArgument: the counts contradict each other, or a number is out of range.
    """
    distance = total_variation(canaries=canaries, correct=correct, confidence=confidence)
    factor = least_refuted(lambda factor: family.total_variation(factor) < distance)
    epsilon = family.epsilon_at(factor)
    kind = BoundKind.CONDITIONAL
    return LowerBound(epsilon, kind, confidence, INDEPENDENT, LESS_NOISE, factor)


def tv_visible(
    *,
    hits: int,
    in_batch: int,
    false_alarms: int,
    out_of_batch: int,
    noise_multiplier: float,
    confidence: float,
    family: Family,
) -> LowerBound:
    """Return the bound from every step of every canary, where the batches are known.

    A step's observation is the noise, plus the shift where the canary was in the batch. With
    rho = shift/noise, no threshold has Phi_inv(TPR) - Phi_inv(FPR) above rho; limits of both
    rates, at a threshold that was fixed beforehand, bound rho from below.

    Args:
        hits: Observations above the threshold with the canary in the batch.
        in_batch: How many observations had it there.
        false_alarms: Observations above the threshold without it.
        out_of_batch: How many observations were without it.
        noise_multiplier: The claimed one, at every step.
        confidence: In (0, 1).
        family: The claimed mechanism at every noise factor.

    Raises:
        InvalidArgument: the counts contradict each other, or a number is out of range.
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
        return _of_shift(0.0, noise_multiplier, confidence, family, SEEN)
    level = 1 - confidence
    hit_rate = lower_limit(hits, in_batch, level * SHARE_OF_HITS)
    alarm_rate = upper_limit(false_alarms, out_of_batch, level * (1 - SHARE_OF_HITS))
    shift = float(ndtri(hit_rate) - ndtri(alarm_rate))
    return _of_shift(shift, noise_multiplier, confidence, family, SEEN)


def t_visible(
    *,
    in_batch: Array,
    out_of_batch: Array,
    noise_multiplier: float,
    confidence: float,
    family: Family,
) -> LowerBound:
    """Return the bound from the gap of the means in standard deviations, a noncentral t.

    Args:
        in_batch: Observations with the canary in the batch, any order, shape ``(k,)``.
        out_of_batch: Observations without it.
        noise_multiplier: The claimed one, at every step.
        confidence: In (0, 1).
        family: The claimed mechanism at every noise factor.
    """
    moments = sample_of(in_batch), sample_of(out_of_batch)
    return t_visible_of_moments(
        *moments, noise_multiplier=noise_multiplier, confidence=confidence, family=family
    )


def t_visible_of_moments(
    in_batch: Sample,
    out_of_batch: Sample,
    *,
    noise_multiplier: float,
    confidence: float,
    family: Family,
) -> LowerBound:
    """Return the same from the sufficient statistics, arguments as above."""
    require_open_unit("confidence", confidence)
    shift = mu_of_moments(in_batch, out_of_batch, 1 - confidence)
    return _of_shift(shift, noise_multiplier, confidence, family, NORMAL)


def noise_chi_square(
    *, out_of_batch: Array, noise_multiplier: float, confidence: float, family: Family
) -> LowerBound:
    """Return the bound from the size of the noise alone; blind to faults of clipping.

    The sum of squares over the variance is chi-square; arguments as above.
    """
    require_open_unit("confidence", confidence)
    if out_of_batch.size == 0 or not np.isfinite(out_of_batch).all():
        raise InvalidArgument(
            "out_of_batch", f"shape {out_of_batch.shape}", "observations, all finite"
        )
    squares = float(np.sum(out_of_batch**2))
    most_noise = math.sqrt(squares / float(chdtri(out_of_batch.size, confidence)))
    shift = 1 / most_noise if most_noise > 0 else math.inf
    return _of_shift(shift, noise_multiplier, confidence, family, NOISE_ALONE)


def _of_shift(
    shift: float, noise_multiplier: float, confidence: float, family: Family, assumes: str
) -> LowerBound:
    """Return epsilon at the noise of which the shift is ``shift`` standard deviations."""
    epsilon = family.epsilon_refuted(lambda factor: factor * noise_multiplier * shift > 1)
    return LowerBound(epsilon, BoundKind.CONDITIONAL, confidence, assumes, LESS_NOISE)
