"""The data of a report, and findings that combine it. Nothing here computes a bound."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from dpaudit.gate.run_differences import DifferenceCost
from dpaudit.vocabulary.audit import (
    AttackReport,
    AuditReport,
    AuditResult,
    BoundKind,
    MembershipResult,
    TprAtFpr,
)
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.privacy_terms import Bound
from dpaudit.vocabulary.verdict import PastRun, Verdict


class EpsilonCurve(msgspec.Struct, frozen=True):
    """Upper bounds on epsilon after each number of steps, by one accountant."""

    accountant: str
    steps: tuple[int, ...]
    epsilon: tuple[float, ...]


class RefusedAccountant(msgspec.Struct, frozen=True):
    """An accountant without a valid bound for these releases, and the reason."""

    accountant: str
    why: str


class ProfilePoint(msgspec.Struct, frozen=True):
    """One point of the privacy profile: the interval of epsilon at ``delta``."""

    delta: float
    epsilon: Bound


class TradeoffPoint(msgspec.Struct, frozen=True):
    """One point of the claim's trade-off curve.

    ``tpr`` is the interval of the best attacker's true-positive rate at ``fpr``: no attacker
    exceeds its upper end.
    """

    fpr: float
    tpr: Bound


class CanaryScoreHistogram(msgspec.Struct, frozen=True):
    """Scores of canaries, counted in bins; it holds no score or membership of a single canary.

    Attributes:
        name: The observed canaries and the score.
        edges: Edges of the bins, rising, one more than there are bins.
        included: Number of included canaries per bin.
        left_out: Number of canaries that were not included, per bin.
    """

    name: str
    edges: tuple[float, ...]
    included: tuple[int, ...]
    left_out: tuple[int, ...]


class ParticipantEpsilon(msgspec.Struct, frozen=True):
    """The epsilon of one ledger of a federation.

    Attributes:
        name: Folder name of the participant, as ``000``; or ``server``.
        releases: Number of releases that count for it.
        epsilon: Interval of epsilon at the claim's delta, in nats; None without a release.
        left: The first round that its budget had no room for, from 0; None if it stayed.
        rejected: Number of its updates that the server rejected.
    """

    name: str
    releases: int
    epsilon: Bound | None
    left: int | None = None
    rejected: int = 0


class RunFacts(msgspec.Struct, frozen=True):
    """Data that identifies a run in its report.

    Attributes:
        written: Time of the report, with its offset from UTC.
        data: The data set and its split; empty where the run has no recorded settings.
        model: The model and its optimizer; empty where the run has no recorded settings.
        model_digest: SHA-256 of the model file that the ledger's seal names; may be empty.
    """

    written: datetime
    data: str = ""
    model: str = ""
    model_digest: str = ""


class ReportEvidence(msgspec.Struct, frozen=True):
    """The data of the report on one run. What is None or empty was not measured.

    Attributes:
        run: Name of the run.
        claim: The claim of the run's ledger.
        mechanism_in_words: Description of everything that the run released.
        answers: Epsilon by each accountant, at the claim's delta.
        curves: Upper bounds on epsilon against steps, one curve per accountant.
        profile: The privacy profile, as intervals of epsilon at fixed deltas.
        audit: Lower bounds on epsilon and membership inference.
        verdict: The outcome of each rule of the policy.
        refused: Accountants without a valid number for these releases.
        tradeoff: The trade-off curve of the claimed mechanism.
        canaries: Scores of the canaries, in bins.
        attack: Further membership inference.
        conformance: Tests of the trainer.
        history: Past verdicts, the oldest first.
        project_digest: SHA-256 of the project's policy as it is now; empty without one.
        facts: Date, data set and model.
        participants: Epsilon of each ledger of a federation; empty for a run of one trainer.
        rounds: Number of rounds of a federation that ended.
        published: Epsilon as the paper of the strategy quotes it; empty without one.
    """

    run: str
    claim: Claim
    mechanism_in_words: str
    answers: tuple[EpsilonAnswer, ...]
    curves: tuple[EpsilonCurve, ...]
    profile: tuple[ProfilePoint, ...]
    audit: AuditReport | None = None
    verdict: Verdict | None = None
    refused: tuple[RefusedAccountant, ...] = ()
    tradeoff: tuple[TradeoffPoint, ...] = ()
    canaries: CanaryScoreHistogram | None = None
    attack: AttackReport | None = None
    conformance: ConformanceResult | None = None
    history: tuple[PastRun, ...] = ()
    project_digest: str = ""
    facts: RunFacts | None = None
    participants: tuple[ParticipantEpsilon, ...] = ()
    rounds: int = 0
    published: str = ""


class ComparisonEvidence(msgspec.Struct, frozen=True):
    """Data of two runs, and the cost of each difference; those that raise epsilon come first."""

    before: ReportEvidence
    after: ReportEvidence
    costs: tuple[DifferenceCost, ...]


# Findings that combine the evidence on one run.


def membership_attacks(evidence: ReportEvidence) -> tuple[MembershipResult, ...]:
    """Return all membership inference attacks on the run in its present state.

    Args:
        evidence: The data of the report.

    Returns:
        The attacks of the audit, then those of attack.json where its ledger head is the claim's.
        The attack ``loss`` of attack.json has the name that the audit gives it, and its command.
    """
    audit, attack = evidence.audit, current_attack(evidence)
    return (
        *(audit.membership if audit is not None else ()),
        *(map(_named_as_in_audit, attack.membership) if attack is not None else ()),
    )


SAME_ATTACKS = {"loss": "loss threshold (dpaudit attack)"}
"""Attacks of attack.json that an audit has under another name, by the name to show."""


def _named_as_in_audit(result: MembershipResult) -> MembershipResult:
    if result.attack not in SAME_ATTACKS:
        return result  # a copy is validated again, point by point of its curve
    return replace(result, attack=SAME_ATTACKS[result.attack])


def current_attack(evidence: ReportEvidence) -> AttackReport | None:
    """Return the report in attack.json; None without one or with another ledger head."""
    attack = evidence.attack
    if attack is None or attack.ledger_head != evidence.claim.ledger_head:
        return None
    return attack


class Unresolved(NamedTuple):
    """Attacks, and the false-positive rates for which they have too few non-members."""

    attacks: tuple[str, ...]
    rates: tuple[float, ...]


def unresolved(attacks: Iterable[MembershipResult]) -> tuple[Unresolved, ...]:
    """Group attacks by the false-positive rates that they have too few non-members for.

    Args:
        attacks: The attacks; one without such rates is left out.

    Returns:
        Each set of rates once, with the names of its attacks.
    """
    found: dict[tuple[float, ...], tuple[str, ...]] = {}
    for one in attacks:
        found[one.unresolved] = (*found.get(one.unresolved, ()), one.attack)
    return tuple(Unresolved(names, rates) for rates, names in found.items() if rates)


NOT_STATED = "not stated"
FAIR_COINS = "fair, independent coins, and nothing else"
# Only plain prose is split at semicolons; other text, such as markup, stays one statement.
PROSE = re.compile(r"[\w\s.,;:()'/+-]*")


class Statements:
    """Statements, such as assumptions, each with one label: A1, A2 and so on.

    Args:
        prefix: Begins every label.
        texts: Statements separated by semicolons; equal statements share a label.
    """

    def __init__(self, prefix: str, texts: Iterable[str]) -> None:
        found = dict.fromkeys(part for text in texts for part in _parts(text))
        self._labels = {text: f"{prefix}{number}" for number, text in enumerate(found, 1)}

    @property
    def items(self) -> tuple[tuple[str, str], ...]:
        """Every statement as (label, text), in the order of first use."""
        return tuple((label, text) for text, label in self._labels.items())

    def labels(self, text: str) -> str:
        """Return the labels of the statements in ``text``, such as "A1, A3"."""
        return ", ".join(self._labels[part] for part in _parts(text))


def _parts(text: str) -> tuple[str, ...]:
    """Split a text into its statements, without empty ones."""
    parts = text.split("; ") if PROSE.fullmatch(text) else [text]
    return tuple(part.strip() for part in parts if part.strip())


def assumed(bound: AuditResult) -> str:
    """Return the assumptions of a lower bound.

    Args:
        bound: The lower bound.

    Returns:
        The recorded assumptions, separated by semicolons. Without a record: fair coins for a
        certified bound, otherwise "not stated".
    """
    if bound.assumes:
        return bound.assumes
    return FAIR_COINS if bound.kind is BoundKind.CERTIFIED else NOT_STATED


def assumptions(evidence: ReportEvidence) -> Statements:
    """Collect the assumptions of all lower bounds and of all attacks, each once.

    Args:
        evidence: The data of the report.

    Returns:
        The assumptions, labelled A1, A2 and so on.
    """
    bounds = evidence.audit.bounds if evidence.audit else ()
    return Statements(
        "A", [*map(assumed, bounds), *(one.assumes for one in membership_attacks(evidence))]
    )


def conclusions(evidence: ReportEvidence) -> Statements:
    """Collect the conclusions of the lower bounds, each stated once.

    Args:
        evidence: The data of the report.

    Returns:
        The conclusions, labelled C1, C2 and so on.
    """
    return Statements(
        "C", [one.states for one in (evidence.audit.bounds if evidence.audit else ())]
    )


def largest_bound(evidence: ReportEvidence) -> AuditResult | None:
    """Find the largest lower bound that can be compared with the claim.

    Epsilon falls as delta grows, so a bound at a delta below the claim's does not compare.

    Args:
        evidence: The data of the report.

    Returns:
        The bound; None without a comparable one. An estimate is not a bound.
    """
    bounds = evidence.audit.bounds if evidence.audit else ()
    comparable = [
        bound
        for bound in bounds
        if bound.kind is not BoundKind.ESTIMATE and bound.delta >= evidence.claim.delta
    ]
    return max(comparable, key=lambda bound: bound.epsilon_lower, default=None)


def strongest_attack(
    attacks: tuple[MembershipResult, ...],
) -> tuple[MembershipResult, TprAtFpr] | None:
    """Find the attack whose interval reaches highest at the smallest measured FPR.

    Args:
        attacks: The attacks; inconclusive ones are ignored.

    Returns:
        The attack and its rate; None where no rate was measured.
    """
    measured = [
        (attack, rate)
        for attack in attacks
        if attack.inconclusive is None
        for rate in attack.tpr_at_fpr
    ]
    if not measured:
        return None
    smallest = min(rate.fpr for _, rate in measured)
    there = [pair for pair in measured if pair[1].fpr == smallest]
    return max(there, key=lambda pair: pair[1].interval.upper)


def contradicting_bounds(audit: AuditReport | None, claim: Claim) -> tuple[AuditResult, ...]:
    """Return the lower bounds above the claimed upper bound.

    Epsilon falls as delta grows, so a bound at a delta below the claim's does not compare.
    A NaN bound contradicts the claim.

    Args:
        audit: The audit; None where there was none.
        claim: The claim of the same ledger.

    Returns:
        The bounds that contradict the claim; an estimate is not a bound.
    """
    return tuple(
        bound
        for bound in (audit.bounds if audit else ())
        if bound.kind is not BoundKind.ESTIMATE
        and bound.delta >= claim.delta
        and not bound.epsilon_lower <= claim.epsilon.upper
    )


def require_same_ledger(evidence: ReportEvidence) -> None:
    """Check that audit, verdict and conformance are on the claim's state of the ledger.

    Args:
        evidence: The data of the report.

    Raises:
        IntegrityError: If one has another ledger head than the claim. The error names it.
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
