"""Gather everything that is known of a run for its report."""

from __future__ import annotations

from collections import Counter

import numpy as np

from dpaudit.accountants import pld
from dpaudit.accountants.answers import ACCOUNTANTS, claim_of, epsilon_by
from dpaudit.report.evidence import Curve, ProfilePoint, ReportEvidence
from dpaudit.report.words import mechanism_in_words
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_json
from dpaudit.vocabulary.audit import AuditReport
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.mechanism import Composed, Mechanism, Repeated
from dpaudit.vocabulary.verdict import Verdict
from dpaudit.workflow.training import CLAIMING_ACCOUNTANT

CURVE_POINTS = 12
PROFILE_DELTAS = tuple(float(delta) for delta in np.geomspace(1e-2, 1e-10, 17))


def gather(run: RunDirectory) -> ReportEvidence:
    """Return what is known of a finished run.

    Raises:
        IntegrityError: the run is unfinished, or a file is missing or altered.
    """
    ledger, config = run.read_finished(), run.read_config()
    claim = (
        read_json(run.claim, Claim)
        if run.claim.exists()
        else claim_of(ledger, config.privacy.delta, CLAIMING_ACCOUNTANT)
    )
    mechanism = ledger.mechanism
    profile = pld.profile(mechanism, adjacency=claim.adjacency)
    return ReportEvidence(
        run=run.path.resolve().name,
        claim=claim,
        mechanism_in_words=mechanism_in_words(mechanism),
        answers=tuple(_answer(accountant, mechanism, claim) for accountant in ACCOUNTANTS),
        curves=_curves(ledger, claim),
        profile=tuple(ProfilePoint(at, profile.epsilon(delta=at)) for at in PROFILE_DELTAS),
        audit=read_json(run.audit, AuditReport) if run.audit.exists() else None,
        verdict=read_json(run.verdict, Verdict) if run.verdict.exists() else None,
    )


def _answer(accountant: str, mechanism: Mechanism, claim: Claim) -> EpsilonAnswer:
    return epsilon_by(accountant, mechanism, claim.delta, claim.adjacency, claim.sampling)


def _curves(ledger: PrivacyLedger, claim: Claim) -> tuple[Curve, ...]:
    """Return epsilon against steps by each accountant, at a few numbers of steps."""
    # Position of each step's booking: what is no step is counted with the step after it.
    ends = [i + 1 for i, release in enumerate(ledger.releases) if release.step is not None]
    counts = sorted({int(count) for count in np.linspace(1, len(ends), CURVE_POINTS)})
    parts = [_first(ledger, ends[count - 1]) for count in counts]
    return tuple(
        Curve(
            accountant,
            tuple(counts),
            tuple(_answer(accountant, part, claim).epsilon.upper for part in parts),
        )
        for accountant in ACCOUNTANTS
    )


def _first(ledger: PrivacyLedger, count: int) -> Mechanism:
    occurrences = Counter(release.mechanism for release in ledger.releases[:count])
    return Composed(tuple(Repeated(release, times) for release, times in occurrences.items()))
