"""The benchmark of selective SGD: its cells on few records, its tables, its committed figures."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dssgd
import pytest
import torch
from dssgd import Cell, Split
from places import ROOT

from dpaudit.accountants import pld
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated


@pytest.fixture
def split() -> Split:
    """Images of two classes that a few steps can tell apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(640) % 2
    features = torch.randn(640, 28, 28, generator=generator) * 0.3
    features[labels == 1, :14] += 1.0
    return Split(features, labels)


@pytest.mark.parametrize(
    "cell",
    [
        Cell("mlp", "dssgd", 2, 0.1, 2),
        Cell("mlp", "dssgd", 2, 0.5, 2, bound=0.1, selection="threshold", epsilon_per_entry=1e4),
        Cell("mlp", "corrected", 2, 0.1, 3, learning_rate=1.0, local_steps=2, epsilon=50.0),
        Cell("mlp", "pooled", 2, rounds=1),
        Cell("mlp", "dssgd", 2, 0.5, 2, input_dropout=0.15, hidden_dropout=0.1),
    ],
    ids=lambda cell: f"{cell.name}-dropout-{cell.hidden_dropout:g}",
)
def test_every_kind_of_cell_learns_on_few_records(cell: Cell, split: Split) -> None:
    found = dssgd.measure(cell, split, split)
    assert found["accuracy"] > 80
    assert dssgd.measure(cell, split, split)["accuracy"] == found["accuracy"]
    assert Cell(**json.loads(json.dumps(found["settings"]))) == cell


def test_dropout_is_of_training_alone(split: Split) -> None:
    cell = Cell("mlp", "pooled", 2, input_dropout=0.15, hidden_dropout=0.1)
    flat = dssgd.new_model(cell, split)
    plain = dssgd.new_model(replace(cell, input_dropout=0.0, hidden_dropout=0.0), split)
    assert (flat.read() == plain.read()).all()
    flat.model.train()
    assert [m.p for m in flat.model if isinstance(m, torch.nn.Dropout)] == [0.15, 0.1, 0.1]
    assert dssgd.accuracy(flat, split) == dssgd.accuracy(plain, split)


def test_every_required_setting_has_a_cell() -> None:
    names = {cell.name for cell in dssgd.all_cells()}
    for model in dssgd.MODELS:
        assert {f"{model}-central", f"{model}-standalone"} <= names
        for n in dssgd.PARTICIPANTS:
            assert {f"{model}-{n}-dssgd-{fraction:g}" for fraction in dssgd.FRACTIONS} <= names
    assert len(names) == len(dssgd.all_cells())


def stored(cell: Cell, accuracy: float, **more: Any) -> dict[str, Any]:
    return {"settings": asdict(cell), "accuracy": accuracy, **more}


def test_the_table_says_which_requirement_is_met() -> None:
    run = Cell("cnn", "dssgd", 30, 0.1)
    cells = {
        "cnn-standalone": stored(Cell("cnn", "standalone"), 93.0),
        "cnn-central": stored(Cell("cnn", "central"), 99.0),
        run.name: stored(run, 97.0),
    }
    (row,) = dssgd.requirement_rows(cells)
    assert "+4.00 met" in row
    assert "-2.00 NOT met" in row
    assert "99.14% (not verified)" in row
    cells[run.name]["accuracy"] = 98.0
    assert "-1.00 met" in dssgd.requirement_rows(cells)[0]


def test_cells_of_other_settings_are_measured_again() -> None:
    cell = Cell("mlp", "dssgd", 30, 0.1, 20)
    found = {"cells": {cell.name: stored(cell, 90.0)}}
    assert dssgd.is_done(cell, found)
    assert not dssgd.is_done(replace(cell, rounds=21), found)
    assert not dssgd.is_done(replace(cell, participants=90), found)


def test_the_published_and_the_composed_epsilon_are_both_shown() -> None:
    cell = Cell("mlp", "dssgd", 30, 0.01, 2, selection="threshold", epsilon_per_entry=0.5)
    found = {"cells": {cell.name: stored(cell, 50.0, composed=dssgd.composed_epsilon(cell))}}
    (row,) = dssgd.noise_rows(found["cells"])
    assert row[2] == "0.5"
    assert float(row[3]) > 100


def test_without_data_the_benchmark_says_why_it_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPAUDIT_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["dssgd.py", "--json", str(tmp_path / "figures.json")])
    with pytest.raises(SystemExit, match=re.escape(f"skipped: no mnist.npz in {tmp_path}")):
        runpy.run_path(str(ROOT / "benchmarks" / "dssgd.py"), run_name="__main__")


def test_the_committed_epsilons_are_those_of_the_committed_settings() -> None:
    cells = json.loads(dssgd.RESULTS.read_text())["cells"]
    assert cells
    for one in cells.values():
        cell = Cell(**one["settings"])
        if cell.epsilon is not None:
            step = PoissonSampled(Gaussian(one["noise_multiplier"]), cell.sampling_rate)
            run = Repeated(step, cell.rounds * cell.local_steps)
            assert pld.profile(run).epsilon(delta=dssgd.DELTA).upper <= one["epsilon"] * (1 + 1e-9)
            assert one["epsilon"] <= cell.epsilon
        if cell.epsilon_per_entry is not None:
            again = dssgd.composed_epsilon(cell)  # later accountants may be tighter
            assert 0.999 * one["composed"] <= again <= one["composed"] * (1 + 1e-9)
