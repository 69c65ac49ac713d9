"""The report on one run as one HTML page: offline, without scripts, nothing but the evidence."""

from __future__ import annotations

from dpaudit.report import figures
from dpaudit.report.evidence import ReportEvidence
from dpaudit.report.findings import (
    attacks_on,
    caveats,
    contradicting,
    current_attack,
    require_one_ledger,
)
from dpaudit.report.model_card import model_card
from dpaudit.report.page import page
from dpaudit.report.page_figures import figures_of_run
from dpaudit.report.page_words import (
    CHANGES,
    KINDS,
    SAMPLING,
    SIGNS,
    rules_in_words,
    times_as_likely,
    verdict_in_words,
    verdict_tone,
)
from dpaudit.report.verdicts.judged import facts
from dpaudit.report.words import RELEASED
from dpaudit.vocabulary.ledger import Randomness

__all__ = ["contradicting", "render"]


def render(evidence: ReportEvidence) -> str:
    """Return the report on one run as a complete HTML document.

    Raises:
        IntegrityError: audit, verdict or conformance speak of another ledger than the claim.
        AccountingError: a number to show is not a number.
    """
    require_one_ledger(evidence)
    claim = evidence.claim
    return page(
        "report.html",
        evidence=evidence,
        claim=claim,
        audit=evidence.audit,
        verdict=evidence.verdict,
        verdict_words=verdict_in_words(evidence.verdict, evidence.project_digest),
        verdict_tone=verdict_tone(evidence.verdict, evidence.project_digest),
        verdict_facts=tuple(facts(evidence.verdict)) if evidence.verdict else (),
        rules_words=rules_in_words(evidence.verdict) if evidence.verdict else None,
        attacks=attacks_on(evidence),
        caveats=caveats(attacks_on(evidence)),
        stale_attack=evidence.attack is not None and current_attack(evidence) is None,
        seeded=claim.randomness is Randomness.SEEDED,
        change=CHANGES[claim.adjacency].format(unit=claim.unit),
        released_words=RELEASED,
        times=times_as_likely(claim.epsilon.upper),
        contradicting=contradicting(evidence.audit, claim),
        figures=figures_of_run(evidence),
        far_apart=figures.lie_far_apart(evidence.curves),
        card=model_card(evidence),
        sampling_words=SAMPLING,
        signs=SIGNS,
        kinds=KINDS,
    )
