"""Data that all formats share: a verdict, its policy, and the effect of each rule."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from enum import Enum
from pathlib import Path
from urllib.parse import quote

from dpaudit.gate.policy_layers import POLICY_SECTIONS, LoadedPolicy
from dpaudit.report.descriptions import (
    claim_in_words,
    threat_model_in_words,
)
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict, VerdictBasis

NO_RULES = RuleOutcome(
    "policy", Outcome.INCONCLUSIVE, "the policy has no rule, so there is no evidence"
)

ALL_WAIVED = RuleOutcome(
    "policy", Outcome.INCONCLUSIVE, "every rule is waived, so there is no evidence"
)


def repository_root() -> Path:
    """Find the root of the repository around the working directory.

    Returns:
        The nearest folder upwards that holds .git; the working directory without one.
    """
    here = Path.cwd()
    return next((one for one in (here, *here.parents) if (one / ".git").exists()), here)


@dataclass(frozen=True)
class Durations:
    """Measured wall-clock times of one evaluation of a policy, in seconds.

    Attributes:
        total: Of the whole evaluation, including reading and recomputing the evidence.
        rules: Of each rule alone, by its name, without the evidence.
    """

    total: float
    rules: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GateResult:
    """A verdict and the policy that was evaluated.

    Attributes:
        verdict: The outcome of every rule.
        loaded: The policy, with the line of each rule.
        root: Root of the repository; paths in the output are relative to it.
        durations: Duration of the evaluation; None where it was not measured.
    """

    verdict: Verdict
    loaded: LoadedPolicy
    root: Path = field(default_factory=repository_root)
    durations: Durations | None = None


class RuleStatus(Enum):
    """Effect of a rule's outcome on a build."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    WARNING = "WARNING"
    WAIVED = "WAIVED"


def rule_status(rule: RuleOutcome, verdict: Verdict) -> RuleStatus:
    """Determine the effect of a rule on a build.

    Args:
        rule: A rule of the verdict.
        verdict: The verdict; with ``warns``, an inconclusive rule is a warning only.

    Returns:
        The effect; a waived rule is WAIVED whatever its outcome.
    """
    if rule.waived is not None:
        return RuleStatus.WAIVED
    if rule.outcome is Outcome.INCONCLUSIVE and verdict.warns:
        return RuleStatus.WARNING
    return RuleStatus(rule.outcome.value)


def shown_rules(verdict: Verdict) -> tuple[RuleOutcome, ...]:
    """Return the rules to show.

    Args:
        verdict: The verdict.

    Returns:
        The rules of the verdict. Where none counts, an inconclusive rule ``policy`` is added.
    """
    if not verdict.rules:
        return (NO_RULES,)
    counts = any(rule.counts for rule in verdict.rules)
    return verdict.rules if counts else (*verdict.rules, ALL_WAIVED)


def verdict_headline(verdict: Verdict, project_digest: str = "") -> str:
    """Return the overall outcome in one line, with its qualifications in parentheses.

    Args:
        verdict: The verdict to show.
        project_digest: SHA-256 of the project's policy as it is now; empty without one.

    Returns:
        Text such as "PASS (1 of 2 rules of audit waived)".
    """
    outcome = verdict.outcome.value
    found = list(verdict_qualifications(verdict, project_digest))
    return f"{outcome} ({'; '.join(found)})" if found else outcome


def verdict_qualifications(verdict: Verdict, project_digest: str = "") -> Iterator[str]:
    """List what restricts the meaning of an outcome.

    Args:
        verdict: The verdict.
        project_digest: SHA-256 of the project's policy as it is now; empty without one.

    Yields:
        Clauses on warnings only, waivers, and a policy that is not the project's.
    """
    if verdict.warns:
        yield "a warning only: --inconclusive warn"
    yield from _waived_sections(verdict)
    if verdict.basis is None:
        yield "its policy was not recorded"
    elif not verdict.basis.is_of_project(project_digest):
        yield "under another policy than the project's"


def _waived_sections(verdict: Verdict) -> Iterator[str]:
    sections = Counter(_section(rule) for rule in verdict.rules)
    waived = Counter(_section(rule) for rule in verdict.rules if rule.waived)
    for section, count in waived.items():
        if count == sections[section]:
            yield f"every rule of {section} is waived"
        else:
            yield f"{count} of {sections[section]} rules of {section} waived"


