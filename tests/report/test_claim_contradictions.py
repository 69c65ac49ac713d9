"""Whether lower bounds contradict a claim, in words."""

import pytest

from dpaudit.report.descriptions import contradiction_in_words, support_in_words
from dpaudit.vocabulary.audit import AuditResult, BoundKind

CERTIFIED, CONDITIONAL, ESTIMATE = BoundKind.CERTIFIED, BoundKind.CONDITIONAL, BoundKind.ESTIMATE


def bound(kind: BoundKind, epsilon: float, doubt: str | None = None) -> AuditResult:
    return AuditResult(
        f"canaries {kind.value}", "", kind, epsilon, 1e-5, 0.95, "nothing", 10, 10, 9, "none",
        inconclusive=doubt,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        ([bound(CERTIFIED, 2.0), bound(CONDITIONAL, 3.0)], "lower bound 2 (certified"),
        ([bound(CERTIFIED, 0.5), bound(CERTIFIED, 1.5)], "lower bound 1.5 (certified"),
        ([bound(CERTIFIED, 0.5), bound(CONDITIONAL, 3.0)], "if the assumptions of this bound hold"),
        ([bound(CERTIFIED, 2.0, "a doubt")], "lower bound 2 (certified"),
    ],
)
def test_a_certified_bound_above_the_claim_is_named_first(bounds, named: str) -> None:
    found = contradiction_in_words(bounds, 1.0)
    assert found is not None
    assert named in found
    assert support_in_words(bounds, 1.0) is None


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ([bound(CERTIFIED, 1.0)], "is not contradicted; this is no proof"),
        ([bound(ESTIMATE, 5.0)], "is not contradicted; this is no proof"),
        (
            [bound(CERTIFIED, 0.0, "a doubt")],
            "INCONCLUSIVE about the claimed epsilon of 1: a doubt",
        ),
        ([bound(CERTIFIED, 0.0, "a doubt"), bound(CERTIFIED, 0.2)], "is not contradicted"),
    ],
)
def test_other_bounds_contradict_nothing(bounds, said: str) -> None:
    assert contradiction_in_words(bounds, 1.0) is None
    assert said in str(support_in_words(bounds, 1.0))


@pytest.mark.parametrize(
    "words",
    [
        contradiction_in_words([bound(CERTIFIED, 5.0)], 3.0000004),
        support_in_words([bound(CERTIFIED, 1.0)], 3.0000004),
        support_in_words([bound(CERTIFIED, 0.0, "a doubt")], 3.0000004),
    ],
)
def test_the_claimed_epsilon_is_rounded_up(words: str | None) -> None:
    assert "the claimed epsilon of 3.001 is" in str(words) or "epsilon of 3.001: " in str(words)
