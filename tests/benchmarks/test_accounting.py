"""The benchmark runs without any peer, survives what breaks, and counts what it claims to."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from side_by_side import at_random, plans, tables
from side_by_side.clock import answer, timed

from dpaudit.vocabulary.errors import InvalidArgument


def run(*arguments: object) -> str:
    """Return what the benchmark prints, in an environment whose threads nobody has set."""
    environment = {key: value for key, value in os.environ.items() if "THREADS" not in key}
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "accounting.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout


def test_the_random_section_prints_and_writes_every_question(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    printed = run("--only", "random", "--random", 3, "--seed", 4, "--json", target)
    figures = json.loads(target.read_text())["random"]
    asked = [str(question) for question in plans.random_questions(3, seed=4)]
    assert [row["question"] for row in figures["rows"]] == asked
    assert figures["summary"]["refusals"] + figures["summary"]["untyped_exceptions"] == 0
    assert "3 random plans, seed 4" in printed


@pytest.mark.slow
def test_every_section_runs_without_peers() -> None:
    printed = run("--random", 2, "--repeats", 1)
    assert printed.count("====\n") == 6


def test_importing_the_package_holds_libraries_to_one_thread() -> None:
    code = "import side_by_side, os; print(os.environ['OMP_NUM_THREADS'])"
    done = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT / "benchmarks", text=True)
    assert done == "1\n"


def test_a_seed_gives_the_same_questions_within_their_ranges() -> None:
    first = list(plans.random_questions(2_000, seed=1))
    assert first == list(plans.random_questions(2_000, seed=1))
    assert first != list(plans.random_questions(2_000, seed=2))
    for question in first:
        assert 1e-30 <= question.delta <= 1e-3
        for entry in question.plan.entries:
            assert 1e-6 <= entry.sampling_rate <= 1
            assert 0.3 <= entry.noise_multiplier <= 100
            assert 1 <= entry.steps <= 10**6
    several = [question for question in first if len(question.plan.entries) > 1]
    assert 150 < len(several) < 250


def test_a_nudged_plan_is_another_and_all_but_the_same() -> None:
    nudged = [plans.NAMED["A"].nudged(times) for times in range(10)]
    assert all(one != other for one, other in itertools.combinations(nudged, 2))
    assert nudged[9].entries[0].noise_multiplier == pytest.approx(1, rel=1e-12)


def failing(error: Exception) -> Any:
    def call(_: int) -> float:
        raise error

    return call


def test_an_error_is_a_result() -> None:
    failed = timed(failing(ZeroDivisionError("two\nlines")), 5)
    assert failed.value is None
    assert len(failed.milliseconds) == 1
    assert failed.why_not == "ZeroDivisionError: two lines"
    assert answer(lambda: 1 / 0) == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidArgument("steps", 0, "positive"), "refusal"),
        (ZeroDivisionError("0"), "untyped exception"),
        (MemoryError(), "untyped exception"),
    ],
)
def test_refusals_and_bugs_are_distinguished(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str
) -> None:
    monkeypatch.setattr(at_random.ours, "epsilon", lambda *_: failing(error)(0))
    measured = at_random.measure(count=2, seed=1)
    assert all(kind in row for row in measured["rows"])
    assert measured["summary"][kind.replace(" ", "_") + "s"] == 2
    shown = at_random.show(measured)
    assert shown.count(type(error).__name__) == 2


@pytest.mark.parametrize(
    ("width", "relative", "wide"),
    [
        (1e-7, 1.0, False),
        (1.0, 1e-4, False),
        (1e-5, 2e-3, True),
        (math.nan, math.nan, True),
        (1e-5, math.nan, True),
    ],
)
def test_an_interval_is_wide_unless_one_width_is_met(
    width: float, relative: float, wide: bool
) -> None:
    assert at_random.is_wide({"width": width, "relative": relative}) is wide


def test_a_quantile_is_a_value_that_enough_do_not_exceed() -> None:
    assert tables.quantile(range(1, 101), 0.99) == 99
    assert tables.quantile([3.0, 1.0, 2.0], 0.5) == 2
    assert math.isnan(tables.quantile([], 0.5))
