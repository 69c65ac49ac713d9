"""Gather everything that is known of a run, or of two, for a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import msgspec
import numpy as np

from dpaudit.accountants import pld, risk
from dpaudit.accountants.answers import ACCOUNTANTS, epsilon_by
from dpaudit.report.evidence import (
    Curve,
    ProfilePoint,
    RatePoint,
    Refused,
    ReportEvidence,
    TwoRuns,
)
from dpaudit.report.words import mechanism_in_words
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_if_there, read_json
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import AccountingError, UnsupportedMechanism
from dpaudit.vocabulary.history import PastRun
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.mechanism import Composed, Mechanism, Repeated
from dpaudit.vocabulary.verdict import Verdict
from dpaudit.workflow.baselines import baseline_of_run
from dpaudit.workflow.canary_scores import canary_scores
from dpaudit.workflow.claims import (
    require_measured_before,
    require_own_claim,
)
from dpaudit.workflow.comparing import comparison_of
from dpaudit.workflow.policies import project_digest

CURVE_POINTS = 12
PROFILE_DELTAS = tuple(float(delta) for delta in np.geomspace(1e-2, 1e-10, 17))
FPRS = (*np.geomspace(1e-5, 1, 31).tolist(), *np.linspace(0.05, 0.95, 19).tolist())
QUESTIONS = 30
"""Deltas that the trade-off curve asks for: with twice as many it falls by less than 1%."""

NO_ANSWER = (UnsupportedMechanism, AccountingError)
"""What an accountant raises where it has no valid number to give."""


def gather(run: RunDirectory, history: tuple[PastRun, ...] = ()) -> ReportEvidence:
    """Return what is known of a finished run.

    Args:
        run: Read and verified; its claim.json is compared with its ledger, not believed.
        history: Past verdicts to show beside it.

    Raises:
        IntegrityError: the run is unfinished, a file is missing or altered, or claim.json
            is not what the ledger says.
    """
    ledger = run.read_finished()
    require_own_claim(run, ledger)
    claim = read_json(run.claim, Claim)
    known = ReportEvidence(
        run=run.name,
        claim=claim,
        mechanism_in_words=mechanism_in_words(ledger.mechanism),
        answers=(),
        curves=(),
        profile=(),
        audit=read_if_there(run.audit, AuditReport),
        verdict=_verdict(run),
        canaries=canary_scores(run, ledger),
        attack=read_if_there(run.attack, AttackReport),
        conformance=read_if_there(run.conformance, ConformanceResult),
        history=history,
        project_digest=project_digest(),
    )
    return _priced(known, ledger)


def _verdict(run: RunDirectory) -> Verdict | None:
    verdict = read_if_there(run.verdict, Verdict)
    if verdict is not None:
        require_measured_before(run, verdict)
    return verdict


def gather_both(before: RunDirectory, after: RunDirectory) -> TwoRuns:
    """Return what is known of two finished runs, and of every difference between them.

    Raises:
        IntegrityError: as for one run.
    """
    found = comparison_of(baseline_of_run(before, None), baseline_of_run(after, None))
    return TwoRuns(gather(before), gather(after), found.costs)


def _priced(known: ReportEvidence, ledger: PrivacyLedger) -> ReportEvidence:
    """Return ``known`` with what every accountant says.

    Where the schedule was chosen during the run, their theorems do not hold: then the claim
    alone, which a filter made, can be told.
    """
    if not ledger.header.schedule_fixed_in_advance:
        return known
    asked = [_answer(name, ledger.mechanism, known.claim) for name in ACCOUNTANTS]
    answers = tuple(one for one in asked if isinstance(one, EpsilonAnswer))
    return msgspec.structs.replace(
        known,
        answers=answers,
        refused=tuple(one for one in asked if isinstance(one, Refused)),
        curves=_curves(ledger, known.claim, [one.accountant for one in answers]),
        profile=_profile(ledger.mechanism, known.claim),
        tradeoff=_tradeoff(ledger.mechanism, known.claim),
    )


def _answer(accountant: str, mechanism: Mechanism, claim: Claim) -> EpsilonAnswer | Refused:
    try:
        return epsilon_by(accountant, mechanism, claim.delta, claim.adjacency, claim.sampling)
    except NO_ANSWER as error:
        return Refused(accountant, str(error))


def _curves(ledger: PrivacyLedger, claim: Claim, accountants: Iterable[str]) -> tuple[Curve, ...]:
    """Return epsilon against steps by each accountant, at a few numbers of steps."""
    # Position of each step's booking: what is no step is counted with the step after it.
    ends = [i + 1 for i, release in enumerate(ledger.releases) if release.step is not None]
    if not ends:
        return ()
    counts = sorted({int(count) for count in np.linspace(1, len(ends), CURVE_POINTS)})
    parts = [(count, _first(ledger, ends[count - 1])) for count in counts]
    return tuple(_curve(accountant, parts, claim) for accountant in accountants)


def _curve(accountant: str, parts: list[tuple[int, Mechanism]], claim: Claim) -> Curve:
    found = ((count, _answer(accountant, part, claim)) for count, part in parts)
    known = [(n, one.epsilon.upper) for n, one in found if isinstance(one, EpsilonAnswer)]
    return Curve(accountant, tuple(n for n, _ in known), tuple(upper for _, upper in known))


def _first(ledger: PrivacyLedger, count: int) -> Mechanism:
    occurrences = Counter(release.mechanism for release in ledger.releases[:count])
    return Composed(tuple(Repeated(release, times) for release, times in occurrences.items()))


def _profile(mechanism: Mechanism, claim: Claim) -> tuple[ProfilePoint, ...]:
    """Return the profile at the deltas where it can be told."""
    points = []
    for delta in PROFILE_DELTAS:
        with suppress(*NO_ANSWER):
            epsilon = pld.profile(mechanism, adjacency=claim.adjacency).epsilon(delta=delta)
            points.append(ProfilePoint(delta, epsilon))
    return tuple(points)


def _tradeoff(mechanism: Mechanism, claim: Claim) -> tuple[RatePoint, ...]:
    try:
        profile = pld.profile(mechanism, adjacency=claim.adjacency)
        curve = risk.tradeoff(profile, FPRS, most_questions=QUESTIONS)
    except NO_ANSWER:
        return ()
    return tuple(map(RatePoint, curve.fpr, curve.tpr))
