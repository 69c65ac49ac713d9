"""Files of texts, and of token log-probabilities that were computed elsewhere.

Both are untrusted: they are read as data, within limits, and nothing in them runs.

A line of a JSON Lines file (``.jsonl``) is one text, an object with these keys:

- ``id``: name of the text, distinct; optional, by default its row number.
- ``member``: 1 if the model was trained on it, else 0.
- ``text``: the text.
- ``logprobs``: natural log-probability of each predicted token.
- ``mean_logprobs``, ``std_logprobs``: mean and standard deviation of the log-probability over the
  model's own distribution at each token, for Min-K%++.
- ``greedy``: whether each token is the most probable one, for verbatim extraction.
- ``drawn_logprobs``: log-probability of each token under the sampling scheme of an extraction;
  null for a token that the scheme cannot draw.
- ``reference_logprobs``: log-probabilities of the text's tokens under a reference model.
- ``zlib_bytes``: length of the text after zlib compression, where ``text`` is not given.

A ``.npz`` file has the same names as arrays. Arrays of tokens hold all texts one after the other,
and ``lengths`` (``reference_lengths``) has the number of tokens of each text. Minus infinity stands
in place of null. A file of texts can also be a ``.csv`` or ``.parquet`` table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.language_models.token_signals import TokenSignals, zlib_bytes
from dpaudit.files.archives import Arrays, machine_memory, read_npz
from dpaudit.files.documents import read_table
from dpaudit.files.regular_files import DATA_LIMIT, MIB, InputFile, open_input
from dpaudit.vocabulary.arrays import BoolArray
from dpaudit.vocabulary.errors import DpauditError, InvalidData

LINE_LIMIT = 64 * MIB
"""Largest line of a JSON Lines file, in bytes."""

MEMORY_FACTOR = 8
"""Memory that a parsed JSON Lines file may take, in multiples of its size, at most."""

SIGNAL_SUFFIXES, TEXT_SUFFIXES = (".jsonl", ".npz"), (".jsonl", ".csv", ".parquet")


class _Line(msgspec.Struct, frozen=True):
    """One line of a JSON Lines file."""

    id: str | int | None = None
    member: bool | int | None = None
    text: str | None = None
    logprobs: list[float] | None = None
    mean_logprobs: list[float] | None = None
    std_logprobs: list[float] | None = None
    greedy: list[bool] | None = None
    drawn_logprobs: list[float | None] | None = None
    reference_logprobs: list[float] | None = None
    zlib_bytes: int | None = None


@dataclass(frozen=True)
class TextRecords:
    """Texts with names and, where a file states it, their membership.

    Attributes:
        ids: Distinct names.
        texts: The texts; None if only signals are known.
        member: Whether the model was trained on each text, shape ``(texts,)``; None if the file
            does not state it.

    Raises:
        InvalidData: If a name occurs twice, or the lengths differ.

    Example:
        >>> TextRecords(("a", "b"), ("to be", "or not"), np.array([True, False])).ids
        ('a', 'b')
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...] | None
    member: BoolArray | None

    def __post_init__(self) -> None:
        if len(set(self.ids)) < len(self.ids):
            first = Counter(self.ids).most_common(1)[0][0]
            raise InvalidData("id", first, "different for each text: it occurs twice")
        for name, values in (("texts", self.texts), ("member", self.member)):
            if values is not None and len(values) != len(self.ids):
                raise InvalidData(name, len(values), f"one for each of the {len(self.ids)} texts")

    def __len__(self) -> int:
        return len(self.ids)

    def require_member(self) -> BoolArray:
        """Return the membership.

        Returns:
            Shape ``(texts,)``.

        Raises:
            InvalidData: If the file does not state it, or states one class alone.
        """
        if self.member is None:
            raise InvalidData("member", None, "given for every text: 1 or 0")
        if self.member.all() or not self.member.any():
            given = "one class alone"
            raise InvalidData("member", given, "1 for some texts and 0 for others")
        return self.member


def read_texts(path: Path, argument: str = "data") -> TextRecords:
    """Read a file of texts.

    Args:
        path: A ``.jsonl``, ``.csv`` or ``.parquet`` file with ``text``, and optionally ``id`` and
            ``member``.
        argument: Name of the argument that gave the path, for errors.

    Returns:
        The texts.

    Raises:
        UnreadableFile: If the file is missing or too large.
        InvalidData: If it is broken, or a text is missing or empty.
        MissingExtra: If a table is given, and pandas is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "texts.jsonl")
        ...     _ = path.write_text('{"member": 1, "text": "to be"}\\n')
        ...     read_texts(path).texts
        ('to be',)
    """
    _require_suffix(path, argument, TEXT_SUFFIXES)
    source = InputFile(path, argument, DATA_LIMIT)
    lines = _lines(source) if path.suffix == ".jsonl" else _rows(source)
    ids, members, texts = [], [], []
    for row, line in enumerate(lines):
        if not line.text:
            raise InvalidData("text", f"none in row {row}", "given and not empty in every row")
        ids.append(str(row if line.id is None else line.id))
        members.append(line.member)
        texts.append(line.text)
    _require_rows(source, ids)
    return TextRecords(tuple(ids), tuple(texts), _membership(members))


