"""Included canaries of a canary file that a run of ``dpaudit train`` adds to its records.

The run records the digest of the file before the first step. The file holds the digest of the
auditor's file, so the fair coins of all canaries are fixed by then, and the audit is certified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpaudit.files.regular_files import DATA_LIMIT, InputFile, read_bytes
from dpaudit.runs.directory import AUDITOR_DIGEST_ARRAY, COUNT_ARRAY, canary_file_record
from dpaudit.runs.file_io import read_arrays
from dpaudit.trainer.canaries.canary_file import RECORD_ARRAYS, ArrayRows, CanaryFile
from dpaudit.trainer.data import DatasetSplit, RecordArrays
from dpaudit.trainer.token_data import TokenRecords, TokenSplit, encode_texts, holds_text
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.settings import DataSettings

SENTENCES_ARRAY, TOKENS_ARRAY = "sentences", "new_tokens"
NO_ROWS: ArrayRows = np.zeros(0)


@dataclass(frozen=True)
class AddedCanaryFile(CanaryFile):
    """A trainer's canary file whose canaries the run adds to its records itself.

    Attributes:
        sentences: Texts of the included canaries; empty if they are records.
    """

    sentences: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> AddedCanaryFile:
        """Read a trainer's canary file.

        Args:
            path: The file, as ``dpaudit canaries make`` wrote it.

        Returns:
            The included canaries.

        Raises:
            InvalidArgument: If its canaries are neither records nor sentences of ordinary tokens.
            IntegrityError: If it is missing or broken, as with features that are not finite.
        """
        arrays = read_arrays(path)
        fixed = {COUNT_ARRAY, AUDITOR_DIGEST_ARRAY} <= arrays.keys() and "included" not in arrays
        has_records = set(RECORD_ARRAYS) <= arrays.keys()
        has_texts = SENTENCES_ARRAY in arrays and TOKENS_ARRAY not in arrays
        if not (fixed and (has_records or has_texts)):
            raise InvalidArgument(
                "canary_file", str(path), "the trainer's file of dpaudit canaries make, of "
                "records, secrets or synthetic sentences; --input-canaries adds new tokens",
            )  # fmt: skip
        canary_file_record(path, arrays)
        _require_rows(path, arrays)
        content = read_bytes(InputFile(path, "canary_file", DATA_LIMIT))
        if has_records:
            return cls(path, content, arrays["x"], arrays["y"])
        texts = tuple(str(one) for one in arrays[SENTENCES_ARRAY])
        return cls(path, content, NO_ROWS, NO_ROWS, texts)

    def require_among(self, dataset: Any) -> None:
        """Accept any data set: the run has added the canaries.

        Args:
            dataset: Not read.
        """

    def added_to(self, split: DatasetSplit, settings: DataSettings) -> DatasetSplit:
        """Return a data set with the included canaries among its training records.

        Args:
            split: The data set.
            settings: Its settings.

        Returns:
            The data set; held-out records are as before.

        Raises:
            InvalidArgument: If the canaries are no records of this kind, features are scaled by a
                chosen range, or a canary is among the records already.
        """
        fits = self.features.shape[1:] == split.shape and not self.sentences
        classes, labels = len(split.classes), self.labels.astype(np.int64)
        if not fits or not ((labels >= 0) & (labels < classes)).all():
            allowed = f"canaries of records of shape {split.shape} with {classes} classes"
            raise InvalidArgument("canary_file", str(self.path), allowed)
        if settings.feature_range is not None:
            allowed = "none with a canary file, whose features are not scaled by it"
            raise InvalidArgument("feature_range", settings.feature_range, allowed)
        added = RecordArrays(self.features.astype(np.float32), labels)
        every = (split.train, split.heldout)
        _require_new(_keys(added), (key for some in every for key in _keys(some)))
        train = RecordArrays(
            np.concatenate([split.train.features, added.features]),
            np.concatenate([split.train.labels, added.labels]),
        )
        return DatasetSplit(train, split.heldout, split.classes)

    def added_to_texts(self, split: TokenSplit, settings: DataSettings) -> TokenSplit:
        """Return token sequences with the included canaries among the training records.

        Args:
            split: The sequences.
            settings: Their settings, for the tokenizer and the sequence length.

        Returns:
            The sequences; held-out ones are as before.

        Raises:
            InvalidArgument: If the canaries are no texts, a canary is longer than the sequences,
                or is among them already.
        """
        if len(self.labels) or not self.sentences:
            raise InvalidArgument("canary_file", str(self.path), "included canaries that are texts")
        added = encode_texts(settings, self.sentences)
        every = (split.train, split.heldout)
        others = (key for some in every for key in _token_keys(some))
        _require_new(_token_keys(added), others, inside=holds_text(settings, self.sentences))
        train = TokenRecords(
            np.concatenate([split.train.tokens, added.tokens]),
            np.concatenate([split.train.lengths, added.lengths]),
        )
        return TokenSplit(train, split.heldout, split.text_vocabulary, split.canary_tokens)


def _require_rows(path: Path, arrays: Mapping[str, ArrayRows]) -> None:
    """Refuse a file without one finite record and whole label, or one text, per canary."""
    rows = len(arrays["ids"]) if "ids" in arrays and arrays["ids"].ndim == 1 else -1
    fits = (_fits_records if "x" in arrays else _fits_texts)(arrays, rows)
    if not fits:
        raise IntegrityError(
            f"{path} is broken: each name in ids needs a record of finite numbers with a whole "
            "label, or a text"
        )


def _fits_records(arrays: Mapping[str, ArrayRows], rows: int) -> bool:
    """Return whether there are as many finite records and whole labels as names."""
    features, labels = arrays["x"], arrays["y"]
    kinds = features.dtype.kind in "fiub" and labels.dtype.kind in "iu"
    if not kinds or features.ndim < 2 or len(features) != rows or labels.shape != (rows,):
        return False
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        return bool(np.isfinite(features.astype(np.float32)).all())


def _fits_texts(arrays: Mapping[str, ArrayRows], rows: int) -> bool:
    """Return whether there are as many texts as names, none of them empty or broken Unicode."""
    texts = arrays[SENTENCES_ARRAY]
    if texts.dtype.kind != "U" or texts.shape != (rows,):
        return False
    return all(text and text.encode(errors="replace").decode() == text for text in texts.tolist())


def _require_new(own: Iterable[bytes], others: Iterable[bytes], *, inside: bool = False) -> None:
    """Refuse canaries that the data hold already: one coin would stand for two records."""
    if inside or not set(own).isdisjoint(others):
        raise InvalidArgument(
            "data", "records that hold an included canary already",
            "records without the canaries: the run adds them, so do not train on the "
            "--training-file of dpaudit canaries make",
        )  # fmt: skip


def _keys(records: RecordArrays) -> Iterable[bytes]:
    """Yield the bytes of each record and its label."""
    for row, label in zip(records.features, records.labels, strict=True):
        yield row.tobytes() + label.tobytes()


def _token_keys(records: TokenRecords) -> Iterable[bytes]:
    """Yield the bytes of the tokens of each record."""
    for row, length in zip(records.tokens, records.lengths.tolist(), strict=True):
        yield row[:length].tobytes()
