"""The benchmark of public models detects wrong sums, and its page shows what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from places import ROOT
from public_models import MODELS, RECORDS, Subject
from public_models.measures import Correctness, correctness, functions_using
from torch import Tensor, nn

PAGE = ROOT / "docs" / "reference" / "models.md"
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("models-*.json"))


def rows(records: int) -> tuple[Tensor, Tensor]:
    return torch.randn(records, 3), torch.randint(0, 2, (records,))


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 2))


def measured(found: Correctness) -> dict[str, Any]:
    from dataclasses import asdict

    return {"library": "torch", "correctness": asdict(found)}


def test_right_sums_are_called_right() -> None:
    found = correctness(Subject("torch", lambda: network().eval(), rows, losses))
    assert (found.parameters, found.slow) == (4, {})
    assert models.verdict("BERT (eager)", measured(found)).startswith("right")


def test_sums_with_dropout_are_compared_on_the_same_draws() -> None:
    found = correctness(Subject("torch", network, rows, losses, draws=True))
    assert models.verdict("RoBERTa (dropout)", measured(found)).startswith("right")


def test_a_wrong_sum_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(model: nn.Module, loss: Any, batch: Any) -> dict[str, Tensor]:
        (weight, _), *_ = [(p, n) for n, p in model.named_parameters()]
        return {
            name: torch.full((RECORDS, *p.shape), 2.0 if p is weight else 1.0).double()
            for name, p in model.named_parameters()
        }

    monkeypatch.setattr("public_models.measures.loop_over_records", doubled)
    found = correctness(Subject("torch", lambda: network().eval(), rows, losses))
    assert models.verdict("BERT (eager)", measured(found)).startswith("WRONG")


@pytest.mark.parametrize(
    ("found", "name", "says"),
    [
        (Correctness(float("nan"), None, 1, gap_float64=float("nan")), "ViT", "WRONG"),
        (Correctness(1e-3, None, 1, gap_float64=1e-3), "ViT", "WRONG"),
        (Correctness(1e-3, None, 1, gap_float64=1e-8), "ViT", "right"),
        (Correctness(None, "mixes records", 1), "ViT", "WRONG"),
        (Correctness(None, "mixes records", 1), "CLIP (contrastive loss)", "refused"),
        (Correctness(1e-9, None, 1), "CLIP (contrastive loss)", "WRONG"),
        (Correctness(None, None, 1, {"weight": ["linear"]}), "RoBERTa (dropout)", "not compared"),
    ],
)
def test_only_what_must_be_refused_may_be_refused(found: Correctness, name: str, says: str) -> None:
    assert models.verdict(name, measured(found)).startswith(says)


def test_a_loss_that_mixes_records_is_refused() -> None:
    def mean(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        own = losses(model, batch)
        return own + own.mean()

    found = correctness(Subject("torch", lambda: network().eval(), rows, mean, mixes=True))
    assert found.refusal is not None


def test_slow_parameters_are_named_with_the_functions_that_use_them() -> None:
    model = network()
    found = functions_using(model, losses, rows(2), ["0.weight", "3.bias"])
    assert found == {"0.weight": ["linear"], "3.bias": ["linear"]}


def test_a_model_that_fails_is_one_line() -> None:
    found = {"library": "torch", "correctness": {"error": "ValueError: no"}}
    assert models.row("ViT", found)[2] == "failed: ValueError: no"


def test_parameters_that_are_slow_at_first_only_are_shown_so() -> None:
    first = measured(Correctness(1e-7, None, 3, {"a": ["linear"], "b": ["linear"]}))
    paid = {"milliseconds": 1.0, "first": 5.0, "early": 2.0, "later": 1.1, "slow": 0}
    assert models.row("ViT", first | {"cost": paid})[3:6] == ("3", "2, then 0", "2.00, then 1.10")
    assert models.slow_lines(first | {"cost": paid}) == []
    assert models.slow_lines(first) == ["2 in `linear`, as `a`"]


def test_the_page_shows_the_committed_figures() -> None:
    measured = json.loads(RESULTS[-1].read_text())["models"]
    assert list(measured) == list(MODELS)
    page = PAGE.read_text()
    assert f"{len(MODELS)} models" in page
    assert page == models.filled(page, models.markdown(measured))


def test_no_model_of_the_committed_figures_is_wrong() -> None:
    measured = json.loads(RESULTS[-1].read_text())["models"]
    verdicts = {name: models.verdict(name, found) for name, found in measured.items()}
    assert [v for v in verdicts.items() if not v[1].startswith(("right", "refused"))] == []


@pytest.mark.slow
def test_the_benchmark_measures_one_model_in_processes_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    target = tmp_path / "figures.json"
    asked = ["--only", "BERT (eager)", "--rounds", "1", "--json", str(target)]
    script = [sys.executable, str(ROOT / "benchmarks" / "models.py")]
    subprocess.run([*script, *asked], check=True, capture_output=True)
    found = json.loads(target.read_text())["models"]["BERT (eager)"]
    assert models.verdict("BERT (eager)", found).startswith("right")
    assert found["cost"]["later"] > 0
    assert found["private memory"] > 0
