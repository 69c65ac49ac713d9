"""Draft a first policy for a project from one of its runs, and write it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path

import msgspec

from dpaudit.attacks.bounds.lower_bound import tpr_interval_of_counts
from dpaudit.gate.audit_rules import bounds_above_claim, refutable_epsilons
from dpaudit.gate.claim_rules import evaluate_claim_rules
from dpaudit.gate.evidence import Evidence
from dpaudit.gate.policy import Policy
from dpaudit.gate.policy_evaluation import apply_waivers
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import require_new_file, write_bytes
from dpaudit.vocabulary.audit import AuditReport, BoundKind, MembershipResult, TprAtFpr
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import InvalidArgument, InvalidPolicy
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.privacy_terms import SAMPLING_ACCOUNTANTS, Bound
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.settings import PrivacySettings
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict
from dpaudit.workflow.gate.baselines import baseline_of_run, write_baseline
from dpaudit.workflow.gate.policy_sources import POLICY_FILE, PYPROJECT_FILE, pyproject_has_policy
from dpaudit.workflow.gate.run_evaluation import evidence_of_run, utc_today
from dpaudit.workflow.run_claims import planned_claim
from dpaudit.workflow.train.federated_plan import planned_federated_claim

# Draft the text of a first policy from the claim and the measurements of one run.

UNDECIDABLE = "the attacks of this run scored too few records to decide it"

POWER_MARGIN = 1.5
"""Factor on the excess that is detectable: power is simulated and differs between runs."""


def draft_policy_text(claim: Claim, evidence: Evidence, baseline: str | None) -> str:
    """Return the text of a dpaudit.toml that a run like this one passes.

    Secure randomness is demanded even if the run was seeded: seeded runs are for tests.

    Args:
        claim: The run's own claim.
        evidence: What was measured on the run; its power and rates become limits with a margin.
        baseline: Path of the baseline that was written; None: the section ``regression`` is a
            comment, as there is nothing to compare with.

    Returns:
        TOML with comments.
    """
    lines = [
        f"# Drafted from the run {_name(evidence)}: check every line before use.",
        *_claim(claim),
    ]
    if evidence.audit is not None and evidence.audit.ledger_head == claim.ledger_head:
        lines += ["", *_audit(evidence.audit, evidence)]
    else:
        lines += ["", "# No [audit]: the run was not audited (dpaudit audit RUN)."]
    if baseline is None:
        lines += ["", "# With dpaudit baseline write RUN, and gate --baseline baseline.json:"]
        lines += [f"# {line}" for line in _regression(evidence)]
    else:
        lines += [
            "",
            f"# dpaudit gate RUN --baseline {_printable(baseline)}",
            *_regression(evidence),
        ]
    return "\n".join(lines) + "\n"


def _name(evidence: Evidence) -> str:
    return _printable("" if evidence.recorded is None else evidence.recorded.run)


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _claim(claim: Claim) -> Iterator[str]:
    seeded = claim.randomness is Randomness.SEEDED
    yield "[claim]"
    yield f"max_epsilon = {_up(claim.epsilon.upper)}  # the run's own is the largest allowed"
    yield f"delta = {claim.delta!r}"
    if (
        claim.accountant in SAMPLING_ACCOUNTANTS
    ):  # not the filter of a schedule chosen during the run
        yield f"accountant = {_quoted(claim.accountant)}  # whose upper bound counts"
    yield f"adjacency = {_quoted(claim.adjacency.value)}"
    yield f"unit = {_quoted(claim.unit.value)}"
    if claim.federation is not None:
        observers = ", ".join(_quoted(one) for one in claim.federation.kept_out)
        yield f"protects_against = [{observers}]  # those whom the claim must hold against"
    yield f"released = {_quoted(claim.released.value)}"
    yield f"sampling = [{_quoted(claim.sampling.value)}]"
    yield f"require_secure_randomness = true{'  # this run was seeded' if seeded else ''}"
    listed = ", ".join(_quoted(item) for item in claim.unaccounted)
    yield f"allow_unaccounted = [{listed}]  # none of these is accounted for"


def _audit(audit: AuditReport, evidence: Evidence) -> Iterator[str]:
    kinds = {bound.kind for bound in audit.bounds} - {BoundKind.ESTIMATE}
    yield "[audit]"
    yield f"confidence = {audit.confidence!r}"
    if kinds:
        listed = ", ".join(_quoted(kind.value) for kind in BoundKind if kind in kinds)
        yield f"count = [{listed}]  # an excess of these over the claim is a FAIL"
    conforms = evidence.conformance is not None and evidence.conformance.verdict is Outcome.PASS
    if conforms:
        yield "require_conformance = true"
    figures = evidence.claim_figures
    detectable = min(refutable_epsilons(audit.bounds, figures), default=figures.sharpest)
    if detectable > figures.sharpest:
        excess = _up(POWER_MARGIN * (detectable - figures.sharpest))
        yield f"min_power_epsilon = {excess}  # excess over the claim detectable at 95% power"
    most = dict(_decidable_limits(evidence, audit.confidence))
    if most:
        inside = ", ".join(f'"{fpr!r}" = {tpr}' for fpr, tpr in most.items())
        yield f"max_tpr_at_fpr = {{ {inside} }}  # the upper end of the interval counts"
    open_ = sorted({rate.fpr for rate in evidence.rates} - set(most))
    if open_:
        yield f"# No max_tpr_at_fpr at FPR {', '.join(f'{fpr:g}' for fpr in open_)}: {UNDECIDABLE}"


def _decidable_limits(evidence: Evidence, confidence: float) -> Iterator[tuple[float, str]]:
    """Yield false-positive rates, and limits that attacks on as many records can pass and fail."""
    if evidence.inconclusive_reasons or evidence.missing_attacks:
        return
    for fpr in sorted({rate.fpr for rate in evidence.rates}):
        found = [(one.result, one.rate_at(fpr)) for one in evidence.attacks]
        rates = [(result, rate) for result, rate in found if rate is not None]
        limit = _up(max(rate.interval.upper + _chance(rate.interval) for _, rate in rates))
        complete = len(rates) == len(found)  # an attack without this rate is INCONCLUSIVE
        sure = all(rate.confidence >= confidence for _, rate in rates)
        if complete and sure and any(_can_exceed(float(limit), *one) for one in rates):
            yield fpr, limit


def _chance(interval: Bound) -> float:
    """Return the increase that chance may cause on a run of the same kind: half of the interval."""
    return interval.width / 2


def _can_exceed(limit: float, result: MembershipResult, rate: TprAtFpr) -> bool:
    """Return whether a perfect attack on as many records would show a rate above the limit."""
    perfect = tpr_interval_of_counts(
        (result.members, result.members),
        members=result.members,
        nonmembers=result.nonmembers,
        fpr=rate.fpr,
        confidence=rate.confidence,
    )
    return perfect.lower > limit


def _regression(evidence: Evidence) -> Iterator[str]:
    yield "[regression]"
    yield "max_epsilon_increase = 0.0"
    rates = [(one.result, rate) for one in evidence.attacks for rate in one.result.tpr_at_fpr]
    if not rates:
        return
    decided = [one for one in rates if _can_exceed(_grown(one[1]), *one)]
    most = _up(max((_chance(rate.interval) for _, rate in decided), default=0.0))
    # All others must pass whatever is measured: what chance alone may raise above its limit, and
    # no attack can refute, would be INCONCLUSIVE.
    others = [rate for result, rate in rates if (result, rate) not in decided]
    if decided and all(rate.interval.upper + float(most) >= 1 for rate in others):
        yield f"max_tpr_increase = {most}"
    else:
        yield f"# No max_tpr_increase: {UNDECIDABLE}"


def _grown(rate: TprAtFpr) -> float:
    return rate.interval.upper + _chance(rate.interval)


def _up(value: float) -> str:
    """Return a TOML float in four digits, never below ``value``."""
    text = round_up(value)
    return text if set(text) & set(".e") else f"{text}.0"


def _quoted(text: str) -> str:
    """Return a TOML basic string: JSON's, but for one control that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def write_policy_draft(run: RunDirectory, path: Path, baseline: Path | None = None) -> None:
    """Write a policy that a run passes, unless it was seeded; optionally with its baseline.

    Args:
        run: A finished run.
        path: The policy's file, which must not exist yet.
        baseline: Where to write the run's figures; None: nowhere.

    Raises:
        InvalidArgument: If the file exists, cannot be written, or would override another
            policy; or if the run's own audit contradicts its claim.
        IntegrityError: If the run is unfinished, or a file is missing or altered.
    """
    require_new_file("output", path)
    if path.exists():
        allowed = "a file that does not exist yet: name another one by --output, or remove it"
        raise InvalidArgument("output", str(path), allowed)
    if path.name == POLICY_FILE and pyproject_has_policy(path.absolute().parent):
        allowed = f"a file that does not override [tool.dpaudit] of {PYPROJECT_FILE}"
        raise InvalidArgument("output", str(path), allowed)
    figures, evidence = baseline_of_run(run, None), evidence_of_run(run, Policy())
    refuted = bounds_above_claim(evidence)
    if refuted:
        why = f"lower bound {round_down(refuted[0].epsilon_lower)} by {refuted[0].name}"
        raise InvalidArgument("run", why, "one whose audit does not contradict its claim")
    if baseline is not None:
        write_baseline(baseline, figures)
    name = None if baseline is None else str(baseline)
    write_bytes(path, draft_policy_text(figures.claim, evidence, name).encode())


