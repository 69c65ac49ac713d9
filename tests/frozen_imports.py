"""Modules are exempt from garbage collection once they are imported.

A full collection visits all objects of a process. Those of imported libraries, and of 18,000
collected tests, take 0.2 s to visit, and are never freed. Training loops of some libraries begin
with a full collection, and others happen while many objects are made.
"""

from __future__ import annotations

import gc
import sys

import pytest

MANY = 100
"""So many new modules are worth a collection."""


class FrozenImports:
    """Plugin that exempts what exists after the collection of tests, and after many imports."""

    def __init__(self) -> None:
        self._modules = 0

    def pytest_collection_finish(self) -> None:
        """Exempt the tests, and what they import."""
        self._freeze()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        """Exempt what a test was the first to import."""
        if len(sys.modules) >= self._modules + MANY:
            self._freeze()

    def _freeze(self) -> None:
        self._modules = len(sys.modules)
        gc.collect()  # else garbage would never be freed
        gc.freeze()
