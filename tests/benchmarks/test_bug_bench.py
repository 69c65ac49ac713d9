"""The bench of public faults: its catalogue, its judgment, and the page that it fills."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from places import ROOT

pytest.importorskip("torch", reason="the entries train with torch")

BENCH = ROOT / "benchmarks" / "bug_bench"
PAGE = ROOT / "docs" / "reference" / "bug_bench.md"
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("bug-bench-*.json"))


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """Import the bench as ``python benchmarks/bug_bench`` does, and leave no module behind."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCH))
    try:
        yield _main()
    finally:
        sys.path.remove(str(BENCH))
        own = {path.stem for path in BENCH.glob("*.py")}
        for name in (set(sys.modules) - before) & own:
            del sys.modules[name]


def _main() -> ModuleType:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("bug_bench_main", BENCH / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_catalogue_has_enough_entries_that_are_executed(bench: ModuleType) -> None:
    found = bench.entries()
    executed = [one for one in found if one.evidence == "executed"]
    assert len(found) >= 25
    assert len(executed) >= 15
    assert len({one.name for one in found}) == len(found)


def test_every_package_is_pinned_and_every_gap_explained(bench: ModuleType) -> None:
    for one in bench.entries():
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+(post\d+)?", pin) for pin in one.packages)
        assert one.audit or one.why_not, one.name


def test_a_result_is_detected_only_by_a_failure_or_a_larger_bound(bench: ModuleType) -> None:
    fault = next(one for one in bench.entries() if one.shown_by == "NaN features")
    found = {
        "verdict": "FAIL", "failed": ["replay, ordinary: y"], "lower": 0.5, "claimed": 1.0,
        "kind": "certified",
    }  # fmt: skip
    assert bench.result_of(fault, found).startswith("not detected")
    assert bench.result_of(fault, {**found, "lower": 1.5}) == "detected by the lower bound"
    failed = {**found, "failed": ["replay, NaN features: y"]}
    assert bench.result_of(fault, failed) == "detected by conformance"
    both = "detected by conformance and the lower bound"
    assert bench.result_of(fault, {**failed, "lower": 1.5}) == both
    assert bench.result_of(fault, {"error": "x"}) == "not run: x"


def test_the_bound_of_steps_is_small_for_equal_laws_and_large_for_different_ones(
    bench: ModuleType,
) -> None:
    import step_audits

    def law(mean: float, deviation: float) -> object:
        return lambda seed: np.random.default_rng(seed).normal(mean, deviation, 50)

    same = step_audits.Neighbors(law(0, 1), law(0, 1))
    assert step_audits.bound_of(same, runs=200).epsilon < 0.5
    for other in (law(2, 1), law(0, 3), lambda seed: np.full(50, np.nan)):
        bound = step_audits.bound_of(step_audits.Neighbors(law(0, 1), other), runs=200)
        assert bound.epsilon > 2.5


def test_the_page_shows_the_latest_results(bench: ModuleType, tmp_path: Path) -> None:
    kept = json.loads(RESULTS[-1].read_text())
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    bench.fill(page, kept["results"], kept["date"])
    assert page.read_text() == PAGE.read_text()
    shown = [one for one in bench.entries() if one.evidence == "executed"]
    assert {one.name for one in shown} <= set(kept["results"])
