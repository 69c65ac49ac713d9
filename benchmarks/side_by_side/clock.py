"""CPU time of a call, and what came of it: a value, or why there is none."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

ENOUGH = 3_000.0
"""CPU milliseconds after which no call is repeated."""


@dataclass(frozen=True)
class Timed(Generic[T]):
    """What the first call returned, and the CPU milliseconds of all of them."""

    value: T | None
    milliseconds: tuple[float, ...]
    error: Exception | None = None

    @property
    def best(self) -> float:
        """The least CPU time of a call."""
        return min(self.milliseconds)

    @property
    def median(self) -> float:
        """The median CPU time of the calls."""
        return statistics.median(self.milliseconds)

    @property
    def why_not(self) -> str:
        """The error in one line."""
        return "" if self.error is None else one_line(self.error)


def timed(call: Callable[[int], T], repeats: int) -> Timed[T]:
    """Return the time of ``call(0)`` to ``call(repeats - 1)``, or of fewer where they are slow.

    The first error ends it.
    """
    first: T | None = None
    took: list[float] = []
    for place in range(repeats):
        gc.collect()
        started = time.process_time()
        try:
            value = call(place)
        except Exception as error:  # whatever a library brings is a result, too
            took.append(1e3 * (time.process_time() - started))
            return Timed(None, tuple(took), error)
        took.append(1e3 * (time.process_time() - started))
        first = value if place == 0 else first
        if sum(took) > ENOUGH:
            break
    return Timed(first, tuple(took))


def answer(call: Callable[[], T]) -> T | str:
    """Return what ``call`` returns, or its error in one line."""
    try:
        return call()
    except Exception as error:
        return one_line(error)


def one_line(error: Exception) -> str:
    """Return an error's type and message, in one line that fits a table."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 100 else text[:97] + "..."
