"""Score files of dpaudit and of other frameworks: .csv, .parquet and .npz.

A row is a record. The columns are ``score`` (larger means member) and ``member`` (0 or 1, -1 or 1,
or words such as ``train`` and ``test``). Optional columns are ``id``, ``step`` of training,
``attack`` and ``target``, the model that was attacked. ``ScoreColumns`` names other columns.

Every method reads the order of scores alone. So an infinite score is replaced by the next number
beyond the finite ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.scores import MembershipScores, RecordScores
from dpaudit.files.archives import open_npz
from dpaudit.files.documents import read_table
from dpaudit.files.regular_files import DATA_LIMIT, PRIVATE, InputFile, write_output
from dpaudit.vocabulary.arrays import FloatArray
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, InvalidData, MissingExtra

try:
    import pandas as pd
except ImportError as error:  # pragma: no cover - needs an environment without pandas
    raise MissingExtra("pandas", "scores") from error

SCORE_FILE_SUFFIXES = (".csv", ".parquet", ".npz")
REQUIRED_COLUMNS = ("score", "member")
GROUP_COLUMNS = ("attack", "step")  # their values define groups; targets are pooled
ID_COLUMNS = ("target", "id")  # together they identify a record within a group


MEMBER_WORDS = frozenset({"1", "1.0", "+1", "true", "yes", "member", "in", "train", "training"})
NONMEMBER_WORDS = frozenset(
    {"0", "0.0", "-1", "-1.0", "false", "no", "nonmember", "non-member", "out", "test", "heldout"}
)
"""Words of a member column, in lower case and without spaces at the ends."""


@dataclass(frozen=True)
class ScoreColumns:
    """Columns of a score file, and the direction of its scores.

    Attributes:
        score: Name of the column of scores.
        member: Name of the column of memberships.
        smaller_means_member: Whether a smaller score means member, as for losses. The scores
            are then negated.

    Raises:
        InvalidArgument: If one column is named for both.
    """

    score: str = "score"
    member: str = "member"
    smaller_means_member: bool = False

    def __post_init__(self) -> None:
        """Refuse one column for both."""
        if self.score == self.member:
            allowed = "another column than member_column, that of the memberships"
            raise InvalidArgument("score_column", self.score, allowed)

    def name_in_file(self, column: str) -> str:
        """Return the name that a file has for a column.

        Args:
            column: ``score``, ``member``, or a column whose name is fixed.

        Returns:
            The name in the file.
        """
        return {"score": self.score, "member": self.member}.get(column, column)


def read_scores(
    path: Path,
    required: Sequence[str] = REQUIRED_COLUMNS,
    columns: ScoreColumns | None = None,
) -> pd.DataFrame:
    """Read the rows of a score file.

    Args:
        path: A file with a suffix of ``SCORE_FILE_SUFFIXES``.
        required: Columns that the file must have, by their usual names.
        columns: Names of the columns, and direction of the scores; None for the usual ones.

    Returns:
        One row per record, with all columns of the file. Scores are under ``score`` and larger
        for members; memberships are under ``member``, as 0 and 1 if they have a known form.

    Raises:
        InvalidArgument: If the file is missing or has another suffix.
        InvalidData: If the file is broken or empty, lacks a column, or names a membership by an
            unknown word.
    """
    require_score_file_suffix("scores", path)
    source, columns = InputFile(path, "scores", DATA_LIMIT), columns or ScoreColumns()
    try:
        names = _csv_names(source) if path.suffix == ".csv" else []
        frame = _read_npz(source) if path.suffix == ".npz" else read_table(source)
    except DpauditError:
        raise
    except Exception as error:  # readers raise many types for a broken file
        why = f"readable: {type(error).__name__}: {error}"
        raise InvalidData("scores", str(path), why) from error
    twice = [*_repeated(names), *_repeated(list(frame.columns))]
    if twice:
        raise InvalidData("scores", str(path), f"without a second column {twice[0]!r}")
    _require_columns(path, frame, required, columns)
    if frame.empty:
        raise InvalidData("scores", str(path), "a table with one row per record")
    return _normalized(frame, columns)


def _csv_names(source: InputFile) -> list[str]:
    """Return the names in the header as they are: pandas renames the second of two equal ones."""
    header = read_table(source, header=None, nrows=1, dtype=str, keep_default_na=False)
    return [name for name in header.iloc[0] if name]


def _repeated(names: list[str]) -> list[str]:
    """Return the names that occurred before."""
    return [name for place, name in enumerate(names) if name in names[:place]]


def _require_columns(
    path: Path, frame: pd.DataFrame, required: Sequence[str], columns: ScoreColumns
) -> None:
    """Refuse a table that lacks a column, and name the options for other columns."""
    other = [name for name in REQUIRED_COLUMNS if columns.name_in_file(name) != name]
    names = [columns.name_in_file(name) for name in dict.fromkeys([*required, *other])]
    if "id" in required and "id" in (columns.score, columns.member):
        name = "score_column" if columns.score == "id" else "member_column"
        raise InvalidArgument(name, "id", "another column than that of the identifiers")
    if all(name in frame.columns for name in names):
        return
    options = " and ".join(f"--{name}-column" for name in required if name in REQUIRED_COLUMNS)
    raise InvalidData(
        "scores",
        str(path),
        f"a table with columns {' and '.join(names)}; it has {list(frame.columns)}; dpaudit attack "
        f"and dpaudit audit read other columns with {options}",
    )


def _normalized(frame: pd.DataFrame, columns: ScoreColumns) -> pd.DataFrame:
    """Return the rows under the usual names, with larger scores for members."""
    frame = _with_usual_names(frame, columns)
    changed: dict[str, NDArray[np.generic]] = {}
    if "score" in frame.columns and frame["score"].dtype.kind in "buif":
        scores = frame["score"].to_numpy()
        if columns.smaller_means_member:
            changed["score"] = scores = -scores.astype(np.float64)
        if scores.dtype.kind == "f" and np.isinf(scores).any():
            changed["score"] = finite_in_same_order(scores.astype(np.float64))
    if "member" in frame.columns and not _is_usual(frame["member"]):
        changed["member"] = _memberships(frame["member"])
    return frame.assign(**changed) if changed else frame  # a copy costs memory


def _with_usual_names(frame: pd.DataFrame, columns: ScoreColumns) -> pd.DataFrame:
    """Return the rows with both columns under usual names, in place of others of those names."""
    given = {columns.name_in_file(usual): usual for usual in REQUIRED_COLUMNS}
    named = {name: usual for name, usual in given.items() if name in frame.columns}
    if all(name == usual for name, usual in named.items()):
        return frame
    unused = [usual for usual in named.values() if usual not in named]
    return frame.drop(columns=unused, errors="ignore").rename(columns=named)


def finite_in_same_order(scores: FloatArray) -> FloatArray:
    """Replace infinite scores by numbers beyond the finite ones.

    Args:
        scores: Shape ``(records,)``, with or without infinities; NaN stays.

    Returns:
        Scores in the same order, with the same ties. Where no number is left beyond the finite
        ones, all are replaced by their ranks.

    Example:
        >>> finite_in_same_order(np.array([-np.inf, 1.0, np.inf])).round(6)
        array([1., 1., 1.])
        >>> np.unique(finite_in_same_order(np.array([-np.inf, 1.0, np.inf]))).size
        3
    """
    finite = scores[np.isfinite(scores)]
    if len(finite):
        with np.errstate(over="ignore"):
            beyond = np.nextafter(finite.max(), np.inf), np.nextafter(finite.min(), -np.inf)
        if np.isfinite(beyond).all():
            raised = np.where(scores == np.inf, beyond[0], scores)
            return np.where(scores == -np.inf, beyond[1], raised)
    ranks = np.unique(scores, return_inverse=True)[1].astype(np.float64)
    return np.where(np.isnan(scores), np.nan, ranks)


def _is_usual(column: pd.Series) -> bool:
    """Return whether memberships are numbers other than -1 and 1, which are not changed."""
    return column.dtype.kind in "buif" and set(np.unique(column.to_numpy())) != {-1, 1}


def _memberships(column: pd.Series) -> NDArray[np.generic]:
    """Return memberships that are -1 and 1, or known words, as 0 and 1."""
    if column.dtype.kind in "buif":
        return np.asarray((column.to_numpy() == 1).astype(int))
    if column.isna().any():
        raise InvalidData("member", "a missing value", "given in every row")
    codes, words = pd.factorize(column)  # a file has few different words
    members = np.array([_is_member(word) for word in words], dtype=int)
    return np.asarray(members[codes])


def _is_member(word: object) -> bool:
    """Return whether a word names members; refuse unknown words."""
    plain = str(word).strip().lower()
    if plain in MEMBER_WORDS or plain in NONMEMBER_WORDS:
        return plain in MEMBER_WORDS
    known = ", ".join(sorted(MEMBER_WORDS)), ", ".join(sorted(NONMEMBER_WORDS))
    raise InvalidData("member", repr(word), f"one of {known[0]} for members, {known[1]} for others")


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
    found = {name: _membership_scores(rows) for name, rows in rows_by_group(frame).items()}
    if not found:
        raise InvalidData("scores", "no rows", "a finite, non-empty list of scores")
    return found


def rows_by_group(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each group: of each attack at each step of training.

    Args:
        frame: Rows of a score file.

    Returns:
        Rows under the name of the group, such as ``loss, step 100``. A file without the columns
        ``attack`` and ``step`` has one group, ``scores``.
    """
    columns = [name for name in GROUP_COLUMNS if name in frame.columns]
    if not columns:
        return {"scores": frame}
    found = {}
    for key, part in frame.groupby(columns, sort=False, dropna=False):
        names = dict(zip(columns, key, strict=True))
        step = f", step {names['step']}" if "step" in names else ""
        found[f"{names.get('attack', 'scores')}{step}"] = part
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
