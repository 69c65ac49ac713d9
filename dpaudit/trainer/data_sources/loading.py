"""Load batches: at once, in a thread, or in worker processes.

However they are loaded, the same requests give the same batches. A worker process gets positions
and a seed, and nothing of the key: a forked one holds a copy of the keystream that it cannot
use, since a keystream refuses to work in a forked process.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from dpaudit.trainer.data_sources.batch_source import BatchRequest, RecordSource
from dpaudit.trainer.data_sources.data_loaders import LoadingSettings
from dpaudit.trainer.engine.batch_structure import Batch, map_tensors
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, UserCodeError

RequestOf = Callable[[int], BatchRequest]
"""From the number of a batch, from 0, to its request."""

WORKER_REMEDY = "a number of processes that can load the data: try workers=0 and prefetch=0"


@dataclass(frozen=True)
class LoadedBatch:
    """The batch of one step.

    Attributes:
        drawn: Number of drawn records, or users.
        batch: Their records.
        positions: Positions of the records that were loaded, shape ``(rows,)``.
    """

    drawn: int
    batch: Batch
    positions: NDArray[np.int64]


def load_batches(
    source: RecordSource, request: RequestOf, count: int, settings: LoadingSettings
) -> Generator[LoadedBatch]:
    """Yield the batches of some requests, in order.

    Args:
        source: Takes the records.
        request: From the number of a batch to its request; it is called in this thread. An error
            that it raises appears in its turn.
        count: Number of batches.
        settings: Where the records are loaded, and how many batches in advance.

    Returns:
        An iterator of ``count`` batches. Close it to end worker processes and threads.
    """
    if source.in_memory and not settings.prefetch:
        return _load_here(source, request, count)
    if source.in_memory:
        return _load_in_thread(source, request, count, settings.prefetch)
    if settings.workers or settings.prefetch:
        return _load_in_workers(source, request, count, settings)
    return _load_here(source, request, count)


def _load_here(source: RecordSource, request: RequestOf, count: int) -> Generator[LoadedBatch]:
    """Yield batches that are loaded when they are asked for."""
    for number in range(count):
        own = request(number)
        yield LoadedBatch(own.drawn, own.fold(source.take(own.positions, own.seed)), own.positions)


def _load_in_thread(
    source: RecordSource, request: RequestOf, count: int, prefetch: int
) -> Generator[LoadedBatch]:
    """Yield batches that a thread copies from memory in advance."""
    waiting: deque[tuple[BatchRequest, Future[Batch]]] = deque()
    requests = _Requests(request, count)
    with ThreadPoolExecutor(1, "dpaudit-loading") as pool:
        for number in range(count):
            while len(waiting) <= prefetch and (own := requests.following()) is not None:
                waiting.append((own, pool.submit(source.take, own.positions, own.seed)))
            if not waiting:
                request(number)  # raises what it raised when it was asked in advance
            own, loaded = waiting.popleft()
            yield LoadedBatch(own.drawn, own.fold(loaded.result()), own.positions)


def _load_in_workers(
    source: RecordSource, request: RequestOf, count: int, settings: LoadingSettings
) -> Generator[LoadedBatch]:
    """Yield batches that worker processes read in advance."""
    requests, asked = _Requests(request, count), deque[BatchRequest]()

    def items() -> Iterator[tuple[NDArray[np.int64], int]]:
        while (own := requests.following()) is not None:
            asked.append(own)
            yield own.positions, own.seed

    loader: DataLoader[Any] = DataLoader(
        _RemoteRecords(source),
        batch_size=None,
        sampler=items(),
        num_workers=max(1, settings.workers or 0),
        prefetch_factor=max(1, settings.prefetch),
        collate_fn=_unchanged,
        worker_init_fn=settings.worker_init_fn,
        multiprocessing_context=settings.context,
        generator=_fixed_generator(),
    )
    loaded = _started(loader, settings)
    try:
        for number in range(count):
            found = _next_of(loaded, settings)
            if found is None:
                request(number)  # raises what it raised when it was asked in advance
            if isinstance(found, DpauditError):
                raise found
            own = asked.popleft()
            if settings.pin_memory:
                found = map_tensors(found, lambda one: one.pin_memory())
            yield LoadedBatch(own.drawn, own.fold(found), own.positions)
    finally:
        del loaded, loader  # ends the worker processes, also if a traceback keeps this frame


class _Requests:
    """Asks for requests in order; the first error ends it, and is raised in its turn elsewhere."""

    def __init__(self, request: RequestOf, count: int) -> None:
        self._request, self._left = request, iter(range(count))

    def following(self) -> BatchRequest | None:
        """Return the next request; None at the end, or after an error."""
        number = next(self._left, None)
        if number is None:
            return None
        try:
            return self._request(number)
        except DpauditError:
            self._left = iter(())
            return None


class _RemoteRecords(Dataset[Any]):
    """The records of a source, for worker processes: an error is returned as a value."""

    def __init__(self, source: RecordSource) -> None:
        self._source = source

    def __getitem__(self, item: tuple[NDArray[np.int64], int]) -> Batch | _Failure:
        """Return the records at some positions, or why they cannot be read."""
        try:
            return self._source.take(*item)
        except DpauditError as error:
            return _Failure(type(error), str(error), getattr(error, "name", ""))


@dataclass(frozen=True)
class _Failure:
    """An error of a worker process, in parts that can be sent."""

    kind: type[DpauditError]
    text: str
    name: str

    def error(self) -> DpauditError:
        """Return the error, not raised."""
        found = self.kind.__new__(self.kind)
        Exception.__init__(found, self.text)
        if issubclass(self.kind, InvalidArgument):
            found.name = self.name  # type: ignore[attr-defined]
        return found


def _unchanged(batch: Batch) -> Batch:
    """Return a batch that needs no conversion."""
    return batch


def _fixed_generator() -> torch.Generator:
    """Return a generator for the seeds of workers, so that torch's global one is not used."""
    return torch.Generator().manual_seed(0)  # each batch has a seed of its own


def _started(loader: DataLoader[Any], settings: LoadingSettings) -> Iterator[Any]:
    """Start the worker processes."""
    try:
        return iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise InvalidArgument("workers", f"{settings.workers} ({error})", WORKER_REMEDY) from error


def _next_of(loaded: Iterator[Any], settings: LoadingSettings) -> Batch | DpauditError | None:
    """Return the next batch, or the error of a worker; None if there is none."""
    try:
        found = next(loaded)
    except StopIteration:
        return None
    except DpauditError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise UserCodeError("a worker process that loads data", cause, WORKER_REMEDY) from error
    return found.error() if isinstance(found, _Failure) else found
