"""Inputs are regular files of a limited size; everything else is refused at once, and typed."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dpaudit.files import regular_files
from dpaudit.files.regular_files import InputFile, open_input, read_bytes, utf8_name
from dpaudit.vocabulary.errors import InputOutputError, IntegrityError, InvalidArgument

LIMIT = 1000


def make_socket(path: Path) -> None:
    # Bound by a short relative name: the path of a socket has at most about 100 bytes.
    before = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(before)


BAD: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path),
    "link to a fifo": lambda path: (
        os.mkfifo(path.with_name("pipe")),
        path.symlink_to(path.with_name("pipe")),
    ),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "socket": make_socket,
    "broken link": lambda path: path.symlink_to("nowhere"),
    "missing": lambda path: None,
    "large": lambda path: path.write_bytes(bytes(LIMIT + 1)),
}


@pytest.mark.parametrize("argument", ["policy", None])
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, kind: str, argument: str | None
) -> None:
    path = tmp_path / "input"
    BAD[kind](path)
    expected = IntegrityError if argument is None else InvalidArgument
    with pytest.raises(expected, match=r"readable|cannot be read") as caught:
        read_bytes(InputFile(path, argument, LIMIT))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 5000, "\ud800"])
def test_a_name_that_no_file_has_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="data must be readable"):
        read_bytes(InputFile(tmp_path / name, "data", LIMIT))


@pytest.mark.parametrize("size", [0, 1, LIMIT])
def test_a_file_up_to_the_limit_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"x" * size)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_bytes(InputFile(link, "data", LIMIT)) == b"x" * size


def test_a_file_whose_size_its_status_does_not_say_is_read_up_to_the_limit() -> None:
    path = Path("/proc/self/maps")
    if not path.exists():
        pytest.skip("there is no /proc here")
    assert b"python" in read_bytes(InputFile(path, "data", 10_000_000))
    with pytest.raises(InvalidArgument, match="at most 100 are read"):
        read_bytes(InputFile(path, "data", 100))


def test_another_file_in_its_place_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was opened is checked, not the one that had the name before."""
    path = tmp_path / "input"
    path.write_bytes(b"x")
    open_ = os.open

    def swapped(name: Path, flags: int) -> int:
        path.unlink()
        os.mkfifo(path)
        return open_(name, flags)

    monkeypatch.setattr(regular_files.os, "open", swapped)
    with pytest.raises(InvalidArgument, match="not a regular file"):
        read_bytes(InputFile(path, "data", LIMIT))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failing_disk_has_an_error_of_its_own(tmp_path: Path, code: int) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"x")
    repair = pytest.raises(InputOutputError, match="free space or repair the disk")
    with repair, open_input(InputFile(path, "data", LIMIT)):
        raise OSError(code, os.strerror(code))
    with pytest.raises(InvalidArgument), open_input(InputFile(path, "data", LIMIT)):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize(("name", "text"), [(b"caf\xe9", "caf\\xe9"), ("café".encode(), "café")])
def test_a_name_becomes_text_that_a_document_can_hold(name: bytes, text: str) -> None:
    assert utf8_name(Path(os.fsdecode(b"folder/" + name))) == text
