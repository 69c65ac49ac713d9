"""Types of the fixtures of tests/cli."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Called(NamedTuple):
    """What a call of the program left behind."""

    code: int
    out: str
    err: str


class Call(Protocol):
    """Calls the program with the given arguments."""

    def __call__(self, *arguments: object) -> Called: ...
