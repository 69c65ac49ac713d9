"""Score files of dpaudit and of other frameworks: .csv, .parquet and .npz.

A row is a record. The columns are ``score`` (larger means member) and ``member`` (0 or 1). Optional
columns are ``id``, ``step`` of training, ``attack`` and ``target``, the model that was attacked.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dpaudit.attacks.membership.scores import MembershipScores, RecordScores
from dpaudit.files.archives import open_npz
from dpaudit.files.documents import read_table
from dpaudit.files.regular_files import DATA_LIMIT, PRIVATE, InputFile, write_output
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, InvalidData, MissingExtra

try:
    import pandas as pd
except ImportError as error:  # pragma: no cover - needs an environment without pandas
    raise MissingExtra("pandas", "scores") from error

SCORE_FILE_SUFFIXES = (".csv", ".parquet", ".npz")
REQUIRED_COLUMNS = ("score", "member")
GROUP_COLUMNS = ("attack", "step")  # their values define groups; targets are pooled
ID_COLUMNS = ("target", "id")  # together they identify a record within a group


def read_scores(path: Path, required: Sequence[str] = REQUIRED_COLUMNS) -> pd.DataFrame:
    """Read the rows of a score file.

    Args:
        path: A file with a suffix of ``SCORE_FILE_SUFFIXES``.
        required: Columns that the file must have.

    Returns:
        One row per record, with all columns of the file.

    Raises:
        InvalidArgument: If the file is missing or has another suffix.
        InvalidData: If the file is broken or empty, or lacks a column.
    """
    require_score_file_suffix("scores", path)
    source = InputFile(path, "scores", DATA_LIMIT)
    try:
        frame = _read_npz(source) if path.suffix == ".npz" else read_table(source)
    except DpauditError:
        raise
    except Exception as error:  # readers raise many types for a broken file
        why = f"readable: {type(error).__name__}: {error}"
        raise InvalidData("scores", str(path), why) from error
    missing = [name for name in required if name not in frame.columns]
    if missing:
        allowed = f"a table with columns {' and '.join(required)}; it has {list(frame.columns)}"
        raise InvalidData("scores", str(path), allowed)
    if frame.empty:
        raise InvalidData("scores", str(path), "a table with one row per record")
    return frame


def write_scores(frame: pd.DataFrame, path: Path) -> None:
    """Write rows to a file in the format of its suffix, readable by its owner alone.

    Args:
        frame: One row per record.
        path: A file with a suffix of ``SCORE_FILE_SUFFIXES``; an existing one is replaced.

    Raises:
        InvalidArgument: If the suffix is another one, or the file cannot be written.
    """
    require_score_file_suffix("output", path)
    written = io.BytesIO()
    _WRITERS[path.suffix](frame, written)
    write_output(path, written.getvalue(), PRIVATE)


def require_score_file_suffix(name: str, path: Path) -> None:
    """Refuse a path whose suffix is not that of a score file.

    Args:
        name: The argument, for the message.
        path: The path; the file need not exist.

    Raises:
        InvalidArgument: If the suffix is not in ``SCORE_FILE_SUFFIXES``.
    """
    if path.suffix not in SCORE_FILE_SUFFIXES:
        raise InvalidArgument(name, str(path), f"a file of kind {', '.join(SCORE_FILE_SUFFIXES)}")


def scores_by_group(frame: pd.DataFrame) -> dict[str, MembershipScores]:
    """Return the scores of each group: of each attack at each step of training.

    Args:
        frame: Rows of a score file.

    Returns:
        Scores under the name of the group, such as ``loss, step 100``. A file without the
        columns ``attack`` and ``step`` has one group, ``scores``.

    Raises:
        InvalidData: If scores or memberships are not numbers, some rows lack an identifier, or
            there is no row.
        InvalidArgument: If ``RecordScores.split`` refuses a group: a record occurs twice, a
            membership is neither 0 nor 1, a score is not finite, or a class is empty.

    Example:
        >>> frame = pd.DataFrame({"score": [0.9, 0.1], "member": [1, 0], "attack": "loss"})
        >>> scores_by_group(frame)["loss"].members
        array([0.9])
    """
    columns = [name for name in GROUP_COLUMNS if name in frame.columns]
    if not columns:
        return {"scores": _membership_scores(frame)}
    found = {}
    for key, part in frame.groupby(columns, sort=False, dropna=False):
        names = dict(zip(columns, key, strict=True))
        step = f", step {names['step']}" if "step" in names else ""
        found[f"{names.get('attack', 'scores')}{step}"] = _membership_scores(part)
    if not found:
        raise InvalidData("scores", "no rows", "a finite, non-empty list of scores")
    return found


def _membership_scores(frame: pd.DataFrame) -> MembershipScores:
    """Return the scores of one group by membership."""
    for name in REQUIRED_COLUMNS:
        if frame[name].dtype.kind not in "buif":
            raise InvalidData(name, str(frame[name].dtype), "a column of numbers")
    scores = RecordScores(frame["score"].to_numpy(dtype=np.float64))
    names = [name for name in ID_COLUMNS if name in frame.columns]
    if bool(frame[names].isna().any(axis=None)):
        raise InvalidData("id", "a missing value", "given in every row, or in none")
    ids = frame.groupby(names).ngroup().to_numpy() if "id" in names else None
    return scores.split(frame["member"].to_numpy(), ids)


def _read_npz(source: InputFile) -> pd.DataFrame:
    """Read columns from an archive; shapes are checked before anything is inflated."""
    with open_npz(source) as archive:
        lengths = {name: header.shape for name, header in archive.headers.items()}
        if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
            raise InvalidData("scores", lengths, "arrays of one shape, (records,)")
        return pd.DataFrame(archive.read(lengths))


def _write_npz(frame: pd.DataFrame, file: BinaryIO) -> None:
    """Write one array per column; other types than numbers and booleans become text."""
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
