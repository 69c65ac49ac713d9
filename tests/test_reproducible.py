"""Random numbers of tests depend on the test's name alone."""

from __future__ import annotations

import os
import random
import secrets

import numpy as np
import pytest
from reproducible import ReproducibleTests, stream_of

try:
    import torch
except ModuleNotFoundError:  # in core tests
    torch = None

pytest_plugins = ["pytester"]


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
    parents, children = set(), set()
    for _ in range(2):
        source, sink = os.pipe()
        with stream_of("one"):
            child = os.fork()
            if child == 0:  # pragma: no cover
                os.write(sink, os.urandom(16))
                os._exit(0)
            parents.add(os.urandom(16))
        children.add(os.read(source, 16))
        os.waitpid(child, 0)
        os.close(source)
        os.close(sink)
    assert len(parents) == 1
    assert len(children - parents) == 2


def test_a_test_and_a_shared_fixture_repeat_in_another_order(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import os, pytest\n"
        "@pytest.fixture(scope='module', params=[0, 1])\n"
        "def shared(request): return os.urandom(4)\n"
        "@pytest.mark.parametrize('n', [0, 1])\n"
        "def test_it(n, shared): print('drew', n, shared.hex(), os.urandom(4).hex())\n"
    )
    (file,) = pytester.path.glob("*.py")

    def lines(*names: str) -> set[str]:
        options = ("-q", "-s", "-p", "no:xdist", *names)
        done = pytester.runpytest_inprocess(*options, plugins=[ReproducibleTests()])
        assert done.ret == 0
        return {line for line in done.outlines if "drew" in line}

    every = lines()
    assert len(every) == 4
    assert len({line.split("drew")[1].split()[1] for line in every}) == 2
    some = lines(f"{file.name}::test_it[1-1]")
    assert len(some) == 1
    assert {line.strip(".") for line in some} < {line.strip(".") for line in every}
