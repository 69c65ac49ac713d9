"""Text becomes token sequences: blocks of a file, or rows of a table, of bytes or tokens."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from dpaudit.trainer.data import load_dataset
from dpaudit.trainer.token_data import TokenSplit, load_tokens
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, InvalidData, UnreadableFile
from dpaudit.vocabulary.settings import DataSettings

WORDS = ["[UNK]", "to", "be", "or", "not"]


def write_tokenizer(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(2)  # a tokenizer's own settings must not cut records
    made.enable_padding(length=3)
    made.save(str(folder / "tokenizer.json"))
    return folder


def all_records(split: TokenSplit, settings: DataSettings) -> list[list[int]]:
    """Return the records in their original order, without padding."""
    held = np.random.default_rng(settings.split_seed).random(len(split.train) + len(split.heldout))
    parts = {False: iter(range(len(split.train))), True: iter(range(len(split.heldout)))}
    found = []
    for coin in held < settings.test_fraction:
        part, row = (split.heldout if coin else split.train), next(parts[bool(coin)])
        found.append(part.tokens[row, : part.lengths[row]].tolist())
    return found


@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz", "text.bytes"])
def test_a_file_is_cut_into_blocks_of_bytes(tmp_path: Path, name: str) -> None:
    content = bytes(range(256)) * 3 + b"end"
    packed = gzip.compress(content) if name.endswith(".gz") else content
    (tmp_path / name).write_bytes(packed)
    settings = DataSettings(str(tmp_path / name), sequence_length=10, test_fraction=0.3)
    split = load_tokens(settings)
    records = all_records(split, settings)
    assert b"".join(bytes(one) for one in records) == content
    assert [len(one) for one in records] == [10] * 77 + [1]
    assert split.shape == (10,)
    assert split.vocabulary == 256


def test_a_row_of_a_table_is_a_record_cut_off_at_the_length(tmp_path: Path) -> None:
    texts = ["to be", "or", "not to be or not", "be to"] * 20
    pd.DataFrame({"n": range(80), "body": texts}).to_parquet(tmp_path / "t.parquet")
    settings = DataSettings(
        str(tmp_path / "t.parquet"),
        text="body",
        tokenizer=str(write_tokenizer(tmp_path / "tok")),
        sequence_length=4,
    )
    split = load_tokens(settings)
    assert split.vocabulary == len(WORDS)
    cut = [[WORDS.index(word) for word in text.split()][:4] for text in texts]
    assert all_records(split, settings) == cut


def test_a_tokenizer_reads_a_whole_file_before_it_is_cut(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("to be or not to be what " * 9)
    folder = write_tokenizer(tmp_path / "tok")
    settings = DataSettings(
        str(tmp_path / "t.txt"), tokenizer=str(folder), sequence_length=5, test_fraction=0.4
    )
    records = all_records(load_tokens(settings), settings)
    assert [token for one in records for token in one] == [1, 2, 3, 4, 1, 2, 0] * 9


def test_appending_text_changes_the_part_of_no_other_block(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes(b"abcd" * 50)
    (tmp_path / "two.txt").write_bytes(b"abcd" * 50 + b"wxyz")
    one, two = (
        load_tokens(DataSettings(str(tmp_path / f"{name}.txt"), sequence_length=4))
        for name in ("one", "two")
    )
    assert len(two.train) + len(two.heldout) == len(one.train) + len(one.heldout) + 1
    assert np.array_equal(two.train.tokens[: len(one.train)], one.train.tokens)


def refused(tmp_path: Path) -> dict[str, tuple[DataSettings, type[DpauditError], str]]:
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe" * 40)
    (tmp_path / "short.txt").write_bytes(b"ab")
    pd.DataFrame({"body": ["a", None]}).to_parquet(tmp_path / "none.parquet")
    (tmp_path / "a.npz").write_bytes(b"PK")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    (tmp_path / "broken.parquet").write_text("no table")
    text, none = str(tmp_path / "t.txt"), str(tmp_path / "none.parquet")
    tokenizer = str(write_tokenizer(tmp_path / "tok"))
    return {
        "missing": (DataSettings(str(tmp_path / "x.txt")), UnreadableFile, "x.txt"),
        "one block": (DataSettings(str(tmp_path / "short.txt")), InvalidData, "hold out"),
        "no column": (DataSettings(none, text="words"), InvalidData, "column"),
        "no text": (DataSettings(none, text="body"), InvalidData, "row 1"),
        "no table": (DataSettings(str(tmp_path / "broken.parquet"), text="a"), InvalidData, "text"),
        "another format": (
            DataSettings(str(tmp_path / "a.npz"), text="body"),
            InvalidArgument,
            ".csv or .parquet",
        ),
        "no tokenizer": (DataSettings(text, tokenizer=str(tmp_path)), UnreadableFile, "tokenizer"),
        "broken tokenizer": (
            DataSettings(text, tokenizer=str(tmp_path / "broken")),
            UnreadableFile,
            "tokenizer",
        ),
        "bytes for a tokenizer": (DataSettings(text, tokenizer=tokenizer), InvalidArgument, "UTF"),
    }


@pytest.mark.parametrize(
    "name",
    ["missing", "one block", "no column", "no text", "no table", "another format",
     "no tokenizer", "broken tokenizer", "bytes for a tokenizer"],
)  # fmt: skip
def test_text_that_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    settings, error, text = refused(tmp_path)[name]
    with pytest.raises(error, match=text):
        load_tokens(settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("label", {"source": "a.txt", "label": "y"}),
        ("feature_range", {"source": "a.csv", "text": "body", "feature_range": (0.0, 1.0)}),
        ("tokenizer", {"source": "a.csv", "tokenizer": "folder"}),
        ("sequence_length", {"source": "a.txt", "sequence_length": 1}),
    ],
)
def test_settings_of_another_kind_of_records_are_refused(
    name: str, settings: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgument, match=name):
        DataSettings(**settings)  # type: ignore[arg-type]


def test_what_needs_classes_refuses_text() -> None:
    with pytest.raises(InvalidArgument, match="token sequences have none"):
        load_dataset(DataSettings("a.txt"))
