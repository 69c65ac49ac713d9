"""Reports on one run and on two runs as one HTML page, without scripts or network access."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from dpaudit.gate.run_differences import EpsilonEffect
from dpaudit.report import privacy_figures
from dpaudit.report.descriptions import (
    RELEASE_DESCRIPTIONS,
    UNIT_DESCRIPTIONS,
    claim_in_words,
    loss_in_words,
    noise_in_words,
    observers_in_words,
    participants_in_words,
    threat_model_in_words,
)
from dpaudit.report.evidence import (
    ComparisonEvidence,
    ReportEvidence,
    assumed,
    assumptions,
    conclusions,
    contradicting_bounds,
    current_attack,
    largest_bound,
    membership_attacks,
    require_same_ledger,
    strongest_attack,
    unresolved,
)
from dpaudit.report.model_card import model_card_markdown
from dpaudit.report.page_figures import comparison_figures, measurement_figures, run_figures
from dpaudit.report.page_labels import (
    BOUND_KIND_DESCRIPTIONS,
    NEIGHBOUR_CHANGES,
    OUTCOME_SIGNS,
    SAMPLING_DESCRIPTIONS,
    day,
    exact,
    max_likelihood_ratio,
    rules_in_words,
    verdict_in_words,
    verdict_style,
)
from dpaudit.report.page_template import render_page
from dpaudit.report.participants import participant_rows, unprotected_in_words
from dpaudit.report.verdicts.gate_result import verdict_facts
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import SERVER, Randomness
from dpaudit.vocabulary.privacy_terms import Unit
from dpaudit.vocabulary.rounding import round_down, round_nearest, round_up
from dpaudit.vocabulary.verdict import Verdict, VerdictBasis

# The summary of a report: claim, strongest attack, what was not tested, and run data.

NOT_RECORDED = "not recorded"


class Summary(NamedTuple):
    """Contents of the box at the beginning of a report.

    Attributes:
        claim: The claim, in one sentence.
        strongest: The strongest measurements against the claim, one per sentence.
        untested: What was not tested, one item each.
        facts: Date, data set, model and policy as (name, value).
    """

    claim: str
    strongest: tuple[str, ...]
    untested: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def summary_of(evidence: ReportEvidence) -> Summary:
    """Summarize the evidence on one run.

    Args:
        evidence: The data of the report.

    Returns:
        The summary as plain text; nothing in it is markup.
    """
    return Summary(
        _claim_sentence(evidence.claim),
        (_bound(evidence), _attack(evidence)),
        tuple(_untested(evidence)),
        tuple(_facts(evidence)),
    )


def _claim_sentence(claim: Claim) -> str:
    return (
        f"Upper bound on epsilon: {round_up(claim.epsilon.upper)} at delta {exact(claim.delta)}, "
        f"for {UNIT_DESCRIPTIONS[claim.unit]}, neighbors by {claim.adjacency.value}."
        f"{_federation_sentence(claim)}"
    )


def _federation_sentence(claim: Claim) -> str:
    """State the strategy of a federated run, and whom it protects against."""
    federation = claim.federation
    if federation is None:
        return ""
    largest = "" if claim.unit is Unit.PARTICIPANT else "; the largest over the participants"
    return (
        f" Federation of {participants_in_words(federation)} by {federation.strategy}{largest}. "
        f"It protects against {observers_in_words(federation)}."
    )


def _bound(evidence: ReportEvidence) -> str:
    bound = largest_bound(evidence)
    if bound is None:
        return "Lower bound on epsilon: not measured."
    against = (
        "contradicts"
        if contradicting_bounds(evidence.audit, evidence.claim)
        else "does not contradict"
    )
    return (
        f"Lower bound on epsilon by audit: {round_down(bound.epsilon_lower)} at delta "
        f"{exact(bound.delta)} ({bound.kind.value}; {bound.name}). It {against} the claim."
    )


def _attack(evidence: ReportEvidence) -> str:
    """State the strongest attack's rates in percent; its interval is rounded outwards."""
    attacks = membership_attacks(evidence)
    found = strongest_attack(attacks)
    if found is None:
        return "Membership inference: no true-positive rate was measured."
    attack, rate = found
    return (
        f"Membership inference by {attack.attack}, {_of(len(attacks))}: it identified "
        f"{_percent(round_nearest(100 * rate.tpr))} of the members at a false-positive rate of "
        f"{_percent(round_nearest(100 * rate.fpr))} (interval "
        f"{_percent(round_down(100 * rate.interval.lower))} to "
        f"{_percent(round_up(100 * rate.interval.upper))}, "
        f"confidence {round_down(rate.confidence)})."
    )


