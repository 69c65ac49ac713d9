"""Canary participants: lower bounds on the participant-level epsilon from one federated run.

Each canary participant is included by a fair coin. An included one that is drawn for a round sends
an update of norm S, the clip norm, in a direction of its own. Its projection of the noisy sum is
then an observation of a Gaussian mechanism on a Poisson sample, as for gradient canaries of
DP-SGD, so their audits apply.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.one_run.gradient_canary_audits import (
    audit_gradient_canaries,
    audit_interfering_canaries,
)
from dpaudit.attacks.one_run.observations import CanaryObservations, ClaimedMechanism
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.errors import InvalidArgument, require_positive

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

ORTHONORMAL_TOLERANCE = 1e-6


def canary_directions(canaries: int, dimension: int, *, seed: int) -> Array:
    """Return random orthonormal directions, one for each canary.

    Args:
        canaries: Number of canaries, at most ``dimension``.
        dimension: Number of coordinates of an update.
        seed: Seed of the directions, at least 0.

    Returns:
        Directions, shape ``(canaries, dimension)``.

    Raises:
        InvalidArgument: If there are more canaries than coordinates.

    Example:
        >>> directions = canary_directions(2, 5, seed=0)
        >>> (directions @ directions.T).round(9) + 0.0
        array([[1., 0.],
               [0., 1.]])
    """
    if not 1 <= canaries <= dimension:
        raise InvalidArgument("canaries", canaries, f"from 1 to the {dimension} coordinates")
    drawn = np.random.default_rng(seed).standard_normal((dimension, canaries))
    return np.asarray(np.linalg.qr(drawn)[0].T)


def audit_canary_participants(
    noisy_sums: Array,
    directions: Array,
    included: Bits,
    claim: ClaimedMechanism,
    *,
    clip_norm: float,
    confidence: float,
    seed: int,
    in_round: Bits | None = None,
) -> tuple[AuditResult, ...]:
    """Compute lower bounds on epsilon from the noisy sums of a federated run with canaries alone.

    No other participant may take part: ``audit_interfering_participants`` allows for others.

    Args:
        noisy_sums: The noisy sum of each round, before the division, shape ``(rounds, d)``.
        directions: Orthonormal direction of each canary's update, shape ``(m, d)``.
        included: The fair coin of each canary, shape ``(m,)``. The server must not know it.
        claim: The claimed mechanism of each round, with its epsilon at participant level.
        clip_norm: The clip norm S, the norm of every canary's update.
        confidence: Probability with which all bounds hold together, in (0, 1).
        seed: Seed of the simulation that fixes the guesses. It must not depend on the sums.
        in_round: Whether each included canary was drawn for each round, shape ``(rounds, m)``;
            None if that is not known.

    Returns:
        The bounds, by increasing assumptions, each with its kind, its assumptions and its power.

    Raises:
        InvalidArgument: If shapes differ, the directions are not orthonormal, a sum is not finite,
            or a number is out of range.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2; Andrew et al. (2023),
        arXiv:2302.03098 (canary clients in one run).

    Example:
        One round of all participants with noise multiplier 1, eight canaries:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.attacks.one_run import ClaimedSteps
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> claim = ClaimedMechanism(
        ...     ClaimedSteps(np.ones(1), np.ones(1)), epsilon(1.0).upper, 1e-5, family
        ... )
        >>> directions, included = canary_directions(8, 20, seed=0), np.arange(8) % 2 == 0
        >>> total = 0.5 * included @ directions
        >>> noisy_sums = total + 0.5 * np.random.default_rng(0).standard_normal((1, 20))
        >>> results = audit_canary_participants(
        ...     noisy_sums, directions, included, claim, clip_norm=0.5, confidence=0.95, seed=1
        ... )
        >>> [result.kind.value for result in results]
        ['certified', 'conditional', 'conditional', 'conditional', 'conditional']
    """
    observations = _observed(noisy_sums, directions, included, claim, clip_norm, in_round)
    return audit_gradient_canaries(observations, claim, confidence=confidence, seed=seed)


def audit_interfering_participants(
    noisy_sums: Array,
    directions: Array,
    included: Bits,
    claim: ClaimedMechanism,
    *,
    clip_norm: float,
    confidence: float,
    seed: int,
) -> tuple[AuditResult, ...]:
    """Compute lower bounds from canary participants beside ordinary participants.

    The updates of others overlap with the directions, so only the certified one-run bound and the
    bound against the claimed trade-off curve hold.

    Args:
        noisy_sums: The noisy sum of each round, before the division, shape ``(rounds, d)``.
        directions: Orthonormal direction of each canary's update, shape ``(m, d)``.
        included: The fair coin of each canary, shape ``(m,)``.
        claim: The claimed mechanism of each round, with its epsilon at participant level.
        clip_norm: The clip norm S, the norm of every canary's update.
        confidence: Probability with which both bounds hold together, in (0, 1).
        seed: Seed of the simulation that fixes the guesses. It must not depend on the sums.

    Returns:
        Both bounds, the certified one first.

    Raises:
        InvalidArgument: If shapes differ, the directions are not orthonormal, a sum is not finite,
            or a number is out of range.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2.

    Example:
        One round of all participants with noise multiplier 1, eight canaries:

        >>> from math import erf, sqrt
        >>> from dpaudit.attacks import bounds
        >>> from dpaudit.attacks.one_run import ClaimedSteps
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = bounds.gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = bounds.MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: bounds.gaussian_tradeoff(1 / factor),
        ... )
        >>> claim = ClaimedMechanism(
        ...     ClaimedSteps(np.ones(1), np.ones(1)), epsilon(1.0).upper, 1e-5, family
        ... )
        >>> directions, included = canary_directions(8, 20, seed=0), np.arange(8) % 2 == 0
        >>> total = 0.5 * included @ directions
        >>> noisy_sums = total + 0.5 * np.random.default_rng(0).standard_normal((1, 20))
        >>> results = audit_interfering_participants(
        ...     noisy_sums, directions, included, claim, clip_norm=0.5, confidence=0.95, seed=1
        ... )
        >>> [result.kind.value for result in results]
        ['certified', 'conditional']
    """
    observations = _observed(noisy_sums, directions, included, claim, clip_norm, None)
    return audit_interfering_canaries(observations, claim, confidence=confidence, seed=seed)


def _observed(
    noisy_sums: Array,
    directions: Array,
    included: Bits,
    claim: ClaimedMechanism,
    clip_norm: float,
    in_round: Bits | None,
) -> CanaryObservations:
    """Return the projections of the noisy sums on the directions, in clip norms."""
    require_positive("clip_norm", clip_norm)
    if noisy_sums.ndim != 2 or directions.ndim != 2 or noisy_sums.shape[1] != directions.shape[1]:
        given = f"shapes {noisy_sums.shape} and {directions.shape}"
        raise InvalidArgument("noisy_sums", given, "(rounds, d) beside directions (m, d)")
    apart = np.abs(directions @ directions.T - np.eye(len(directions))).max()
    if not apart <= ORTHONORMAL_TOLERANCE:
        raise InvalidArgument("directions", f"{apart:.3g} apart", "orthonormal rows")
    observed = noisy_sums @ directions.T / clip_norm
    return CanaryObservations(observed, included, claim.steps, in_round)
