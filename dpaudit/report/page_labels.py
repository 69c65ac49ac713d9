"""Labels and phrases that pages and model cards share."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal

from dpaudit.report.verdicts.gate_result import outcome_style, verdict_headline
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.rounding import format_significant
from dpaudit.vocabulary.verdict import Outcome, Verdict

NEIGHBOUR_CHANGES = {
    Adjacency.ADD_OR_REMOVE_ONE: "adding or removing any one {unit}",
    Adjacency.REPLACE_ONE: "replacing any one {unit} by any other",
    Adjacency.ZERO_OUT: "replacing any one {unit} by one that contributes nothing",
}
SAMPLING_DESCRIPTIONS = {
    Sampling.POISSON: "Poisson sampling",
    Sampling.FULL_BATCH: "every record in every step",
    Sampling.TRUNCATED_POISSON: "Poisson sampling, truncated to a maximum batch size",
    Sampling.FIXED_SIZE: "batches of a fixed size, drawn without replacement",
    Sampling.BALLS_IN_BINS: "balls-in-bins sampling: each record in one random step per pass",
    Sampling.CYCLIC_POISSON: "cyclic Poisson sampling: Poisson samples of alternating groups",
    Sampling.SHUFFLED: "shuffled batches (no amplification is claimed)",
}
OUTCOME_SIGNS = {Outcome.PASS: "✓", Outcome.FAIL: "✕", Outcome.INCONCLUSIVE: "?"}
BOUND_KIND_DESCRIPTIONS = {
    BoundKind.CERTIFIED: "valid for any mechanism, given fair coins",
    BoundKind.CONDITIONAL: "valid under its assumptions",
    BoundKind.ESTIMATE: "a point estimate, not a bound",
}
NOT_EVALUATED = "no policy evaluated"


def exact(value: float) -> str:
    """Return a configured number, such as a delta, with all digits."""
    return repr(float(value))


def day(moment: datetime) -> str:
    """Return a time in UTC, to the minute."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def verdict_in_words(verdict: Verdict | None, project_digest: str = "") -> str:
    """Return the outcome of a verdict with its qualifications, for a heading.

    Args:
        verdict: The verdict; None where no policy was evaluated.
        project_digest: SHA-256 of the project's policy as it is now; empty without one.

    Returns:
        The outcome; in parentheses warnings only, waivers, or another policy.
    """
    return NOT_EVALUATED if verdict is None else verdict_headline(verdict, project_digest)


def verdict_style(verdict: Verdict | None, project_digest: str = "") -> str:
    """Return the CSS class of the verdict's box.

    Args:
        verdict: The verdict; None where no policy was evaluated.
        project_digest: SHA-256 of the project's policy as it is now; empty without one.

    Returns:
        The outcome in lower case; "unjudged" without a verdict or under another policy.
    """
    return "unjudged" if verdict is None else outcome_style(verdict, project_digest)


def rules_in_words(verdict: Verdict) -> str:
    """State how many rules have the outcome of the verdict, and how many are waived.

    Args:
        verdict: The verdict.

    Returns:
        One sentence; without a rule that counts, it says so.
    """
    if not verdict.rules:
        return "The policy has no rule; without rules there is no evidence."
    counted = [rule for rule in verdict.rules if rule.counts]
    if not counted:
        return "Every rule of the policy is waived, so no rule counts."
    waived = len(verdict.rules) - len(counted)
    more = f"; {_rule_count(waived)} more {_fails_and_is_waived(waived)}" if waived else ""
    return f"{_rules_with_outcome(verdict, len(counted))}{more}."


def _rules_with_outcome(verdict: Verdict, counted: int) -> str:
    deciding = sum(rule.counts and rule.outcome is verdict.outcome for rule in verdict.rules)
    match verdict.outcome:
        case Outcome.PASS:
            return "The only rule is met" if counted == 1 else f"All {counted} rules are met"
        case Outcome.FAIL:
            return f"{deciding} of {_rule_count(counted)} violated"
        case Outcome.INCONCLUSIVE:
            return f"{deciding} of {_rule_count(counted)} inconclusive"


def _fails_and_is_waived(number: int) -> str:
    return "is not met and is waived" if number == 1 else "are not met and are waived"


def _rule_count(number: int) -> str:
    return f"{number} rule" if number == 1 else f"{number} rules"


def max_likelihood_ratio(epsilon: float) -> str | None:
    """Compute the largest likelihood ratio that an epsilon allows.

    Args:
        epsilon: Upper bound on epsilon, in nats.

    Returns:
        e^epsilon, rounded up; None for an epsilon above 50 or NaN.
    """
    if not epsilon <= 50:
        return None
    nearest = Decimal(repr(float(epsilon))).exp()  # 28 digits, perhaps rounded down
    return format_significant(nearest.next_plus() if epsilon else nearest, ROUND_CEILING)
