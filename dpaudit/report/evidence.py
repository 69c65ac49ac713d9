"""Everything that a report shows: computed elsewhere, frozen here."""

from __future__ import annotations

import msgspec

from dpaudit.vocabulary.audit import AuditReport
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.verdict import Verdict


class Curve(msgspec.Struct, frozen=True):
    """Upper bounds of epsilon against steps, by one accountant."""

    accountant: str
    steps: tuple[int, ...]
    epsilon: tuple[float, ...]


class ProfilePoint(msgspec.Struct, frozen=True):
    """One point of the privacy profile: the interval of epsilon at ``delta``."""

    delta: float
    epsilon: Bound


class ReportEvidence(msgspec.Struct, frozen=True):
    """What is known of one run; what is None was not measured, and the report says so."""

    run: str
    claim: Claim
    mechanism_in_words: str
    answers: tuple[EpsilonAnswer, ...]
    curves: tuple[Curve, ...]
    profile: tuple[ProfilePoint, ...]
    audit: AuditReport | None = None
    verdict: Verdict | None = None
