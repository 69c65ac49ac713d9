"""Noise made ahead of time: while a step computes its gradients, the next one's noise.

Noise depends on the step alone and on no record, so it can be made before it is needed.
One thread keeps one step's noise in the making, and no more than one in memory.

Noise that is used twice cancels in a difference: each step's is handed out once, and only
in the process that the maker was made in, as a fork would carry the same key away. (Nor
would the thread be there: what a fork copies is the thread that called it.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import Self

from torch import Tensor

from dpaudit.vocabulary.errors import ForkedSession, NoiseReused


class Ahead:
    """Makes the noise of steps in order, each before it is asked for.

    Args:
        make: From the number of the step to its noise. It runs in the thread: it shall
            name its device, as the current one is a thread's own.
        first: The step that is made first, at once.
    """

    def __init__(self, make: Callable[[int], Tensor], *, first: int = 0) -> None:
        self._make, self._process, self._lock = make, os.getpid(), Lock()
        self._taken = Taken(first)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise")
        self._expected = first
        self._pending: Future[Tensor] | None = self._begin(first)

    def take(self, step: int) -> Tensor:
        """Return the noise of ``step``, and have the next one's made.

        Another step than the one after the last is made now, while the caller waits. What
        ``make`` raises is raised here; the step may then be asked for again.

        Raises:
            NoiseReused: it was handed out before.
            ForkedSession: this is another process.
            RuntimeError: ``close`` was called.
        """
        # Before the lock, which a fork may have copied while it was held.
        if os.getpid() != self._process:
            raise ForkedSession(
                "noise made ahead of time was used in a forked process, where it would be used "
                "again: call make_private in each process"
            )
        with self._lock:
            if step in self._taken:
                raise NoiseReused(f"step {step} has had its noise: used twice, it cancels")
            noise = self._made(step)
            self._taken.add(step)
            self._expected = step + 1
            if self._expected not in self._taken:
                self._pending = self._begin(self._expected)
            return noise

    def close(self) -> None:
        """Wait for what is in the making, and drop it; a second call does nothing."""
        if os.getpid() == self._process:  # a fork has no thread to wait for
            with self._lock:
                self._forget()
                self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _made(self, step: int) -> Tensor:
        if step != self._expected:
            self._forget()
        pending, self._pending = self._pending or self._begin(step), None
        return pending.result()

    def _begin(self, step: int) -> Future[Tensor]:
        return self._thread.submit(self._make, step)

    def _forget(self) -> None:
        """Drop the step in the making; a thread that has begun it ends it unheard."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None


class Taken:
    """A set of steps that stays small while they come in order."""

    def __init__(self, first: int) -> None:
        self._first = self._end = first
        self._others: set[int] = set()

    def __contains__(self, step: int) -> bool:
        return self._first <= step < self._end or step in self._others

    def add(self, step: int) -> None:
        """Add a step."""
        self._others.add(step)
        while self._end in self._others:
            self._others.remove(self._end)
            self._end += 1
