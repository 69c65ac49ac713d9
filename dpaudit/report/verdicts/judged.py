"""What every format is made of: a verdict, the policy behind it, and how each rule stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from dpaudit.gate.layers import LoadedPolicy
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


def headline(verdict: Verdict) -> str:
    """Return the outcome over all, in one line."""
    outcome = verdict.outcome.value
    return f"{outcome} (a warning only: --inconclusive warn)" if verdict.warns else outcome


def label(rule: RuleOutcome) -> str:
    """Return the outcome of one rule, or that it is waived."""
    return rule.outcome.value if rule.waived is None else Standing.WAIVED.value


def explained(rule: RuleOutcome) -> str:
    """Return why; where the rule is waived also its outcome, until when, and the reason."""
    if rule.waived is None:
        return rule.why
    waived = f"waived until {rule.waived.expires}: {rule.waived.reason}"
    return f"{rule.outcome.value}: {rule.why}; {waived}"
