"""Score files, ours and those of any framework: .csv, .parquet and .npz.

A row is a record: ``score`` (larger means member), ``member`` (0 or 1), and optionally
``id``, ``step`` of training, ``attack`` and ``target``, the model that was attacked.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dpaudit.attacks.membership.scores import MembershipScores, RecordScores
from dpaudit.files.arrays import opened_npz
from dpaudit.files.opening import DATA, InputFile
from dpaudit.files.tables import read_table
from dpaudit.files.writing import PRIVATE, write_output
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, MissingExtra

try:
    import pandas as pd
except ImportError as error:  # pragma: no cover - needs an environment without pandas
    raise MissingExtra("pandas", "scores") from error

SUFFIXES = (".csv", ".parquet", ".npz")
REQUIRED = ("score", "member")
GROUPS = ("attack", "step")  # what is scored apart; targets are pooled
NAMES = ("target", "id")  # what names a record within a group


def read_scores(path: Path, required: Sequence[str] = REQUIRED) -> pd.DataFrame:
    """Return the rows of a score file; it must have the columns ``required``.

    Raises:
        InvalidArgument: no such file, of another kind, broken, or without a column.
    """
    require_suffix("scores", path)
    source = InputFile(path, "scores", DATA)
    try:
        frame = _read_npz(source) if path.suffix == ".npz" else read_table(source)
    except DpauditError:
        raise
    except Exception as error:  # a file can be broken in any way that its reader knows
        why = f"readable: {type(error).__name__}: {error}"
        raise InvalidArgument("scores", str(path), why) from error
    missing = [name for name in required if name not in frame.columns]
    if missing:
        allowed = f"a table with columns {' and '.join(required)}; it has {list(frame.columns)}"
        raise InvalidArgument("scores", str(path), allowed)
    if frame.empty:
        raise InvalidArgument("scores", str(path), "a table with a row for each record scored")
    return frame


def write_scores(frame: pd.DataFrame, path: Path) -> None:
    """Write rows as what the suffix of ``path`` says.

    Raises:
        InvalidArgument: another suffix, or a place that cannot be written.
    """
    require_suffix("output", path)
    written = io.BytesIO()
    _WRITERS[path.suffix](frame, written)
    write_output(path, written.getvalue(), PRIVATE)


def require_suffix(name: str, path: Path) -> None:
    """Refuse a file of another kind."""
    if path.suffix not in SUFFIXES:
        raise InvalidArgument(name, str(path), f"a file of kind {', '.join(SUFFIXES)}")


def groups_of(frame: pd.DataFrame) -> dict[str, MembershipScores]:
    """Return the scores of each attack, and of each step of training, by name.

    Raises:
        InvalidArgument: scores or memberships that are not numbers, or what
            ``RecordScores.split`` refuses: a record twice, other values, an empty class.
    """
    columns = [name for name in GROUPS if name in frame.columns]
    if not columns:
        return {"scores": _scores(frame)}
    found = {}
    for key, part in frame.groupby(columns, sort=False, dropna=False):
        names = dict(zip(columns, key, strict=True))
        step = f", step {names['step']}" if "step" in names else ""
        found[f"{names.get('attack', 'scores')}{step}"] = _scores(part)
    if not found:
        raise InvalidArgument("scores", "no rows", "a finite, non-empty list of scores")
    return found


def _scores(frame: pd.DataFrame) -> MembershipScores:
    for name in REQUIRED:
        if frame[name].dtype.kind not in "buif":
            raise InvalidArgument(name, str(frame[name].dtype), "a column of numbers")
    scores = RecordScores(frame["score"].to_numpy(dtype=np.float64))
    names = [name for name in NAMES if name in frame.columns]
    if bool(frame[names].isna().any(axis=None)):
        raise InvalidArgument("id", "nothing", "given in every row, or in none")
    ids = frame.groupby(names).ngroup().to_numpy() if "id" in names else None
    return scores.split(frame["member"].to_numpy(), ids)


def _read_npz(source: InputFile) -> pd.DataFrame:
    with opened_npz(source) as archive:
        lengths = {name: header.shape for name, header in archive.headers.items()}
        if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
            raise InvalidArgument("scores", lengths, "arrays of one shape, (records,)")
        return pd.DataFrame(archive.read(lengths))


def _write_npz(frame: pd.DataFrame, file: BinaryIO) -> None:
    columns = {
        str(name): values.to_numpy() if values.dtype.kind in "buif" else values.to_numpy(str)
        for name, values in frame.items()
    }
    np.savez_compressed(file, allow_pickle=False, **columns)


_WRITERS: dict[str, Callable[[pd.DataFrame, BinaryIO], None]] = {
    ".csv": lambda frame, file: frame.to_csv(file, index=False),
    ".parquet": lambda frame, file: frame.to_parquet(file, index=False),
    ".npz": _write_npz,
}
