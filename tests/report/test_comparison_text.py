"""Two runs in words: figures in columns, rounded against us, then the causes."""

from __future__ import annotations

from msgspec.structs import replace

from dpaudit.gate.run_differences import DifferenceCost, RunComparison, find_differences
from dpaudit.report.verdicts.text import comparison_text
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.privacy_terms import Bound
from tests.gate.figures import CLAIM, RUN


def told(after: Baseline, epsilon: float | None = None) -> str:
    costs = tuple(DifferenceCost(one, epsilon) for one in find_differences(RUN, after))
    return comparison_text(RunComparison(before=RUN, after=after, costs=costs))


def test_upper_ends_are_rounded_up_and_lower_bounds_down() -> None:
    claim = replace(CLAIM, epsilon=Bound(0.0, 4.00001))
    bound = replace(RUN.bounds[0], epsilon_lower=1.99999)
    text = told(replace(RUN, claim=claim, bounds=(bound,)))
    assert "4.001" in text
    assert "1.999" in text


def test_what_one_run_lacks_was_not_measured() -> None:
    lines = told(replace(RUN, bounds=(), rates=())).splitlines()
    assert [line.endswith("not measured") for line in lines[2:4]] == [True, True]


def test_cause_states_its_cost_if_known() -> None:
    after = replace(RUN, recorded=(replace(RUN.recorded[0], times=7), RUN.recorded[1]))
    assert "steps (gradient sum) was 1000, is 7: lowers epsilon" in told(after)
    assert "with this change alone: upper bound on epsilon 1.235" in told(after, 1.23401)
    assert "by itself" not in told(after)


def test_runs_that_do_not_differ_say_so() -> None:
    assert told(RUN).endswith("no differences")


def test_no_name_steers_the_terminal() -> None:
    text = told(replace(RUN, run="\x1b[31mred\nline", versions={"torch\x07": "2"}))
    assert not {"\x1b", "\x07"} & set(text)
