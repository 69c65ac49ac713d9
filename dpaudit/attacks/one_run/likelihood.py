"""Scores of gradient-space canaries, and what they would be under a given noise.

On a canary's coordinate a step shows x = joined + noise, in units of the clip norm. The
best score for a claimed mechanism is its log-likelihood ratio over the trajectory,

    sum_t log(1 - q_t + q_t exp((2 x_t - 1) / (2 s_t^2))),

with q_t the sampling rate and s_t the noise multiplier of step t. Where the true noise is
not the claimed one, the best score has the true one in it: it is fitted to the
observations, without the inclusion bits, so that a bound stays valid and gains power
just where the claim is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import InvalidArgument

Array = NDArray[np.float64]


NOISE_FACTORS = np.geomspace(0.02, 4.0, 90)
FITTED_OBSERVATIONS = 100_000


@dataclass(frozen=True)
class ClaimedSteps:
    """The claimed sampling rate and noise multiplier of every step, each shape ``(steps,)``."""

    sampling_rates: Array
    noise_multipliers: Array

    def with_noise_factor(self, factor: float) -> ClaimedSteps:
        """Return the steps with all noise scaled by ``factor``."""
        return ClaimedSteps(self.sampling_rates, factor * self.noise_multipliers)


def likelihood_ratio_scores(observations: Array, steps: ClaimedSteps) -> Array:
    """Return one score a canary, shape ``(m,)``; larger means included.

    Args:
        observations: Shape ``(steps, m)``, finite, over the clip norm.
        steps: The claimed mechanism of each row.

    Raises:
        InvalidArgument: shapes differ, or an observation is not finite.
    """
    require_observations(observations, steps)
    return _scores(observations, steps)


def require_observations(observations: Array, steps: ClaimedSteps) -> None:
    """Refuse observations that are not finite, or not one row for each step."""
    if observations.ndim != 2 or len(observations) != len(steps.sampling_rates):
        raise InvalidArgument(
            "observations",
            f"shape {observations.shape}",
            f"one row for each of the {len(steps.sampling_rates)} steps",
        )
    if not np.isfinite(observations).all():
        raise InvalidArgument("observations", "NaN or infinity", "finite")


def fitted_noise_factor(observations: Array, steps: ClaimedSteps) -> float:
    """Return the factor on the claimed noise under which the observations are likeliest.

    The inclusion bits are not used: each canary counts as included with probability 1/2.
    """
    require_observations(observations, steps)
    canaries = max(1, FITTED_OBSERVATIONS // len(observations))
    seen = observations[:, :canaries]
    log_likelihoods = [
        _log_likelihood(seen, steps.with_noise_factor(float(factor))) for factor in NOISE_FACTORS
    ]
    return float(NOISE_FACTORS[int(np.argmax(log_likelihoods))])


def _log_likelihood(observations: Array, steps: ClaimedSteps) -> float:
    joined = steps.sampling_rates[:, None] / 2
    noise = steps.noise_multipliers[:, None]
    base = -(observations**2) / (2 * noise**2) - np.log(noise)
    ratio = np.log(joined) + (2 * observations - 1) / (2 * noise**2)
    return float(np.sum(base + np.logaddexp(np.log1p(-joined), ratio)))


def _scores(observations: Array, steps: ClaimedSteps) -> Array:
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
    """Return scores of ``size`` canaries if the true noise were ``noise_factor`` of the claim."""
    true_steps = steps.with_noise_factor(noise_factor)
    scores = np.zeros(size)
    rows = zip(true_steps.sampling_rates, true_steps.noise_multipliers, strict=True)
    for rate, noise in rows:
        joined = rng.random(size) < rate if included else np.zeros(size, dtype=np.bool_)
        x = joined + noise * rng.standard_normal(size)
        scores += _scores(x[None], ClaimedSteps(np.array([rate]), np.array([noise])))
    return scores
