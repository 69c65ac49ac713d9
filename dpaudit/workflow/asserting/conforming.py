"""Whether a trainer does what is claimed of its steps."""

from __future__ import annotations

from dpaudit.vocabulary.conformance import ConformanceResult, Finding
from dpaudit.vocabulary.verdict import Outcome
from dpaudit.workflow.asserting.words import told

WRONG = {
    Outcome.VIOLATED: "the trainer does not do what it claims",
    Outcome.INCONCLUSIVE: "whether the trainer does what it claims cannot be told",
}


def why_not_conforming(result: ConformanceResult) -> str:
    """Return why not, finding by finding, what refutes first; empty: every finding holds."""
    if result.verdict is Outcome.HOLDS:
        return ""
    open_ = [f for f in result.findings if f.outcome is Outcome.INCONCLUSIVE]
    counted = f"{len(result.violations)} refute the claim, {len(open_)} cannot be told"
    of = f"of {len(result.findings)} findings {counted}"
    chance = f"a trainer that does what it claims fails once in {1 / result.level:,.0f} checks"
    told_ = [_finding(finding) for finding in (*result.violations, *open_)]
    return "\n".join([f"{WRONG[result.verdict]}: {of}", *told_, f"({chance})"])


def _finding(finding: Finding) -> str:
    return told(
        f"{finding.outcome.value} {finding.check}, {finding.name}",
        ("tested", finding.tested),
        ("seen", finding.why),
        ("power", finding.power),
    )
