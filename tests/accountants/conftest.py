"""How many examples the laws of accounting are held against: few, or with --slow many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

TOO_SLOW = [HealthCheck.too_slow]

settings.register_profile(
    "laws in passing",
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=TOO_SLOW,
)
settings.register_profile(
    "laws at length", max_examples=150, deadline=None, suppress_health_check=TOO_SLOW
)


@pytest.fixture(autouse=True, scope="module")
def as_many_examples_as_time_allows(request: pytest.FixtureRequest) -> Iterator[None]:
    before = settings.get_current_profile_name()
    at_length = request.config.getoption("--slow")
    settings.load_profile("laws at length" if at_length else "laws in passing")
    yield
    settings.load_profile(before)
