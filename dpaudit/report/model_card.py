"""Paragraphs for a model card: the claim, the measurements and the verdict.

The text is Markdown. Strings of the run are escaped, so they cannot add links, elements or
headings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dpaudit.report.descriptions import (
    RELEASE_DESCRIPTIONS,
    noise_in_words,
    observers_in_words,
    participants_in_words,
    threat_model_in_words,
)
from dpaudit.report.evidence import (
    ReportEvidence,
    contradicting_bounds,
    membership_attacks,
    require_same_ledger,
    strongest_attack,
)
from dpaudit.report.page_labels import (
    NEIGHBOUR_CHANGES,
    SAMPLING_DESCRIPTIONS,
    day,
    exact,
    verdict_in_words,
)
from dpaudit.report.text import one_line
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.rounding import round_down, round_nearest, round_up
from dpaudit.vocabulary.verdict import Verdict

NO_PROOF = (
    "A passed policy does not prove the claim: an audit detects violations up to its power only, "
    "and the claim covers this run only, not other runs on the same records."
)
SEEDED_WARNING = (
    "Anyone who knows the seed knows the noise: against them this model has no privacy at all."
)
RATES_NOT_COVERED = (
    "These rates are computed from training records without noise; the claim does not cover "
    "their publication."
)

# Characters that Markdown interprets. "://" and "www." make links without brackets, too.
MARKDOWN_SYNTAX = re.compile(r"([\\`*_\[\]~|#$]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
HTML_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def model_card_markdown(evidence: ReportEvidence) -> str:
    """Write the privacy section of a model card.

    Args:
        evidence: The data of the report.

    Returns:
        Three paragraphs of Markdown.

    Raises:
        IntegrityError: If audit, verdict or conformance are of another ledger than the claim.
    """
    require_same_ledger(evidence)
    measurements = (*_bounds(evidence), *_attacks(evidence), *_conformance(evidence))
    paragraphs = (
        ("Privacy", _claim(evidence.claim, evidence.mechanism_in_words)),
        ("Measurements", measurements),
        ("Verdict", (*_verdict(evidence.verdict, evidence.project_digest), NO_PROOF)),
    )
    return "\n\n".join(f"**{name}.** {' '.join(words)}" for name, words in paragraphs)


def escape(text: str) -> str:
    """Escape a string of the run for Markdown.

    Args:
        text: Any string.

    Returns:
        One line that Markdown renders as the same text, without links or elements.
    """
    escaped = MARKDOWN_SYNTAX.sub(r"\\\1", one_line(text))
    return "".join(HTML_ENTITIES.get(c, c) for c in escaped)


def _claim(claim: Claim, mechanism: str) -> Iterable[str]:
    change = NEIGHBOUR_CHANGES[claim.adjacency].format(unit=escape(claim.unit))
    yield (
        f"Upper bound on epsilon: {round_up(claim.epsilon.upper)} at delta {exact(claim.delta)} "
        f"under {claim.adjacency.value}, that is, {change}; the unit is one {escape(claim.unit)}, "
        f"and {RELEASE_DESCRIPTIONS[claim.released]}."
    )
    yield (
        f"Mechanism: {escape(mechanism)} ({claim.releases} releases in total), with "
        f"{SAMPLING_DESCRIPTIONS[claim.sampling]} and {claim.randomness.value} randomness; "
        f"the bound is by the "
        f"{escape(claim.accountant)} accountant of dpaudit {escape(claim.dpaudit_version)}."
    )
    if claim.federation is not None:
        federation = claim.federation
        yield (
            f"Federation of {participants_in_words(federation)} by "
            f"{escape(federation.strategy)}; it protects against {observers_in_words(federation)}."
        )
        if (threat_model := threat_model_in_words(federation)) is not None:
            yield f"Threat model of secure aggregation: {threat_model}."
    if claim.randomness is Randomness.SEEDED:
        yield SEEDED_WARNING
    if claim.noise is not None:
        yield f"Noise on the sums of gradients: {noise_in_words(claim.noise)}."
    yield f"Assumed public: {_listed(claim.assumed_public)}."
    yield f"Not accounted for: {_listed(claim.unaccounted)}."


def _listed(items: tuple[str, ...]) -> str:
    return ", ".join(map(escape, items)) or "nothing was declared"


def _bounds(evidence: ReportEvidence) -> Iterable[str]:
    audit = evidence.audit
    if audit is None or not audit.bounds:
        yield "No lower bound on epsilon was measured."
        return
    largest = {}  # the last one set for each kind and delta, thus the largest
    for bound in sorted(audit.bounds, key=lambda bound: bound.epsilon_lower):
        largest[bound.kind, bound.delta] = bound
    each = "; ".join(_bound(bound) for bound in reversed(largest.values()))
    yield (
        f"Epsilon by audits with canaries, the largest of {len(audit.bounds)} results by kind: "
        f"{each}. The joint confidence of the lower bounds is {round_down(audit.confidence)}."
    )
    if contradicting_bounds(audit, evidence.claim):
        yield "This contradicts the claim."


def _bound(bound: AuditResult) -> str:
    what = "estimate" if bound.kind is BoundKind.ESTIMATE else "lower bound"
    return (
        f"{what} {round_down(bound.epsilon_lower)} at delta {exact(bound.delta)} "
        f"({bound.kind.value}: {escape(bound.name)})"
    )


def _attacks(evidence: ReportEvidence) -> Iterable[str]:
    attacks = membership_attacks(evidence)
    found = strongest_attack(attacks)
    if found is None:
        yield "No membership attack was measured at a small false-positive rate."
        return
    attack, rate = found
    which = (
        "The only membership attack"
        if len(attacks) == 1
        else f"The strongest of {len(attacks)} membership attacks"
    )
    yield (
        f"{which}, {escape(attack.attack)}, identified a share of {round_nearest(rate.tpr)} of the "
        f"members at a false-positive rate of {exact(rate.fpr)} (interval "
        f"{round_down(rate.interval.lower)} to {round_up(rate.interval.upper)}, confidence "
        f"{round_down(rate.confidence)}). {RATES_NOT_COVERED}"
    )


def _conformance(evidence: ReportEvidence) -> Iterable[str]:
    if evidence.conformance is None:
        yield "The conformance of the trainer was not tested."
        return
    tests = len(evidence.conformance.findings)
    yield (
        f"The conformance of the trainer was tested by {tests} tests: "
        f"{evidence.conformance.verdict.value}."
    )


def _verdict(verdict: Verdict | None, project_digest: str) -> Iterable[str]:
    if verdict is None:
        yield "No policy was evaluated on this run."
        return
    yield _rules(verdict, project_digest)
    yield from (f"Warning: {escape(warning)}." for warning in verdict.warnings)
    yield from _basis(verdict)


def _basis(verdict: Verdict) -> Iterable[str]:
    basis = verdict.basis
    if basis is None:
        yield "The policy was not recorded."
        return
    files = ", ".join(
        f"{escape(one.source)} (SHA-256 {escape(one.sha256)})" for one in basis.layers
    )
    yield f"Policy: {files or 'built in'}; in force SHA-256 {escape(basis.policy_digest)}."
    if basis.overrides:
        changed = ", ".join(
            escape(f"{one.key} = {one.value} ({one.source})") for one in basis.overrides
        )
        yield f"Set by the environment or the command line: {changed}."
    model = f", model SHA-256 {escape(basis.model_digest)}" if basis.model_digest else ""
    yield (
        f"Evaluated on {day(basis.judged)} UTC by dpaudit {escape(basis.dpaudit_version)}: ledger "
        f"{escape(verdict.ledger_head)}{model}."
    )


def _rules(verdict: Verdict, project_digest: str) -> str:
    waived = "; ".join(
        f"{escape(rule.rule)} is waived until {rule.waived.expires} ({escape(rule.waived.reason)})"
        for rule in verdict.rules
        if rule.waived is not None
    )
    outcome = escape(verdict_in_words(verdict, project_digest))
    rules = f"By a policy of {len(verdict.rules)} rules: {outcome}"
    return f"{rules}; {waived}." if waived else f"{rules}."
