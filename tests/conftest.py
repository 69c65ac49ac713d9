"""Options and data that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from frozen_imports import FrozenImports
from places import ROOT
from reproducible import ReproducibleTests
from warm_python import WarmPython, warm_python
from without_extras import SkipWithoutExtras


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests, too")
    parser.addoption(
        "--core", action="store_true", help="skip tests whose library of an extra is not installed"
    )
    parser.addoption(
        "--fresh", action="store_true", help="draw from the system, and new examples of hypothesis"
    )


def profile_for(config: pytest.Config) -> str:
    """Return the profile of hypothesis: how many examples, and whether they are new."""
    if config.getoption("--fresh"):
        return "fresh"
    return "reproducible" if config.getoption("--slow") else "reproducible, few"


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile(profile_for(config))
    if not config.getoption("--fresh"):
        config.pluginmanager.register(ReproducibleTests())
    config.pluginmanager.register(FrozenImports())
    # Each worker has a core; threads of all would be in each other's way.
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    if config.getoption("--core"):
        config.pluginmanager.register(SkipWithoutExtras())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of real data sets; skip where it is absent."""
    folder = Path(os.environ.get("DPAUDIT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}: set DPAUDIT_DATA")
    return folder


@pytest.fixture(scope="session")
def gate_program() -> Iterator[WarmPython]:
    """Return a Python that has imported what the gate needs."""
    with warm_python("dpaudit.cli.entry_point", "dpaudit.workflow.gate.run_evaluation") as python:
        yield python


# A machine that is shared is slow at times: laws are tested, not the clock.
hypothesis.settings.register_profile("fresh", deadline=None)
hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True)
# The same examples at each run show nothing new: a quarter of them finds what a change broke.
hypothesis.settings.register_profile(
    "reproducible, few", deadline=None, derandomize=True, max_examples=25
)
