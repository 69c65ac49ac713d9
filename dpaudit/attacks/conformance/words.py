"""Findings from p-values, in words."""

from __future__ import annotations

import math

from dpaudit.attacks.conformance.effort import EACH
from dpaudit.vocabulary.conformance import Finding
from dpaudit.vocabulary.verdict import Outcome


def statistical(
    *,
    check: str,
    name: str,
    tested: str,
    p_value: float,
    seen: str,
    wrong: str,
    power: str,
    detectable: float | None,
) -> Finding:
    """Return what one exact test found: ``wrong`` is what it says where it convicts.

    A p-value that is not a number refutes nothing and supports nothing.
    """
    outcome = Outcome.VIOLATED if p_value <= EACH else Outcome.HOLDS
    known = math.isfinite(p_value)
    return Finding(
        check=check,
        name=name,
        outcome=outcome if known else Outcome.INCONCLUSIVE,
        tested=tested,
        why=wrong if outcome is Outcome.VIOLATED else seen,
        power=power,
        p_value=p_value if known else None,
        level=EACH,
        detectable=detectable,
    )


def undecided(check: str, name: str, tested: str, why: str) -> Finding:
    """Return a finding that nothing could be found."""
    return Finding(
        check=check, name=name, outcome=Outcome.INCONCLUSIVE, tested=tested, why=why,
        power="none",
    )  # fmt: skip


def violated(check: str, name: str, tested: str, why: str) -> Finding:
    """Return a finding that leaves nothing to chance."""
    return Finding(
        check=check, name=name, outcome=Outcome.VIOLATED, tested=tested, why=why,
        power="exact: no chance is involved",
    )  # fmt: skip
