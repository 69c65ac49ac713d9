"""What was derived from secrets is its owner's alone, from the first write on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from calling import Call

PRIVATE = 0o600
POLICY = "[claim]\nmax_epsilon = 10.0\ndelta = 1e-5\n"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture(params=[0o000, pytest.param(0o022, marks=pytest.mark.slow)])
def project(
    request: pytest.FixtureRequest, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> object:
    for name in ("run", "other"):
        shutil.copytree(trained, tmp_path / name)
    (tmp_path / "dpaudit.toml").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    before = os.umask(request.param)
    yield tmp_path
    os.umask(before)


@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("audit run -o said.txt --plot bounds.svg", ["run/audit.json", "said.txt", "bounds.svg"]),
        (
            "attack run --attack loss -o s.csv --plot roc.png --histograms h.svg",
            ["run/attack.json", "s.csv", "roc.png", "h.svg"],
        ),
        ("gate run --history .", ["run/verdict.json", "history.sqlite"]),
        ("gate run -o said.txt", ["said.txt"]),
        ("gate run --format sarif -o findings.sarif", ["findings.sarif"]),
        ("gate run --format junit -o tests.xml", ["tests.xml"]),
        ("gate run --format json -o verdict.json", ["verdict.json"]),
        ("compare run other -o compared.txt", ["compared.txt"]),
        ("compare run other --format json -o compared.json", ["compared.json"]),
        ("history . -o runs.txt", ["runs.txt"]),
        ("history . --format json -o runs.json", ["runs.json"]),
        ("report run", ["run/report.html"]),
        ("report run --format model-card -o card.md", ["card.md"]),
        (
            "canaries make --count 20 -o c.npz --training-file t.npz",
            ["c.npz", "c.secret.npz", "t.npz"],
        ),
        (
            "canaries make --kind secrets --count 5 -o c.npz --training-file t.txt",
            ["c.npz", "c.secret.npz", "t.txt"],
        ),
    ],
)
def test_commands_write_private_files(
    project: Path, call: Call, command: str, written: list[str]
) -> None:
    for path in map(Path, written):
        if path.parts[0] == "run":
            path.write_text("{}") if path.suffix == ".html" else None
            if path.exists():
                path.chmod(0o644)
    done = call(*command.split())
    assert done.code in {0, 1, 3}, done.err
    assert {name: oct(mode(project / name)) for name in written} == dict.fromkeys(written, "0o600")


def test_only_secret_files_of_a_run_are_private(trained: Path) -> None:
    secret = ("canaries.npz", "canaries.secret.npz", "observations.npz")
    assert {name: mode(trained / name) for name in secret} == dict.fromkeys(secret, PRIVATE)
    mask = os.umask(0o077)
    os.umask(mask)
    assert mode(trained / "model.safetensors") == 0o666 & ~mask


def test_every_file_of_a_checkpoint_is_private(tmp_path: Path) -> None:
    import torch

    from dpaudit.runs.checkpoints import Progress
    from dpaudit.trainer.canaries.run_canaries import Observation
    from dpaudit.trainer.session.checkpoint import write_checkpoint

    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    seen = [Observation(np.zeros(2, np.float32), None)]
    write_checkpoint(tmp_path, lambda line: None, Progress(1, 1, 2.0), net, optimizer, seen, net)
    files = [file for file in tmp_path.glob("step-1/*") if file.name != "COMPLETE"]
    assert len(files) == 5
    assert {mode(file) for file in files} == {PRIVATE}
