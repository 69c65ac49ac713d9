"""The sum of all steps alone, as plain SGD at one learning rate ships it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.one_run.certified import CertifiedAudit
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.curve import CurveAudit
from dpaudit.attacks.one_run.likelihood import ClaimedSteps
from dpaudit.attacks.one_run.ranks import RankAudit
from dpaudit.attacks.one_run.scored import centred_ranks
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

RANKS = 0.06  # of the failure probability
CERTIFIED = 0.64  # of what is left


@dataclass(frozen=True)
class FinalIterate:
    """What the sum of all noisy sums showed.

    Attributes:
        sums: Along each canary's direction, over the clip norm, shape ``(m,)``: how far plain
            SGD moves the parameters, over the public factor of a step.
        included: The canaries' secret bits, shape ``(m,)``.
    """

    sums: Array
    included: Bits

    def __post_init__(self) -> None:
        if self.sums.shape != self.included.shape or self.sums.ndim != 1 or len(self.sums) == 0:
            given = f"shape {self.sums.shape}"
            raise InvalidArgument("sums", given, f"one for each of {len(self.included)} canaries")
        if not np.isfinite(self.sums).all():
            raise InvalidArgument("sums", "NaN or infinity", "finite")

    @property
    def name(self) -> str:
        """What was observed."""
        return "final iterate of plain SGD"

    @property
    def scores(self) -> Array:
        """Ranks about their middle: the likelihood ratio rises with the sum."""
        return centred_ranks(self.sums)


@dataclass(frozen=True)
class FinalSimulation:
    """Final iterates of the claimed steps, at any noise factor."""

    steps: ClaimedSteps
    canaries: int
    seed: int

    def audits(self, noise_factor: float, repetitions: int) -> list[tuple[Array, Bits]]:
        """Return scores and bits of ``repetitions`` audits."""
        rng = np.random.default_rng([self.seed, int(1e9 * noise_factor)])
        deviation = noise_factor * float(np.linalg.norm(self.steps.noise_multipliers))
        return [self._audit(deviation, rng) for _ in range(repetitions)]

    def _audit(self, deviation: float, rng: np.random.Generator) -> tuple[Array, Bits]:
        included = rng.random(self.canaries) < 0.5
        rates, counts = np.unique(self.steps.sampling_rates, return_counts=True)
        joined = sum(
            rng.binomial(count, rate, self.canaries)
            for rate, count in zip(rates, counts, strict=True)
        )
        sums = included * joined + deviation * rng.standard_normal(self.canaries)
        return centred_ranks(sums), included


def audit_final_iterate(
    seen: FinalIterate, claimed: Claimed, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Return lower bounds from the sum of all steps, the one that assumes least first.

    They are weaker than those from every step, as they see less; what is claimed of every
    step holds for their sum, too.

    Args:
        seen: What that sum showed.
        claimed: What is claimed of all steps.
        confidence: Probability with which all bounds hold together.
        seed: Of the simulation that fixes the guesses, as for ``audit_gradient_canaries``.
    """
    certified, curve = _audits(seen, claimed, 1 - (1 - RANKS) * (1 - confidence), seed)
    simulation = FinalSimulation(claimed.steps, len(seen.included), seed)
    level = 1 - RANKS * (1 - confidence)
    ranks = RankAudit(claimed, len(seen.included), level, simulation)
    return certified.result(seen), curve.result(seen), ranks.result(seen)


def audit_interfering_final_iterate(
    seen: FinalIterate, claimed: Claimed, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Return what holds where records' gradients meet the canaries', arguments as above."""
    certified, curve = _audits(seen, claimed, confidence, seed)
    return certified.result(seen), curve.result(seen)


def _audits(
    seen: FinalIterate, claimed: Claimed, confidence: float, seed: int
) -> tuple[CertifiedAudit, CurveAudit]:
    require_open_unit("confidence", confidence)
    alpha, m = 1 - confidence, len(seen.included)
    simulation = FinalSimulation(claimed.steps, m, seed)
    return (
        CertifiedAudit(claimed, m, 1 - CERTIFIED * alpha, simulation),
        CurveAudit(claimed, m, 1 - (1 - CERTIFIED) * alpha, simulation),
    )
