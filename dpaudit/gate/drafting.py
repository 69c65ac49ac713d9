"""A first policy, from what one run claims and what was measured of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from dpaudit.gate.audit_rules import powers
from dpaudit.gate.evidence import Evidence
from dpaudit.vocabulary.audit import AuditReport, BoundKind
from dpaudit.vocabulary.baseline import AttackRate
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.rounding import round_up
from dpaudit.vocabulary.verdict import Outcome

POWER_ROOM = 1.5
"""An audit's power is found by simulation, and differs from run to run."""


def draft(claim: Claim, evidence: Evidence, baseline: str | None) -> str:
    """Return the text of a dpaudit.toml that a run like this one passes.

    Secure randomness is demanded whatever the run had: a seeded run is for tests. Without the
    name of a ``baseline``, the section on regressions is a comment: there is nothing to compare
    with.
    """
    lines = [
        f"# Drafted from the run {_name(evidence)}: read every line, and make it yours.",
        *_claim(claim),
    ]
    if evidence.audit is not None and evidence.audit.ledger_head == claim.ledger_head:
        lines += ["", *_audit(evidence.audit, evidence)]
    else:
        lines += ["", "# No [audit]: the run was not audited (dpaudit audit RUN)."]
    if baseline is None:
        lines += ["", "# With dpaudit baseline write RUN, and gate --baseline baseline.json:"]
        lines += [f"# {line}" for line in _regression(evidence)]
    else:
        lines += [
            "",
            f"# dpaudit gate RUN --baseline {_printable(baseline)}",
            *_regression(evidence),
        ]
    return "\n".join(lines) + "\n"


def _name(evidence: Evidence) -> str:
    return _printable("" if evidence.booked is None else evidence.booked.run)


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _claim(claim: Claim) -> Iterator[str]:
    seeded = claim.randomness is Randomness.SEEDED
    yield "[claim]"
    yield f"max_epsilon = {_up(claim.epsilon.upper)}  # the run's own is the largest allowed"
    yield f"delta = {claim.delta!r}"
    if claim.accountant in {"naive", "rdp", "pld"}:  # a filter is none that a policy can ask for
        yield f"accountant = {_quoted(claim.accountant)}  # whose upper bound counts"
    yield f"adjacency = {_quoted(claim.adjacency.value)}"
    yield f"unit = {_quoted(claim.unit.value)}"
    yield f"released = {_quoted(claim.released.value)}"
    yield f"sampling = [{_quoted(claim.sampling.value)}]"
    yield f"require_secure_randomness = true{'  # this run was seeded' if seeded else ''}"
    listed = ", ".join(_quoted(item) for item in claim.leaves_out)
    yield f"may_leave_out = [{listed}]  # each of these was not paid for"


def _audit(audit: AuditReport, evidence: Evidence) -> Iterator[str]:
    kinds = {bound.kind for bound in audit.bounds} - {BoundKind.ESTIMATE}
    yield "[audit]"
    yield f"confidence = {audit.confidence!r}"
    if kinds:
        listed = ", ".join(_quoted(kind.value) for kind in BoundKind if kind in kinds)
        yield f"count = [{listed}]  # whose excess over the claim violates"
    conforms = evidence.conformance is not None and evidence.conformance.verdict is Outcome.HOLDS
    if conforms:
        yield "require_conformance = true"
    stated = evidence.stated
    seen = min(powers(audit.bounds, stated), default=stated.least)
    if seen > stated.least:
        excess = _up(POWER_ROOM * (seen - stated.least))
        yield f"min_power_epsilon = {excess}  # such an excess an audit must be able to see"
    worst = {rate.fpr: rate for rate in sorted(evidence.rates, key=lambda rate: rate.tpr.upper)}
    if worst:
        most = {fpr: min(1.0, rate.tpr.upper + _chance(rate)) for fpr, rate in worst.items()}
        inside = ", ".join(f'"{fpr!r}" = {_up(tpr)}' for fpr, tpr in sorted(most.items()))
        yield f"max_tpr_at_fpr = {{ {inside} }}  # the upper end of the interval counts"


def _chance(rate: AttackRate) -> float:
    """Return how far the same attack on a run of the same kind may well come to lie higher."""
    return rate.tpr.width / 2


def _regression(evidence: Evidence) -> Iterator[str]:
    yield "[regression]"
    yield "max_epsilon_increase = 0.0"
    if evidence.rates:
        yield f"max_tpr_increase = {_up(max(_chance(rate) for rate in evidence.rates))}"


def _up(value: float) -> str:
    """Return a TOML float in four digits, never below ``value``."""
    text = round_up(value)
    return text if set(text) & set(".e") else f"{text}.0"


def _quoted(text: str) -> str:
    """Return a TOML basic string: JSON's, but for one control that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
