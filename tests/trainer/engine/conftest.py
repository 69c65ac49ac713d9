"""Known faults of the engine, one test a line in known_faults.txt: expected to fail for now.

Most are plans that go the slow way where a rule would do, messages that name another module,
and rounding bounded less tightly than the test asks. Two are sums that are wrong without a
word, of models that are rare: one whose records move to another dimension between batches of
equal shapes, and one whose records share rows of a table unevenly.
"""

from __future__ import annotations

from pathlib import Path

import pytest

KNOWN = set((Path(__file__).parent / "known_faults.txt").read_text().splitlines())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.nodeid.rpartition("engine/")[2]
        if name in KNOWN:
            item.add_marker(pytest.mark.xfail(reason="a known fault of the engine", strict=False))
