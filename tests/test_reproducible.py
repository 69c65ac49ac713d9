"""Random numbers of tests depend on the test's name alone."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import ROOT
from reproducible import stream_of

try:
    import torch
except ModuleNotFoundError:  # in core tests
    torch = None


def drawn() -> tuple[object, ...]:
    numbers = [float(torch.rand((), dtype=torch.float64))] if torch else []
    return (
        os.urandom(5), secrets.randbits(60), random.random(), float(np.random.random()),  # noqa: NPY002
        int(np.random.default_rng().integers(2**60)), *numbers,
    )  # fmt: skip


def test_streams_of_one_name_are_equal_and_those_of_others_are_not() -> None:
    found = []
    for name in ("one", "one", "other"):
        with stream_of(name):
            found.append((drawn(), drawn()))
    assert found[0] == found[1]
    values = [*found[0], *found[2]]
    assert all(len(set(column)) == 4 for column in zip(*values, strict=True))


def test_the_stream_of_a_fixture_moves_no_other() -> None:
    with stream_of("test"):
        plain = drawn()
    with stream_of("test"):
        with stream_of("fixture"):
            drawn()
        assert drawn() == plain


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_draws_from_the_system() -> None:
    program = (
        "import os, sys\n"
        "from reproducible import stream_of\n"
        "with stream_of('one'):\n"
        "    child = os.fork()\n"
        "    os.write(1, os.urandom(16))\n"
        "    if child: os.waitpid(child, 0)\n"
    )
    run = [sys.executable, "-c", program]
    both = [
        subprocess.run(run, capture_output=True, check=True, cwd=ROOT / "tests").stdout
        for _ in range(2)
    ]
    halves = {out[:16] for out in both} | {out[16:] for out in both}
    assert len(halves) == 3  # the parents' are equal


def test_a_test_and_a_shared_fixture_repeat_in_another_order(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from reproducible import ReproducibleTests\n"
        "def pytest_configure(config): config.pluginmanager.register(ReproducibleTests())\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\n"
        "@pytest.fixture(scope='module', params=[0, 1])\n"
        "def shared(request): return os.urandom(4)\n"
        "@pytest.mark.parametrize('n', [0, 1])\n"
        "def test_it(n, shared): print('drew', n, shared.hex(), os.urandom(4).hex())\n"
    )

    def lines(*names: str) -> set[str]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:xdist", *names],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        return {line for line in done.stdout.splitlines() if "drew" in line}

    every = lines()
    assert len(every) == 4
    assert len({line.split("drew")[1].split()[1] for line in every}) == 2
    some = lines("test_it.py::test_it[1-1]")
    assert len(some) == 1
    assert {line.strip(".") for line in some} < {line.strip(".") for line in every}