def _section(rule: RuleOutcome) -> str:
    """Return the section of a rule; a name outside of the policy's sections is not repeated."""
    section = rule.rule.partition(".")[0]
    return section if section in {*POLICY_SECTIONS, "waiver"} else "another section"


def outcome_style(verdict: Verdict, project_digest: str = "") -> str:
    """Return the CSS class of an outcome.

    Args:
        verdict: The verdict.
        project_digest: SHA-256 of the project's policy as it is now; empty without one.

    Returns:
        The outcome in lower case; "unjudged" under another policy than the project's.
    """
    basis = verdict.basis
    if basis is None or not basis.is_of_project(project_digest):
        return "unjudged"
    return verdict.outcome.value.lower()


def verdict_facts(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """List the claim, the policy, the evidence and the time of a verdict.

    Args:
        verdict: The verdict.

    Yields:
        Facts as (name, value), always in the same order; a name may occur again.
    """
    claim, basis = verdict.claim, verdict.basis
    if claim is not None:
        yield "claim", claim_in_words(claim)
        if (threat_model := threat_model_in_words(claim.federation)) is not None:
            yield "threat model", threat_model
        yield "assumed public", ", ".join(claim.assumed_public) or "nothing was declared"
        yield "not accounted for", ", ".join(claim.unaccounted) or "nothing was declared"
    if basis is not None:
        for layer in basis.layers:
            yield "policy", f"{layer.source} (SHA-256 {layer.sha256})"
        yield "policy in force", f"SHA-256 {basis.policy_digest}"
        if not basis.is_of_project():
            yield "project's policy", f"SHA-256 {basis.project_digest}, which is another"
        for one in basis.overrides:
            yield "set", f"{one.key} = {one.value} ({one.source})"
        yield from _evidence(verdict.ledger_head, basis)
        yield "evaluated", f"{basis.judged.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        yield "dpaudit version", basis.dpaudit_version


def _evidence(ledger_head: str, basis: VerdictBasis) -> Iterator[tuple[str, str]]:
    if ledger_head:
        yield "ledger head", ledger_head
    if basis.model_digest:
        yield "model", f"SHA-256 {basis.model_digest}"


def rule_label(rule: RuleOutcome) -> str:
    """Return the outcome of one rule, or that it is waived."""
    return rule.outcome.value if rule.waived is None else RuleStatus.WAIVED.value


def rule_reason(rule: RuleOutcome) -> str:
    """Return the reason of a rule's outcome.

    Args:
        rule: A rule of the verdict.

    Returns:
        The reason. For a waived rule also its outcome, and the waiver's end and reason.
    """
    if rule.waived is None:
        return rule.why
    waived = f"waived until {rule.waived.expires}: {rule.waived.reason}"
    return f"{rule.outcome.value}: {rule.why}; {waived}"


# Location of a rule in the policy's files.


@dataclass(frozen=True)
class PolicyLocation:
    """A file of the policy and, where known, a line in it.

    Attributes:
        file: Relative to the root of the repository; absolute outside of it.
        line: Number of the line, from 1; None where it is not known.
    """

    file: Path
    line: int | None

    def __str__(self) -> str:
        return str(self.file) if self.line is None else f"{self.file}:{self.line}"

    @property
    def uri(self) -> str:
        """The file as a percent-encoded URI; relative exactly where ``file`` is relative."""
        if self.file.is_absolute():
            return self.file.as_uri()
        return quote(os.fsencode(self.file.as_posix()))


def rule_location(rule: str, judged: GateResult) -> PolicyLocation | None:
    """Find where a rule is set.

    Args:
        rule: Name of the rule.
        judged: The verdict and its policy.

    Returns:
        File and line of the rule's key. A key set by an option or a variable has no line: then
        the policy's first file, or None without files.
    """
    origin = judged.loaded.origin_of(rule)
    if origin.line is not None:
        return PolicyLocation(_from_root(origin.source, judged.root), origin.line)
    files = [one.source for one in judged.loaded.origins.values() if one.line is not None]
    return PolicyLocation(_from_root(files[0], judged.root), None) if files else None


def _from_root(source: str, root: Path) -> Path:
    path = Path(source)
    whole = (
        path.parent.resolve() / path.name
    )  # the path of a symbolic link itself, not of its target
    inside = root.resolve()
    return whole.relative_to(inside) if whole.is_relative_to(inside) else whole
