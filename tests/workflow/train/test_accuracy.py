"""Accuracy while a run trains: of its newest checkpoint, measured once."""

from __future__ import annotations

import shutil

import pytest
import torch
from ledgers import Begin
from safetensors.torch import save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpaudit.report.run_status import MeasuredAccuracy
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import write_toml
from dpaudit.trainer import tasks
from dpaudit.trainer.data import load_dataset
from dpaudit.trainer.models.factories import evaluate_model, make_model
from dpaudit.trainer.run import heldout_records
from dpaudit.trainer.session.checkpoint import MARKER, Progress, write_checkpoint
from dpaudit.vocabulary.settings import ModelSettings, RunConfig
from dpaudit.workflow.train.accuracy import CheckpointAccuracy


@pytest.fixture
def run(begin: Begin) -> RunDirectory:
    run, writer = begin()
    with writer:
        return run


def model_of(config: RunConfig, seed: int) -> nn.Module:
    split = load_dataset(config.data)
    return make_model("linear", split.shape, len(split.classes), seed)


def checkpoint(
    run: RunDirectory, model: nn.Module, steps: int, average: nn.Module | None = None
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    progress = Progress(steps, steps, 6.0)
    write_checkpoint(run.checkpoints, lambda line: None, progress, model, optimizer, [], average)


def accuracy(run: RunDirectory, config: RunConfig, model: nn.Module) -> float:
    return evaluate_model(model, heldout_records(run, load_dataset(config.data))).accuracy


def right(model: nn.Module) -> nn.Module:
    """Return ``model`` with weights that tell the two classes apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
            if parameter.ndim == 2:
                parameter[1] = 1.0
            else:
                parameter[0] = 6.0
    return model


def test_the_newest_whole_checkpoint_is_measured_once(
    run: RunDirectory, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def evaluated(*given: object) -> object:
        measured.append(1)
        return evaluate_model(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "evaluate_model", evaluated)
    run_observer = CheckpointAccuracy(run)
    assert run_observer.newest(None) == (None, "")
    checkpoint(run, model_of(config, 1), 0)
    first = MeasuredAccuracy(accuracy(run, config, model_of(config, 1)), 0)
    assert [run_observer.newest(None) for _ in range(3)] == [(first, "")] * 3
    good = right(model_of(config, 2))
    checkpoint(run, good, 10)
    assert run_observer.newest(None) == (MeasuredAccuracy(accuracy(run, config, good), 10), "")
    assert accuracy(run, config, good) > 0.9
    checkpoint(run, model_of(config, 3), 20)
    (run.checkpoints / "step-20" / MARKER).unlink()
    assert run_observer.newest(None)[0] == MeasuredAccuracy(accuracy(run, config, good), 10)
    assert len(measured) == 2


def test_where_an_average_ships_the_average_is_measured(
    run: RunDirectory, config: RunConfig
) -> None:
    averaging = ModelSettings(model="linear", average_decay=0.9)
    asked = RunConfig(config.data, config.privacy, averaging, config.canaries, config.speed)
    write_toml(run.config, asked)
    model = model_of(config, 1)
    average = AveragedModel(right(model), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    checkpoint(run, model, 10, average)
    good = accuracy(run, config, average.module)
    assert good > accuracy(run, config, model)
    assert CheckpointAccuracy(run).newest(None) == (MeasuredAccuracy(good, 10), "")


def test_saved_weights_of_a_finished_run_are_measured(run: RunDirectory, config: RunConfig) -> None:
    checkpoint(run, model_of(config, 1), 10)
    shipped = right(model_of(config, 2))
    save_model(shipped, str(run.model))
    assert CheckpointAccuracy(run).newest(40) == (
        MeasuredAccuracy(accuracy(run, config, shipped), 40),
        "",
    )


def test_what_cannot_be_measured_is_said_and_what_was_measured_stays(
    run: RunDirectory, config: RunConfig
) -> None:
    good = right(model_of(config, 2))
    checkpoint(run, good, 10)
    run_observer = CheckpointAccuracy(run)
    known, _ = run_observer.newest(None)
    checkpoint(run, good, 20)
    (run.checkpoints / "step-20" / "model.safetensors").write_bytes(b"broken")
    assert run_observer.newest(None)[0] == known
    assert "step-20" in run_observer.newest(None)[1]
    shutil.rmtree(run.checkpoints)
    assert run_observer.newest(None)[0] == known
    checkpoint(run, good, 30)
    assert run_observer.newest(None) == (MeasuredAccuracy(accuracy(run, config, good), 30), "")
