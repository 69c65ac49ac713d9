"""Auditing while a run goes on: evidence that may be looked at after every step.

An included canary is in a Poisson batch by a coin of its own. What a step shows of it lets an
observer bet on that coin. For a convex psi and any prediction p that the observation gives,

    S = psi(p) + psi'(p) (coin - p)

has a mean of at most E[psi(posterior)], which is largest for the claimed noise and falls with
more of it (Blackwell 1953): so the product of 1 + lambda (S - c), c that largest mean, is a
supermartingale under the claim, and so is an average over lambdas and over ways to predict.
By Ville's inequality it ever reaches 1/alpha with probability alpha at most, whenever one
looks and stops (Waudby-Smith & Ramdas 2024, arXiv:2010.09686). Here psi is the relative
entropy to the coin's bias: S is the logarithm of what a bet at fair odds pays.
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

NULLS = 1.05 ** np.arange(-48.0, 30.0)  # noise factors whose refutation is followed; 1: the claim
ASSUMED = np.array([1.0, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2])  # noise factors that predictions assume
STAKES = np.array([0.02, 0.05, 0.1, 0.2, 0.4])
MOST_LOST = 4.0  # the factor by which a bet may lose: it bounds the stakes
NODES = 4001
ROUNDING = 1e-7

INDEPENDENT = (
    "canaries that do not touch each other, whose membership of each Poisson-sampled batch was "
    "written down, and the claimed family of mechanisms"
)


@dataclass
class Watch:
    """Follows the evidence against a claimed noise, step by step.

    Attributes:
        confidence: Probability with which what it refutes is false, at every step at once.
    """

    confidence: float
    _log_wealth: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)
        self._log_wealth = np.zeros((len(NULLS), len(ASSUMED), len(STAKES)))

    def see(
        self, shown: Array, joined: Bits, *, sampling_rate: float, noise_multiplier: float
    ) -> None:
        """Take in one step.

        Args:
            shown: What the noisy sum showed of each included canary, over the clip norm,
                shape ``(n,)``.
            joined: Whether each was in the batch, shape ``(n,)``.
            sampling_rate: The claimed one, below 1.
            noise_multiplier: The claimed one.

        Raises:
            InvalidArgument: shapes differ, something is not finite, or a batch holds every
                record, so that there is no coin to bet on.
        """
        require_open_unit("sampling_rate", sampling_rate)
        require_positive("noise_multiplier", noise_multiplier)
        if shown.shape != joined.shape or shown.ndim != 1 or not np.isfinite(shown).all():
            raise InvalidArgument("shown", f"shape {shown.shape}", "finite, one for each canary")
        fair = largest_means(sampling_rate, noise_multiplier)
        for number, assumed in enumerate(ASSUMED):
            noise = float(assumed) * noise_multiplier
            pays = _log_payoff(shown, joined, sampling_rate, noise)
            gains = pays - fair[:, None, None]  # (nulls, 1, n)
            self._log_wealth[:, number] += np.log1p(STAKES[:, None] * gains).sum(axis=2)

    @property
    def refuted_noise_factor(self) -> float | None:
        """The least factor on the claimed noise that is refuted; None where none is yet."""
        ways = self._log_wealth.reshape(len(NULLS), -1)
        evidence = np.logaddexp.reduce(ways, axis=1) - math.log(ways.shape[1])
        refuted = evidence >= -math.log(1 - self.confidence)
        # One is refuted only where all with more noise are.
        least = len(NULLS) - int(np.argmin(refuted[::-1])) if not refuted.all() else 0
        return float(NULLS[least]) if least < len(NULLS) else None

    @property
    def refutes_the_claim(self) -> bool:
        """Whether there is less noise than was claimed."""
        factor = self.refuted_noise_factor
        return factor is not None and factor <= 1.0


def _log_payoff(shown: Array, joined: Bits, sampling_rate: float, noise_multiplier: float) -> Array:
    """Return the logarithm of what a bet on each coin pays, shape ``(n,)``."""
    log_odds = logit(sampling_rate) + (2 * shown - 1) / (2 * noise_multiplier**2)
    least, most = sampling_rate / MOST_LOST, 1 - (1 - sampling_rate) / MOST_LOST
    predicted = np.clip(expit(log_odds), least, most)
    against = np.log((1 - predicted) / (1 - sampling_rate))
    return np.asarray(np.where(joined, np.log(predicted / sampling_rate), against))


@lru_cache(maxsize=1024)
def largest_means(sampling_rate: float, noise_multiplier: float) -> Array:
    """Return the mean of S under each null, from above, shape ``(nulls,)``.

    It is the mutual information of the coin and what a step shows.
    """
    return np.array([
        _information(sampling_rate, float(factor) * noise_multiplier) for factor in NULLS
    ])  # fmt: skip


def _information(sampling_rate: float, noise_multiplier: float) -> float:
    """Integrate the relative entropy of the posterior, by the trapezoid rule."""
    x = np.linspace(-12 * noise_multiplier, 1 + 12 * noise_multiplier, NODES)
    out = np.exp(-((x / noise_multiplier) ** 2) / 2)
    inside = np.exp(-(((x - 1) / noise_multiplier) ** 2) / 2)
    density = (1 - sampling_rate) * out + sampling_rate * inside
    posterior = expit(logit(sampling_rate) + (2 * x - 1) / (2 * noise_multiplier**2))
    entropy = _relative_entropy(posterior, sampling_rate)
    whole = np.trapezoid(density, x)
    return float(np.trapezoid(density * entropy, x) / whole) + ROUNDING


def _relative_entropy(p: Array, q: float) -> Array:
    """Return p ln(p/q) + (1 - p) ln((1 - p)/(1 - q)), shape of ``p``."""
    return np.asarray(xlogy(p, p / q) + xlogy(1 - p, (1 - p) / (1 - q)))
