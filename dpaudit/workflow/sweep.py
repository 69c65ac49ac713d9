"""Epsilon over a grid of plans as a table: CSV or parquet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants import pld
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra
from dpaudit.vocabulary.privacy_terms import Adjacency

Array = NDArray[np.float64]

COLUMNS = (
    "sampling_rate", "noise_multiplier", "steps", "delta", "epsilon_lower", "epsilon_upper",
)  # fmt: skip
"""The columns of the table, in order."""
LARGEST_GRID = 2_000_000
"""Number of plans from which on a grid is refused."""


@dataclass(frozen=True)
class SweepTable:
    """Plans with their certified intervals of epsilon, one row per plan.

    Attributes:
        columns: Values by the names of ``COLUMNS``, each of shape ``(n,)``.
    """

    columns: Mapping[str, Array]

    def as_csv(self) -> str:
        """Return the table as CSV, with a heading; numbers are exact when they are read back."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(self._rows())
        return stream.getvalue().rstrip("\n")

    def as_parquet(self) -> bytes:
        """Return the table as a parquet file.

        Returns:
            The content of the file.

        Raises:
            MissingExtra: If pyarrow is not installed.
        """
        try:
            import pyarrow as pa  # noqa: PLC0415  heavy, and comes with an extra
            import pyarrow.parquet as pq  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtra("pyarrow", "scores") from error
        steps = self.columns["steps"].astype(np.int64)
        table = pa.table({**self.columns, "steps": steps})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        return bytes(sink.getvalue())

    def _rows(self) -> Iterator[list[str]]:
        for row in zip(*(self.columns[name] for name in COLUMNS), strict=True):
            yield [
                str(int(value)) if name == "steps" else repr(float(value))
                for name, value in zip(COLUMNS, row, strict=True)
            ]


def sweep(
    sampling_rates: Array,
    noise_multipliers: Array,
    steps: Array,
    deltas: Array,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> SweepTable:
    """Compute epsilon for every combination of four lists.

    Args:
        sampling_rates: Rates of Poisson sampling, above 0 and at most 1, shape ``(a,)``.
        noise_multipliers: Noise multipliers, shape ``(b,)``.
        steps: Numbers of steps, shape ``(c,)``.
        deltas: Deltas, shape ``(d,)``.
        adjacency: The relation of neighboring data sets.

    Returns:
        One row per combination; the last list varies fastest.

    Raises:
        InvalidArgument: If a value is out of range, or there are more than ``LARGEST_GRID``
            combinations.

    Example:
        >>> table = sweep(np.array([0.01]), np.array([1.0]), np.array([1000]), np.array([1e-5]))
        >>> table.columns["epsilon_upper"].round(3).tolist()
        [1.828]
    """
    lists = (sampling_rates, noise_multipliers, steps, deltas)
    size = math.prod(len(one) for one in lists)
    if not 0 < size <= LARGEST_GRID:
        raise InvalidArgument("grid", size, f"from 1 to {LARGEST_GRID} combinations")
    columns = [one.ravel() for one in np.meshgrid(*lists, indexing="ij")]
    found = pld.epsilon_grid(*columns, adjacency=adjacency)
    return SweepTable(dict(zip(COLUMNS, [*columns, found.lower, found.upper], strict=True)))


LARGEST_COUNT = 100_000
LARGEST_WHOLE = 2**53
"""Number from which on doubles do not represent every integer."""


def parse_values(name: str, text: str, *, whole: bool = False) -> Array:
    """Return the numbers of an option: a list as ``1,2,5``, or a range as ``LOW:HIGH:COUNT``.

    A range is geometric. Of whole numbers it is rounded, and equal ones are dropped.

    Args:
        name: Name of the option, for errors.
        text: What was given.
        whole: Whether the numbers must be whole.

    Returns:
        The numbers, shape ``(n,)``.

    Raises:
        InvalidArgument: If the text is no such list or range.

    Example:
        >>> parse_values("steps", "100:10000:3", whole=True).tolist()
        [100.0, 1000.0, 10000.0]
    """
    allowed = "numbers as 1,2,5, or a geometric range LOW:HIGH:COUNT as 0.5:4:8"
    if ":" in text:
        allowed += f", with 0 < LOW <= HIGH and COUNT from 1 to {LARGEST_COUNT}"
    try:
        if ":" in text:
            low, high, count = text.split(":")
            found = _geometric(float(low), float(high), int(count))
            found = np.unique(np.round(found)) if whole else found
        else:
            found = np.array([float(part) for part in text.split(",")])
    except ValueError:
        raise InvalidArgument(name, text, allowed) from None
    if whole and not (found == np.floor(found)).all():
        raise InvalidArgument(name, text, f"whole {allowed}")
    if whole and (found >= LARGEST_WHOLE).any():  # a double may have rounded the text
        raise InvalidArgument(name, text, "below 2^53")
    return found


def _geometric(low: float, high: float, count: int) -> Array:
    """Return a geometric range with both ends; raise ``ValueError`` for an impossible one."""
    if not (0 < low <= high < math.inf and 1 <= count <= LARGEST_COUNT):
        raise ValueError
    found = np.geomspace(low, high, count)
    found[0], found[-1] = low, high if count > 1 else low
    return np.asarray(found)