def _of(attacks: int) -> str:
    return "the only attack" if attacks == 1 else f"the strongest of {attacks} attacks"


def _percent(number: str) -> str:
    return f"{number}%"


def _untested(evidence: ReportEvidence) -> Iterator[str]:
    """Yield what the evidence does not show; the last item holds for every run."""
    yield from _unaudited(evidence)
    attacks = membership_attacks(evidence)
    if not attacks:
        yield "Membership inference: no attack was run."
    else:
        yield f"Membership attacks other than {', '.join(one.attack for one in attacks)}."
    for group in unresolved(attacks):
        rates = ", ".join(map(exact, group.rates))
        yield f"False-positive rates of {rates}: too few non-members for {_those(group.attacks)}."
    if evidence.conformance is None:
        yield "Whether the trainer implements the recorded mechanism: no conformance test was run."
    if evidence.verdict is None:
        yield "Whether the run meets a policy: no policy was evaluated."
    if evidence.claim.unaccounted:
        yield f"Not accounted for: {', '.join(evidence.claim.unaccounted)}."
    yield "Other runs on the same records, tuning runs included."


def _those(attacks: tuple[str, ...]) -> str:
    return attacks[0] if len(attacks) == 1 else f"{len(attacks)} attacks"


def _unaudited(evidence: ReportEvidence) -> Iterator[str]:
    """Yield what no lower bound shows, or which epsilons the audit may fail to detect."""
    if largest_bound(evidence) is None:
        yield "Whether the claim is true: no lower bound on epsilon was measured."
        return
    bounds = evidence.audit.bounds if evidence.audit else ()
    powers = [one.detectable_epsilon for one in bounds if one.detectable_epsilon is not None]
    if powers:
        yield (
            f"A true epsilon below {round_up(min(powers))}: the audit is not known to detect it "
            "with 95% power."
        )
    else:
        yield "The power of the audit is not known."


def _facts(evidence: ReportEvidence) -> Iterator[tuple[str, str]]:
    facts = evidence.facts
    yield "Report written", NOT_RECORDED if facts is None else f"{day(facts.written)} UTC"
    data, model = ("", "") if facts is None else (facts.data, facts.model)
    yield "Data set", data or f"{NOT_RECORDED} (your own training loop)"
    yield "Model", model or f"{NOT_RECORDED} (your own training loop)"
    yield "Policy", _policy(evidence.verdict, evidence.project_digest)
    if evidence.verdict is not None and evidence.verdict.basis is not None:
        yield "Policy evaluated", f"{day(evidence.verdict.basis.judged)} UTC"
    if current_attack(evidence) is None and evidence.attack is not None:
        yield "Not shown", "attack.json, which is of another state of the ledger"


def _policy(verdict: Verdict | None, project_digest: str) -> str:
    """Return the sources of the policy, and whether it is the project's own."""
    if verdict is None:
        return "none was evaluated"
    if verdict.basis is None:
        return NOT_RECORDED
    basis = verdict.basis
    sources = ", ".join(layer.source for layer in basis.layers) or "built-in defaults"
    changed = len(basis.overrides)
    more = f"; {_options(changed)} set outside of the files" if changed else ""
    return f"{sources} ({_origin(basis, project_digest)}{more})"


def _options(number: int) -> str:
    return "1 option" if number == 1 else f"{number} options"


def _origin(basis: VerdictBasis, project_digest: str) -> str:
    """State whether the policy is the project's own, at the evaluation and now."""
    if not (basis.project_digest or project_digest):
        return "the project has no policy"
    of_project = basis.is_of_project(project_digest)
    return "the project's policy" if of_project else "not the project's policy"


TITLES = {
    "summary": "Summary",
    "claim": "Claim",
    "participants": "Participants of the federation",
    "curves": "Epsilon by steps and by delta",
    "audit": "Lower bounds on epsilon",
    "membership": "Membership inference",
    "conformance": "Conformance of the trainer",
    "gate": "Policy rules",
    "assumptions": "Assumptions and conclusions",
    "history": "Past runs",
    "card": "Model card text",
}
"""Headings of the sections by id, in order; the table of contents lists them."""

CLAIM_FACTS = ("claim", "assumed public", "not accounted for")


