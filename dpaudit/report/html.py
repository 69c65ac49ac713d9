"""The report as one HTML page: offline, without scripts, nothing in it but the evidence.

Whatever the evidence's strings hold is text: the template escapes it, the figures too.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from dpaudit.report import figures
from dpaudit.report.evidence import Curve, ReportEvidence
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind, MembershipResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, MissingExtra
from dpaudit.vocabulary.ledger import Randomness, Sampling
from dpaudit.vocabulary.rounding import in_digits, round_down, round_near, round_up
from dpaudit.vocabulary.verdict import Outcome

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
except ImportError as error:  # pragma: no cover - needs an environment without jinja2
    raise MissingExtra("jinja2", "report") from error

DIGITS = 4

# Controls that would turn the words after them around, or that no file can carry.
UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

CHANGES = {
    Adjacency.ADD_OR_REMOVE_ONE: "adding or removing any one record",
    Adjacency.REPLACE_ONE: "replacing any one record by any other",
    Adjacency.ZERO_OUT: "replacing any one record by one that contributes nothing",
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


def render(evidence: ReportEvidence) -> str:
    """Return the report on one run as a complete HTML document.

    Raises:
        IntegrityError: audit or verdict speak of another ledger than the claim.
        AccountingError: a number to show is not a number.
    """
    _require_one_ledger(evidence)
    claim = evidence.claim
    template = _environment().get_template("report.html")
    page = template.render(
        evidence=evidence,
        claim=claim,
        audit=evidence.audit,
        verdict=evidence.verdict,
        seeded=claim.randomness is Randomness.SEEDED,
        change=CHANGES[claim.adjacency],
        times=_times_as_likely(claim.epsilon.upper),
        contradicting=contradicting(evidence.audit, claim),
        figures=_figures(evidence),
        far_apart=figures.lie_far_apart(evidence.curves),
        sampling_words=SAMPLING,
        signs=SIGNS,
        kinds=KINDS,
    )
    return UNWRITABLE.sub("\ufffd", page)


def exact(value: float) -> str:
    """Return a given number, such as a delta, just as it was given."""
    return repr(float(value))


def contradicting(audit: AuditReport | None, claim: Claim) -> tuple[AuditResult, ...]:
    """Return the lower bounds that lie above the claim.

    Epsilon falls as delta grows: a bound at a delta below the claim's says nothing of it.
    """
    return tuple(
        bound
        for bound in (audit.bounds if audit else ())
        if bound.kind is not BoundKind.ESTIMATE
        and bound.delta >= claim.delta
        and not bound.epsilon_lower <= claim.epsilon.upper
    )


def _require_one_ledger(evidence: ReportEvidence) -> None:
    head = evidence.claim.ledger_head
    for name, part in (("audit", evidence.audit), ("verdict", evidence.verdict)):
        if part is not None and part.ledger_head != head:
            raise IntegrityError(
                f"the {name} is of ledger {part.ledger_head}, the claim of ledger {head}: "
                f"make the {name} again before reporting"
            )


def _times_as_likely(epsilon: float) -> str | None:
    """Return e^epsilon rounded up; None where it is too large to mean anything."""
    if not epsilon <= 50:
        return None
    nearest = Decimal(repr(float(epsilon))).exp()  # in 28 digits, perhaps just below the truth
    return in_digits(nearest.next_plus() if epsilon else nearest, ROUND_CEILING)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dpaudit.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "up": round_up,
        "down": round_down,
        "near": round_near,
        "exact": exact,
    }
    return environment


def _figures(evidence: ReportEvidence) -> dict[str, Markup]:
    """Return the figures that there is evidence for, each with its words for the blind."""
    claim, drawn = evidence.claim, {}
    curves = [curve for curve in evidence.curves if curve.steps]
    if curves:
        drawn["steps"] = figures.epsilon_against_steps(curves, label=_curves_in_words(curves))
    if evidence.profile:
        label = (
            f"The interval of epsilon falls as delta grows; the claim is marked at "
            f"delta {exact(claim.delta)}, epsilon at most {round_up(claim.epsilon.upper)}."
        )
        drawn["profile"] = figures.privacy_profile(evidence.profile, claim, label=label)
    if evidence.audit and evidence.audit.bounds:
        label = _bounds_in_words(evidence.audit.bounds, claim)
        drawn["audit"] = figures.audit_bounds(
            evidence.audit.bounds, claim.epsilon.upper, claim.delta, label=label
        )
    attacks = [a for a in (evidence.audit.membership if evidence.audit else ()) if a.roc]
    if attacks:
        drawn["roc"] = figures.roc(attacks, label=_attacks_in_words(attacks))
    # Safe: the figures escape what they draw, and hold no element but drawing.
    return {name: Markup(svg) for name, svg in drawn.items()}


def _curves_in_words(curves: list[Curve]) -> str:
    ends = (
        f"{curve.accountant} {round_up(curve.epsilon[-1])} at step {curve.steps[-1]}"
        for curve in curves
    )
    return f"Epsilon grows with the steps. It is at most: {'; '.join(ends)}."


def _bounds_in_words(bounds: tuple[AuditResult, ...], claim: Claim) -> str:
    each = (
        f"{bound.name} ({bound.kind.value}) {round_down(bound.epsilon_lower)}" for bound in bounds
    )
    upper = round_up(claim.epsilon.upper)
    return f"Epsilon at least, by audit: {'; '.join(each)}. The claim: at most {upper}."


def _attacks_in_words(attacks: list[MembershipResult]) -> str:
    areas = (f"{attack.attack} {round_near(attack.auc)}" for attack in attacks)
    return (
        "True-positive against false-positive rate on logarithmic axes, with the diagonal of "
        f"blind guessing. Area under the curve: {'; '.join(areas)}."
    )
