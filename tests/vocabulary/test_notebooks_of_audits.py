"""Tables of bounds, audits and conformance results in notebooks."""

from __future__ import annotations

from typing import Any

import pytest

from dpaudit.accountants.gdp_summary import GdpSummary
from dpaudit.attacks.conformance import ConformanceFinding, StepClaim, conformance_result
from dpaudit.vocabulary.audit import AuditReport, AuditResult, BoundKind
from dpaudit.vocabulary.privacy_terms import Bound
from dpaudit.vocabulary.verdict import Outcome

HOSTILE = "<script>alert(1)</script>"


def audit(name: str = "canaries") -> AuditReport:
    bound = AuditResult(
        name=name, method="m", epsilon_lower=1.23499, delta=1e-5, kind=BoundKind.CONDITIONAL,
        confidence=0.95, assumes="a", trials=9, guesses=0, correct=0, thresholds="t",
        inconclusive="equal scores",
    )  # fmt: skip
    return AuditReport("0" * 64, 0.95, (bound,), (), heldout_accuracy=0.5)


def conformance(why: str = "nothing") -> Any:
    finding = ConformanceFinding(
        check="noise", name="scale", outcome=Outcome.FAIL, tested="t", why=why, power="p"
    )
    claim = StepClaim(
        noise_multiplier=1.0, clip_norm=1.0, sampling_rate=0.1, steps=5, update_scale=1.0
    )
    return conformance_result(claim, [finding])


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Bound(1.23456, 1.23456), ("<td>1.234</td>", "<td>1.235</td>")),
        (Bound(-1.23456, 0.0), ("<td>-1.235</td>", "<td>0</td>")),
        (GdpSummary(Bound(0.5, 0.5001), Bound(0.0, 1e-4), 1e-10, 9), ("0.5 to 0.5001", "1e-10")),
        (
            audit(),
            (
                "1.234 at delta 1e-05 (conditional, confidence 0.95); inconclusive: equal scores",
                "lower bound on epsilon, canaries",
                "50.0%",
            ),
        ),
        (conformance(), ("Conformance: FAIL", "noise, scale", "nothing")),
    ],
)
def test_result_is_a_table_with_its_numbers(result: Any, expected: tuple[str, ...]) -> None:
    html = result._repr_html_()
    assert html.startswith("<table><caption>")
    for text in expected:
        assert text in html


@pytest.mark.parametrize("result", [audit(HOSTILE), conformance(HOSTILE)])
def test_names_are_text_and_no_markup(result: Any) -> None:
    html = result._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
