"""The text of a verdict: an outcome, then a line a rule."""

from __future__ import annotations

import unicodedata

from hypothesis import given

from dpaudit.report.verdicts.text import verdict_text
from dpaudit.vocabulary.verdict import Verdict
from tests.report.verdicts.verdicts import FAIL, PASS, UNKNOWN, WAIVED, judged, verdicts


def test_the_outcome_comes_first_then_aligned_rules() -> None:
    text = verdict_text(judged(PASS, FAIL).verdict)
    assert text.partition("\n\n")[0].split("\n") == [
        "FAIL",
        "PASS  claim.sampling     sampling was poisson",
        "FAIL  claim.max_epsilon  epsilon is at most 4, allowed is 3",
    ]


def test_a_waived_rule_says_its_outcome_until_when_and_why() -> None:
    text = verdict_text(judged(WAIVED).verdict)
    assert text.partition("\n\n")[0].split("\n") == [
        "INCONCLUSIVE (every rule of audit is waived)",
        "WAIVED        audit.evidence  INCONCLUSIVE: the run was not audited; waived until "
        "2027-01-31: audited by hand",
        "INCONCLUSIVE  policy          every rule is waived, so there is no evidence",
    ]


def test_a_warning_is_called_one() -> None:
    first = verdict_text(judged(UNKNOWN, warn=True).verdict).split("\n")[0]
    assert first == "INCONCLUSIVE (a warning only: --inconclusive warn)"
    violated = verdict_text(judged(UNKNOWN, FAIL, warn=True).verdict).split("\n")[0]
    assert violated == "FAIL"


def test_no_rules_are_said_to_be_no_evidence() -> None:
    text = verdict_text(judged().verdict)
    assert text.startswith("INCONCLUSIVE\nINCONCLUSIVE  policy  the policy has no rule")


@given(verdicts)
def test_nothing_in_it_steers_a_terminal(verdict: Verdict) -> None:
    text = verdict_text(verdict).replace("\n", "")
    kinds = {unicodedata.category(char) for char in text}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(char) for char in text} & {"RLO", "LRO", "RLE", "LRE"}
