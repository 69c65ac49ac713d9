"""A verdict as SARIF 2.1.0, whose results point at lines of the policy.

A rule that cannot be told is a result of kind ``fail``, though SARIF has a kind ``open``: an
open result must have the level ``none``, which code scanning does not show, and the page would
be empty where the build failed. What fails is the demand for evidence; ``properties.outcome``
says which of the two it is.

Source: OASIS, SARIF 2.1.0 with errata 01, sections 3.27.9 (kind), 3.27.10 (level), 3.35
(suppression).
"""

from __future__ import annotations

import json
from typing import Any

import dpaudit
from dpaudit.report.verdicts.judged import (
    Judged,
    Standing,
    explained,
    facts,
    headline,
    label,
    shown_rules,
    standing,
)
from dpaudit.report.verdicts.places import Place, place_of
from dpaudit.report.verdicts.printable import one_line
from dpaudit.report.verdicts.rule_words import RULE_WORDS, key_of
from dpaudit.vocabulary.verdict import RuleOutcome, Verdict, Waived

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
ROOT = "%SRCROOT%"
LEVELS = {
    Standing.VIOLATED: "error",
    Standing.INCONCLUSIVE: "error",
    Standing.WARNING: "warning",
    Standing.WAIVED: "note",  # not every service reads suppressions
}
Json = dict[str, Any]


def verdict_sarif(judged: Judged) -> str:
    """Return a log of one run in ASCII: a result for each rule that does not hold."""
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [_run(judged)]}
    return json.dumps(log, indent=2)


def _run(judged: Judged) -> Json:
    verdict = judged.verdict
    stands = ((rule, standing(rule, verdict)) for rule in shown_rules(verdict))
    return {
        "tool": {"driver": _driver()},
        "invocations": [_invocation(verdict)],
        "results": [_result(rule, LEVELS[one], judged) for rule, one in stands if one in LEVELS],
        "properties": {
            "outcome": verdict.outcome.value,
            "run": one_line(verdict.run),
            "ledgerHead": one_line(verdict.ledger_head),
            "warnings": [one_line(warning) for warning in verdict.warnings],
            "evidence": [f"{name}: {one_line(value)}" for name, value in facts(verdict)],
        },
    }


def _driver() -> Json:
    rules = [
        {
            "id": name,
            "shortDescription": {"text": words.demands},
            "fullDescription": {"text": words.means},
            "help": {"text": f"{words.means} {words.remedy}"},
            "defaultConfiguration": {"level": "error"},
        }
        for name, words in RULE_WORDS.items()
    ]
    return {"name": "dpaudit", "version": dpaudit.__version__, "rules": rules}


def _invocation(verdict: Verdict) -> Json:
    return {
        "executionSuccessful": True,  # dpaudit could judge, whatever it found
        "exitCode": int(verdict.exit_code),
        "exitCodeDescription": headline(verdict),
    }


def _result(rule: RuleOutcome, level: str, judged: Judged) -> Json:
    name = one_line(rule.rule)
    return {
        **_rule(name),
        "kind": "fail",
        "level": level,
        "message": {"text": f"{label(rule)} {name}: {one_line(explained(rule))}"},
        "locations": [_location(rule, judged)],
        **_suppressions(rule.waived),
        "properties": {"rule": name, "outcome": rule.outcome.value},
    }


def _rule(name: str) -> Json:
    """Name the key that the rule comes from: one for all rates of ``audit.max_tpr_at_fpr``."""
    key = key_of(name)
    return {"ruleId": name} if key is None else {"ruleId": key, "ruleIndex": INDEX[key]}


INDEX = {name: index for index, name in enumerate(RULE_WORDS)}


def _location(rule: RuleOutcome, judged: Judged) -> Json:
    """Say which key, set where; code scanning refuses a whole log for one without a file."""
    origin = judged.loaded.origin_of(rule.rule)
    name = one_line(rule.rule)
    logical = {"name": name, "fullyQualifiedName": f"{one_line(origin.source)}: {name}"}
    place = place_of(rule.rule, judged)
    physical = {} if place is None else {"physicalLocation": _physical(place)}
    return {**physical, "logicalLocations": [logical | {"kind": "property"}]}


def _physical(place: Place) -> Json:
    base = {} if place.file.is_absolute() else {"uriBaseId": ROOT}
    region = {} if place.line is None else {"region": {"startLine": place.line}}
    return {"artifactLocation": {"uri": place.uri, **base}, **region}


def _suppressions(waived: Waived | None) -> Json:
    if waived is None:
        return {}
    suppression = {
        "kind": "external",
        "status": "accepted",
        "justification": one_line(waived.reason),
        "properties": {"expires": str(waived.expires)},
    }
    return {"suppressions": [suppression]}
