"""What every format is made of: a verdict, the policy behind it, and how each rule stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC
from enum import Enum
from pathlib import Path

from dpaudit.gate.layers import SECTIONS, LoadedPolicy
from dpaudit.report.words import claim_in_words
from dpaudit.vocabulary.basis import Basis
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict

NO_RULES = RuleOutcome(
    "policy", Outcome.INCONCLUSIVE, "the policy names no rule, and no rules are no evidence"
)

ALL_WAIVED = RuleOutcome(
    "policy", Outcome.INCONCLUSIVE, "every rule is waived, and nothing at all was shown"
)


def repository_root() -> Path:
    """Return the nearest folder from the working directory upwards that holds .git, or it."""
    here = Path.cwd()
    return next((one for one in (here, *here.parents) if (one / ".git").exists()), here)


@dataclass(frozen=True)
class Judged:
    """A verdict, and by what it was judged.

    Attributes:
        verdict: The outcome of every rule.
        loaded: The policy, with the line that each rule comes from.
        root: The folder that services name files from.
    """

    verdict: Verdict
    loaded: LoadedPolicy
    root: Path = field(default_factory=repository_root)


class Standing(Enum):
    """What a rule's outcome does to a build."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    INCONCLUSIVE = "INCONCLUSIVE"
    WARNING = "WARNING"
    WAIVED = "WAIVED"


def standing(rule: RuleOutcome, verdict: Verdict) -> Standing:
    """Return how ``rule`` stands in ``verdict``: what cannot be told may be a warning only."""
    if rule.waived is not None:
        return Standing.WAIVED
    if rule.outcome is Outcome.INCONCLUSIVE and verdict.warns:
        return Standing.WARNING
    return Standing(rule.outcome.value)


def shown_rules(verdict: Verdict) -> tuple[RuleOutcome, ...]:
    """Return what to show; a list in which nothing counts would look like success."""
    if not verdict.rules:
        return (NO_RULES,)
    counts = any(rule.counts for rule in verdict.rules)
    return verdict.rules if counts else (*verdict.rules, ALL_WAIVED)


def headline(verdict: Verdict, project_digest: str = "") -> str:
    """Return the outcome over all in one line, with what qualifies it in parentheses.

    Args:
        verdict: To be shown.
        project_digest: Of the project's policy as it is now; empty if it has none.
    """
    outcome = verdict.outcome.value
    found = list(qualifications(verdict, project_digest))
    return f"{outcome} ({'; '.join(found)})" if found else outcome


def qualifications(verdict: Verdict, project_digest: str = "") -> Iterator[str]:
    """Yield what a reader of the outcome must know: warnings only, waivers, another policy."""
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
    """Return a section's name; a headline holds no foreign words."""
    section = rule.rule.partition(".")[0]
    return section if section in {*SECTIONS, "waiver"} else "another section"


def tone(verdict: Verdict, project_digest: str = "") -> str:
    """Return the style of an outcome; one that the project's policy did not give is neutral."""
    basis = verdict.basis
    if basis is None or not basis.is_of_project(project_digest):
        return "unjudged"
    return verdict.outcome.value.lower()


def facts(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield what was claimed, by which policy it was judged, on what and when, by name."""
    claim, basis = verdict.claim, verdict.basis
    if claim is not None:
        yield "claim", claim_in_words(claim)
        yield "taken as public", ", ".join(claim.takes_as_public) or "nothing was declared"
        yield "not covered", ", ".join(claim.leaves_out) or "nothing was declared"
    if basis is not None:
        for layer in basis.layers:
            yield "policy", f"{layer.source} (SHA-256 {layer.sha256})"
        yield "policy in force", f"SHA-256 {basis.policy_digest}"
        if not basis.is_of_project():
            yield "project's policy", f"SHA-256 {basis.project_digest}, which is another"
        for one in basis.overrides:
            yield "set", f"{one.key} = {one.value} ({one.source})"
        yield from _evidence(verdict.ledger_head, basis)
        yield "judged", f"{basis.judged.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        yield "dpaudit version", basis.dpaudit_version


def _evidence(ledger_head: str, basis: Basis) -> Iterator[tuple[str, str]]:
    if ledger_head:
        yield "ledger head", ledger_head
    if basis.model_digest:
        yield "model", f"SHA-256 {basis.model_digest}"


def label(rule: RuleOutcome) -> str:
    """Return the outcome of one rule, or that it is waived."""
    return rule.outcome.value if rule.waived is None else Standing.WAIVED.value


def explained(rule: RuleOutcome) -> str:
    """Return why; where the rule is waived also its outcome, until when, and the reason."""
    if rule.waived is None:
        return rule.why
    waived = f"waived until {rule.waived.expires}: {rule.waived.reason}"
    return f"{rule.outcome.value}: {rule.why}; {waived}"