def report_page(evidence: ReportEvidence) -> str:
    """Render the report on one run.

    Args:
        evidence: The data of the report; what is missing is reported as not measured.

    Returns:
        A complete HTML document.

    Raises:
        IntegrityError: If audit, verdict or conformance are of another ledger than the claim.
        AccountingError: If a number to show is NaN.
    """
    require_same_ledger(evidence)
    claim = evidence.claim
    return render_page(
        "report.html",
        titles={id: title for id, title in TITLES.items() if id in _sections(evidence)},
        summary=summary_of(evidence),
        assumptions=assumptions(evidence),
        assumed=assumed,
        conclusions=conclusions(evidence),
        evidence=evidence,
        claim=claim,
        audit=evidence.audit,
        verdict=evidence.verdict,
        verdict_words=verdict_in_words(evidence.verdict, evidence.project_digest),
        verdict_tone=verdict_style(evidence.verdict, evidence.project_digest),
        verdict_facts=_verdict_facts(evidence),
        rules_words=rules_in_words(evidence.verdict) if evidence.verdict else None,
        attacks=membership_attacks(evidence),
        stale_attack=evidence.attack is not None and current_attack(evidence) is None,
        seeded=claim.randomness is Randomness.SEEDED,
        change=NEIGHBOUR_CHANGES[claim.adjacency].format(unit=claim.unit),
        released_words=RELEASE_DESCRIPTIONS,
        times=max_likelihood_ratio(claim.epsilon.upper),
        contradicting=contradicting_bounds(evidence.audit, claim),
        figures=run_figures(evidence),
        far_apart=privacy_figures.differ_tenfold(evidence.curves),
        card=model_card_markdown(evidence),
        sampling_words=SAMPLING_DESCRIPTIONS,
        noise_in_words=noise_in_words(claim.noise),
        signs=OUTCOME_SIGNS,
        kinds=BOUND_KIND_DESCRIPTIONS,
        **_federation(evidence),
    )


def _sections(evidence: ReportEvidence) -> set[str]:
    """Return the ids of the sections that the report on a run has."""
    return set(TITLES) - ({"participants"} if evidence.claim.federation is None else set())


def _federation(evidence: ReportEvidence) -> dict[str, object]:
    """Return the variables of the section on participants; none for a run of one trainer."""
    federation = evidence.claim.federation
    if federation is None:
        return {}
    own = [one for one in evidence.participants if one.name == SERVER and one.releases]
    return {
        "unit_words": UNIT_DESCRIPTIONS,
        "observers": observers_in_words(federation),
        "not_observers": unprotected_in_words(federation),
        "shared": bool(own),
        "participant_rows": participant_rows(evidence.participants),
    }


def _verdict_facts(evidence: ReportEvidence) -> tuple[tuple[str, str], ...]:
    """Return the facts of the verdict that the page does not state elsewhere."""
    verdict = evidence.verdict
    if verdict is None:
        return ()
    repeated = verdict.claim is not None and _same(verdict.claim, evidence.claim)
    model = "" if evidence.facts is None else f"SHA-256 {evidence.facts.model_digest}"
    in_footer = (("ledger head", evidence.claim.ledger_head), ("model", model))
    return tuple(
        fact
        for fact in verdict_facts(verdict)
        if not (repeated and fact[0] in CLAIM_FACTS) and fact not in in_footer
    )


def _same(one: Claim, other: Claim) -> bool:
    """Return whether the facts of a verdict would be the same text for both claims."""
    return (claim_in_words(one), one.assumed_public, one.unaccounted) == (
        claim_in_words(other),
        other.assumed_public,
        other.unaccounted,
    )


# The report on two runs: their differences by cause, and all results side by side.

NOT_MEASURED = "not measured"
COMPARABLE_FIELDS = ("delta", "accountant", "adjacency", "unit")
"""Claims that differ in one of these cannot be ordered by epsilon."""


class ComparedRow(NamedTuple):
    """One row of a comparison: a result of both runs, or of one of them."""

    name: str
    before: str
    after: str

    @property
    def differs(self) -> bool:
        """Whether the two texts differ."""
        return self.before != self.after


class ComparedRun(NamedTuple):
    """One of the two compared runs, with its letter on the page."""

    letter: str
    evidence: ReportEvidence

    @property
    def name(self) -> str:
        """Letter and name of the run, as shown."""
        return f"{self.letter}: {self.evidence.run}"

    @property
    def id(self) -> str:
        """Suffix of the HTML ids that belong to this run."""
        return self.letter.lower()


