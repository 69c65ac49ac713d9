"""Training loops of libraries, such as ``trainer.train()``, that take one step at a time.

The loop runs in a thread of its own and reads a ``GivenBatches`` loader. Reading blocks until the
caller gives a batch, and the caller waits until the loop asks for the next one. Only one of both
runs at any time, so global generators are used in a fixed order.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from dpaudit.vocabulary.errors import InvalidArgument

ENDLESS = 1_000_000_000  # length of the loader: the loop ends by its own number of steps
MOST_SECONDS_TO_END = 10.0  # how long to wait for a loop that catches every exception


class _Stopped(BaseException):
    """Ends the loop of a trainer that is not used any more; no handler of errors catches it."""


class GivenBatches:
    """A data loader that yields the batches that it is given, and blocks until then."""

    def __init__(self) -> None:
        self._given: SimpleQueue[Any] = SimpleQueue()
        self._asked: SimpleQueue[Any] = SimpleQueue()

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Any]:
        while True:
            self._asked.put(None)
            batch = self._given.get()
            if batch is _Stopped:
                raise _Stopped
            yield batch

    def run(self, loop: Callable[[], Any]) -> None:
        """Run the loop to its end, in its own thread, and report how it ended."""
        try:
            loop()
            self._asked.put(LoopEnded("an end of the training loop"))
        except _Stopped:
            pass
        except BaseException as error:  # the caller's thread raises it
            self._asked.put(error)

    def give(self, batch: Any) -> None:
        """Give a batch to the loop, which must have asked for one."""
        self._given.put(batch)

    def wait(self) -> BaseException | None:
        """Wait until the loop asks for a batch, or ends.

        Returns:
            None if it asks for one; otherwise why it ended.
        """
        found: BaseException | None = self._asked.get()
        return found

    def stop(self) -> None:
        """End the loop where it waits for a batch."""
        self._given.put(_Stopped)


class LoopEnded(Exception):
    """The loop took all its steps."""


def _end(batches: GivenBatches, thread: threading.Thread) -> None:
    """End a loop, and wait for that: a thread inside a library must not outlive the interpreter."""
    batches.stop()
    if thread is not threading.current_thread():
        thread.join(MOST_SECONDS_TO_END)


class PausedTraining:
    """A training loop between two steps.

    Args:
        begin: Starts the loop on the given loader, and returns when the loop ends.
    """

    def __init__(self, begin: Callable[[GivenBatches], Any]) -> None:
        batches = self._batches = GivenBatches()
        self._ended: BaseException | None = None
        thread = threading.Thread(target=batches.run, args=(lambda: begin(batches),), daemon=True)
        thread.start()
        self._wait()
        if self._ended is not None:
            raise InvalidArgument(
                "trainer", "no step", "a trainer that takes at least one step"
            ) from self._ended
        self._finalizer = weakref.finalize(self, _end, batches, thread)

    def step(self, batch: Any) -> None:
        """Take one step on a batch.

        Args:
            batch: The batch, as the loop's own loader yields it.

        Raises:
            InvalidArgument: If the loop has ended.
        """
        if self._ended is not None:
            raise InvalidArgument(
                "trainer", "fewer steps than the claim", "a trainer with at least as many steps"
            )
        self._batches.give(batch)
        self._wait()

    def _wait(self) -> None:
        """Wait for the loop; raise its error, but remember a regular end."""
        found = self._batches.wait()
        if found is not None and not isinstance(found, LoopEnded):
            raise found
        self._ended = found
