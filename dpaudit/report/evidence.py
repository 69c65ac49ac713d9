"""Everything that a report shows: computed elsewhere, frozen here."""

from __future__ import annotations

import msgspec

from dpaudit.gate.comparison import Cost
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.history import PastRun
from dpaudit.vocabulary.verdict import Verdict


class Curve(msgspec.Struct, frozen=True):
    """Upper bounds of epsilon against steps, by one accountant."""

    accountant: str
    steps: tuple[int, ...]
    epsilon: tuple[float, ...]


class Refused(msgspec.Struct, frozen=True):
    """An accountant that has no valid number for these releases, and why."""

    accountant: str
    why: str


class ProfilePoint(msgspec.Struct, frozen=True):
    """One point of the privacy profile: the interval of epsilon at ``delta``."""

    delta: float
    epsilon: Bound


class RatePoint(msgspec.Struct, frozen=True):
    """One point of the claim's trade-off curve.

    ``tpr`` is the interval of the best attacker's true-positive rate at ``fpr``: no attacker
    exceeds its upper end.
    """

    fpr: float
    tpr: Bound


class CanaryScores(msgspec.Struct, frozen=True):
    """How canaries scored, counted in bins: no canary's own score or bit is in it.

    Attributes:
        name: Which canaries were read, and how.
        edges: Of the bins, rising, one more than there are bins.
        included: How many of the included canaries scored in each bin.
        left_out: How many of the others.
    """

    name: str
    edges: tuple[float, ...]
    included: tuple[int, ...]
    left_out: tuple[int, ...]


class ReportEvidence(msgspec.Struct, frozen=True):
    """What is known of one run; what is None or empty was not measured, and the report says so.

    ``project_digest`` is that of the project's policy as it is now; empty if there is none.
    """

    run: str
    claim: Claim
    mechanism_in_words: str
    answers: tuple[EpsilonAnswer, ...]
    curves: tuple[Curve, ...]
    profile: tuple[ProfilePoint, ...]
    audit: AuditReport | None = None
    verdict: Verdict | None = None
    refused: tuple[Refused, ...] = ()
    tradeoff: tuple[RatePoint, ...] = ()
    canaries: CanaryScores | None = None
    attack: AttackReport | None = None
    conformance: ConformanceResult | None = None
    history: tuple[PastRun, ...] = ()
    project_digest: str = ""


class TwoRuns(msgspec.Struct, frozen=True):
    """Two runs side by side, and what differs between them: what raises epsilon first."""

    before: ReportEvidence
    after: ReportEvidence
    costs: tuple[Cost, ...]
