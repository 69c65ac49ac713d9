"""Reproducible tests: each test has random numbers of its own, which its name determines.

A test that fails once in 10,000 runs would otherwise fail one in two builds of a suite of this
size, with no way to repeat it. So ``os.urandom``, and the global generators of Python, numpy and
torch, are streams that depend on the test alone: not on the order of the tests, and not on the
process that runs them. Fixtures that several tests share have streams of their own. Other
processes that a test starts draw from the system, as users do.

``--fresh`` leaves all generators as they are, and lets hypothesis draw new examples. That finds
what a fixed stream hides: run it before a release.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock

import numpy as np
import pytest

HAS_TORCH = find_spec("torch") is not None

system_random = os.urandom


class Stream:
    """Bytes that a name determines, in place of those of the system.

    Args:
        name: Name of a test or a fixture.
    """

    def __init__(self, name: str) -> None:
        self._key, self._count = name.encode(), 0
        self._process, self._lock = os.getpid(), Lock()

    def urandom(self, size: int, /) -> bytes:
        """Return the next bytes; those of the system in a process that was forked.

        Args:
            size: Number of bytes.

        Returns:
            The bytes.
        """
        if os.getpid() != self._process:
            return system_random(size)
        with self._lock:
            self._count += 1
            number = self._count.to_bytes(8, "big")
        return hashlib.shake_256(number + self._key).digest(size)


@contextmanager
def stream_of(name: str) -> Iterator[None]:
    """Let all random numbers depend on a name, in this process.

    Args:
        name: Name of a test or a fixture.

    Yields:
        Nothing; all generators are as before after the block.
    """
    before = os.urandom, random._urandom  # type: ignore[attr-defined]
    restores = _saved_generators()
    stream = Stream(name)
    os.urandom = stream.urandom
    random._urandom = stream.urandom  # type: ignore[attr-defined]  # of secrets and default_rng
    seed = int.from_bytes(stream.urandom(4), "big")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (of other libraries)
    if HAS_TORCH:
        import torch  # here: where it is missing, core tests run

        # torch.manual_seed also keeps a stack trace for each kind of device, 0.6 ms per call.
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        os.urandom, random._urandom = before  # type: ignore[attr-defined]
        for restore in restores:
            restore()


def _saved_generators() -> list[Callable[[], object]]:
    """Return calls that set the global generators back."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    restores: list[Callable[[], object]] = [
        lambda: random.setstate(python),
        lambda: np.random.set_state(arrays),  # noqa: NPY002
    ]
    if HAS_TORCH:
        import torch

        tensors = torch.get_rng_state()
        restores.append(lambda: torch.set_rng_state(tensors))
    return restores


class ReproducibleTests:
    """Plugin that gives each test, and each shared fixture, its stream."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Run a test on its stream."""
        with stream_of(item.nodeid):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Set up a shared fixture on its own stream: which test comes first is chance."""
        if fixturedef.scope == "function":
            return (yield)
        shared = f"{fixturedef.baseid}::{fixturedef.argname}[{request.param_index}]"
        with stream_of(shared):
            return (yield)