# Checks of a policy before anything is trained.


def check_policy(
    policy: Policy,
    plans: Mapping[str, PrivacySettings | FederatedConfig],
    *,
    today: date | None = None,
) -> Verdict:
    """Evaluate the claim rules of a policy on plans, and its waivers on the current day.

    Args:
        policy: The policy.
        plans: Settings of runs, or of federations, by the name of their file.
        today: The current day, in UTC; None: read from the clock.

    Returns:
        One outcome per claim rule and plan, and per expired waiver; no rule at all where there
        is neither.

    Raises:
        InvalidPolicy: If there are plans, and the policy has no section ``claim``.
    """
    planned = [rule for name, plan in plans.items() for rule in _planned(policy, name, plan)]
    return Verdict(tuple(apply_waivers(planned, policy, today or utc_today())), "")


def _planned(
    policy: Policy, name: str, plan: PrivacySettings | FederatedConfig
) -> Iterator[RuleOutcome]:
    claim_policy = policy.claim
    if claim_policy is None:
        raise InvalidPolicy("policy", "no section [claim]", "one with [claim], to check plans by")
    if isinstance(plan, FederatedConfig):
        claim = planned_federated_claim(plan, claim_policy.delta, claim_policy.accountant)
    else:
        claim = planned_claim(plan, claim_policy.delta, claim_policy.accountant)
    for rule in evaluate_claim_rules(claim_policy, claim):
        yield msgspec.structs.replace(rule, why=f"{name}: {rule.why}")
