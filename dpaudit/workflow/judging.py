"""Judge a finished run by a policy: reads and verifies, then asks the pure judge."""

from __future__ import annotations

import math

import msgspec

from dpaudit.accountants.answers import claim_of
from dpaudit.gate.judge import judge
from dpaudit.gate.policy import Policy
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_json, write_json
from dpaudit.vocabulary.audit import AuditReport
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.verdict import Verdict


def judge_run(run: RunDirectory, policy: Policy) -> Verdict:
    """Judge ``run``, write the verdict into it and return it.

    The claim is computed anew from the ledger, at the policy's delta and by its
    accountant: a claim.json is compared with its ledger and never believed.

    Raises:
        IntegrityError: the run is unfinished, a file is missing or altered, or claim.json
            is of another ledger.
    """
    ledger = run.read_finished()
    claim = claim_of(ledger, policy.claim.delta, policy.claim.accountant)
    if run.claim.exists():
        _require_same(run, read_json(run.claim, Claim), ledger)
    audit = read_json(run.audit, AuditReport) if run.audit.exists() else None
    conformance = None
    if run.conformance.exists():
        conformance = read_json(run.conformance, ConformanceResult)
    verdict = judge(policy, claim, audit, conformance)
    write_json(run.verdict, verdict)
    return verdict


def _require_same(run: RunDirectory, written: Claim, ledger: PrivacyLedger) -> None:
    """Refuse a written claim that is not its ledger's; the last digits may differ by machine."""
    again = claim_of(ledger, written.delta, written.accountant)
    same_ends = math.isclose(
        written.epsilon.upper, again.epsilon.upper, rel_tol=1e-6
    ) and math.isclose(written.epsilon.lower, again.epsilon.lower, rel_tol=1e-6)
    rest = msgspec.structs.replace(
        written, epsilon=again.epsilon, dpaudit_version=again.dpaudit_version
    )
    if not same_ends or rest != again:
        raise IntegrityError(
            f"{run.claim} is not what its ledger says: delete it, or restore the run"
        )
