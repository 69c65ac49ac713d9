"""Flower's SuperLink and SuperNodes as real processes on this machine, with numpy clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from places import ROOT

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'dpaudit[federated]'")

from sklearn.datasets import load_digits

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated.flower.server import ParticipantServer

APP = Path(__file__).parent / "app"
NAME = "dpaudit-test"
LONGEST = 240.0
"""Seconds after which a process that does nothing more is given up; no claim about speed."""


def environment(home: Path) -> dict[str, str]:
    programs = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": os.pathsep.join((programs, os.environ.get("PATH", ""))),
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }


def free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def processes(
    commands: dict[str, list[str]], home: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run processes by name, each with its children in a group of its own; stop all at the end."""
    with ExitStack() as logs:
        started: list[subprocess.Popen[bytes]] = []
        try:
            for name, command in commands.items():
                log = logs.enter_context((home / f"{name}.log").open("wb"))
                started.append(
                    subprocess.Popen(
                        command,
                        env=environment(home),
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            yield started
        finally:
            for one in started:
                send(one, signal.SIGTERM)
            for one in started:
                try:
                    one.wait(10)
                except subprocess.TimeoutExpired:
                    send(one, signal.SIGKILL)
                    one.wait(10)


def send(started: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to a process and its children, if there are any left."""
    with suppress(ProcessLookupError):
        os.killpg(started.pid, number)


def wait_for(what: str, done: object, home: Path) -> None:
    end = time.monotonic() + LONGEST
    while not done():  # type: ignore[operator]
        if time.monotonic() > end:
            told = "\n".join(one.read_text()[-2000:] for one in sorted(home.glob("*.log")))
            pytest.fail(f"{what} did not happen within {LONGEST} s:\n{told}")
        time.sleep(0.2)


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def write_records(
    folder: Path, participants: int
) -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Write the records of each participant: the digits, divided by label."""
    digits = load_digits()
    order = np.argsort(digits.target, kind="stable")
    parts = []
    for number, rows in enumerate(np.array_split(order, participants)):
        features, labels = digits.data[rows] / 16, digits.target[rows].astype(np.int64)
        np.savez(folder / f"{number}.npz", features=features, labels=labels)
        parts.append((features, labels))
    return parts


@contextmanager
def flower(home: Path, participants: int) -> Iterator[None]:
    """Run a SuperLink and one SuperNode per participant; nodes stop first."""
    link, *nodes = free_ports(1 + participants)
    (home / "config.toml").write_text(
        f'[superlink.{NAME}]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    superlink = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link)]
    superlink.append("--disable-runtime-dependency-installation")
    supernodes = {}
    for number, port in enumerate(nodes):
        config = f"partition-id={number} num-partitions={participants}"
        command = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}"]
        command += ["--port", str(port), "--node-config", config]
        supernodes[f"supernode-{number}"] = command
    with processes({"superlink": superlink}, home):
        wait_for("the start of the SuperLink", lambda: is_healthy(link), home)
        with processes(supernodes, home):
            yield


def run_app(home: Path, folder: Path, settings: str = "") -> None:
    command = ["flwr", "run", str(APP), NAME, "--format", "json"]
    command += ["-c", f'folder="{folder}" {settings}'.strip()]
    with processes({"run": command}, home) as (started,):
        started.wait(LONGEST)
    wait_for("the end of the ServerApp", (folder / "model.npz").exists, home)


@pytest.fixture(scope="module")
def digits_client() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(APP))
        yield import_module("digits_client")


@pytest.fixture(scope="module")
def digits_server(digits_client: ModuleType) -> ModuleType:
    del digits_client  # its folder is on the path
    return import_module("digits_server")


@pytest.fixture(scope="module")
def home(digits_client: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Flower's folder, with one SuperLink and its nodes for all runs: their start is slow."""
    found = tmp_path_factory.mktemp("flower")
    with flower(found, digits_client.PARTICIPANTS):
        yield found


def train_and_compare(
    tmp_path: Path,
    home: Path,
    digits_client: ModuleType,
    digits_server: ModuleType,
    dying: int | None,
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    parts = write_records(folder, digits_client.PARTICIPANTS)
    if dying is not None:
        (folder / digits_client.DYING).write_text(str(dying))
    run_app(home, folder)
    with np.load(folder / digits_server.MODEL) as found:
        trained = dict(found)
    ledger = RunDirectory(folder / digits_server.RUN).read_finished()
    assert [one.step for one in ledger.releases] == [0, 1, 2]
    lost = [set(one.rejected) for one in ledger.rounds]
    # The node of a client that died may not answer in the next round either.
    own = set() if dying is None else {f"{dying:03}"}
    assert (lost[0], lost[1]) == (set(), own)
    assert lost[2] <= own

    server = ParticipantServer.open(
        tmp_path / "one", digits_server.SETTINGS, digits_server.initial_weights()
    )
    for number in range(3):
        before = server.weights
        updates = {}
        for one, records in enumerate(parts):
            after = digits_client.train(before, *records)
            if f"{one:03}" not in lost[number]:
                updates[one] = {name: after[name] - before[name] for name in before}
        server.aggregate(updates, server.draw())
    server.close()
    assert trained.keys() == server.weights.keys()
    for name, part in server.weights.items():
        assert np.abs(part - trained[name]).max() <= 1e-6
        assert np.abs(part).max() > 0.01


@pytest.mark.slow
def test_real_processes_give_the_model_of_one_process(
    tmp_path: Path, home: Path, digits_client: ModuleType, digits_server: ModuleType
) -> None:
    train_and_compare(tmp_path, home, digits_client, digits_server, dying=None)


@pytest.mark.slow
def test_secure_aggregation_runs_over_real_processes(
    tmp_path: Path, home: Path, digits_client: ModuleType, digits_server: ModuleType
) -> None:
    """Each message of the protocol reaches a new client process: the node keeps the state."""
    folder = tmp_path / "data"
    folder.mkdir()
    parts = write_records(folder, digits_client.PARTICIPANTS)
    run_app(home, folder, "rounds=1 secure=true")
    with np.load(folder / digits_server.MODEL) as found:
        trained = dict(found)
    ledger = RunDirectory(folder / digits_server.RUN).read_finished()
    assert [one.step for one in ledger.releases] == [0, 0]
    assert [one.rejected for one in ledger.rounds] == [{}]

    before = digits_server.initial_weights()
    total = np.zeros(650)
    for records in parts:
        after = digits_client.train(before, *records)
        update = np.concatenate([(after[name] - before[name]).ravel() for name in before])
        total += update * min(1.0, 0.5 / float(np.linalg.norm(update)))
    moved = np.concatenate([trained[name].ravel() for name in before])
    # Ten standard deviations of the noise of four shares, of which two have the accounted noise.
    assert np.abs(moved - total / 4).max() < 10 * 0.5 * 0.001 * 2**0.5 / 4
    assert np.abs(total).max() > 0.05


@pytest.mark.slow
def test_real_process_that_dies_costs_its_own_updates_only(
    tmp_path: Path, home: Path, digits_client: ModuleType, digits_server: ModuleType
) -> None:
    """Runs last: Flower gives the node of a dead client no further message for 60 s."""
    train_and_compare(tmp_path, home, digits_client, digits_server, dying=1)
