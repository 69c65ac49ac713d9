"""A verdict as SARIF 2.1.0, whose results point at lines of the policy.

An inconclusive rule is a result of kind ``fail``, although SARIF has a kind ``open``. An open
result must have the level ``none``, which code scanning does not show: the page would be empty
where the build failed. ``properties.outcome`` distinguishes FAIL from INCONCLUSIVE.

References:
    OASIS, SARIF 2.1.0 with errata 01, sections 3.27.9 (kind), 3.27.10 (level), 3.35
    (suppression).
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import dpaudit
from dpaudit.report.text import one_line
from dpaudit.report.verdicts.gate_result import (
    NO_RULES,
    GateResult,
    PolicyLocation,
    RuleStatus,
    rule_label,
    rule_location,
    rule_reason,
    rule_status,
    shown_rules,
    verdict_facts,
    verdict_headline,
)
from dpaudit.vocabulary.verdict import AppliedWaiver, RuleOutcome, Verdict

# Descriptions of the rules of a policy: the requirement, its meaning and the remedy.


class RuleDescription(NamedTuple):
    """Description of one rule: requirement in one line, explanation, and remedy."""

    requirement: str
    explanation: str
    remedy: str


RULE_DESCRIPTIONS = {
    "claim.max_epsilon": RuleDescription(
        "Epsilon is at most what the policy allows",
        "The upper bound on epsilon, recomputed from the run's ledger at the policy's delta and "
        "by the policy's accountant, must not exceed claim.max_epsilon.",
        "Train with more noise, a lower sampling rate or fewer steps; dpaudit noise finds the "
        "noise for a budget.",
    ),
    "claim.adjacency": RuleDescription(
        "The claim is for the required neighbors",
        "An epsilon for one neighboring relation does not hold for another.",
        "Account for the run under the adjacency that the policy requires.",
    ),
    "claim.unit": RuleDescription(
        "The claim is for the required unit",
        "An epsilon for one record does not hold for a user with many records, nor the reverse.",
        "Train with that unit (make_private(unit=...)), or set claim.unit to the claimed unit.",
    ),
    "claim.protects_against": RuleDescription(
        "The claim holds against the required observers",
        "A guarantee against readers of the final model does not hold against a server that sees "
        "every update, nor against other participants.",
        "Train by a strategy that protects against them, such as dp-fedavg with secure "
        "aggregation, or set claim.protects_against to the claimed observers.",
    ),
    "claim.released": RuleDescription(
        "The claim covers what is released",
        "A claim for the final model alone does not cover intermediate models.",
        "Publish the final model only and set claim.released, or account for every step.",
    ),
    "claim.sampling": RuleDescription(
        "Batches were drawn as the policy allows",
        "Amplification by sampling requires batches that were drawn by that sampling scheme; "
        "shuffled batches are not Poisson samples.",
        "Draw batches by a sampler that the policy lists in claim.sampling.",
    ),
    "claim.require_secure_randomness": RuleDescription(
        "Noise and batches come from secure randomness",
        "Anyone who knows the seed of a run knows its noise; against them it has no privacy.",
        "Train without a seed.",
    ),
    "claim.allow_unaccounted": RuleDescription(
        "The claim accounts for everything that it must",
        "Other uses of the records, which the ledger does not record, also cost privacy.",
        "Record it in the ledger, or list it in claim.allow_unaccounted.",
    ),
    "audit.evidence": RuleDescription(
        "The run was audited in its present state",
        "The rules on measurements need an audit of this state of the ledger.",
        "Audit the run: dpaudit audit RUN.",
    ),
    "audit.require_conformance": RuleDescription(
        "The trainer passed the conformance tests",
        "Replayed and sampled steps must clip, sample and add noise as the ledger says.",
        "Test the trainer: dpaudit conformance RUN, and fix what its findings name.",
    ),
    "audit.require_imitation": RuleDescription(
        "The run was attacked with references that imitate it",
        "References that are trained without noise make attacks on private models weaker.",
        "Attack the run: dpaudit attack RUN --reference-training dp-sgd.",
    ),
    "audit.lower_bound": RuleDescription(
        "No measurement contradicts the claim",
        "Canaries give lower bounds on epsilon. A lower bound above the claim means that the run "
        "discloses more than it claims, or that an assumption of the bound is false.",
        "Search for releases that the ledger does not record, and test the trainer: dpaudit "
        "conformance RUN. A run without canaries is inconclusive: train with --canaries.",
    ),
    "audit.min_power_epsilon": RuleDescription(
        "The audit has enough power",
        "If the audit cannot detect a true epsilon this far above the claim, finding nothing is "
        "no evidence.",
        "Train with more canaries.",
    ),
    "audit.max_tpr_at_fpr": RuleDescription(
        "Attacks have a small true-positive rate at a small false-positive rate",
        "The upper end of the interval of each attack's true-positive rate, at the given "
        "false-positive rate, must not exceed the given rate.",
        "Train with more noise or fewer steps, or attack with more records if the interval is "
        "wide.",
    ),
    "regression.baseline": RuleDescription(
        "There is a baseline to compare with",
        "The policy allows no regression, and without a baseline none can be detected.",
        "Write one from an accepted run, dpaudit baseline write RUN -o baseline.json, and give "
        "it: --baseline baseline.json.",
    ),
    "regression.max_epsilon_increase": RuleDescription(
        "Epsilon did not grow against the baseline",
        "The upper end of epsilon may exceed the baseline's by regression.max_epsilon_increase.",
        "Undo the change that the message names, or write a new baseline if it is intended.",
    ),
    "regression.max_tpr_increase": RuleDescription(
        "Attacks do not succeed more often than on the baseline",
        "The upper end of each attack's true-positive rate may exceed the baseline's by "
        "regression.max_tpr_increase.",
        "Undo the change, or attack with more records if the increase may be due to chance.",
    ),
    "regression.max_lower_bound_increase": RuleDescription(
        "Lower bounds on epsilon did not grow against the baseline",
        "Each lower bound may exceed the baseline's by regression.max_lower_bound_increase.",
        "Find what the run discloses and its baseline does not.",
    ),
    "waiver": RuleDescription(
        "Every waiver is in force",
        "An expired waiver, or one that ends later than waiver_max_days from today, has no "
        "effect and is a violation.",
        "Fix what was waived and delete the waiver, or set a nearer date.",
    ),
    NO_RULES.rule: RuleDescription(
        "The policy has a rule",
        "A policy without rules requires nothing, and its verdict is no evidence.",
        "Add a section claim or audit to the policy: dpaudit init RUN writes one.",
    ),
}


def rule_key(rule: str) -> str | None:
    """Find the policy key that a rule belongs to.

    Args:
        rule: Name of a rule, such as ``audit.max_tpr_at_fpr.0.01``.

    Returns:
        Its key in ``RULE_DESCRIPTIONS``, such as ``audit.max_tpr_at_fpr``; None without one.
    """
    keys = (key for key in RULE_DESCRIPTIONS if rule == key or rule.startswith(f"{key}."))
    return next(keys, None)


SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
SOURCE_ROOT = "%SRCROOT%"
LEVEL_BY_STATUS = {
    RuleStatus.FAIL: "error",
    RuleStatus.INCONCLUSIVE: "error",
    RuleStatus.WARNING: "warning",
    RuleStatus.WAIVED: "note",  # not every service reads suppressions
}
Json = dict[str, Any]


def verdict_sarif(judged: GateResult) -> str:
    """Write a verdict as a SARIF 2.1.0 log.

    Args:
        judged: The verdict and its policy.

    Returns:
        An ASCII log of one run, with one result per rule that is not met.
    """
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [_run(judged)]}
    return json.dumps(log, indent=2)


def _run(judged: GateResult) -> Json:
    verdict = judged.verdict
    statuses = ((rule, rule_status(rule, verdict)) for rule in shown_rules(verdict))
    return {
        "tool": {"driver": _driver()},
        "invocations": [_invocation(verdict)],
        "results": [
            _result(rule, LEVEL_BY_STATUS[status], judged)
            for rule, status in statuses
            if status in LEVEL_BY_STATUS
        ],
        "properties": {
            "outcome": verdict.outcome.value,
            "run": one_line(verdict.run),
            "ledgerHead": one_line(verdict.ledger_head),
            "warnings": [one_line(warning) for warning in verdict.warnings],
            "evidence": [f"{name}: {one_line(value)}" for name, value in verdict_facts(verdict)],
        },
    }


def _driver() -> Json:
    rules = [
        {
            "id": name,
            "shortDescription": {"text": rule.requirement},
            "fullDescription": {"text": rule.explanation},
            "help": {"text": f"{rule.explanation} {rule.remedy}"},
            "defaultConfiguration": {"level": "error"},
        }
        for name, rule in RULE_DESCRIPTIONS.items()
    ]
    return {"name": "dpaudit", "version": dpaudit.__version__, "rules": rules}


def _invocation(verdict: Verdict) -> Json:
    return {
        "executionSuccessful": True,  # the evaluation itself ran, whatever its outcome
        "exitCode": int(verdict.exit_code),
        "exitCodeDescription": verdict_headline(verdict),
    }


def _result(rule: RuleOutcome, level: str, judged: GateResult) -> Json:
    name = one_line(rule.rule)
    return {
        **_rule(name),
        "kind": "fail",
        "level": level,
        "message": {"text": f"{rule_label(rule)} {name}: {one_line(rule_reason(rule))}"},
        "locations": [_location(rule, judged)],
        **_suppressions(rule.waived),
        "properties": {"rule": name, "outcome": rule.outcome.value},
    }


def _rule(name: str) -> Json:
    """Return the rule's key as SARIF's ruleId, shared by all rates of one key, and its index."""
    key = rule_key(name)
    return {"ruleId": name} if key is None else {"ruleId": key, "ruleIndex": RULE_INDEX[key]}


RULE_INDEX = {name: index for index, name in enumerate(RULE_DESCRIPTIONS)}


def _location(rule: RuleOutcome, judged: GateResult) -> Json:
    """Return key and file of a rule; code scanning rejects physical locations without a file."""
    origin = judged.loaded.origin_of(rule.rule)
    name = one_line(rule.rule)
    logical = {"name": name, "fullyQualifiedName": f"{one_line(origin.source)}: {name}"}
    place = rule_location(rule.rule, judged)
    physical = {} if place is None else {"physicalLocation": _physical(place)}
    return {**physical, "logicalLocations": [logical | {"kind": "property"}]}


def _physical(place: PolicyLocation) -> Json:
    """Return the physicalLocation; a relative URI is relative to the repository's root."""
    base = {} if place.file.is_absolute() else {"uriBaseId": SOURCE_ROOT}
    region = {} if place.line is None else {"region": {"startLine": place.line}}
    return {"artifactLocation": {"uri": place.uri, **base}, **region}


def _suppressions(waived: AppliedWaiver | None) -> Json:
    """Return an accepted external suppression for a waived rule."""
    if waived is None:
        return {}
    suppression = {
        "kind": "external",
        "status": "accepted",
        "justification": one_line(waived.reason),
        "properties": {"expires": str(waived.expires)},
    }
    return {"suppressions": [suppression]}
