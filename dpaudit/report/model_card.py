"""A paragraph for a model card: what is promised, what was measured, and what that does not say.

Markdown to paste. Whatever the run's strings hold is text there, too: nothing in them makes a
link, an element or a heading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dpaudit.report.evidence import ReportEvidence
from dpaudit.report.findings import attacks_on, contradicting, require_one_ledger, strongest
from dpaudit.report.page_words import CHANGES, SAMPLING, day, exact, verdict_in_words
from dpaudit.report.verdicts.printable import one_line
from dpaudit.report.words import RELEASED
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.rounding import round_down, round_near, round_up
from dpaudit.vocabulary.verdict import Verdict

NO_PROOF = (
    "No violation found is no proof that there is none: an audit shows what it could see, and "
    "the claim covers this run alone, not others on the same records."
)
SEEDED = "Whoever knows the seed knows the noise: against them this model has no privacy at all."
NOT_COVERED = (
    "These rates are computed from training records without noise, and the claim does not cover "
    "that they are published."
)

# What Markdown or HTML would take for more than text. A link needs no brackets to be one.
MARKDOWN = re.compile(r"([\\`*_\[\]~|#$]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def model_card(evidence: ReportEvidence) -> str:
    """Return three paragraphs of Markdown.

    Raises:
        IntegrityError: what was measured is of another ledger than the claim.
    """
    require_one_ledger(evidence)
    measured = (*_bounds(evidence), *_attacks(evidence), *_conformance(evidence))
    paragraphs = (
        ("Privacy", _claimed(evidence.claim, evidence.mechanism_in_words)),
        ("What was measured", measured),
        ("Verdict", (*_judged(evidence.verdict, evidence.project_digest), NO_PROOF)),
    )
    return "\n\n".join(f"**{name}.** {' '.join(words)}" for name, words in paragraphs)


def plain(text: str) -> str:
    """Return a run's own words so that Markdown shows them as they are, on one line."""
    escaped = MARKDOWN.sub(r"\\\1", one_line(text))
    return "".join(HTML.get(c, c) for c in escaped)


def _claimed(claim: Claim, mechanism: str) -> Iterable[str]:
    change = CHANGES[claim.adjacency].format(unit=plain(claim.unit))
    yield (
        f"At delta {exact(claim.delta)}, epsilon is at most {round_up(claim.epsilon.upper)} under "
        f"{claim.adjacency.value}: what {change} can change, the unit being one "
        f"{plain(claim.unit)}; {RELEASED[claim.released]}."
    )
    yield (
        f"Released was {plain(mechanism)} ({claim.releases} releases in all), with "
        f"{SAMPLING[claim.sampling]} and {claim.randomness.value} randomness; the bound is by the "
        f"{plain(claim.accountant)} accountant of dpaudit {plain(claim.dpaudit_version)}."
    )
    if claim.randomness is Randomness.SEEDED:
        yield SEEDED
    yield f"Taken as public: {_listed(claim.takes_as_public)}."
    yield f"Left out of the claim: {_listed(claim.leaves_out)}."


def _listed(items: tuple[str, ...]) -> str:
    return ", ".join(map(plain, items)) or "nothing was declared"


def _bounds(evidence: ReportEvidence) -> Iterable[str]:
    audit = evidence.audit
    if audit is None or not audit.bounds:
        yield "No lower bound on epsilon was measured."
        return
    largest = {}
    for bound in sorted(audit.bounds, key=lambda bound: bound.epsilon_lower):
        largest[bound.kind, bound.delta] = bound
    each = "; ".join(_bound(bound) for bound in reversed(largest.values()))
    yield (
        f"Epsilon by audits with canaries, the largest of {len(audit.bounds)} results by kind: "
        f"{each}. The lower bounds hold together with confidence {round_down(audit.confidence)}."
    )
    if contradicting(audit, evidence.claim):
        yield "This contradicts the claim."


def _bound(bound: AuditResult) -> str:
    least = "about" if bound.kind is BoundKind.ESTIMATE else "at least"
    return (
        f"{least} {round_down(bound.epsilon_lower)} at delta {exact(bound.delta)} "
        f"({bound.kind.value}: {plain(bound.name)})"
    )


def _attacks(evidence: ReportEvidence) -> Iterable[str]:
    attacks = attacks_on(evidence)
    found = strongest(attacks)
    if found is None:
        yield "No membership attack was measured at a small false-positive rate."
        return
    attack, rate = found
    tried = (
        "The only membership attack"
        if len(attacks) == 1
        else (f"The strongest of {len(attacks)} membership attacks")
    )
    yield (
        f"{tried}, {plain(attack.attack)}, recognised a share of {round_near(rate.tpr)} of the "
        f"members at a false-positive rate of {exact(rate.fpr)} (interval "
        f"{round_down(rate.interval.lower)} to {round_up(rate.interval.upper)}, confidence "
        f"{round_down(rate.confidence)}). {NOT_COVERED}"
    )


def _conformance(evidence: ReportEvidence) -> Iterable[str]:
    if evidence.conformance is None:
        yield "Whether the trainer does what it claims was not tested."
        return
    tests = len(evidence.conformance.findings)
    yield (
        f"Whether the trainer does what it claims was tested in {tests} ways: "
        f"{evidence.conformance.verdict.value}."
    )


def _judged(verdict: Verdict | None, project_digest: str) -> Iterable[str]:
    if verdict is None:
        yield "This run was judged by no policy."
        return
    yield _rules(verdict, project_digest)
    yield from (f"Warning: {plain(warning)}." for warning in verdict.warnings)
    yield from _basis(verdict)


def _basis(verdict: Verdict) -> Iterable[str]:
    basis = verdict.basis
    if basis is None:
        yield "Which policy that was is not recorded."
        return
    files = ", ".join(f"{plain(one.source)} (SHA-256 {plain(one.sha256)})" for one in basis.layers)
    yield f"Policy: {files or 'built in'}; in force SHA-256 {plain(basis.policy_digest)}."
    if basis.overrides:
        changed = ", ".join(
            plain(f"{one.key} = {one.value} ({one.source})") for one in basis.overrides
        )
        yield f"Set by the environment or the command line: {changed}."
    model = f", model SHA-256 {plain(basis.model_digest)}" if basis.model_digest else ""
    yield (
        f"Judged on {day(basis.judged)} UTC by dpaudit {plain(basis.dpaudit_version)}: ledger "
        f"{plain(verdict.ledger_head)}{model}."
    )


def _rules(verdict: Verdict, project_digest: str) -> str:
    waived = "; ".join(
        f"{plain(rule.rule)} is waived until {rule.waived.expires} ({plain(rule.waived.reason)})"
        for rule in verdict.rules
        if rule.waived is not None
    )
    outcome = plain(verdict_in_words(verdict, project_digest))
    rules = f"By a policy of {len(verdict.rules)} rules: {outcome}"
    return f"{rules}; {waived}." if waived else f"{rules}."
