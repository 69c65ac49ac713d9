"""Observations of gradient canaries, and their scores.

In a direction of its own, an included canary shifts the noisy sum of step t by one clip norm if
the batch holds it. The observation, in clip norms, is

    x_t = b_t + s_t z_t,        b_t ~ Bernoulli(q_t),  z_t ~ N(0, 1),

with q_t the sampling rate and s_t the noise multiplier. An excluded canary has b_t = 0. The most
powerful score for this mechanism is the log-likelihood ratio of the two over all steps,

    sum over t of log(1 - q_t + q_t exp((2 x_t - 1) / (2 s_t^2))).

If the true noise differs from the claimed noise, the best score uses the true one. The noise
factor is therefore fitted to the observations, without the inclusion bits. The bounds stay valid,
since a score remains a function of the observations alone, and gain power where the claim is
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.bounds import MechanismFamily
from dpaudit.vocabulary.errors import InvalidArgument

# The claimed mechanism, as an audit of one run uses it.

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ClaimedSteps:
    """The claimed parameters of every DP-SGD step.

    Attributes:
        sampling_rates: Inclusion probability of each record in the batch, shape ``(steps,)``,
            in (0, 1]. 1 is a full batch.
        noise_multipliers: Noise standard deviation over the clip norm, shape ``(steps,)``.

    Example:
        >>> import numpy as np
        >>> steps = ClaimedSteps(np.full(10, 0.1), np.full(10, 2.0))
        >>> float(steps.with_noise_factor(0.5).noise_multipliers[0])
        1.0
    """

    sampling_rates: Array
    noise_multipliers: Array

    def with_noise_factor(self, factor: float) -> ClaimedSteps:
        """Return the steps with the noise of each multiplied by a factor.

        Args:
            factor: True noise over claimed noise, above 0.

        Returns:
            Steps with the same sampling rates.
        """
        return ClaimedSteps(self.sampling_rates, factor * self.noise_multipliers)


@dataclass(frozen=True)
class ClaimedMechanism:
    """The claimed steps, with the guarantee that an accountant computed for them.

    Attributes:
        steps: The claimed steps.
        epsilon: The claimed epsilon in nats: the upper end of the accountant's result.
        delta: The claimed delta.
        family: The claimed steps with all noise multiplied by a factor. The caller provides it,
            since ``attacks`` shares no code with the accountants that it may contradict.

    Example:
        One full-batch step with noise multiplier 1 is 1-GDP. Noise reduced by a factor f makes
        it (1/f)-GDP:

        >>> import numpy as np
        >>> from math import erf, sqrt
        >>> from dpaudit.attacks.bounds import MechanismFamily, gaussian_epsilon, gaussian_tradeoff
        >>> from dpaudit.vocabulary.privacy_terms import Bound
        >>> def epsilon(factor):
        ...     bound = gaussian_epsilon(mu=1 / factor, delta=1e-5).epsilon
        ...     return Bound(bound, bound)
        >>> family = MechanismFamily(
        ...     epsilon=epsilon,
        ...     total_variation=lambda factor: erf(1 / factor / sqrt(8)),
        ...     tradeoff=lambda factor: gaussian_tradeoff(1 / factor),
        ... )
        >>> claim = ClaimedMechanism(
        ...     ClaimedSteps(np.ones(1), np.ones(1)), epsilon(1.0).upper, 1e-5, family
        ... )
        >>> round(claim.epsilon, 3)
        4.377
    """

    steps: ClaimedSteps
    epsilon: float
    delta: float
    family: MechanismFamily


NOISE_FACTORS = np.geomspace(0.02, 4.0, 90)  # candidates of the fit, times the claimed noise
FITTED_OBSERVATIONS = 100_000  # number of observations that the fit uses


def likelihood_ratio_scores(observations: Array, steps: ClaimedSteps) -> Array:
    """Compute the log-likelihood ratio of each canary over all steps.

    Args:
        observations: Observations over the clip norm, shape ``(steps, m)``, finite.
        steps: The parameters of each row's step.

    Returns:
        One score per canary, shape ``(m,)``; larger means included.

    Raises:
        InvalidArgument: If the shapes differ, or an observation is not finite.
    """
    require_observations(observations, steps)
    return _log_likelihood_ratios(observations, steps)


def require_observations(observations: Array, steps: ClaimedSteps) -> None:
    """Require finite observations, with one row per step.

    Args:
        observations: Observations over the clip norm, shape ``(steps, m)``.
        steps: The parameters of each row's step.

    Raises:
        InvalidArgument: If the shapes differ, or an observation is not finite.
    """
    if observations.ndim != 2 or len(observations) != len(steps.sampling_rates):
        raise InvalidArgument(
            "observations",
            f"shape {observations.shape}",
            f"one row for each of the {len(steps.sampling_rates)} steps",
        )
    if not np.isfinite(observations).all():
        raise InvalidArgument("observations", "NaN or infinity", "finite")


def fitted_noise_factor(observations: Array, steps: ClaimedSteps) -> float:
    """Fit a factor on the claimed noise by maximum likelihood.

    The inclusion bits are not used: each canary counts as included with probability 1/2. Every
    observation is modeled as the mixture (1 - q/2) N(0, s^2) + q/2 N(1, s^2).

    Args:
        observations: Observations over the clip norm, shape ``(steps, m)``, finite.
        steps: The claimed parameters of each row's step.

    Returns:
        The most likely of ``NOISE_FACTORS``.

    Raises:
        InvalidArgument: If the shapes differ, or an observation is not finite.
    """
    require_observations(observations, steps)
    canaries = max(1, FITTED_OBSERVATIONS // len(observations))
    sample = observations[:, :canaries]
    log_likelihoods = [
        _log_likelihood(sample, steps.with_noise_factor(float(factor))) for factor in NOISE_FACTORS
    ]
    return float(NOISE_FACTORS[int(np.argmax(log_likelihoods))])


def _log_likelihood(observations: Array, steps: ClaimedSteps) -> float:
    """Return the log-likelihood of the mixture, up to a constant."""
    inclusion = steps.sampling_rates[:, None] / 2
    noise = steps.noise_multipliers[:, None]
    base = -(observations**2) / (2 * noise**2) - np.log(noise)
    ratio = np.log(inclusion) + (2 * observations - 1) / (2 * noise**2)
    return float(np.sum(base + np.logaddexp(np.log1p(-inclusion), ratio)))


def _log_likelihood_ratios(observations: Array, steps: ClaimedSteps) -> Array:
    """Return the log-likelihood ratios of all columns, summed over the rows."""
    scores = np.zeros(observations.shape[1])
    rows = zip(observations, steps.sampling_rates, steps.noise_multipliers, strict=True)
    for x, rate, noise in rows:
        exponent = (2 * x - 1) / (2 * noise**2)
        if rate < 1:
            exponent = np.logaddexp(np.log1p(-rate), np.log(rate) + exponent)
        scores += exponent
    return scores


def simulated_scores(
    steps: ClaimedSteps, noise_factor: float, included: bool, size: int, rng: np.random.Generator
) -> Array:
    """Simulate scores of canaries at a true noise factor.

    Args:
        steps: The claimed steps.
        noise_factor: True noise over claimed noise. The scores use the true noise.
        included: Whether the canaries are included.
        size: Number of canaries.
        rng: Random generator.

    Returns:
        One score per canary, shape ``(size,)``.
    """
    true_steps = steps.with_noise_factor(noise_factor)
    scores = np.zeros(size)
    rows = zip(true_steps.sampling_rates, true_steps.noise_multipliers, strict=True)
    for rate, noise in rows:
        in_batch = rng.random(size) < rate if included else np.zeros(size, dtype=np.bool_)
        x = in_batch + noise * rng.standard_normal(size)
        scores += _log_likelihood_ratios(x[None], ClaimedSteps(np.array([rate]), np.array([noise])))
    return scores


# Observations of the canaries of one run.

Bits = NDArray[np.bool_]

EVERY_STEP = "every step"
"""The observation, as part of a bound's name."""