def comparison_page(runs: ComparisonEvidence) -> str:
    """Render the report on two runs.

    Args:
        runs: The data of both runs, A and B, and the cost of each difference.

    Returns:
        A complete HTML document.

    Raises:
        IntegrityError: If the evidence on a run is of two states of its ledger.
        AccountingError: If a number to show is NaN.
    """
    sides = (ComparedRun("A", runs.before), ComparedRun("B", runs.after))
    for side in sides:
        require_same_ledger(side.evidence)
    curves = [curve for side in sides for curve in side.evidence.curves]
    verdicts = [side.evidence.verdict for side in sides]
    return render_page(
        "comparison.html",
        sides=sides,
        costs=runs.costs,
        raises=EpsilonEffect.RAISES,
        unlike=_differing_fields(runs),
        claims=_compared_rows(runs, _claim),
        bounds=_compared_rows(runs, _bounds),
        rates=_compared_rows(runs, _rates),
        rules=_compared_rows(runs, _rules),
        words=[verdict_in_words(s.evidence.verdict, s.evidence.project_digest) for s in sides],
        tones=[verdict_style(s.evidence.verdict, s.evidence.project_digest) for s in sides],
        rules_words=[rules_in_words(verdict) if verdict else None for verdict in verdicts],
        figures=comparison_figures(runs, (sides[0].name, sides[1].name)),
        measured=[
            measurement_figures(side.evidence, f"-{side.id}", (runs.before, runs.after))
            for side in sides
        ],
        far_apart=privacy_figures.differ_tenfold(curves),
        signs=OUTCOME_SIGNS,
    )


def _differing_fields(runs: ComparisonEvidence) -> tuple[str, ...]:
    """Return the fields of the claims that differ and forbid a comparison of epsilon."""
    before, after = runs.before.claim, runs.after.claim
    return tuple(
        name for name in COMPARABLE_FIELDS if getattr(before, name) != getattr(after, name)
    )


def _compared_rows(
    runs: ComparisonEvidence, results: Callable[[ReportEvidence], Iterator[tuple[str, str]]]
) -> tuple[ComparedRow, ...]:
    """Return the rows that ``results`` yields for both runs, those of the first run first."""
    before, after = dict(results(runs.before)), dict(results(runs.after))
    return tuple(
        ComparedRow(name, before.get(name, NOT_MEASURED), after.get(name, NOT_MEASURED))
        for name in dict.fromkeys((*before, *after))
    )


def _claim(run: ReportEvidence) -> Iterator[tuple[str, str]]:
    claim = run.claim
    yield "Epsilon, upper bound", round_up(claim.epsilon.upper)
    yield "Epsilon, lower bound", round_down(max(0.0, claim.epsilon.lower))
    yield "Delta", exact(claim.delta)
    yield "Accountant", claim.accountant
    yield "Neighbors", claim.adjacency.value
    yield "Unit of privacy", claim.unit.value
    if claim.federation is not None:
        federation = claim.federation
        yield "Federation", f"{federation.strategy}, {participants_in_words(federation)}"
        yield "Protects against", observers_in_words(federation)
        if (threat_model := threat_model_in_words(federation)) is not None:
            yield "Threat model", threat_model
    yield "Covers", RELEASE_DESCRIPTIONS[claim.released]
    yield "Sampling", SAMPLING_DESCRIPTIONS[claim.sampling]
    yield "Randomness", claim.randomness.value
    yield "Noise", noise_in_words(claim.noise)
    yield "Mechanism", run.mechanism_in_words
    yield "Assumed public", ", ".join(claim.assumed_public) or "nothing was declared"
    yield "Not accounted for", ", ".join(claim.unaccounted) or "nothing was declared"
    if run.facts is not None:
        yield "Data set", run.facts.data or NOT_RECORDED
        yield "Model", run.facts.model or NOT_RECORDED
    yield "dpaudit version", claim.dpaudit_version
    if run.audit is not None and run.audit.heldout_accuracy is not None:
        yield "Held-out accuracy", round_nearest(run.audit.heldout_accuracy)
    if run.audit is not None and run.audit.heldout_loss is not None:
        yield "Held-out loss", loss_in_words(run.audit.heldout_loss).removeprefix("loss ")
    if run.conformance is not None:
        yield "Conformance of the trainer", run.conformance.verdict.value


def _bounds(run: ReportEvidence) -> Iterator[tuple[str, str]]:
    for bound in run.audit.bounds if run.audit else ():
        name = f"{bound.name} ({bound.kind.value}, at delta {exact(bound.delta)})"
        yield name, round_down(bound.epsilon_lower)


def _rates(run: ReportEvidence) -> Iterator[tuple[str, str]]:
    for attack in membership_attacks(run):
        for rate in attack.tpr_at_fpr:
            interval = f"{round_down(rate.interval.lower)} to {round_up(rate.interval.upper)}"
            yield f"{attack.attack} at {exact(rate.fpr)}", f"{round_nearest(rate.tpr)} ({interval})"


def _rules(run: ReportEvidence) -> Iterator[tuple[str, str]]:
    for rule in run.verdict.rules if run.verdict else ():
        waived = "" if rule.waived is None else f"; waived until {rule.waived.expires}"
        yield rule.rule, f"{rule.outcome.value}{waived}: {rule.why}"
