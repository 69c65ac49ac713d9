"""MNIST with the settings that a new user gets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from calling import Call


@pytest.mark.slow
def test_mnist_reaches_95_percent_at_epsilon_3(
    call: Call, data_folder: Path, tmp_path: Path
) -> None:
    result = call(
        *("train", "--data", data_folder / "mnist.npz"),
        *("--target-epsilon", "3", "--out", tmp_path / "mnist"),
    )
    assert result.code == 0
    accuracy = re.search(r"held-out accuracy ([\d.]+)%", result.out)
    assert accuracy is not None
    assert float(accuracy[1]) >= 95


def test_a_users_own_factory_is_found_where_the_command_is_called(
    call: Call, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Linear(shape[0], 8), nn.ReLU(), nn.Linear(8, classes))\n"
        "def mixing(shape, classes):\n"
        "    return nn.Sequential(nn.BatchNorm1d(shape[0]), nn.Linear(shape[0], classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    plan = ("--data", small_data, "--noise-multiplier", "2", "--steps", "3")
    assert call("train", *plan, "--model", "my_models:make", "--out", "good").code == 0
    refused = call("train", *plan, "--model", "my_models:mixing", "--out", "bad")
    assert refused.code == 2
    assert "BatchNorm1d '0'" in refused.err
    assert not Path("bad").exists()
