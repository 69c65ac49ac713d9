"""Output files: whole or not at all, private where they must be, typed errors on a full disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dpaudit.files.regular_files import (
    PRIVATE,
    PUBLIC,
    create_empty_file,
    write_bytes,
    write_output,
)
from dpaudit.vocabulary.errors import InputOutputError, InvalidArgument


@pytest.fixture(params=[0o000, 0o022, 0o777])
def mask(request: pytest.FixtureRequest) -> object:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("write", [write_bytes, write_output])
def test_private_file_is_readable_by_its_owner_only(
    tmp_path: Path, mask: int, write: object
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(0o644)
    for content in (b"new", b"newer"):
        write(path, content, PRIVATE)  # type: ignore[operator]
        assert path.stat().st_mode & 0o7777 == 0o600
        assert path.read_bytes() == content


def test_other_files_are_as_the_mask_says(tmp_path: Path, mask: int) -> None:
    write_bytes(tmp_path / "public", b"x", PUBLIC)
    assert (tmp_path / "public").stat().st_mode & 0o7777 == 0o666 & ~mask
    assert create_empty_file(tmp_path / "empty") == 0o666 & ~mask
    assert create_empty_file(tmp_path / "private", PRIVATE) == 0o600


def test_a_private_file_never_was_public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    monkeypatch.setattr(os, "fsync", lambda handle: modes.append(os.fstat(handle).st_mode & 0o777))
    write_bytes(tmp_path / "secret", b"x", PRIVATE)
    assert modes[0] == 0o600


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(InputOutputError, match="File too large"):
            write_bytes(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_full_device_is_a_failing_disk() -> None:
    with pytest.raises(InputOutputError, match="No space"):
        write_output(Path("/dev/full"), b"x")


def test_unread_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((InvalidArgument, InputOutputError)):
        write_output(tmp_path / "pipe", b"x")


def test_a_pipe_that_is_read_gets_the_output(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = f"print(open({str(pipe)!r}).read())"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as reader:
        for _ in range(200):
            try:
                write_output(pipe, b"text")
                break
            except (InvalidArgument, InputOutputError):
                reader.poll()
                signal.sigtimedwait([], 0.05)
        assert reader.communicate()[0] == b"text\n"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "nowhere/x", "folder"])
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidArgument, match="plot must be writable"):
        write_bytes(tmp_path / name, b"x", argument="plot")


def test_a_link_goes_on_to_name_the_file(tmp_path: Path) -> None:
    target, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(target)
    write_output(link, b"x")
    assert link.is_symlink()
    assert target.read_bytes() == b"x"
