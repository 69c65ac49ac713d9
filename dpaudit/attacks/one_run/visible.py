"""Independent canaries whose batches were written down: every step of each is a trial."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from msgspec.structs import asdict
from numpy.typing import NDArray
from scipy.special import nctdtr, nctdtrit, ndtr, ndtri

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.independent import SHARE_OF_HITS
from dpaudit.attacks.bounds.rates import lower_limit, upper_limit
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.guesses import digest
from dpaudit.attacks.one_run.likelihood import ClaimedSteps
from dpaudit.attacks.one_run.results import audit_result
from dpaudit.attacks.one_run.seen import Seen
from dpaudit.attacks.one_run.simulation import REPETITIONS, detectable_epsilon
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.estimators import BatchMeans, BatchRates, Estimator

Array = NDArray[np.float64]

THRESHOLD = 1.0  # in clip norms: half of the canaries in the batch are above it
HITS = "rates in and out of the batch, inverted over the claimed family"
GAP = "gap of the means in and out of the batch (noncentral t)"


def one_noise_multiplier(steps: ClaimedSteps) -> float | None:
    """Return the noise multiplier if all steps have one, on Poisson samples; else None."""
    noises, rates = steps.noise_multipliers, steps.sampling_rates
    return float(noises[0]) if np.ptp(noises) == 0 and (rates < 1).all() else None


@dataclass(frozen=True)
class _Cells:
    """Observations with the canary in the batch, and all others."""

    inside: Array
    outside: Array


def _cells(seen: Seen) -> _Cells:
    if seen.joined is None:
        raise InvalidArgument("joined", None, "given: which canaries each batch held")
    return _Cells(seen.observations[seen.joined], seen.observations[~seen.joined])


@dataclass(frozen=True)
class _Visible(ABC):
    """What both audits need."""

    claimed: Claimed
    canaries: int
    confidence: float
    seed: int

    @property
    def noise_multiplier(self) -> float:
        """The claimed one."""
        return float(self.claimed.steps.noise_multipliers[0])

    @property
    def expected_inside(self) -> int:
        """How many observations are expected to have the canary in the batch."""
        return max(2, round(self.canaries / 2 * float(self.claimed.steps.sampling_rates.sum())))

    @property
    def observations(self) -> int:
        """How many there are in all."""
        return self.canaries * len(self.claimed.steps.sampling_rates)

    def _result(
        self,
        name: str,
        method: str,
        bound: bounds.LowerBound,
        thresholds: str,
        estimator: Estimator,
    ) -> AuditResult:
        return audit_result(
            bound,
            name=name,
            method=method,
            delta=self.claimed.delta,
            canaries=self.canaries,
            thresholds=thresholds,
            registered=digest(audit=method, canaries=self.canaries, threshold=THRESHOLD),
            detectable_epsilon=self.detectable_epsilon,
            estimator=estimator,
        )

    @property
    def detectable_epsilon(self) -> float | None:
        """The power of the audit; from the claim and the number of canaries alone."""
        return detectable_epsilon(self.claimed, self._share_refuted)

    def power(self) -> float | None:
        """Return the least true epsilon at which the claim is refuted 95 times in 100."""
        return self.detectable_epsilon

    @abstractmethod
    def _share_refuted(self, noise_factor: float) -> float:
        """Return how often the claim is refuted at a true noise factor."""


@dataclass(frozen=True)
class HitAudit(_Visible):
    """By counts alone: given that a step has a Gaussian trade-off, of some noise factor."""

    reads = BatchRates

    @staticmethod
    def name_of(observed: str) -> str:
        """Return how its bound is called, by what was observed."""
        return f"rates by batch, {observed}"

    def result(self, seen: Seen) -> AuditResult:
        """Return the bound."""
        cells = _cells(seen)
        hits, alarms = (
            int(np.count_nonzero(part > THRESHOLD)) for part in (cells.inside, cells.outside)
        )
        counts = BatchRates(hits, len(cells.inside), alarms, len(cells.outside))
        bound = bounds.tv_visible(
            **asdict(counts),
            noise_multiplier=self.noise_multiplier,
            confidence=self.confidence,
            family=self.claimed.family,
        )
        thresholds = (
            f"{THRESHOLD:g} clip norm, the shift that is claimed; above it were "
            f"{hits} of {len(cells.inside)} observations in the batch and {alarms} of "
            f"{len(cells.outside)} others"
        )
        return self._result(self.name_of(seen.name), HITS, bound, thresholds, counts)

    def _share_refuted(self, noise_factor: float) -> float:
        """Simulate both counts, which are binomial."""
        rng, level = np.random.default_rng(self.seed), 1 - self.confidence
        inside = self.expected_inside
        outside = self.observations - inside
        false_alarm = float(ndtr(-THRESHOLD / (noise_factor * self.noise_multiplier)))
        hits = rng.binomial(inside, 0.5, REPETITIONS)
        alarms = rng.binomial(outside, false_alarm, REPETITIONS)
        least = lower_limit(hits, inside, level * SHARE_OF_HITS)
        most = upper_limit(alarms, outside, level * (1 - SHARE_OF_HITS))
        return float(np.mean(self.noise_multiplier * (ndtri(least) - ndtri(most)) > 1))


@dataclass(frozen=True)
class GapAudit(_Visible):
    """Parametric: sharper, for normal noise."""

    reads = BatchMeans

    @staticmethod
    def name_of(observed: str) -> str:
        """Return how its bound is called, by what was observed."""
        return f"means by batch, {observed}"

    def result(self, seen: Seen) -> AuditResult:
        """Return the bound."""
        cells = _cells(seen)
        means = BatchMeans(bounds.sample_of(cells.inside), bounds.sample_of(cells.outside))
        bound = bounds.t_visible_of_moments(
            means.in_batch,
            means.out_of_batch,
            noise_multiplier=self.noise_multiplier,
            confidence=self.confidence,
            family=self.claimed.family,
        )
        return self._result(self.name_of(seen.name), GAP, bound, "none is needed", means)

    def _share_refuted(self, noise_factor: float) -> float:
        """Return the power of the t test, whose statistic is noncentral t."""
        inside, all_cells = self.expected_inside, self.observations
        centre = math.sqrt(inside * (all_cells - inside) / all_cells) / self.noise_multiplier
        degrees = all_cells - 2
        critical = float(nctdtrit(degrees, centre, self.confidence))
        return 1 - float(nctdtr(degrees, centre / noise_factor, critical))
