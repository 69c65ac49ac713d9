"""How many records would decide: a forecast that more records bear out."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dpaudit.attacks.membership.evaluation import evaluate
from dpaudit.attacks.membership.scores import MembershipScores
from dpaudit.gate.audit_rules import records_to_decide


def scores(members: int, nonmembers: int, shift: float, seed: int) -> MembershipScores:
    rng = np.random.default_rng(seed)
    return MembershipScores(shift + rng.standard_normal(members), rng.standard_normal(nonmembers))


@pytest.mark.parametrize(("shift", "limit"), [(0.0, 0.3), (1.0, 0.2), (0.5, 0.4)])
def test_as_many_records_as_are_named_decide(shift: float, limit: float) -> None:
    few = evaluate("a", scores(100, 60, shift, 1), confidence=0.95)
    (rate,) = few.tpr_at_fpr
    assert rate.interval.lower <= limit < rate.interval.upper  # nothing is decided yet
    needed = records_to_decide(few, fpr=0.1, limit=limit, confidence=0.95)
    assert needed is not None
    assert needed.members > 100
    # A few records say little of the curve: twice as many as the forecast leave room for that.
    many = evaluate(
        "a", scores(2 * needed.members, 2 * needed.nonmembers, shift, 2), confidence=0.95
    )
    again = next(one for one in many.tpr_at_fpr if one.fpr == 0.1)
    assert again.interval.upper <= limit or again.interval.lower > limit


def test_a_rate_at_its_limit_is_never_decided() -> None:
    few = evaluate("a", scores(200, 100, 0.0, 3), confidence=0.95)
    (rate,) = (one for one in few.tpr_at_fpr if one.fpr == 0.1)
    curve = ((0.0, 0.0), (1.0, 1.0))
    straight = msgspec.structs.replace(few, roc=curve)
    assert rate.fpr == 0.1
    assert records_to_decide(straight, fpr=0.1, limit=0.1, confidence=0.95) is None


@pytest.mark.parametrize("confidence", [0.9, 0.999])
def test_more_confidence_needs_more_records(confidence: float) -> None:
    few = evaluate("a", scores(100, 60, 0.0, 1), confidence=0.95)
    needed = records_to_decide(few, fpr=0.1, limit=0.3, confidence=confidence)
    middle = records_to_decide(few, fpr=0.1, limit=0.3, confidence=0.95)
    assert needed is not None
    assert middle is not None
    assert (needed.members > middle.members) is (confidence > 0.95)
