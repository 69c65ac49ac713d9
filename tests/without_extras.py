"""The rule of ``--core``: skip a test, with a reason, where a library of an extra is missing.

A library is missing where

- a test, its module or a fixture fails to import it, or
- the program that a test calls says so ("torch is not installed: pip install ..."), or
- the test names it, as it runs the program in another process: ``@pytest.mark.needs("torch")``.

Folders of ``CORE`` need the core dependencies alone. There nothing is skipped.
Without ``--core`` this rule does not exist, and a missing library is an error.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import ROOT

from dpaudit.vocabulary.errors import MissingExtra

CORE = tuple(ROOT / "tests" / name for name in ("accountants", "gate", "runs"))
ASKED_FOR = re.compile(r"(\S+) is not installed: pip install ")


def missing_library(error: BaseException | None) -> str | None:
    """Return the library that is not installed and so caused an error; None without one."""
    while error is not None:
        if isinstance(error, MissingExtra) and (found := ASKED_FOR.search(str(error))):
            return found[1]
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            library = error.name.partition(".")[0]
            if find_spec(library) is None:
                return library
        error = error.__cause__ or error.__context__
    return None


def is_core(path: Path) -> bool:
    """Return whether tests of a file need the core dependencies alone."""
    return any(path.is_relative_to(folder) for folder in CORE)


class _Module(pytest.Module):
    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            _skip(missing_library(error))
            raise


class SkipWithoutExtras:
    """The hooks of ``--core``."""

    @pytest.hookimpl
    def pytest_pycollect_makemodule(
        self, module_path: Path, parent: pytest.Collector
    ) -> pytest.Module | None:
        return None if is_core(module_path) else _Module.from_parent(parent, path=module_path)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, None, None]:
        _skip(next(_named_by(item), None))
        yield from _skipping(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        yield from _skipping(item)


def skip_if_asked_for(config: pytest.Config, said: str) -> None:
    """Skip, with ``--core``, where the program said that a library is missing."""
    if config.getoption("--core") and (found := ASKED_FOR.search(said)):
        _skip(found[1])


def _named_by(item: pytest.Item) -> Iterator[str]:
    for mark in item.iter_markers("needs"):
        yield from (library for library in mark.args if find_spec(library) is None)


def _skipping(item: pytest.Item) -> Generator[None, None, None]:
    try:
        yield
    except Exception as error:
        if not is_core(item.path):
            _skip(missing_library(error))
        raise


def _skip(library: str | None) -> None:
    if library is not None:
        pytest.skip(f"{library} is not installed", allow_module_level=True)
