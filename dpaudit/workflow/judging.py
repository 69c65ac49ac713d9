"""Judge a finished run, or measurements alone: reads and verifies, then asks the pure judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from msgspec.structs import replace

from dpaudit.accountants.answers import claim_of
from dpaudit.gate.evidence import Evidence
from dpaudit.gate.judge import judge
from dpaudit.gate.policy import Policy
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_if_there, write_json
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.verdict import OnInconclusive, Verdict, WrittenVerdict
from dpaudit.workflow.baselines import baseline_of
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT, claim_delta, require_own_claim
from dpaudit.workflow.histories import remember_verdict


def utc_today() -> date:
    """Return the day by which waivers are in force or expired, the same on every machine."""
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class Judging:
    """By what something is judged.

    Attributes:
        policy: What is demanded.
        baseline: What it is compared with, if with anything.
        inconclusive: What becomes of a verdict that cannot be told.
        today: On which waivers are in force or expired.
    """

    policy: Policy
    baseline: Baseline | None = None
    inconclusive: OnInconclusive = OnInconclusive.FAIL
    today: date = field(default_factory=utc_today)

    def verdict(self, evidence: Evidence) -> Verdict:
        """Return the outcome of every rule."""
        return judge(
            self.policy,
            evidence,
            self.baseline,
            today=self.today,
            inconclusive=self.inconclusive,
        )


def judge_run(run: RunDirectory, judging: Judging, history: Path | None = None) -> Verdict:
    """Judge ``run``, write the verdict into it and into ``history``, and return it.

    Raises:
        IntegrityError: the run is unfinished, a file is missing or altered, or claim.json
            is of another ledger; or the history is corrupt.
        InvalidArgument: the history cannot be written.
    """
    measured = run.measured()  # before it is read: what comes meanwhile makes the verdict stale
    evidence = evidence_of(run, judging.policy)
    verdict = replace(judging.verdict(evidence), measured=measured)
    write_json(run.verdict, WrittenVerdict.of(verdict))
    if history is not None:
        remember_verdict(history, run, verdict, figures=evidence.booked)
    return verdict


def evidence_of(run: RunDirectory, policy: Policy) -> Evidence:
    """Read and verify everything that ``policy`` may ask of ``run``.

    The claim is computed anew from the ledger, at the policy's delta and by its
    accountant: a claim.json is compared with its ledger and never believed.
    """
    ledger = run.read_finished()
    asked = policy.claim
    delta = claim_delta(run) if asked is None else asked.delta
    claim = claim_of(ledger, delta, CLAIMING_ACCOUNTANT if asked is None else asked.accountant)
    require_own_claim(run, ledger)
    audit = read_if_there(run.audit, AuditReport)
    attack = read_if_there(run.attack, AttackReport)
    return Evidence(
        claim=claim,
        sharpest=claim_of(ledger, delta, CLAIMING_ACCOUNTANT),
        audit=audit,
        attack=attack,
        conformance=read_if_there(run.conformance, ConformanceResult),
        booked=baseline_of(run, ledger, claim, audit=audit, attack=attack),
    )
