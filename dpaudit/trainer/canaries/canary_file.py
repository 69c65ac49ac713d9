"""Canary records of ``dpaudit canaries make``, which your own training loop trains on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from dpaudit.files.regular_files import DATA_LIMIT, InputFile, read_bytes
from dpaudit.runs.directory import AUDITOR_DIGEST_ARRAY, COUNT_ARRAY
from dpaudit.runs.file_io import PRIVATE, read_arrays, write_bytes
from dpaudit.vocabulary.errors import InvalidArgument

RECORD_ARRAYS = ("x", "y")
"""Arrays of a canary file whose canaries are records: features and labels."""

ArrayRows = NDArray[np.generic]


@dataclass(frozen=True)
class CanaryFile:
    """The trainer's canary file: the included canaries, and the digest of the auditor's file.

    Attributes:
        path: The file that was read.
        content: Its bytes, which are copied into the run directory unchanged.
        features: Features of the included canaries, shape ``(k, ...)``.
        labels: Labels of the included canaries, shape ``(k,)``.
    """

    path: Path
    content: bytes
    features: ArrayRows
    labels: ArrayRows

    @classmethod
    def read(cls, path: Path) -> CanaryFile:
        """Read a trainer's canary file.

        Args:
            path: The file, as ``dpaudit canaries make`` wrote it.

        Returns:
            The included canaries.

        Raises:
            InvalidArgument: If its canaries are not records, or an older version made it.
            IntegrityError: If it is missing or broken.
        """
        arrays = read_arrays(path)
        missing = [
            name
            for name in (COUNT_ARRAY, AUDITOR_DIGEST_ARRAY, *RECORD_ARRAYS)
            if name not in arrays
        ]
        if missing or "included" in arrays:
            allowed = (
                "the trainer's file of dpaudit canaries make, of a kind that is records: "
                "mislabelled, blank, out-of-distribution or crafted"
            )
            raise InvalidArgument("canary_file", str(path), allowed)
        content = read_bytes(InputFile(path, "canary_file", DATA_LIMIT))
        return cls(path, content, arrays["x"], arrays["y"])

    def write(self, path: Path) -> None:
        """Write the file, unchanged, into a run directory.

        Args:
            path: The new file, which only its owner may read.
        """
        write_bytes(path, self.content, mode=PRIVATE)

    def require_among(self, dataset: Any) -> None:
        """Refuse a data set that lacks an included canary with its label.

        An audit of canaries that were not trained on would find no leak, whatever the model does.

        Args:
            dataset: Tensors or arrays of features and labels, in a tuple, list, mapping or
                ``TensorDataset``.

        Raises:
            InvalidArgument: If a canary is missing, or the data set's columns are not of the shapes
                in the file.
        """
        columns = list(_columns(dataset))
        labels = [one for one in columns if one.ndim == 1]
        shaped = [one for one in columns if one.ndim > 1 and _fits(one, self.features)]
        missing = min(
            (
                self._missing(rows, own)
                for rows in shaped
                for own in labels
                if len(own) == len(rows)
            ),
            default=None,
        )
        if missing is None:
            raise InvalidArgument(
                "dataset", type(dataset).__name__, "tensors or arrays of features and labels, of "
                f"the shapes in {self.path}: with a canary_file, its canaries must be "
                "among them",
            )  # fmt: skip
        if missing:
            raise InvalidArgument(
                "dataset", f"one that lacks {missing} of {len(self.labels)} included canaries",
                f"records that include those of {self.path}, unchanged (dpaudit canaries make "
                "--training-file adds them; scale records inside the loss)",
            )  # fmt: skip

    def _missing(self, rows: ArrayRows, labels: ArrayRows) -> int:
        """Return the number of canaries that are not among ``rows`` with their labels."""
        features = self.features.astype(rows.dtype).reshape(len(self.features), -1)
        wanted = Counter(_record_keys(features, self.labels))
        for key in _record_keys(rows.reshape(len(rows), -1), labels):
            if key in wanted:
                wanted[key] -= 1
                if not wanted[key]:
                    del wanted[key]
                    if not wanted:
                        return 0
        return sum(wanted.values())


def _record_keys(features: ArrayRows, labels: ArrayRows) -> Iterator[tuple[bytes, float]]:
    """Yield a hashable key of each record: the bytes of its features, and its label."""
    for row, label in zip(features, labels.tolist(), strict=True):
        yield row.tobytes(), float(label)


def _fits(column: ArrayRows, features: ArrayRows) -> bool:
    """Return whether records of a column have as many values as the canaries."""
    return bool(np.prod(column.shape[1:]) == np.prod(features.shape[1:]))


def _columns(dataset: Any) -> Iterator[ArrayRows]:
    """Yield the arrays of a data set of columns; nothing for any other data set."""
    match dataset:
        case TensorDataset():
            parts: tuple[Any, ...] = dataset.tensors
        case Mapping():
            parts = tuple(dataset.values())
        case tuple() | list():
            parts = tuple(dataset)
        case _:
            parts = ()
    for part in parts:
        if isinstance(part, Tensor):
            yield part.detach().cpu().numpy()
        elif isinstance(part, np.ndarray):
            yield part