def read_token_signals(
    path: Path, argument: str = "token_logprobs"
) -> tuple[TextRecords, tuple[TokenSignals, ...]]:
    """Read token log-probabilities that were computed elsewhere.

    Args:
        path: A ``.jsonl`` or ``.npz`` file; see the module.
        argument: Name of the argument that gave the path, for errors.

    Returns:
        The texts, and the signals of each.

    Raises:
        UnreadableFile: If the file is missing or too large.
        InvalidData: If it is broken, or values are missing or out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "signals.jsonl")
        ...     _ = path.write_text('{"member": 1, "logprobs": [-0.5, -2]}\\n')
        ...     records, signals = read_token_signals(path)
        >>> records.ids, signals[0].log_probabilities
        (('0',), array([-0.5, -2. ]))
    """
    _require_suffix(path, argument, SIGNAL_SUFFIXES)
    source = InputFile(path, argument, DATA_LIMIT)
    if path.suffix == ".npz":
        return _from_arrays(source, read_npz(source))
    ids, members, texts, signals = [], [], [], []
    for row, line in enumerate(_lines(source)):
        ids.append(str(row if line.id is None else line.id))
        members.append(line.member)
        texts.append(line.text)
        signals.append(_signals(source, row, line))
    _require_rows(source, ids)
    known = None if any(text is None for text in texts) else tuple(str(text) for text in texts)
    return TextRecords(tuple(ids), known, _membership(members)), tuple(signals)


def _require_suffix(path: Path, argument: str, allowed: tuple[str, ...]) -> None:
    """Refuse a file of another kind."""
    if path.suffix not in allowed:
        raise InvalidData(argument, str(path), f"a file of kind {', '.join(allowed)}")


def _require_rows(source: InputFile, ids: list[str]) -> None:
    """Refuse an empty file."""
    if not ids:
        raise InvalidData(
            source.argument or "file", str(source.path), "a file with one text or more"
        )


def _lines(source: InputFile) -> Iterator[_Line]:
    """Yield the parsed lines of a JSON Lines file."""
    decoder = msgspec.json.Decoder(_Line)
    with open_input(source) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size > machine_memory() // MEMORY_FACTOR:
            raise source.error(f"{size} bytes, more than this machine has memory for")
        for number, line in enumerate(iter(lambda: file.readline(LINE_LIMIT + 1), b""), start=1):
            if len(line) > LINE_LIMIT:
                raise source.error(f"line {number} is longer than {LINE_LIMIT} bytes")
            if not line.strip():
                continue
            try:
                yield decoder.decode(line)
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                raise InvalidData(
                    source.argument or "file", f"{source.path}, line {number}",
                    f"a JSON object with the documented keys ({error})",
                ) from error  # fmt: skip


def _rows(source: InputFile) -> Iterator[_Line]:
    """Yield the rows of a table."""
    try:
        frame = read_table(source, low_memory=False)
    except DpauditError:
        raise
    except Exception as error:  # pandas raises many types for a broken file
        why = f"readable: {type(error).__name__}: {error}"
        raise InvalidData(source.argument or "file", str(source.path), why) from error
    if "text" not in frame.columns:
        allowed = f"a table with a column text; it has {list(frame.columns)}"
        raise InvalidData(source.argument or "file", str(source.path), allowed)
    columns: dict[str, list[Any]] = {
        name: frame[name].tolist() for name in ("id", "member", "text") if name in frame.columns
    }
    for row in range(len(frame)):
        cells = {name: values[row] for name, values in columns.items()}
        if not isinstance(cells["text"], str):
            raise InvalidData("text", f"a {type(cells['text']).__name__} in row {row}", "text")
        member = cells.get("member")
        yield _Line(
            id=str(cells["id"]) if "id" in cells else None,
            member=_as_bit(member) if "member" in cells else None,
            text=cells["text"],
        )


def _as_bit(value: Any) -> int:
    """Return a cell as 0 or 1; 2, which is refused, for anything else."""
    try:
        return int(value) if float(value) in (0.0, 1.0) else 2
    except (TypeError, ValueError):
        return 2


def _membership(members: list[bool | int | None]) -> BoolArray | None:
    """Return membership as booleans; None if no text states it."""
    if all(one is None for one in members):
        return None
    wrong = [one for one in members if one is None or one not in (0, 1)]
    if wrong:
        raise InvalidData("member", wrong[0], "1 or 0 for every text, or given for none")
    return np.array(members, dtype=np.bool_)


