"""Read token sequences: a text file in blocks, or the text column of a table.

One record is one sequence of tokens. Tokens are bytes, or those of a Hugging Face tokenizer that
is read from local files. No code of a tokenizer's folder is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.files.archives import gunzip
from dpaudit.files.documents import read_table
from dpaudit.files.regular_files import DATA_LIMIT, InputFile, read_bytes
from dpaudit.vocabulary.errors import (
    DpauditError,
    InvalidArgument,
    InvalidData,
    MissingExtra,
    UnreadableFile,
)
from dpaudit.vocabulary.settings import DataSettings

BYTE_VOCABULARY = 256
TABLE_SUFFIXES = (".csv", ".parquet")
TOKENIZER_FILE = "tokenizer.json"
PADDING = 0
"""Token after the end of a short sequence; no loss is computed there."""


@dataclass(frozen=True)
class TokenRecords:
    """Sequences of tokens, padded to one length.

    Attributes:
        tokens: Shape ``(records, length)``, int64.
        lengths: Number of tokens of each record without padding, shape ``(records,)``, int64.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, which: NDArray[Any]) -> TokenRecords:
        return TokenRecords(self.tokens[which], self.lengths[which])


@dataclass(frozen=True)
class TokenSplit:
    """Token sequences to train on, and sequences held out.

    Attributes:
        train: The records to train on.
        heldout: The records held out.
        text_vocabulary: Number of different tokens of texts, taken as public.
        canary_tokens: Number of further tokens, one for each input canary.
    """

    train: TokenRecords
    heldout: TokenRecords
    text_vocabulary: int
    canary_tokens: int = 0

    @property
    def vocabulary(self) -> int:
        """Number of different tokens, with those of canaries."""
        return self.text_vocabulary + self.canary_tokens

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one record: its length in tokens, with padding."""
        return self.train.tokens.shape[1:]


@dataclass(frozen=True)
class _Sequences:
    """Tokens of each record, and the number of different tokens."""

    found: list[Sequence[int]]
    vocabulary: int


def load_tokens(settings: DataSettings) -> TokenSplit:
    """Read, tokenize and split the sequences that ``settings`` name.

    A text file is cut into blocks of ``sequence_length`` tokens; each block is one record. In a
    table, each row is one record, cut off after ``sequence_length`` tokens.

    Args:
        settings: Source, text column, tokenizer, sequence length, test fraction and split seed.

    Returns:
        Records to train on, and a random fraction held out.

    Raises:
        UnreadableFile: If the source or the tokenizer is missing.
        InvalidData: If a text is missing, or no record is left to train on or to hold out.
        MissingExtra: If the tokenizer's library is not installed.
    """
    try:
        found = _read(settings)
    except DpauditError:
        raise
    except Exception as error:  # readers raise many kinds of errors on broken files
        why = f"readable as text: {type(error).__name__}: {error}"
        raise InvalidData("data", settings.source, why) from error
    records = _padded(found.found, settings.sequence_length)
    # Draw i belongs to record i: appending a record changes no other record's part.
    coins = np.random.default_rng(settings.split_seed).random(len(records))
    held = coins < settings.test_fraction
    if held.all() or not held.any():
        allowed = "sequences both to train on and to hold out"
        raise InvalidData("data", settings.source, allowed)
    return TokenSplit(records[~held], records[held], found.vocabulary)


def encode_texts(settings: DataSettings, texts: Sequence[str]) -> TokenRecords:
    """Return the tokens of texts, each of which is one record.

    Args:
        settings: Tokenizer and sequence length.
        texts: The texts.

    Returns:
        One sequence per text.

    Raises:
        InvalidArgument: If a text has more tokens than a sequence.
        MissingExtra: If the tokenizer's library is not installed.
    """
    encode = _Bytes() if settings.tokenizer is None else _Tokenizer(Path(settings.tokenizer))
    found = encode.each(list(texts))
    longest = max((len(one) for one in found), default=0)
    if longest > settings.sequence_length:
        allowed = f"at least {longest}: canaries would be cut off"
        raise InvalidArgument("sequence_length", settings.sequence_length, allowed)
    return _padded(found, settings.sequence_length)


def holds_text(settings: DataSettings, texts: Sequence[str]) -> bool:
    """Return whether a text file, or a row of a table, holds one of the texts.

    Args:
        settings: Source of the records.
        texts: The texts.

    Returns:
        True if the file or a row holds a text, at any place.
    """
    source = InputFile(Path(settings.source), "data", DATA_LIMIT)
    if settings.text is None:
        content = _content(source)
    else:
        content = "\n".join(_texts(source, settings.text)).encode(errors="replace")
    return any(text.encode() in content for text in texts)


def _content(source: InputFile) -> bytes:
    """Return the content of a text file, uncompressed."""
    return gunzip(source) if source.path.suffix == ".gz" else read_bytes(source)


def _padded(sequences: Sequence[Sequence[int]], length: int) -> TokenRecords:
    """Return sequences as one array, cut off or padded to ``length``."""
    tokens = np.full((len(sequences), length), PADDING, dtype=np.int64)
    lengths = np.array([min(len(one), length) for one in sequences], dtype=np.int64)
    for row, one, kept in zip(tokens, sequences, lengths, strict=True):
        row[:kept] = np.asarray(one[:kept])
    return TokenRecords(tokens, lengths)


def _read(settings: DataSettings) -> _Sequences:
    """Return the tokens of every record."""
    path = Path(settings.source)
    if not path.is_file():
        raise UnreadableFile("data", settings.source, "a text file, or a table with --text COLUMN")
    source = InputFile(path, "data", DATA_LIMIT)
    encode = _Bytes() if settings.tokenizer is None else _Tokenizer(Path(settings.tokenizer))
    if settings.text is not None:
        texts = _texts(source, settings.text)
        return _Sequences(encode.each(texts), encode.vocabulary)
    whole, length = encode.whole(_content(source)), settings.sequence_length
    blocks = [whole[start : start + length] for start in range(0, len(whole), length)]
    return _Sequences(blocks, encode.vocabulary)


def _texts(source: InputFile, column: str) -> list[str]:
    """Return the text column of a table; refuse other values than text."""
    if not source.path.name.removesuffix(".gz").endswith(TABLE_SUFFIXES):
        raise InvalidArgument("data", str(source.path), f"a {' or '.join(TABLE_SUFFIXES)} file, "
                              f"as records are the texts of its column {column!r}")  # fmt: skip
    try:
        frame = read_table(source, low_memory=False)
    except ImportError as error:
        raise MissingExtra("pandas", "train") from error
    path = str(source.path)
    if column not in frame.columns:
        raise InvalidData("text", column, f"a column of {path}: {list(frame.columns)}")
    texts = frame[column].tolist()
    wrong = next((row for row, one in enumerate(texts) if not isinstance(one, str)), None)
    if wrong is not None:
        raise InvalidData("data", path, f"text in every row of column {column!r}; "
                          f"row {wrong} has a {type(texts[wrong]).__name__}")  # fmt: skip
    return texts


class _Bytes:
    """Takes the bytes of a text as its tokens."""

    vocabulary = BYTE_VOCABULARY

    def whole(self, content: bytes) -> Sequence[int]:
        """Return the tokens of a file."""
        return np.frombuffer(content, dtype=np.uint8)  # type: ignore[return-value]

    def each(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Return the tokens of each text."""
        return [self.whole(text.encode()) for text in texts]


class _Tokenizer:
    """Tokens of the Hugging Face tokenizer in a local folder."""

    def __init__(self, folder: Path) -> None:
        try:
            from tokenizers import Tokenizer  # noqa: PLC0415  an extra: only where needed
        except ImportError as error:
            raise MissingExtra("tokenizers", "text") from error
        file = folder / TOKENIZER_FILE
        if not file.is_file():
            raise UnreadableFile("tokenizer", str(folder), f"a local folder with {TOKENIZER_FILE}")
        content = read_bytes(InputFile(file, "tokenizer", DATA_LIMIT))
        try:
            self._encoder = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises plain Exception
            raise UnreadableFile("tokenizer", str(file), f"a tokenizer ({error})") from error
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self.vocabulary = 1 + max(self._encoder.get_vocab(with_added_tokens=True).values())

    def whole(self, content: bytes) -> Sequence[int]:
        """Return the tokens of a file."""
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            allowed = f"a file of UTF-8 text for a tokenizer ({error}); without one, bytes are read"
            raise InvalidArgument("data", "a file of bytes", allowed) from error
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids

    def each(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Return the tokens of each text, with the tokenizer's special tokens."""
        return [one.ids for one in self._encoder.encode_batch(list(texts))]
