"""One, two or four processes take the same steps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from ranks import ended_ranks, on_ranks
from safetensors.torch import load_file

from dpaudit.runs.ledger_file import read_ledger

SCRIPT = Path(__file__).parent / "ranks_script.py"
SETTINGS_SCRIPT = Path(__file__).parent / "settings_script.py"


def trained(kind: str, world: int, out: Path) -> torch.Tensor:
    on_ranks(SCRIPT, kind, out, world=world, folder=out)
    parts = load_file(out / f"{kind}-{world}.safetensors")
    return torch.cat([parts[name].flatten() for name in sorted(parts)])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], torch.Tensor]:
    """Return what one process trains; ``plain`` is what shards are compared with."""
    return cache(lambda kind: trained(kind, 1, tmp_path_factory.mktemp("alone")))


@pytest.mark.parametrize(
    ("kind", "worlds"),
    [
        ("plain", (2,)),
        pytest.param("plain", (4,), marks=pytest.mark.slow),
        ("sharded", (2,)),
        pytest.param("sharded", (4,), marks=pytest.mark.slow),
        pytest.param("few records", (2,), marks=pytest.mark.slow),  # often a rank has none
        pytest.param("few records", (4,), marks=pytest.mark.slow),
        pytest.param("quantile", (2, 4), marks=pytest.mark.slow),
    ],
)
def test_the_result_does_not_depend_on_the_number_of_ranks(
    tmp_path: Path, kind: str, worlds: tuple[int, ...], alone: Callable[[str], torch.Tensor]
) -> None:
    expected = alone("plain" if kind == "sharded" else kind)
    for world in worlds:
        assert torch.allclose(trained(kind, world, tmp_path), expected, atol=2e-5)


def test_ranks_book_each_release_once_and_agree_on_a_secret_key(tmp_path: Path) -> None:
    """That all hold the same parameters, with noise of a key that none was given, is asserted
    by the script."""
    trained("secure", 2, tmp_path)
    ledger = read_ledger(tmp_path / "ledger")
    assert [release.step for release in ledger.releases] == [0, 1, 2, 3]


def test_a_rank_that_dies_ends_the_run_within_a_minute(tmp_path: Path) -> None:
    start = time.monotonic()
    first, second = ended_ranks(SCRIPT, "broken", tmp_path, world=2, folder=tmp_path)
    assert time.monotonic() - start < 60
    assert "this rank was killed" in second.printed
    assert (first.code, second.code) == (1, 1)  # though no launcher ends the first one
    assert not list(tmp_path.glob("*.safetensors"))


# What every rank must have alike.


SETTINGS = [
    *("clip_norm", "clip_norm by schedule", "clipping", "noise_multiplier", "noise"),
    *("sampling_rate", "sampler", "expected_batch_size", "unit", "unaccounted", "seed"),
    *("average_decay", "canaries", "optimizer", "model", "trainable", "records", "data"),
    "steps",
]
CALLED = {
    "optimizer": "optimizer settings",
    "clip_norm by schedule": "clip_norm",
    "clipping": "clip_norm",
    "sampling_rate": "sampler",
}
"""What a setting is called in the message, where it is called otherwise."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Return what both ranks said of each setting that differed."""
    out = tmp_path_factory.mktemp("settings")
    on_ranks(SETTINGS_SCRIPT, out, world=2, folder=out)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_with_different_settings_are_refused_on_both(
    said: list[dict[str, str]], name: str
) -> None:
    for rank in said:
        assert rank[name].startswith(f"InvalidArgument: {CALLED.get(name, name)} must be the same")


def test_what_only_speed_depends_on_may_differ_between_ranks(said: list[dict[str, str]]) -> None:
    assert [rank["speed alone"] for rank in said] == ["2 steps", "2 steps"]
