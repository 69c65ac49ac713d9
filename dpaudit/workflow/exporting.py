"""What other tools are told of a run: parameters, figures over the steps, tags."""

from __future__ import annotations

from dataclasses import dataclass

from dpaudit.report.evidence import ReportEvidence
from dpaudit.report.words import claim_in_words
from dpaudit.runs.directory import RunDirectory
from dpaudit.vocabulary.audit import MembershipResult
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.workflow.histories import largest_lower, steps_of
from dpaudit.workflow.reporting import gather

NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Figure:
    """One number of a run after ``step`` steps.

    ``name`` is of letters, digits and ``_./ -`` alone, as every tool takes it.
    """

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class Exported:
    """One run, as other tools are told of it.

    Attributes:
        run: The name of its directory.
        claim: One sentence, without which the figures mean nothing.
        parameters: What was asked of it, and what the claim rests on.
        figures: Upper bounds of epsilon at a few steps, and at the last one what was measured.
        tags: The verdict, and what identifies the run.
        evidence: All that its report shows.
    """

    run: str
    claim: str
    parameters: dict[str, str]
    figures: tuple[Figure, ...]
    tags: dict[str, str]
    evidence: ReportEvidence


def exported(run: RunDirectory) -> Exported:
    """Return what there is to tell of a finished run; what was not measured is not there.

    Raises:
        IntegrityError: the run is unfinished, a file is missing or altered, or audit or
            verdict are of another ledger.
    """
    ledger, evidence = run.read_finished(), gather(run)
    _require_one_ledger(evidence)
    claim, verdict = evidence.claim, evidence.verdict
    return Exported(
        run=evidence.run,
        claim=claim_in_words(claim),
        parameters=_parameters(run, evidence),
        figures=(*_course(evidence), *_measured(evidence, steps_of(ledger))),
        tags={
            "dpaudit.verdict": NOT_JUDGED if verdict is None else verdict.outcome.value,
            "dpaudit.ledger_head": claim.ledger_head,
            "dpaudit.version": claim.dpaudit_version,
        },
        evidence=evidence,
    )


def _course(evidence: ReportEvidence) -> tuple[Figure, ...]:
    """Return the claiming accountant's upper bounds at a few steps."""
    name = f"epsilon_at_most/{evidence.claim.accountant}"
    return tuple(
        Figure(name, epsilon, step)
        for curve in evidence.curves
        if curve.accountant == evidence.claim.accountant
        for step, epsilon in zip(curve.steps, curve.epsilon, strict=True)
    )


def _measured(evidence: ReportEvidence, last: int) -> tuple[Figure, ...]:
    claim, audit = evidence.claim, evidence.audit
    found = [("epsilon_claimed_at_most", claim.epsilon.upper)]
    if audit is not None:
        lower = largest_lower(audit.bounds, claim.delta)
        found += [] if lower is None else [("epsilon_at_least", lower)]
        found += [rate for result in audit.membership for rate in _rates(result)]
        accuracy = audit.heldout_accuracy
        found += [] if accuracy is None else [("heldout_accuracy", accuracy)]
    return tuple(Figure(name, value, last) for name, value in found)


def _rates(result: MembershipResult) -> list[tuple[str, float]]:
    """Return the upper ends of an attack's rates; what is inconclusive is no evidence."""
    if result.inconclusive is not None:
        return []
    attack = "".join(c if c.isascii() and c.isalnum() else "_" for c in result.attack)
    return [
        (f"tpr_at_most/{attack}/fpr_{rate.fpr:g}", rate.interval.upper)
        for rate in result.tpr_at_fpr
    ]


def _parameters(run: RunDirectory, evidence: ReportEvidence) -> dict[str, str]:
    claim = evidence.claim
    said = {
        "delta": f"{claim.delta!r}",
        "accountant": claim.accountant,
        "adjacency": claim.adjacency.value,
        "sampling": claim.sampling.value,
        "randomness": claim.randomness.value,
        "unit": claim.unit.value,
        "released": claim.released.value,
        "releases": str(claim.releases),
        "leaves_out": ", ".join(claim.leaves_out) or "nothing that is known",
        "mechanism": evidence.mechanism_in_words,
    }
    return said | (_settings(run) if run.config.exists() else {})


def _settings(run: RunDirectory) -> dict[str, str]:
    config = run.read_config()
    privacy, model = config.privacy, config.model
    return {
        "noise_multiplier": f"{privacy.noise_multiplier!r}",
        "sampling_rate": f"{privacy.sampling_rate!r}",
        "clip_norm": f"{privacy.clip_norm!r}",
        "steps": str(privacy.steps),
        "model": model.model,
        "optimizer": model.optimizer,
    }


def _require_one_ledger(evidence: ReportEvidence) -> None:
    head = evidence.claim.ledger_head
    for name, part in (("audit", evidence.audit), ("verdict", evidence.verdict)):
        if part is not None and part.ledger_head != head:
            raise IntegrityError(
                f"the {name} is of another ledger than the claim: make the {name} again"
            )
