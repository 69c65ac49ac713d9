"""The benchmark of presets trains as the command does, and keeps every finished cell."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import utility

from dpaudit.trainer.run import prepare_run, train_run
from dpaudit.vocabulary.settings import PRESETS
from dpaudit.workflow.train.accuracy import heldout_accuracy


def test_every_preset_has_records_a_target_and_a_published_figure() -> None:
    assert set(utility.FILES) | utility.WITHOUT_FIGURE == set(PRESETS)
    assert set(utility.PAPER) <= set(utility.FILES)
    assert set(utility.CANDIDATES) <= set(utility.FILES)


@pytest.mark.parametrize("name", sorted(utility.CANDIDATES))
def test_a_preset_has_the_settings_that_were_compared_first(name: str) -> None:
    """The best candidate is listed first, and the preset holds it."""
    preset, first = PRESETS[name], utility.CANDIDATES[name][0]
    for key, value in first.items():
        assert getattr(preset if hasattr(preset, key) else preset.model, key) == value


def small_presets(monkeypatch: pytest.MonkeyPatch, folder: Path) -> utility.Places:
    """Let a preset train on a few small images, for one step."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (90, 8, 8), dtype=np.uint8), np.arange(90) % 3
    np.savez(folder / "mnist.npz", x_train=images[:60], y_train=labels[:60],
             x_test=images[60:], y_test=labels[60:])  # fmt: skip
    small = msgspec.structs.replace(
        PRESETS["mnist-scattering"], dataset_size=60, batch_size=30, epochs=0.5
    )
    monkeypatch.setitem(PRESETS, "mnist-scattering", small)
    return utility.Places(folder, folder)


def test_finished_cells_are_kept_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = small_presets(monkeypatch, tmp_path)
    file = tmp_path / "figures.json"
    for _ in range(2):
        results = utility.Results(file)
        for seed in (0, 1):
            measure = partial(utility.measured, "mnist-scattering", seed, places)
            results.fill("mnist-scattering", "run", {"seed": seed}, measure)
    cells = json.loads(file.read_text())["cells"]["mnist-scattering"]["run"]
    assert [one["seed"] for one in cells] == [0, 1]
    assert all(0 < one["epsilon"] <= 3 for one in cells)
    row = json.loads(file.read_text())["presets"]["mnist-scattering"]
    assert row["mean"] == pytest.approx(np.mean([one["accuracy"] for one in cells]))
    assert "mnist-scattering" in utility.show(results.summaries())


def test_a_cell_is_the_run_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that are computed once for all cells change nothing."""
    places = small_presets(monkeypatch, tmp_path)
    cell = utility.measured("mnist-scattering", 3, places)
    config = utility.configured("mnist-scattering", places.records("mnist-scattering"), 3, {})
    prepared = prepare_run(config)
    run = train_run(prepared, tmp_path / "run", lambda done, seen: None)
    assert 100 * heldout_accuracy(run, prepared.split) == pytest.approx(cell["accuracy"])


def test_candidates_are_measured_on_training_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = small_presets(monkeypatch, tmp_path)
    seen = []
    monkeypatch.setattr(utility, "train_once", lambda prepared: seen.append(prepared) or {})
    utility.compared("mnist-scattering", {"learning_rate": 3.0, "batch_size": 24}, 9, places)
    (prepared,) = seen
    assert prepared.config.model.learning_rate == 3.0
    assert prepared.config.privacy.seed == 9
    assert prepared.config.privacy.sampling_rate == pytest.approx(24 / 60)
    whole = utility.on_features(prepare_run(prepared.config), places.cache).split
    rows = {row.tobytes() for row in whole.train.features}
    parts = [prepared.split.train.features, prepared.split.heldout.features]
    assert [len(part) for part in parts] == [50, 10]
    assert {row.tobytes() for part in parts for row in part} == rows


def test_mean_and_spread_are_over_the_seeds() -> None:
    runs = [
        {"seed": seed, "accuracy": accuracy, "epsilon": 2.9, "seconds": 1.0, "cpu_seconds": 2.0}
        for seed, accuracy in enumerate((98.0, 98.4, 98.8))
    ]
    row = utility.summary("mnist-cnn", {"run": runs})
    assert row["mean"] == pytest.approx(98.4)
    assert row["deviation"] == pytest.approx(0.4)
    assert row["standard_error"] == pytest.approx(0.4 / 3**0.5)
    assert row["within_target"] is True
