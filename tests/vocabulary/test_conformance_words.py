"""The summary of a conformance result: the verdict, its causes, and what would decide it."""

from __future__ import annotations

from dpaudit.vocabulary.conformance import (
    ConformanceFinding,
    ConformanceResult,
    StepClaim,
    outcome_of_findings,
)
from dpaudit.vocabulary.conformance_words import MOST_CAUSES, conformance_details
from dpaudit.vocabulary.verdict import Outcome

CLAIM = StepClaim(noise_multiplier=1.0, clip_norm=1.0, sampling_rate=0.1, steps=5, update_scale=1.0)


def finding(
    name: str, outcome: Outcome, why: str = "why", check: str = "replay"
) -> ConformanceFinding:
    return ConformanceFinding(
        check=check, name=name, outcome=outcome, tested=f"T {name}", why=why, power=f"P {name}"
    )


def result(*findings: ConformanceFinding, assumptions: tuple[str, ...] = ()) -> ConformanceResult:
    return ConformanceResult(
        claim=CLAIM, findings=findings, level=1e-4, verdict=outcome_of_findings(findings),
        assumptions=assumptions,
    )  # fmt: skip


def test_verdict_and_counts_are_first_and_failures_precede_what_is_undecided() -> None:
    text = str(
        result(
            finding("first", Outcome.INCONCLUSIVE, "give more records"),
            finding("second", Outcome.PASS),
            finding("third", Outcome.FAIL, "records are not clipped"),
            assumptions=("NaN cannot occur",),
        )
    )
    assert text.splitlines() == [
        "FAIL: 3 tests (1 PASS, 1 FAIL, 1 INCONCLUSIVE)",
        "FAIL  replay, third: records are not clipped",
        "INCONCLUSIVE  replay, first: give more records",
        "PASS  replay: second; power of second: P second",
        "a trainer that implements its claim is rejected with a probability of at most 0.0001",
        "assumed: NaN cannot occur",
    ]


def test_tests_of_one_cause_share_a_line() -> None:
    cause = "no clipping (one record moved the sum by {} C)"
    whole = result(*(finding(f"probe {i}", Outcome.FAIL, cause.format(i)) for i in (7, 8, 9)))
    assert str(whole).splitlines()[1] == (
        "FAIL  replay, probe 7 and 2 more tests: no clipping (one record moved the sum by 7 C)"
    )


def test_equal_causes_of_other_outcomes_and_checks_are_kept_apart() -> None:
    text = str(
        result(
            finding("a", Outcome.FAIL),
            finding("b", Outcome.INCONCLUSIVE),
            finding("c", Outcome.FAIL, check="noise"),
        )
    )
    for expected in ("FAIL  replay, a: why", "FAIL  noise, c: why", "INCONCLUSIVE  replay, b: why"):
        assert expected in text.splitlines()


def test_number_of_causes_is_limited_and_the_rest_is_counted() -> None:
    many = [finding(f"n{i}", Outcome.FAIL, f"cause {i}") for i in range(MOST_CAUSES + 3)]
    lines = str(result(*many)).splitlines()
    assert sum(line.startswith("FAIL  ") for line in lines) == MOST_CAUSES
    assert "and 3 more: see the details" in lines


def test_details_have_every_test() -> None:
    whole = result(finding("a", Outcome.PASS), finding("b", Outcome.FAIL))
    details = conformance_details(whole)
    for name in ("a", "b"):
        assert f"    tested: T {name}\n    power: P {name}" in details
