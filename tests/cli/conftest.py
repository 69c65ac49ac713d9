"""The program called in this process, and one small finished run to call it on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from calling import Call, Called
from warm_python import WarmPython
from without_extras import skip_if_asked_for

from dpaudit.cli.entry_point import _run
from tests.cli.installed import WarmProgram


@pytest.fixture(autouse=True)
def _forget_modules_of_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Drop modules that a test imported from its folder: the next test's have the same names."""
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(folder):
            del sys.modules[name]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pytestconfig: pytest.Config,
) -> Call:
    def run(*arguments: object) -> Called:
        monkeypatch.setattr(sys, "argv", ["dpaudit", *map(str, arguments)])
        capsys.readouterr()
        code = _run()
        captured = capsys.readouterr()
        skip_if_asked_for(pytestconfig, captured.err)
        return Called(int(code), captured.out, captured.err)

    return run


@pytest.fixture
def program(gate_program: WarmPython) -> WarmProgram:
    """Return the program in a process of its own, without the time of its imports."""
    return WarmProgram(gate_program)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two well separated classes, 400 records of 6 features."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = rng.standard_normal((400, 6)) * 0.3 + y[:, None]
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> Iterator[Path]:
    """A finished run; copy it before changing it."""
    import dpaudit.trainer  # noqa: F401  its error names a library that is missing

    out = tmp_path_factory.mktemp("runs") / "small"
    arguments = (
        f"train --data {small_data} --noise-multiplier 2 --sampling-rate 0.1 --steps 30 "
        f"--canaries 200 --out {out}"
    )
    before = sys.argv
    sys.argv = ["dpaudit", *arguments.split()]
    try:
        assert _run() == 0
    finally:
        sys.argv = before
    names = {path.name for path in out.iterdir()}
    yield out
    assert {path.name for path in out.iterdir()} == names, "a test wrote into the run of all"


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """The finished run, to change at will."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
