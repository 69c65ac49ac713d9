"""Canaries of ``dpaudit canaries make`` that a loop of your own trains on, among its records."""

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

from dpaudit.files.opening import DATA, InputFile, read
from dpaudit.runs.files import PRIVATE, read_arrays, write_bytes
from dpaudit.runs.planted import COUNT, SECRET_DIGEST
from dpaudit.vocabulary.errors import InvalidArgument

RECORDS = ("x", "y")
"""Arrays of a file of canaries that are records: features and labels."""

Rows = NDArray[np.generic]


@dataclass(frozen=True)
class CanaryFile:
    """The trainer's file: the included canaries, and the digest of the auditor's file.

    Attributes:
        path: Where it was read.
        content: Its bytes, which go into the run directory as they are.
        features: Of the included canaries, shape ``(k, ...)``.
        labels: Theirs, shape ``(k,)``.
    """

    path: Path
    content: bytes
    features: Rows
    labels: Rows

    @classmethod
    def read(cls, path: Path) -> CanaryFile:
        """Return the file at ``path``.

        Raises:
            InvalidArgument: Its canaries are no records, or an older version made it.
            IntegrityError: It is missing or broken.
        """
        arrays = read_arrays(path)
        lacking = [name for name in (COUNT, SECRET_DIGEST, *RECORDS) if name not in arrays]
        if lacking or "included" in arrays:
            allowed = (
                "the trainer's file of dpaudit canaries make, of a kind that is records: "
                "mislabelled, blank, out-of-distribution or crafted"
            )
            raise InvalidArgument("canary_file", str(path), allowed)
        content = read(InputFile(path, "canary_file", DATA))
        return cls(path, content, arrays["x"], arrays["y"])

    def write(self, path: Path) -> None:
        """Write the file into a run directory."""
        write_bytes(path, self.content, mode=PRIVATE)

    def require_among(self, dataset: Any) -> None:
        """Refuse a data set that does not hold each included canary, with its label.

        An audit of canaries that were not trained on would find no leak, whatever the model
        does.

        Raises:
            InvalidArgument: One is missing, or records cannot be looked through.
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
                f"the shapes in {self.path}, where there is a canary_file: its canaries are "
                "looked for among them",
            )  # fmt: skip
        if missing:
            raise InvalidArgument(
                "dataset", f"one that lacks {missing} of {len(self.labels)} included canaries",
                f"records with those of {self.path} among them, as they are there (dpaudit "
                "canaries make --training-file mixes them in; scale records inside the loss)",
            )  # fmt: skip

    def _missing(self, rows: Rows, labels: Rows) -> int:
        """Return how many canaries are not among ``rows`` with their labels."""
        features = self.features.astype(rows.dtype).reshape(len(self.features), -1)
        wanted = Counter(_keys(features, self.labels))
        for key in _keys(rows.reshape(len(rows), -1), labels):
            if key in wanted:
                wanted[key] -= 1
                if not wanted[key]:
                    del wanted[key]
                    if not wanted:
                        return 0
        return sum(wanted.values())


def _keys(features: Rows, labels: Rows) -> Iterator[tuple[bytes, float]]:
    for row, label in zip(features, labels.tolist(), strict=True):
        yield row.tobytes(), float(label)


def _fits(column: Rows, features: Rows) -> bool:
    return bool(np.prod(column.shape[1:]) == np.prod(features.shape[1:]))


def _columns(dataset: Any) -> Iterator[Rows]:
    """Yield the arrays of a data set of columns; of any other, nothing."""
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
