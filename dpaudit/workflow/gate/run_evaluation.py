"""Read and verify the evidence of a finished run, evaluate the policy, and write the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from time import perf_counter

from msgspec.structs import replace

import dpaudit
from dpaudit.gate.evidence import Evidence
from dpaudit.gate.policy import Policy
from dpaudit.gate.policy_evaluation import Watch, evaluate_policy
from dpaudit.gate.policy_layers import LoadedPolicy
from dpaudit.report.verdicts.gate_result import Durations
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import PRIVATE, read_optional_json, write_json
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.verdict import (
    InconclusiveHandling,
    PolicyOverride,
    PolicySource,
    RuleOutcome,
    Verdict,
    VerdictBasis,
    VerdictDocument,
)
from dpaudit.workflow.gate.baselines import baseline_of_ledger, require_other_run
from dpaudit.workflow.gate.policy_sources import project_digest
from dpaudit.workflow.gate.verdict_history import record_verdict
from dpaudit.workflow.gate.verification import (
    require_decisive_power,
    verify_measurements,
    with_checked_counts,
)
from dpaudit.workflow.run_claims import (
    CLAIM_ACCOUNTANT,
    claim_delta,
    claims_of_ledger,
    require_claim_of_ledger,
)


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def utc_today() -> date:
    """Return the day in UTC by which waivers expire, the same on every machine."""
    return utc_now().date()


@dataclass(frozen=True)
class PolicyProvenance:
    """The sources of a policy.

    Attributes:
        layers: Files, variables and options; later ones take precedence.
        overrides: Every value that the environment or the command line set.
        project_digest: Digest of the working directory's own policy; empty if it has none.
    """

    layers: tuple[PolicySource, ...] = ()
    overrides: tuple[PolicyOverride, ...] = ()
    project_digest: str = ""

    @classmethod
    def of(cls, loaded: LoadedPolicy, options: tuple[PolicyOverride, ...] = ()) -> PolicyProvenance:
        """Collect the sources of a loaded policy.

        Args:
            loaded: The policy.
            options: Further options that can change the verdict.

        Returns:
            Its sources and overrides, and the digest of the working directory's own policy.
        """
        keys = tuple(
            PolicyOverride(key, str(value), layer.source)
            for layer in loaded.layers
            if layer.overrides_files
            for section, content in layer.content.items()
            for key, value in ((f"{section}.{name}", value) for name, value in content.items())
        )
        layers = tuple(PolicySource(layer.source, layer.sha256) for layer in loaded.layers)
        return cls(layers, (*keys, *options), project_digest())


class RuleTimer:
    """Wall-clock time of one evaluation of a policy, from construction on, and of each rule."""

    def __init__(self) -> None:
        self._start = perf_counter()
        self._rules: dict[str, float] = {}

    def watch(self, rules: Iterable[RuleOutcome]) -> Iterator[RuleOutcome]:
        """Pass the outcomes on, and add up the time that each one takes to evaluate.

        Args:
            rules: Outcomes, evaluated lazily.

        Yields:
            The same outcomes, in the same order.
        """
        start = perf_counter()
        for rule in rules:
            elapsed = perf_counter() - start
            self._rules[rule.rule] = self._rules.get(rule.rule, 0.0) + elapsed
            yield rule
            start = perf_counter()

    def durations(self) -> Durations:
        """Return the time since construction and the time of each rule, in seconds."""
        return Durations(perf_counter() - self._start, dict(self._rules))


@dataclass(frozen=True)
class GateSettings:
    """Settings of an evaluation.

    Attributes:
        policy: The policy.
        baseline: Figures of an earlier run; None: there are none.
        inconclusive: How an INCONCLUSIVE verdict is handled.
        today: The day on which waivers are in force or expired, in UTC.
        sources: Where the policy comes from, for the record.
        watch: Passes the outcomes on as they are evaluated, for instance to time them.
    """

    policy: Policy
    baseline: Baseline | None = None
    inconclusive: InconclusiveHandling = InconclusiveHandling.FAIL
    today: date = field(default_factory=utc_today)
    sources: PolicyProvenance = PolicyProvenance()
    watch: Watch = iter

    def verdict(self, evidence: Evidence) -> Verdict:
        """Evaluate every rule.

        Args:
            evidence: Claim and measurements.

        Returns:
            The verdict, with the outcome of each rule and the basis of the evaluation.
        """
        return evaluate_policy(
            self.policy,
            evidence,
            self.baseline,
            today=self.today,
            inconclusive=self.inconclusive,
            basis=self._basis(evidence),
            watch=self.watch,
        )

    def _basis(self, evidence: Evidence) -> VerdictBasis:
        return VerdictBasis(
            policy_digest=self.policy.digest,
            project_digest=self.sources.project_digest,
            layers=self.sources.layers,
            overrides=self.sources.overrides,
            model_digest=evidence.model_digest,
            dpaudit_version=dpaudit.__version__,
            judged=utc_now().replace(microsecond=0),
        )


def evaluate_run(run: RunDirectory, settings: GateSettings, history: Path | None = None) -> Verdict:
    """Evaluate a finished run, write the verdict into it and into a history.

    Args:
        run: The run.
        settings: Policy, baseline and handling of inconclusive outcomes.
        history: A folder that records the verdict; None: it is not recorded.

    Returns:
        The verdict.

    Raises:
        IntegrityError: If the run is unfinished, a file is missing or altered, claim.json is of
            another ledger, or the history is corrupt.
        InvalidArgument: If the baseline is of the same run, or the history cannot be written.
    """
    measured = (
        run.measured()
    )  # before reading: a measurement written meanwhile makes the verdict stale
    evidence = evidence_of_run(run, settings.policy)
    if settings.baseline is not None:
        require_other_run(settings.baseline, run, evidence.claim_figures.ledger_head)
    verdict = replace(settings.verdict(evidence), measured=measured)
    write_json(run.verdict, VerdictDocument.of(verdict), PRIVATE)
    if history is not None:
        record_verdict(history, run, verdict, figures=evidence.recorded)
    return verdict


def evidence_of_run(run: RunDirectory, policy: Policy) -> Evidence:
    """Read and verify all evidence that a policy may read of a run.

    The claim is recomputed from the ledger, at the policy's delta and by its accountant.
    claim.json is compared with the ledger and is not a source.

    Args:
        run: A finished run.
        policy: The policy.

    Returns:
        The evidence; gaps and doubts of its audit are listed.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
    """
    ledger = run.read_finished()
    claim_policy = policy.claim
    delta = claim_delta(run) if claim_policy is None else claim_policy.delta
    claim_at = claims_of_ledger(ledger)
    claim = claim_at(delta, CLAIM_ACCOUNTANT if claim_policy is None else claim_policy.accountant)
    require_claim_of_ledger(run, ledger, claim_at)
    audit = read_optional_json(run.audit, AuditReport)
    attack = read_optional_json(run.attack, AttackReport)
    checked = verify_measurements(run, ledger, audit, attack, claim_at)
    if policy.audit is not None:
        doubted_bounds = frozenset(name for name, _ in checked.doubts)
        require_decisive_power(run, ledger, audit, policy.audit, doubted_bounds, claim_at)
    if audit is not None:
        audit = replace(audit, membership=with_checked_counts(audit.membership))
    if attack is not None:
        attack = replace(attack, membership=with_checked_counts(attack.membership))
    return Evidence(
        claim=claim,
        sharpest=claim_at(delta, CLAIM_ACCOUNTANT),
        missing=checked.missing,
        missing_attacks=checked.missing_attacks,
        doubts=checked.doubts,
        audit=audit,
        attack=attack,
        conformance=read_optional_json(run.conformance, ConformanceResult),
        recorded=baseline_of_ledger(run, ledger, claim, audit=audit, attack=attack),
        model_digest=ledger.seal.files.get(run.model.name, "") if ledger.seal else "",
    )
