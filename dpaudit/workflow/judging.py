"""Judge a finished run, or measurements alone: reads and verifies, then asks the pure judge."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from msgspec.structs import replace

import dpaudit
from dpaudit.accountants.answers import claim_of
from dpaudit.gate.evidence import Evidence
from dpaudit.gate.judge import judge
from dpaudit.gate.layers import LoadedPolicy
from dpaudit.gate.policy import Policy
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import PRIVATE, read_if_there, write_json
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.basis import Basis, Override, PolicyLayer
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.verdict import OnInconclusive, Verdict, WrittenVerdict
from dpaudit.workflow.baselines import baseline_of, require_other_run
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT, claim_delta, require_own_claim
from dpaudit.workflow.histories import remember_verdict
from dpaudit.workflow.policies import project_digest
from dpaudit.workflow.recomputed_bounds import (
    checked_measurements,
    require_decisive_power,
    with_counts,
)


def utc_now() -> datetime:
    """Return the time in UTC."""
    return datetime.now(UTC)


def utc_today() -> date:
    """Return the day by which waivers are in force or expired, the same on every machine."""
    return utc_now().date()


@dataclass(frozen=True)
class PolicySources:
    """Where a policy comes from.

    Attributes:
        layers: Files, variables and options; later ones take precedence.
        overrides: Every value that the environment or the command line set.
        project_digest: Of the working directory's own policy files; empty if it has none.
    """

    layers: tuple[PolicyLayer, ...] = ()
    overrides: tuple[Override, ...] = ()
    project_digest: str = ""

    @classmethod
    def of(cls, loaded: LoadedPolicy, options: tuple[Override, ...] = ()) -> PolicySources:
        """Return the sources of ``loaded``, with ``options`` that can change the verdict."""
        keys = tuple(
            Override(key, str(value), layer.source)
            for layer in loaded.layers
            if layer.overrides_files
            for section, content in layer.content.items()
            for key, value in ((f"{section}.{name}", value) for name, value in content.items())
        )
        layers = tuple(PolicyLayer(layer.source, layer.sha256) for layer in loaded.layers)
        return cls(layers, (*keys, *options), project_digest())


@dataclass(frozen=True)
class Judging:
    """By what something is judged.

    Attributes:
        policy: What is demanded.
        baseline: What it is compared with, if with anything.
        inconclusive: What becomes of a verdict that cannot be told.
        today: On which waivers are in force or expired.
        sources: Where the policy comes from, for the record.
    """

    policy: Policy
    baseline: Baseline | None = None
    inconclusive: OnInconclusive = OnInconclusive.FAIL
    today: date = field(default_factory=utc_today)
    sources: PolicySources = PolicySources()

    def verdict(self, evidence: Evidence) -> Verdict:
        """Return the outcome of every rule."""
        return judge(
            self.policy,
            evidence,
            self.baseline,
            today=self.today,
            inconclusive=self.inconclusive,
            basis=self._basis(evidence),
        )

    def _basis(self, evidence: Evidence) -> Basis:
        return Basis(
            policy_digest=self.policy.digest,
            project_digest=self.sources.project_digest,
            layers=self.sources.layers,
            overrides=self.sources.overrides,
            model_digest=evidence.model_digest,
            dpaudit_version=dpaudit.__version__,
            judged=utc_now().replace(microsecond=0),
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
    if judging.baseline is not None:
        require_other_run(judging.baseline, run, evidence.stated.ledger_head)
    verdict = replace(judging.verdict(evidence), measured=measured)
    write_json(run.verdict, WrittenVerdict.of(verdict), PRIVATE)
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
    checked = checked_measurements(run, ledger, audit, attack)
    if policy.audit is not None:
        doubted = frozenset(name for name, _ in checked.doubts)
        require_decisive_power(run, ledger, audit, policy.audit, doubted)
    if audit is not None:
        audit = replace(audit, membership=with_counts(audit.membership))
    if attack is not None:
        attack = replace(attack, membership=with_counts(attack.membership))
    return Evidence(
        claim=claim,
        sharpest=claim_of(ledger, delta, CLAIMING_ACCOUNTANT),
        missing=checked.missing,
        missing_attacks=checked.missing_attacks,
        doubts=checked.doubts,
        audit=audit,
        attack=attack,
        conformance=read_if_there(run.conformance, ConformanceResult),
        booked=baseline_of(run, ledger, claim, audit=audit, attack=attack),
        model_digest=ledger.seal.files.get(run.model.name, "") if ledger.seal else "",
    )
