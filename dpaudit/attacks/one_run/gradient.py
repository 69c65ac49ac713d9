"""Audits of one run with gradient canaries: what can be said, by what it assumes.

Nothing here reads a score before the guesses are fixed: they come from simulating the
claimed mechanism, as does the power of each audit. The failure probability is shared out, so
that all bounds hold together.
"""

from __future__ import annotations

from typing import Protocol

from dpaudit.attacks.one_run.certified import CertifiedAudit
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.curve import CurveAudit
from dpaudit.attacks.one_run.full_batch import BAND, PIVOT, FullBatchAudit, band, pivot
from dpaudit.attacks.one_run.ranks import RankAudit
from dpaudit.attacks.one_run.seen import Seen
from dpaudit.attacks.one_run.simulation import Simulation
from dpaudit.attacks.one_run.visible import GapAudit, HitAudit, one_noise_multiplier
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.errors import require_open_unit

# Of the failure probability. What assumes most is sharpest, so its share is how often it
# contradicts a true claim; what assumes nothing needs more to say anything.
CERTIFIED, CURVE, RANKS, HITS, GAP = 0.6, 0.28, 0.04, 0.04, 0.04


class Audit(Protocol):
    """One way to a lower bound."""

    def result(self, seen: Seen) -> AuditResult:
        """Return it."""


def audit_gradient_canaries(
    seen: Seen, claimed: Claimed, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Return lower bounds from gradient canaries, the one that assumes least first.

    Args:
        seen: What the run showed.
        claimed: What is claimed of it.
        confidence: Probability with which all bounds hold together.
        seed: Of the simulation that fixes the guesses; any number but one that was chosen
            after looking at the scores.
    """
    require_open_unit("confidence", confidence)
    return tuple(audit.result(seen) for audit in _audits(seen, claimed, 1 - confidence, seed))


def audit_interfering_canaries(
    seen: Seen, claimed: Claimed, *, confidence: float, seed: int
) -> tuple[AuditResult, ...]:
    """Return what holds where records' gradients meet the canaries', arguments as above."""
    require_open_unit("confidence", confidence)
    alpha, m = 1 - confidence, seen.canaries
    simulation = Simulation(claimed.steps, m, seed)
    share = CERTIFIED / (CERTIFIED + CURVE)
    audits: list[Audit] = [
        CertifiedAudit(claimed, m, 1 - share * alpha, simulation),
        CurveAudit(claimed, m, 1 - (1 - share) * alpha, simulation),
    ]
    return tuple(audit.result(seen) for audit in audits)


def _audits(seen: Seen, claimed: Claimed, alpha: float, seed: int) -> list[Audit]:
    m, simulation = seen.canaries, Simulation(claimed.steps, seen.canaries, seed)
    audits: list[Audit] = [
        CertifiedAudit(claimed, m, 1 - CERTIFIED * alpha, simulation),
        CurveAudit(claimed, m, 1 - CURVE * alpha, simulation),
        RankAudit(claimed, m, 1 - RANKS * alpha, simulation),
    ]
    if (claimed.steps.sampling_rates == 1).all():
        audits += [
            FullBatchAudit(claimed, m, 1 - HITS * alpha, simulation, "Gaussian band", BAND, band),
            FullBatchAudit(claimed, m, 1 - GAP * alpha, simulation, "Gaussian pivot", PIVOT, pivot),
        ]
    elif seen.joined is not None and one_noise_multiplier(claimed.steps) is not None:
        audits += [
            HitAudit(claimed, m, 1 - HITS * alpha, seed),
            GapAudit(claimed, m, 1 - GAP * alpha, seed),
        ]
    return audits
