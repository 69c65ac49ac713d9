"""Prefetching of noise: the next step's noise is made while a step computes its gradients.

Noise depends on the step and on no record, so it can be made before it is needed. One thread makes
the noise of one step, and at most one step's noise is kept in memory.

Noise that is used twice cancels in a difference. So each step's noise is handed out once, and only
in the process that made the prefetcher: a fork would carry the same key away, and has no copy of
the thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import Generic, Self, TypeVar

from dpaudit.vocabulary.errors import ForkedSession, NoiseReused

Noise = TypeVar("Noise")
"""What is made for each step."""


class NoisePrefetcher(Generic[Noise]):
    """Makes the noise of consecutive steps, each before it is needed.

    Args:
        make: From the number of the step to its noise. It runs in the thread and must name its
            device, as the current device is a setting of each thread.
        first: The step whose noise is made first, at once.
    """

    def __init__(self, make: Callable[[int], Noise], *, first: int = 0) -> None:
        self._make, self._process, self._lock = make, os.getpid(), Lock()
        self._taken = StepSet(first)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noise")
        self._expected = first
        self._pending: Future[Noise] | None = self._begin(first)

    def take(self, step: int) -> Noise:
        """Return the noise of ``step``, and start making the next step's.

        If ``step`` is not the expected one, its noise is made now, while the caller waits. An error
        of ``make`` is raised here; the step can then be taken again.

        Args:
            step: Number of the step, from 0.

        Returns:
            What ``make`` returned for this step.

        Raises:
            NoiseReused: If the noise of this step was handed out before.
            ForkedSession: If this is another process than the one that made the prefetcher.
            RuntimeError: If ``close`` was called.
        """
        # Checked before taking the lock, which a fork may have copied while it was held.
        if os.getpid() != self._process:
            raise ForkedSession(
                "prefetched noise was used in a forked process, which would use the same noise "
                "as its parent: call make_private in each process"
            )
        # One lock for the taken steps and the pending one: no two threads get one noise.
        with self._lock:
            if step in self._taken:
                raise NoiseReused(
                    f"the noise of step {step} was used before: noise that is used twice cancels"
                )
            noise = self._made(step)
            self._taken.add(step)
            self._expected = step + 1
            if self._expected not in self._taken:
                self._pending = self._begin(self._expected)
            return noise

    def close(self) -> None:
        """Wait for noise in the making, and drop it; a second call does nothing."""
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

    def _made(self, step: int) -> Noise:
        """Return the noise of ``step``, waiting for it or making it."""
        if step != self._expected:
            self._forget()
        pending, self._pending = self._pending or self._begin(step), None
        return pending.result()

    def _begin(self, step: int) -> Future[Noise]:
        """Start to make the noise of ``step`` in the thread."""
        return self._thread.submit(self._make, step)

    def _forget(self) -> None:
        """Drop the pending step; if the thread has begun it, its result is ignored."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None


class StepSet:
    """A set of steps that needs constant memory while steps are added in order.

    Args:
        first: The first step that may be added in order.
    """

    def __init__(self, first: int) -> None:
        self._first = self._end = first
        self._others: set[int] = set()

    def __contains__(self, step: int) -> bool:
        return self._first <= step < self._end or step in self._others

    def add(self, step: int) -> None:
        """Add a step; steps that join the contiguous range are merged into it."""
        self._others.add(step)
        while self._end in self._others:
            self._others.remove(self._end)
            self._end += 1
