"""A sequential test of the claimed noise: valid at every step of a run, for early stopping.

An included canary is in each Poisson-sampled batch by an independent coin of bias q. The
observation x of a step gives a prediction p of that coin, and the test bets on it. For a convex
function psi and any prediction p that is a function of x,

    S = psi(p) + psi'(p) (coin - p)

has a mean of at most c = E[psi(posterior)]. This c falls with the noise (Blackwell 1953), so its
value at the claimed noise bounds the mean under the claim or more noise. The product over steps
and canaries of 1 + lambda (S - c) is therefore a nonnegative supermartingale under the claim.
So is its average over several lambda and several predictions. By Ville's inequality, it ever
reaches 1/alpha with probability at most alpha, however often one looks and whenever one stops
(Waudby-Smith & Ramdas 2024, arXiv:2010.09686).

Here psi is the relative entropy to the bias q,

    psi(p) = p ln(p/q) + (1 - p) ln((1 - p)/(1 - q)),

so that S is the log payoff of a bet at fair odds: ln(p/q) or ln((1 - p)/(1 - q)). Then c is the
mutual information of the coin and the observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, xlogy

from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit, require_positive

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

# Tested noise factors (nulls); 1 is the claim.
NULL_FACTORS = 1.05 ** np.arange(-48.0, 30.0)
# Noise factors that the predictions assume.
PREDICTION_FACTORS = np.array([1.0, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2])
BET_FRACTIONS = np.array([0.02, 0.05, 0.1, 0.2, 0.4])  # the lambdas
MAX_LOSS_FACTOR = 4.0  # largest loss factor of a bet: it keeps 1 + lambda (S - c) positive
QUADRATURE_NODES = 4001
QUADRATURE_ROUNDING = 1e-7  # absolute, of the mutual information, with room


@dataclass
class SequentialTest:
    """A sequential test of the claimed noise, updated after every step.

    It needs non-interfering canaries, Poisson sampling and recorded batches.

    Attributes:
        confidence: Probability with which the test never refutes a true noise factor, over all
            steps, in (0, 1).

    Example:
        >>> test, rng = SequentialTest(0.95), np.random.default_rng(0)
        >>> for _ in range(10):  # a tenth of the claimed noise
        ...     in_batch = rng.random(50) < 0.1
        ...     observations = in_batch + 0.1 * rng.standard_normal(50)
        ...     test.update(observations, in_batch, sampling_rate=0.1, noise_multiplier=1.0)
        >>> test.refutes_claim
        True
    """

    confidence: float
    _log_wealth: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)
        self._log_wealth = np.zeros(
            (len(NULL_FACTORS), len(PREDICTION_FACTORS), len(BET_FRACTIONS))
        )

    def update(
        self, observations: Array, in_batch: Bits, *, sampling_rate: float, noise_multiplier: float
    ) -> None:
        """Add the observations of one step.

        Args:
            observations: The noisy sum along each included canary's direction, in clip norms,
                shape ``(n,)``.
            in_batch: Whether the batch held each included canary, shape ``(n,)``.
            sampling_rate: The claimed sampling rate of the step, in (0, 1).
            noise_multiplier: The claimed noise multiplier of the step, above 0.

        Raises:
            InvalidArgument: If the shapes differ, an observation is not finite, or a number is
                out of range. A full batch (rate 1) has no coin to bet on.
        """
        require_open_unit("sampling_rate", sampling_rate)
        require_positive("noise_multiplier", noise_multiplier)
        paired = observations.shape == in_batch.shape and observations.ndim == 1
        if not paired or not np.isfinite(observations).all():
            given = f"shape {observations.shape}"
            raise InvalidArgument("observations", given, "finite, one for each canary")
        fair = largest_payoff_means(sampling_rate, noise_multiplier)
        for number, assumed in enumerate(PREDICTION_FACTORS):
            noise = float(assumed) * noise_multiplier
            pays = _log_payoff(observations, in_batch, sampling_rate, noise)
            gains = pays - fair[:, None, None]  # (nulls, 1, n)
            self._log_wealth[:, number] += np.log1p(BET_FRACTIONS[:, None] * gains).sum(axis=2)

    @property
    def refuted_noise_factor(self) -> float | None:
        """The smallest refuted factor on the claimed noise; None if none is refuted yet."""
        bets = self._log_wealth.reshape(len(NULL_FACTORS), -1)
        evidence = np.logaddexp.reduce(bets, axis=1) - math.log(bets.shape[1])  # of the average
        refuted = evidence >= -math.log(1 - self.confidence)  # Ville: wealth of 1/alpha
        # A factor counts as refuted only if all larger ones are.
        least = len(NULL_FACTORS) - int(np.argmin(refuted[::-1])) if not refuted.all() else 0
        return float(NULL_FACTORS[least]) if least < len(NULL_FACTORS) else None

    @property
    def refutes_claim(self) -> bool:
        """Whether the claimed noise is refuted: the true noise is smaller."""
        factor = self.refuted_noise_factor
        return factor is not None and factor <= 1.0


def _log_payoff(
    observations: Array, in_batch: Bits, sampling_rate: float, noise_multiplier: float
) -> Array:
    """Return the log payoff S of a bet on each coin, shape ``(n,)``."""
    log_odds = logit(sampling_rate) + (2 * observations - 1) / (2 * noise_multiplier**2)
    least, most = sampling_rate / MAX_LOSS_FACTOR, 1 - (1 - sampling_rate) / MAX_LOSS_FACTOR
    predicted = np.clip(expit(log_odds), least, most)
    against = np.log((1 - predicted) / (1 - sampling_rate))
    return np.asarray(np.where(in_batch, np.log(predicted / sampling_rate), against))


@lru_cache(maxsize=1024)
def largest_payoff_means(sampling_rate: float, noise_multiplier: float) -> Array:
    """Compute an upper bound on the mean of S under each null.

    It is the mutual information of the coin and the observation of a step.

    Args:
        sampling_rate: The claimed sampling rate, in (0, 1).
        noise_multiplier: The claimed noise multiplier, above 0.

    Returns:
        One bound per noise factor of ``NULL_FACTORS``, in nats, falling.
    """
    return np.array([
        _information(sampling_rate, float(factor) * noise_multiplier) for factor in NULL_FACTORS
    ])  # fmt: skip


def _information(sampling_rate: float, noise_multiplier: float) -> float:
    """Return the mutual information: the mean relative entropy of the posterior to the bias."""
    x = np.linspace(-12 * noise_multiplier, 1 + 12 * noise_multiplier, QUADRATURE_NODES)
    out = np.exp(-((x / noise_multiplier) ** 2) / 2)
    shifted = np.exp(-(((x - 1) / noise_multiplier) ** 2) / 2)
    density = (1 - sampling_rate) * out + sampling_rate * shifted
    posterior = expit(logit(sampling_rate) + (2 * x - 1) / (2 * noise_multiplier**2))
    entropy = _relative_entropy(posterior, sampling_rate)
    whole = np.trapezoid(density, x)
    return float(np.trapezoid(density * entropy, x) / whole) + QUADRATURE_ROUNDING


def _relative_entropy(p: Array, q: float) -> Array:
    """Return p ln(p/q) + (1 - p) ln((1 - p)/(1 - q)), shape of ``p``."""
    return np.asarray(xlogy(p, p / q) + xlogy(1 - p, (1 - p) / (1 - q)))
