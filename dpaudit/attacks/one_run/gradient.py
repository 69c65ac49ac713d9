"""Audits of one run with gradient canaries: what can be said, by what it assumes.

Nothing here reads a score before the guesses are fixed: they come from simulating the
claimed mechanism, as does the power of each audit. The failure probability is shared out, so
that all bounds hold together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dpaudit.attacks.one_run.certified import CertifiedAudit
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.curve import CurveAudit
from dpaudit.attacks.one_run.full_batch import (
    BAND,
    PIVOT,
    FullBatchAudit,
    band,
    errors,
    moments,
    pivot,
)
from dpaudit.attacks.one_run.ranks import RankAudit
from dpaudit.attacks.one_run.seen import Seen
from dpaudit.attacks.one_run.simulation import Simulation
from dpaudit.attacks.one_run.visible import GapAudit, HitAudit, one_noise_multiplier
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.errors import require_open_unit
from dpaudit.vocabulary.estimators import Estimator, GaussianBand, GaussianPivot

# Of the failure probability. What assumes most is sharpest, so its share is how often it
# contradicts a true claim; what assumes nothing needs more to say anything.
CERTIFIED, CURVE, RANKS, HITS, GAP = 0.6, 0.28, 0.04, 0.04, 0.04


class Audit(Protocol):
    """One way to a lower bound."""

    @property
    def confidence(self) -> float:
        """Probability with which the bound holds."""

    @property
    def reads(self) -> type[Estimator]:
        """The statistics that its bound is a function of."""

    def name_of(self, observed: str) -> str:
        """Return how its bound is called, by what was observed."""

    def result(self, seen: Seen) -> AuditResult:
        """Return the bound."""

    def power(self) -> float | None:
        """Return the least true epsilon at which the claim is refuted 95 times in 100."""


@dataclass(frozen=True)
class Canaries:
    """What is public of a run's gradient canaries.

    Attributes:
        count: How many there are, m.
        interfering: Whether records' gradients meet theirs.
        batches_recorded: Whether it was written down which of them each batch held.
    """

    count: int
    interfering: bool
    batches_recorded: bool


def planned_audits(
    canaries: Canaries, claimed: Claimed, *, confidence: float, seed: int
) -> tuple[Audit, ...]:
    """Return every audit that is made of a run's gradient canaries, least assumptions first.

    Args:
        canaries: What is public of them.
        claimed: What is claimed of the run.
        confidence: Probability with which all bounds hold together.
        seed: Of the simulation that fixes the guesses; any number but one that was chosen
            after looking at the scores.
    """
    require_open_unit("confidence", confidence)
    alpha = 1 - confidence
    plan = _interfering if canaries.interfering else _audits
    return tuple(plan(canaries, claimed, alpha, seed))


def audit_gradient_canaries(
    seen: Seen, claimed: Claimed, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Return lower bounds from gradient canaries, the one that assumes least first.

    Args:
        seen: What the run showed.
        claimed: What is claimed of it.
        confidence: Probability with which all bounds hold together.
        seed: As for ``planned_audits``.
    """
    canaries = Canaries(seen.canaries, False, seen.joined is not None)
    plan = planned_audits(canaries, claimed, confidence=confidence, seed=seed)
    return tuple(audit.result(seen) for audit in plan)


def audit_interfering_canaries(
    seen: Seen, claimed: Claimed, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Return what holds where records' gradients meet the canaries', arguments as above."""
    canaries = Canaries(seen.canaries, True, seen.joined is not None)
    plan = planned_audits(canaries, claimed, confidence=confidence, seed=seed)
    return tuple(audit.result(seen) for audit in plan)


def _interfering(canaries: Canaries, claimed: Claimed, alpha: float, seed: int) -> list[Audit]:
    m, simulation = canaries.count, Simulation(claimed.steps, canaries.count, seed)
    share = CERTIFIED / (CERTIFIED + CURVE)
    return [
        CertifiedAudit(claimed, m, 1 - share * alpha, simulation),
        CurveAudit(claimed, m, 1 - (1 - share) * alpha, simulation),
    ]


def _audits(canaries: Canaries, claimed: Claimed, alpha: float, seed: int) -> list[Audit]:
    m, simulation = canaries.count, Simulation(claimed.steps, canaries.count, seed)
    audits: list[Audit] = [
        CertifiedAudit(claimed, m, 1 - CERTIFIED * alpha, simulation),
        CurveAudit(claimed, m, 1 - CURVE * alpha, simulation),
        RankAudit(claimed, m, 1 - RANKS * alpha, simulation),
    ]
    if (claimed.steps.sampling_rates == 1).all():
        audits += [
            FullBatchAudit(
                claimed,
                m,
                1 - HITS * alpha,
                simulation,
                "Gaussian band",
                BAND,
                GaussianBand,
                band,
                errors,
            ),
            FullBatchAudit(
                claimed,
                m,
                1 - GAP * alpha,
                simulation,
                "Gaussian pivot",
                PIVOT,
                GaussianPivot,
                pivot,
                moments,
            ),
        ]
    elif canaries.batches_recorded and one_noise_multiplier(claimed.steps) is not None:
        audits += [
            HitAudit(claimed, m, 1 - HITS * alpha, seed),
            GapAudit(claimed, m, 1 - GAP * alpha, seed),
        ]
    return audits
