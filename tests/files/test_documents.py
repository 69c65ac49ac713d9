"""JSON and TOML from elsewhere: no deep nesting, no huge integers, one kind of error."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpaudit.files.documents import MAX_NESTING, read_json_document, read_text, read_toml_document
from dpaudit.files.regular_files import InputFile
from dpaudit.vocabulary.errors import InvalidArgument


def source(tmp_path: Path, content: bytes) -> InputFile:
    path = tmp_path / "document"
    path.write_bytes(content)
    return InputFile(path, "FILE")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1),
        b'{"a":' * (MAX_NESTING + 1) + b"1" + b"}" * (MAX_NESTING + 1),
        b"[" + b"9" * 5000 + b"]",
        b"[9223372036854775808]",
        b'{"a": -9223372036854775809}',
    ],
)
def test_json_that_is_broken_deep_or_huge_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidArgument, match="FILE must be readable"):
        read_json_document(source(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        b"a",
        b"\xff",
        b"a = " + b"[" * 5000 + b"]" * 5000,
        b"a" + b".a" * MAX_NESTING + b" = 1",
        b"a = 1" + b"0" * 30,
        b"a = 1" + b"0" * 5000,
        b"a = 2000-13-01",
    ],
)
def test_toml_that_is_broken_deep_or_huge_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidArgument, match="FILE must be readable"):
        read_toml_document(source(tmp_path, content))


def test_what_is_plain_is_read(tmp_path: Path) -> None:
    deep = b"[" * MAX_NESTING + b"]" * MAX_NESTING
    assert read_json_document(source(tmp_path, deep))
    assert read_json_document(source(tmp_path, b"[Infinity, 9223372036854775807, true]"))
    assert read_toml_document(source(tmp_path, b"a = 1\nb = inf")) == {"a": 1, "b": float("inf")}
    assert read_text(source(tmp_path, "é".encode())) == "é"


def test_a_key_of_very_many_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="more than 2000 dots"):
        read_toml_document(source(tmp_path, b"a" + b".a" * 60_000 + b" = 1"))
