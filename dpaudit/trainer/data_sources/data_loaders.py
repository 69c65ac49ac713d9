"""What is used of a DataLoader: its data set, ``collate_fn``, workers and ``pin_memory``.

Its sampler and batch size are replaced: the ledger records Poisson sampling, or what the user's
sampler is, so that is what must be drawn.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from dpaudit.trainer.data_sources.collate import CollateFunction
from dpaudit.vocabulary.errors import InvalidArgument, require_count

STREAMED = (
    "records by index, with a length, as a tensor, a list or a map-style Dataset: Poisson "
    "sampling draws each record by an independent coin, and a stream yields records in an order "
    "of its own (read it into a list, or index it)"
)


@dataclass(frozen=True)
class LoadingSettings:
    """How batches are loaded, which has no influence on which records they hold.

    Attributes:
        collate_fn: Makes a batch of a list of records; None: ``collate_records``.
        workers: Number of worker processes that read records; None: those of a DataLoader, or
            none, so that this process reads them.
        prefetch: Number of batches that are loaded in advance, in the background.
        pin_memory: Whether tensors are copied to pinned memory, where there is a GPU.
        worker_init_fn: Called in each worker process with its number.
        context: Start method of worker processes; None: Python's default.
    """

    collate_fn: CollateFunction | None = None
    workers: int | None = None
    prefetch: int = 0
    pin_memory: bool = False
    worker_init_fn: Any = None
    context: Any = None

    def __post_init__(self) -> None:
        if self.collate_fn is not None and not callable(self.collate_fn):
            allowed = "a function from a list of records to a batch"
            raise InvalidArgument("collate_fn", self.collate_fn, allowed)
        if self.workers is not None:
            require_count("workers", self.workers, least=0)
        require_count("prefetch", self.prefetch, least=0)


@dataclass(frozen=True)
class LoadableData:
    """Data, and how they are loaded.

    Attributes:
        data: The data; of a DataLoader, its data set.
        loading: Settings of loading: those that the user gave, or else those of a DataLoader.
        batch_size: The batch size of a DataLoader; None for any other data.
    """

    data: Any
    loading: LoadingSettings
    batch_size: int | None = None


def unpack_loader(data: Any, given: LoadingSettings, *, depth: int) -> LoadableData:
    """Return the data set of a DataLoader with its settings; any other data as they are.

    Args:
        data: What the user gave.
        given: Settings that the user gave, which override those of a DataLoader.
        depth: Number of calls between this one and that of the user, for the warning.

    Returns:
        Data and settings. For a DataLoader, a warning says what is replaced.

    Raises:
        InvalidArgument: If the data are a stream.
    """
    if not isinstance(data, DataLoader):
        require_no_stream(data)
        return LoadableData(data, given)
    require_no_stream(data.dataset)
    own = data.collate_fn if data.collate_fn is not default_collate else None
    if data.batch_size is None and data.batch_sampler is None:
        own = None  # it converts records one by one, and makes no batches
    loading = replace(
        given,
        collate_fn=given.collate_fn or cast("CollateFunction | None", own),
        workers=data.num_workers if given.workers is None else given.workers,
        pin_memory=data.pin_memory and torch.cuda.is_available(),
        worker_init_fn=data.worker_init_fn,
        context=data.multiprocessing_context,
    )
    warnings.warn(
        f"of the DataLoader, data set, collate_fn, workers and pin_memory are used; its "
        f"{_sampler_text(data)} are replaced by the sampling that the ledger records, which draws "
        "batches of varying size",
        stacklevel=depth + 2,
    )
    return LoadableData(data.dataset, loading, data.batch_size)


def require_no_stream(data: Any) -> None:
    """Refuse data without records by index.

    Args:
        data: What the user gave.

    Raises:
        InvalidArgument: If it is an IterableDataset, an iterator, or a dict of data sets.
    """
    streamed = isinstance(data, IterableDataset) or (
        hasattr(data, "__iter__") and not hasattr(data, "__getitem__") and not hasattr(data, "iloc")
    )
    if streamed:
        raise InvalidArgument("data", f"an object of type {type(data).__name__}", STREAMED)


def _sampler_text(loader: DataLoader[Any]) -> str:
    """Return the sampler and the batch size of a DataLoader as text."""
    if loader.batch_size is None:
        return f"{type(loader.batch_sampler or loader.sampler).__name__} and batches"
    return f"{type(loader.sampler).__name__} and batch_size={loader.batch_size}"