class ScoredCanaries(Protocol):
    """One score per canary, a function of the observations alone."""

    @property
    def name(self) -> str:
        """The observation, as part of a bound's name."""

    @property
    def scores(self) -> Array:
        """Scores, shape ``(m,)``: the sign is the guess, positive for included."""

    @property
    def included(self) -> Bits:
        """The canaries' secret inclusion bits, shape ``(m,)``."""


@dataclass(frozen=True)
class CanaryObservations:
    """Observations of canaries at every step, each in a direction of its own.

    Attributes:
        observations: The noisy sum of each step along each canary's direction, in clip norms,
            shape ``(steps, m)``.
        included: The canaries' secret inclusion bits, shape ``(m,)``.
        steps: The claimed parameters of each row's step.
        in_batch: Whether the batch of each step held each canary, shape ``(steps, m)``. None if
            this was not recorded.

    Example:
        >>> steps = ClaimedSteps(np.ones(1), np.ones(1))
        >>> observations = CanaryObservations(
        ...     np.array([[1.2, -0.3]]), np.array([True, False]), steps
        ... )
        >>> observations.scores > 0
        array([ True, False])
    """

    observations: Array
    included: Bits
    steps: ClaimedSteps
    in_batch: Bits | None = None

    def __post_init__(self) -> None:
        if self.observations.ndim != 2 or self.observations.shape[1] != len(self.included):
            raise InvalidArgument(
                "observations",
                f"shape {self.observations.shape}",
                f"one column for each of {len(self.included)} canaries",
            )
        if len(self.observations) == 0:
            raise InvalidArgument("observations", "no step", "one row for each step")
        if len(self.included) == 0:
            raise InvalidArgument("included", "no canary", "one bit for each canary")
        if self.in_batch is not None:
            self._require_possible(self.in_batch)

    def _require_possible(self, in_batch: Bits) -> None:
        """Require one flag per observation, and no excluded canary in a batch."""
        if in_batch.shape != self.observations.shape:
            raise InvalidArgument("in_batch", f"shape {in_batch.shape}", "that of the observations")
        if (in_batch & ~self.included).any():
            raise InvalidArgument(
                "in_batch", "an excluded canary", "True only for included canaries"
            )

    @property
    def name(self) -> str:
        """The observation, as part of a bound's name."""
        return EVERY_STEP

    @property
    def canaries(self) -> int:
        """Number of canaries, m."""
        return len(self.included)

    @cached_property
    def scores(self) -> Array:
        """Log-likelihood ratios under the fitted noise, shape ``(m,)``.

        The inclusion bits are not used: a score is a function of the observations alone.
        """
        fitted = fitted_noise_factor(self.observations, self.steps)
        return likelihood_ratio_scores(self.observations, self.steps.with_noise_factor(fitted))
