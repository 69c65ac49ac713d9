"""Errors of a user's factory, model or trainer: exit 2, their cause, and no traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from calling import Call

from dpaudit.vocabulary.errors import ExitCode

PLAN = "--noise-multiplier 4 --steps 3 --sampling-rate 0.05 --expected-batch-size 20 --out run"
MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        return self.layer(x)


def sequential(): return nn.Sequential(nn.Linear(7, 2))
def raises(shape, classes): raise FileNotFoundError(2, "no weights", "weights.bin")
def needs(shape, classes, width): return nn.Linear(6, 2)
def other(): return nn.Linear(6, 5)
def flat(): return nn.Sequential(nn.Linear(6, 1), nn.Flatten(0))
def nothing(): return 3
value = 3


class Late(Net):
    def forward(self, x):
        if x.abs().sum() > 0:
            raise ArithmeticError("late\\nand long")
        return self.layer(x)


def make_trainer(records, seed): raise LookupError("no such optimizer")


class Trainer:
    def __init__(self, records, seed): pass
    def step(self): raise LookupError("no gradient")
"""
CLAIM = (
    "noise_multiplier = 2.0\nclip_norm = 0.5\nsampling_rate = 0.2\nsteps = 10\nupdate_scale = 1.0\n"
)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    name = f"nets_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(MODULE)
    Path("claim.toml").write_text(CLAIM)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def test_a_factory_without_arguments_is_trained(call: Call, small_data: Path, module: str) -> None:
    done = call("train", "--data", small_data, "--model", f"{module}:Net", *PLAN.split())
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("sequential", "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("raises", "FileNotFoundError: [Errno 2] no weights: 'weights.bin'"),
        ("needs", "its signature is (shape, classes, width)"),
        ("other", "(2, 5)"),
        ("flat", "(2,)"),
        ("nothing", "a factory that returns a torch.nn.Module"),
        ("value", "a function or class to call"),
        ("gone", "has no attribute 'gone'"),
        ("Late", "ArithmeticError: late and long"),
    ],
)
def test_what_went_wrong_is_named(
    call: Call, small_data: Path, module: str, name: str, cause: str
) -> None:
    done = call("train", "--data", small_data, "--model", f"{module}:{name}", *PLAN.split())
    assert (done.code, done.err.count("\n")) == (ExitCode.USAGE, 1)
    assert cause in done.err
    assert "bug" not in done.err


@pytest.mark.parametrize("name", ["sequential", "raises", "Late"])
def test_reference_models_of_an_attack_are_the_users_too(
    call: Call, small_data: Path, module: str, name: str
) -> None:
    plan = ("--targets", 1, "--references", 2, "--epochs", 1, "--attack", "loss")
    done = call("attack", "--data", small_data, "--model", f"{module}:{name}", *plan)
    assert (done.code, done.err.count("\n")) == (ExitCode.USAGE, 1)
    assert "raised" in done.err


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("make_trainer", "LookupError: no such optimizer"),
        ("Trainer", "LookupError: no gradient"),
        ("gone", "has no attribute 'gone'"),
    ],
)
def test_errors_of_a_trainer_are_its_own(
    call: Call, small_data: Path, module: str, name: str, cause: str
) -> None:
    plan = ("--claim", "claim.toml", "--records", small_data)
    done = call("conformance", f"{module}:{name}", *plan)
    assert (done.code, done.err.count("\n")) == (ExitCode.USAGE, 1)
    assert cause in done.err
