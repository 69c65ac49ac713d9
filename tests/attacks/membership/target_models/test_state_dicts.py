"""Weights that torch.save wrote: read without running anything, into the module of a factory."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dpaudit.attacks.membership.target_models import TargetModel
from dpaudit.attacks.membership.target_models.model_files import open_model
from dpaudit.vocabulary.errors import InvalidArgument, UserCodeError

FEATURES = np.random.default_rng(0).standard_normal((11, 4)).astype(np.float32)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def make_net(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 6), nn.BatchNorm1d(6), nn.Linear(6, classes))


def make_broken(shape: tuple[int, ...], classes: int) -> nn.Module:
    raise KeyError("width")


def make_three(shape: object, classes: object, width: object) -> nn.Module:
    return nn.Identity()


@pytest.fixture(autouse=True)
def user_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nets_of_states", sys.modules[__name__])


def opened(path: Path, factory: str | None = "make_net") -> TargetModel:
    name = None if factory is None else f"nets_of_states:{factory}"
    return open_model(path, factory=name, shape=(4,), classes=3)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [None, "state_dict", "model_state_dict"])
def test_a_state_dict_fills_the_module_of_the_factory(
    tmp_path: Path, zipped: bool, wrapped: str | None
) -> None:
    torch.manual_seed(0)
    net = make_net((4,), 3).eval()
    state: Any = net.state_dict()
    path = tmp_path / "net.pth"
    content = state if wrapped is None else {"epoch": 3, wrapped: state}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with torch.no_grad():
        expected = net(torch.from_numpy(FEATURES)).numpy()
    assert opened(path).predict(FEATURES) == pytest.approx(expected, abs=1e-6)


def test_a_factory_without_arguments_and_tied_weights(tmp_path: Path) -> None:
    net = Tied().eval()
    path = tmp_path / "net.pt"
    torch.save(net.state_dict(), path)
    found = opened(path, "Tied").predict(FEATURES)
    assert found == pytest.approx(net(torch.from_numpy(FEATURES)).detach().numpy(), abs=1e-6)


@pytest.mark.parametrize("factory", [None, "mlp", "linear"])
def test_weights_alone_are_refused_with_the_way_out(tmp_path: Path, factory: str | None) -> None:
    path = tmp_path / "net.pt"
    torch.save(nn.Linear(4, 3).state_dict(), path)
    with pytest.raises(InvalidArgument, match=r"--model: .* holds weights .* state_dict"):
        open_model(path, factory=factory, shape=(4,), classes=3)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, ("pickle-was-read",)


def write_whole(path: Path) -> None:
    torch.save({"weight": Payload()}, path)


def write_legacy(path: Path) -> None:
    torch.save({"weight": Payload()}, path, _use_new_zipfile_serialization=False)


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Payload()))


@pytest.mark.parametrize("write", [write_whole, write_legacy, write_pickle])
def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "net.pt")
    with pytest.raises(InvalidArgument, match="checkpoint must be weights of"):
        opened(tmp_path / "net.pt")
    assert not Path("pickle-was-read").exists()


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(3)], {"0.weight": 3}, {"0.weight": torch.zeros(6, 4)}, {"x": torch.zeros(1)}],
)
def test_what_is_no_state_of_the_module_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "net.pt"
    torch.save(content, path)
    with pytest.raises(InvalidArgument, match="checkpoint must be weights of"):
        opened(path)


def test_errors_of_a_factory_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(make_net((4,), 3).state_dict(), path)
    with pytest.raises(UserCodeError, match="make_broken raised KeyError: 'width'"):
        opened(path, "make_broken")
    with pytest.raises(
        InvalidArgument, match=r"accepts the shape of a record .* its signature is \(shape"
    ):
        opened(path, "make_three")
