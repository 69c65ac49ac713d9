"""What the evidence on one run says together: attacks from every file, bounds above the claim."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from dpaudit.report.evidence import ReportEvidence
from dpaudit.vocabulary.audit import (
    AttackReport,
    AuditReport,
    AuditResult,
    BoundKind,
    MembershipResult,
    TprAtFpr,
)
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError


def attacks_on(evidence: ReportEvidence) -> tuple[MembershipResult, ...]:
    """Return the audit's attacks, then the further ones on this very run."""
    audit, attack = evidence.audit, current_attack(evidence)
    return (
        *(audit.membership if audit is not None else ()),
        *(attack.membership if attack is not None else ()),
    )


def current_attack(evidence: ReportEvidence) -> AttackReport | None:
    """Return the further attacks; None where they are of another state of the ledger."""
    attack = evidence.attack
    if attack is None or attack.ledger_head != evidence.claim.ledger_head:
        return None
    return attack


class Caveat(NamedTuple):
    """What some attacks could not see, and what their intervals assume."""

    attacks: tuple[str, ...]
    unresolved: tuple[float, ...]
    assumes: str


def caveats(attacks: Iterable[MembershipResult]) -> tuple[Caveat, ...]:
    """Return the caveats of attacks, each once, with the attacks that it is of."""
    found: dict[tuple[tuple[float, ...], str], tuple[str, ...]] = {}
    for one in attacks:
        key = (one.unresolved, one.assumes)
        found[key] = (*found.get(key, ()), one.attack)
    return tuple(Caveat(names, *key) for key, names in found.items() if any(key))


def strongest(attacks: tuple[MembershipResult, ...]) -> tuple[MembershipResult, TprAtFpr] | None:
    """Return the attack that may expose most at the smallest rate of false alarms, and its rate.

    The upper end of the interval counts, and what is inconclusive does not.
    """
    measured = [
        (attack, rate)
        for attack in attacks
        if attack.inconclusive is None
        for rate in attack.tpr_at_fpr
    ]
    if not measured:
        return None
    least = min(rate.fpr for _, rate in measured)
    at_least = [pair for pair in measured if pair[1].fpr == least]
    return max(at_least, key=lambda pair: pair[1].interval.upper)


def contradicting(audit: AuditReport | None, claim: Claim) -> tuple[AuditResult, ...]:
    """Return the lower bounds that lie above the claim.

    Epsilon falls as delta grows: a bound at a delta below the claim's says nothing of it.
    """
    return tuple(
        bound
        for bound in (audit.bounds if audit else ())
        if bound.kind is not BoundKind.ESTIMATE
        and bound.delta >= claim.delta
        and not bound.epsilon_lower <= claim.epsilon.upper
    )


def require_one_ledger(evidence: ReportEvidence) -> None:
    """Refuse evidence on two states of a ledger.

    Raises:
        IntegrityError: names what must be made again.
    """
    head = evidence.claim.ledger_head
    parts = (
        ("audit", evidence.audit),
        ("verdict", evidence.verdict),
        ("conformance", evidence.conformance),
    )
    for name, part in parts:
        if part is not None and part.ledger_head != head:
            raise IntegrityError(
                f"the {name} is of ledger {part.ledger_head}, the claim of ledger {head}: "
                f"make the {name} again before reporting"
            )
