"""Words that pages and model cards share."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal

from dpaudit.report.verdicts.judged import headline, tone
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.rounding import in_digits
from dpaudit.vocabulary.verdict import Outcome, Verdict

CHANGES = {
    Adjacency.ADD_OR_REMOVE_ONE: "adding or removing any one {unit}",
    Adjacency.REPLACE_ONE: "replacing any one {unit} by any other",
    Adjacency.ZERO_OUT: "replacing any one {unit} by one that contributes nothing",
}
SAMPLING = {
    Sampling.POISSON: "Poisson sampling",
    Sampling.FULL_BATCH: "every record in every step",
    Sampling.TRUNCATED_POISSON: "Poisson sampling with a largest batch",
    Sampling.FIXED_SIZE: "batches of a fixed size, drawn without replacement",
    Sampling.BALLS_IN_BINS: "each record in one step of each pass, drawn evenly",
    Sampling.CYCLIC_POISSON: "Poisson sampling of groups of records that take turns",
    Sampling.SHUFFLED: "shuffled batches (no amplification is claimed)",
}
SIGNS = {Outcome.HOLDS: "✓", Outcome.VIOLATED: "✕", Outcome.INCONCLUSIVE: "?"}
KINDS = {
    BoundKind.CERTIFIED: "holds for any mechanism, by the fairness of the coins alone",
    BoundKind.CONDITIONAL: "holds if what it assumes is true",
    BoundKind.ESTIMATE: "a point estimate: no bound",
}
NOT_JUDGED = "not judged yet"


def exact(value: float) -> str:
    """Return a given number, such as a delta, just as it was given."""
    return repr(float(value))


def day(moment: datetime) -> str:
    """Return the day and minute in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def verdict_in_words(verdict: Verdict | None, project_digest: str = "") -> str:
    """Return the outcome with what qualifies it: warnings only, waivers, another policy."""
    return NOT_JUDGED if verdict is None else headline(verdict, project_digest)


def verdict_tone(verdict: Verdict | None, project_digest: str = "") -> str:
    """Return the style of the verdict's box."""
    return "unjudged" if verdict is None else tone(verdict, project_digest)


def rules_in_words(verdict: Verdict) -> str:
    """Return how many rules are as the verdict says, and how many are waived."""
    if not verdict.rules:
        return "The policy names no rule, and no rules are no evidence."
    counted = [rule for rule in verdict.rules if rule.counts]
    if not counted:
        return "Every rule of the policy is waived: nothing that it demands was held against it."
    waived = len(verdict.rules) - len(counted)
    more = f"; {_rules(waived)} more {_does_not(waived)}" if waived else ""
    return f"{_told(verdict, len(counted))}{more}."


def _told(verdict: Verdict, counted: int) -> str:
    told = sum(rule.counts and rule.outcome is verdict.outcome for rule in verdict.rules)
    match verdict.outcome:
        case Outcome.HOLDS:
            return "The only rule holds" if counted == 1 else f"All {counted} rules hold"
        case Outcome.VIOLATED:
            return f"{told} of {_rules(counted)} violated"
        case Outcome.INCONCLUSIVE:
            return f"{told} of {_rules(counted)} could not be decided"


def _does_not(number: int) -> str:
    return "does not hold and is waived" if number == 1 else "do not hold and are waived"


def _rules(number: int) -> str:
    return f"{number} rule" if number == 1 else f"{number} rules"


def times_as_likely(epsilon: float) -> str | None:
    """Return e^epsilon rounded up; None where it is too large to mean anything."""
    if not epsilon <= 50:
        return None
    nearest = Decimal(repr(float(epsilon))).exp()  # in 28 digits, perhaps just below the truth
    return in_digits(nearest.next_plus() if epsilon else nearest, ROUND_CEILING)
