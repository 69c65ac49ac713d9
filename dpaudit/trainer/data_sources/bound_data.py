"""The data of a trainer: those of ``make_private``, or others that are given to ``batches``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from dpaudit.trainer.batches.grouped_records import Users
from dpaudit.trainer.data_sources.batch_source import BatchSource, make_batch_source
from dpaudit.trainer.data_sources.data_loaders import LoadableData, LoadingSettings, unpack_loader
from dpaudit.trainer.data_sources.digest import data_digest
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument


@dataclass(frozen=True)
class BoundSource:
    """Data with their source of batches.

    Attributes:
        data: The data; of a DataLoader, its data set.
        users: The owners of the records, if users are drawn; else None.
        source: The source of batches.
        loading: How batches are loaded.
    """

    data: Any
    users: Users | None
    source: BatchSource
    loading: LoadingSettings
    _digests: list[str] = field(default_factory=list, init=False)

    def digest(self, stream: Keystream) -> str:
        """Return a keyed digest of the data, which is computed once.

        Args:
            stream: The keystream, which is the same on every rank.

        Returns:
            Hexadecimal digits, equal on ranks with equal data.
        """
        if not self._digests:
            self._digests.append(data_digest(self.source.source, stream))
        return self._digests[0]


class BoundData:
    """Finds the source of data, and keeps that of the data that were used last.

    Args:
        default: The data of ``make_private``; None: there are none.
        options: Settings that the user gave, for data that are given later.
        floating: Type of the model's parameters.
    """

    def __init__(
        self, default: LoadableData | None, options: LoadingSettings, floating: torch.dtype
    ) -> None:
        self._default, self._options, self._floating = default, options, floating
        self._unpacked: tuple[Any, LoadableData] | None = None
        self._bound: BoundSource | None = None

    def source_of(self, data: Any, users: Users | None) -> BoundSource:
        """Return the source of data; the same one as before for the same data.

        Args:
            data: The data; None: those of ``make_private``.
            users: The owners of the records, if users are drawn; else None.

        Returns:
            The source, with the data that it takes records of.

        Raises:
            InvalidArgument: If there are no data, or they cannot be used.
        """
        loadable = self._default if data is None else self._unpack(data)
        if loadable is None or loadable.data is None:
            raise InvalidArgument("data", None, "given to make_private or to batches")
        bound = self._bound
        if bound is None or bound.data is not loadable.data or bound.users is not users:
            source = make_batch_source(
                loadable.data,
                users,
                collate_fn=loadable.loading.collate_fn,
                floating=self._floating,
            )
            bound = BoundSource(loadable.data, users, source, loadable.loading)
            self._bound = bound
        return bound

    def _unpack(self, data: Any) -> LoadableData:
        """Return given data with their loading; a DataLoader is named once."""
        if self._unpacked is None or self._unpacked[0] is not data:
            self._unpacked = (data, unpack_loader(data, self._options, depth=4))
        return self._unpacked[1]
