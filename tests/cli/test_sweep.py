"""``dpaudit sweep``: a table of epsilons over a grid of plans."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pytest
from calling import Call

GRID = (
    "--sampling-rate", "0.01,0.02", "--noise-multiplier", "0.8:3.2:3", "--steps", "1000",
    "--delta", "1e-5",
)  # fmt: skip


def rows_of(text: str) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(text))]


def test_every_combination_is_a_row_with_both_bounds(call: Call) -> None:
    rows = rows_of(call("sweep", *GRID).out)
    assert [(row["sampling_rate"], row["noise_multiplier"]) for row in rows] == [
        (rate, noise) for rate in (0.01, 0.02) for noise in (0.8, pytest.approx(1.6), 3.2)
    ]
    assert all(0 < row["epsilon_lower"] <= row["epsilon_upper"] for row in rows)
    assert rows[0]["epsilon_upper"] == pytest.approx(3.141, abs=1e-3)


def test_a_file_holds_the_same_table_as_standard_output(call: Call, tmp_path: Path) -> None:
    target = tmp_path / "sweep.csv"
    assert call("sweep", *GRID, "--output", target).code == 0
    assert target.read_text() == call("sweep", *GRID).out


def test_parquet_holds_the_same_numbers(call: Call, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    target = tmp_path / "sweep.parquet"
    assert call("sweep", *GRID, "--format", "parquet", "--output", target).code == 0
    table = parquet.read_table(target).to_pylist()
    assert table == rows_of(call("sweep", *GRID).out)


def test_parquet_without_its_library_is_an_error_with_the_extra(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = call("sweep", *GRID, "--format", "parquet", "--output", tmp_path / "sweep.parquet")
    assert result.code == 2
    assert "dpaudit[scores]" in result.err


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--sampling-rate", "2", "sampling_rate"),
        ("--sampling-rate", "", "sampling_rate"),
        ("--steps", "1.5", "steps"),
        ("--steps", "10:1:5", "with 0 < LOW <= HIGH"),
        ("--noise-multiplier", "1:2", "noise_multiplier"),
        ("--noise-multiplier", "0:2:5", "noise_multiplier"),
        ("--delta", "nan", "delta"),
        ("--steps", "1:1e9:100000000", "steps"),
        ("--steps", "9007199254740993", "2^53"),
        ("--steps", "1:1e17:3", "2^53"),
    ],
)
def test_bad_values_are_refused_by_name(call: Call, option: str, value: str, named: str) -> None:
    result = call("sweep", *GRID, option, value)
    assert result.code == 2
    assert named in result.err


def test_parquet_needs_a_file(call: Call) -> None:
    result = call("sweep", *GRID, "--format", "parquet")
    assert result.code == 2
    assert "--output" in result.err


def test_a_missing_option_is_named_as_by_every_command(call: Call) -> None:
    result = call("sweep", *GRID[:6])
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith("DPA102: missing option --delta\n")
    assert call("conformance").err.endswith("DPA102: missing argument RUN|pkg.mod:FACTORY\n")
