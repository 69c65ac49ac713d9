"""The sum of all steps alone, as plain SGD at one learning rate ships it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.one_run.certified import CertifiedAudit
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.curve import CurveAudit
from dpaudit.attacks.one_run.likelihood import ClaimedSteps
from dpaudit.attacks.one_run.pools import Pool
from dpaudit.attacks.one_run.ranks import RankAudit
from dpaudit.attacks.one_run.scored import centred_ranks
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

FINAL_ITERATE = "final iterate of plain SGD"
"""What was observed."""

RANKS = 0.06  # of the failure probability
POOL = 5000  # simulated sums of included canaries, and of left out ones
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
        return FINAL_ITERATE

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

    def right_guesses(
        self, noise_factor: float, repetitions: int, guesses: Sequence[int]
    ) -> NDArray[np.int64]:
        """Return right guesses of ``repetitions`` audits, by the ranks of the sums."""
        pool = self._pool(noise_factor)
        return pool.right_ends(self.canaries, self.seed, repetitions, guesses)

    def _pool(self, noise_factor: float) -> Pool:
        rng = np.random.default_rng([self.seed, int(1e9 * noise_factor)])
        deviation = noise_factor * float(np.linalg.norm(self.steps.noise_multipliers))
        rates, counts = np.unique(self.steps.sampling_rates, return_counts=True)
        joined = sum(
            rng.binomial(count, rate, POOL) for rate, count in zip(rates, counts, strict=True)
        )
        out, noise = deviation * rng.standard_normal((2, POOL))
        return Pool(out, joined + noise)


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
    plan = planned_final_audits(
        len(seen.included), claimed, interfering=False, confidence=confidence, seed=seed
    )
    return tuple(audit.result(seen) for audit in plan)


def audit_interfering_final_iterate(
    seen: FinalIterate, claimed: Claimed, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Return what holds where records' gradients meet the canaries', arguments as above."""
    plan = planned_final_audits(
        len(seen.included), claimed, interfering=True, confidence=confidence, seed=seed
    )
    return tuple(audit.result(seen) for audit in plan)


FinalAudit = CertifiedAudit | CurveAudit | RankAudit


def planned_final_audits(
    canaries: int, claimed: Claimed, *, interfering: bool, confidence: float, seed: int
) -> tuple[FinalAudit, ...]:
    """Return every audit that is made of the sum of all steps.

    Args:
        canaries: How many there are, m.
        claimed: What is claimed of all steps.
        interfering: Whether records' gradients meet the canaries'.
        confidence: Probability with which all bounds hold together.
        seed: Of the simulation that fixes the guesses.
    """
    require_open_unit("confidence", confidence)
    ranks = 0.0 if interfering else RANKS
    alpha = (1 - ranks) * (1 - confidence)
    simulation = FinalSimulation(claimed.steps, canaries, seed)
    plan: tuple[FinalAudit, ...] = (
        CertifiedAudit(claimed, canaries, 1 - CERTIFIED * alpha, simulation),
        CurveAudit(claimed, canaries, 1 - (1 - CERTIFIED) * alpha, simulation),
    )
    if interfering:
        return plan
    return (*plan, RankAudit(claimed, canaries, 1 - RANKS * (1 - confidence), simulation))
