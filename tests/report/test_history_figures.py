"""The course of many runs as a picture: whatever there is of them is drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from dpaudit.report.history_figures import OUTCOME_MARKERS, write_history_plot
from dpaudit.report.text import history_text
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.verdict import Outcome, PastRun


def past(number: int = 0, **changes: object) -> PastRun:
    plain = PastRun(
        run=f"run {number}",
        ledger_head="ab" * 32,
        judged=datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=number),
        outcome=list(Outcome)[number % 3],
        epsilon_upper=2.98461,
        delta=1e-5,
        steps=100,
        accountant="pld",
        adjacency=Adjacency.ADD_OR_REMOVE_ONE,
        dpaudit_version="0.1.0",
    )
    return msgspec.structs.replace(plain, **changes)


def drawn(runs: list[PastRun], folder: Path) -> str:
    path = folder / "course.svg"
    write_history_plot(runs, path)
    return path.read_text()


def test_outcomes_differ_in_shape_as_well_as_in_colour() -> None:
    assert set(OUTCOME_MARKERS) == set(Outcome)
    colours, markers = zip(*OUTCOME_MARKERS.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(Outcome)


@pytest.mark.parametrize("count", [1, 2, 3, 200])
def test_every_number_of_runs_is_drawn_with_the_outcomes_it_has(tmp_path: Path, count: int) -> None:
    said = drawn([past(number) for number in range(count)], tmp_path)
    shown = {outcome for outcome in Outcome if f">{outcome.value}<" in said}
    assert shown == set(list(Outcome)[: min(3, count)])
    assert "run 0" in said


def test_what_was_not_measured_has_no_place_in_the_picture(tmp_path: Path) -> None:
    bare = drawn([past(0), past(1)], tmp_path)
    assert "measured" not in bare
    assert "true-positive" not in bare
    full = drawn([past(0), past(1, epsilon_lower=1.0), past(2, fpr=0.01, tpr=0.02)], tmp_path)
    assert "measured lower bound" in full
    assert "at FPR 0.01" in full


def test_runs_at_several_deltas_are_said_not_to_compare(tmp_path: Path) -> None:
    assert "at delta 1e-05" in drawn([past(0), past(1)], tmp_path)
    said = drawn([past(0), past(1, delta=1e-6)], tmp_path)
    assert "the runs differ in delta: these figures do not compare" in said


def test_a_name_is_text_and_no_formula_and_no_markup(tmp_path: Path) -> None:
    names = ["$\\frac{1}{", "<script>x</script>", "a\x00\nb", "", "名前 🎲", "_hidden"]
    said = drawn([past(n, run=name) for n, name in enumerate(names)], tmp_path)
    root = ET.fromstring(said)
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert "frac" in said
    assert "_hidden" in said


def test_the_same_history_is_the_same_file(tmp_path: Path) -> None:
    runs = [past(number) for number in range(3)]
    assert drawn(runs, tmp_path) == drawn(runs, tmp_path)


@pytest.mark.parametrize("name", ["course.pdf", "course", "nowhere/course.svg"])
def test_a_place_that_holds_no_picture_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="plot"):
        write_history_plot([past()], tmp_path / name)


def test_empty_plot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="verdict"):
        write_history_plot([], tmp_path / "course.svg")


def test_the_table_rounds_against_the_claim_and_says_what_was_not_measured() -> None:
    rows = history_text(
        [past(0), past(1, epsilon_lower=1.23456, fpr=0.01, tpr=0.023451, accuracy=0.9)]
    ).splitlines()
    assert rows[1].split()[2:] == ["run", "0", "PASS", "2.985", "-", "1e-05", "-", "-", "100"]
    assert "1.234 " in rows[2]
    assert "0.02346 at FPR 0.01" in rows[2]
    assert "90.0%" in rows[2]


def test_a_name_cannot_break_the_table() -> None:
    rows = history_text([past(0, run="a\nb\x1b[2J"), past(1, run="")]).splitlines()
    assert len(rows) == 5
    assert "\x1b" not in "".join(rows)
    assert "unnamed" in rows[2]