def _signals(source: InputFile, row: int, line: _Line) -> TokenSignals:
    """Return the signals of a line."""
    if line.logprobs is None:
        allowed = f"given in every line of {source.path}"
        raise InvalidData("logprobs", f"none in row {row}", allowed)
    drawn = line.drawn_logprobs
    compressed = line.zlib_bytes if line.text is None else zlib_bytes(line.text)
    try:
        return TokenSignals(
            log_probabilities=_floats(line.logprobs),
            means=_optional_floats(line.mean_logprobs),
            deviations=_optional_floats(line.std_logprobs),
            greedy=None if line.greedy is None else np.array(line.greedy, dtype=np.bool_),
            drawn=None
            if drawn is None
            else _floats([-np.inf if one is None else one for one in drawn]),
            reference=_optional_floats(line.reference_logprobs),
            compressed_bytes=compressed,
        )
    except DpauditError as error:
        raise InvalidData(f"row {row}", str(source.path), f"valid: {error}") from error


def _floats(values: list[float]) -> NDArray[np.float64]:
    """Return numbers as an array."""
    return np.array(values, dtype=np.float64)


def _optional_floats(values: list[float] | None) -> NDArray[np.float64] | None:
    """Return numbers as an array, and None for None."""
    return None if values is None else _floats(values)


OF_TOKENS = ("logprobs", "mean_logprobs", "std_logprobs", "greedy", "drawn_logprobs")


def _from_arrays(source: InputFile, arrays: Arrays) -> tuple[TextRecords, tuple[TokenSignals, ...]]:
    """Return texts and signals from the arrays of a .npz file."""
    lengths = _lengths(arrays, "lengths", "logprobs")
    count = len(lengths)
    parts = {name: _divided(arrays[name], lengths, name) for name in OF_TOKENS if name in arrays}
    if "reference_logprobs" in arrays:
        own = "reference_lengths" if "reference_lengths" in arrays else "lengths"
        of_reference = _lengths(arrays, own, "reference_logprobs")
        parts["reference_logprobs"] = _divided(
            arrays["reference_logprobs"], of_reference, "reference_logprobs"
        )
    ids, members = _column(arrays, "id", count, "buifU"), _column(arrays, "member", count, "buif")
    texts, sizes = _column(arrays, "text", count, "U"), _column(arrays, "zlib_bytes", count, "iu")
    known = None if texts is None else tuple(str(text) for text in texts)
    compressed: list[int | None] = [None] * count
    if known is not None:
        compressed = [zlib_bytes(text) for text in known]
    elif sizes is not None:
        compressed = [int(size) for size in sizes]
    signals = [
        _signals_of_arrays(
            source, row, {name: part[row] for name, part in parts.items()}, compressed[row]
        )
        for row in range(count)
    ]
    named = tuple(str(row if ids is None else ids[row]) for row in range(count))
    _require_rows(source, list(named))
    bits = [None if members is None else _as_bit(members[row]) for row in range(count)]
    return TextRecords(named, known, _membership(list(bits))), tuple(signals)


def _signals_of_arrays(
    source: InputFile, row: int, part: dict[str, NDArray[Any]], compressed: int | None
) -> TokenSignals:
    """Return the signals of one text of a .npz file."""

    def floats(name: str) -> NDArray[np.float64] | None:
        return part[name].astype(np.float64) if name in part else None

    try:
        return TokenSignals(
            log_probabilities=part["logprobs"].astype(np.float64),
            means=floats("mean_logprobs"),
            deviations=floats("std_logprobs"),
            greedy=part["greedy"].astype(np.bool_) if "greedy" in part else None,
            drawn=floats("drawn_logprobs"),
            reference=floats("reference_logprobs"),
            compressed_bytes=compressed,
        )
    except DpauditError as error:
        raise InvalidData(f"row {row}", str(source.path), f"valid: {error}") from error


def _lengths(arrays: Arrays, name: str, of: str) -> NDArray[np.int64]:
    """Return the numbers of tokens, whose sum must be the size of the array ``of``."""
    if name not in arrays or of not in arrays:
        raise InvalidData(name, None, f"an array, beside {of}")
    lengths, values = arrays[name], arrays[of]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or values.ndim != 1:
        raise InvalidData(name, f"shape {lengths.shape}", "a list of integers, beside a flat array")
    if (lengths < 1).any() or int(lengths.sum(dtype=object)) != len(values):
        raise InvalidData(name, f"a sum other than {len(values)}", f"the lengths of {of}")
    return lengths.astype(np.int64)


def _divided(values: NDArray[Any], lengths: NDArray[np.int64], name: str) -> list[NDArray[Any]]:
    """Return the part of each text."""
    if values.ndim != 1 or values.dtype.kind not in "buif" or len(values) != lengths.sum():
        given = f"shape {values.shape} of {values.dtype}"
        raise InvalidData(name, given, f"{lengths.sum()} numbers in one dimension")
    return np.split(values, np.cumsum(lengths)[:-1])


def _column(arrays: Arrays, name: str, count: int, kinds: str) -> NDArray[Any] | None:
    """Return an array with one value per text, of one of the kinds of types, or None."""
    if name not in arrays:
        return None
    found = arrays[name]
    if found.shape != (count,) or found.dtype.kind not in kinds:
        given = f"shape {found.shape} of {found.dtype}"
        raise InvalidData(name, given, f"one value for each of {count} texts")
    return found
