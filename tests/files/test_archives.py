"""What a compressed file declares is checked before it is inflated."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpaudit.files import archives
from dpaudit.files.archives import (
    ALWAYS_ALLOWED_BYTES,
    gunzip,
    open_npz,
    open_zip,
    read_npz,
    require_expansion,
)
from dpaudit.files.regular_files import GIB, MIB, InputFile
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument


def source(path: Path) -> InputFile:
    return InputFile(path, "data", GIB)


def header(shape: tuple[int, ...], descr: Any = "<f4") -> bytes:
    file = io.BytesIO()
    described = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def write_zip(path: Path, method: int = zipfile.ZIP_DEFLATED, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return path


def bomb(path: Path, size: int) -> Path:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(header((size // 4,)))
        for _ in range(size // MIB):
            entry.write(bytes(MIB))
    return path


def refused(path: Path) -> str:
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match="data must be readable") as caught:
        read_npz(source(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * MIB
    return str(caught.value)


def test_what_inflates_too_far_is_never_inflated(tmp_path: Path) -> None:
    assert "over 200 times" in refused(bomb(tmp_path / "bomb.npz", 2 * ALWAYS_ALLOWED_BYTES))


def test_what_is_small_may_inflate_far(tmp_path: Path) -> None:
    path = bomb(tmp_path / "zeros.npz", 4 * MIB)
    assert read_npz(source(path))["x"].shape == (MIB,)


def test_a_file_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "machine_memory", lambda: 10 * ALWAYS_ALLOWED_BYTES)
    with pytest.raises(InvalidArgument, match="more than the memory"):
        require_expansion(source(Path("x")), 11 * ALWAYS_ALLOWED_BYTES, 10 * ALWAYS_ALLOWED_BYTES)


@pytest.mark.parametrize(
    "content",
    [
        header((1000, 1000)) + bytes(16),  # declares more than it has
        header((2,)) + bytes(800),  # and less
        header((2,), "|O") + bytes(16),  # objects, which are pickled
        header((2,), [("a", "<f4"), ("b", "<f4")]) + bytes(16),
        header((-1,)) + bytes(8),
        header((10**30,)) + bytes(8),
        header((2,)).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x07") + bytes(8),
        header((2,)).replace(b"'shape'", b"'shope'") + bytes(8),
        b"no array",
        b"",
    ],
)
def test_an_array_that_is_not_what_it_declares_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "x.npy" in refused(write_zip(tmp_path / "a.npz", x=content))


def test_lists_of_nothing_count_as_records(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.npz", x=header((10**9, 0)))
    assert "inflate to" in refused(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, method: int) -> None:
    path = write_zip(tmp_path / "a.npz", method, x=header((2,)) + bytes(8))
    assert "neither stored nor deflated" in refused(path)


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header((1,)) + bytes(4))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", header((1,)) + bytes(4))
    assert "a repeated name" in refused(path)


def test_an_archive_of_countless_entries_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_DIRECTORY_BYTES", 1000)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(50):
            archive.writestr(str(number), b"")
    with pytest.raises(InvalidArgument, match="too many entries"), open_zip(source(path)):
        pass


@pytest.mark.parametrize("cut", [0, 10, 60, -1])
def test_a_cut_archive_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(100))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(IntegrityError):
        read_npz(InputFile(path, None, GIB))


def test_damaged_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).standard_normal(1000))
    content = bytearray(path.read_bytes())
    content[4000:4010] = bytes(10)
    path.write_bytes(content)
    with pytest.raises(InvalidArgument, match="broken"):
        read_npz(source(path))


def test_the_headers_are_there_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros((3, 2), np.float32), y=np.array(["a", "b"]))
    with open_npz(source(path)) as archive:
        assert archive.headers["x"].shape == (3, 2)
        assert archive.headers["y"].dtype == np.dtype("<U1")
        assert archive.read(["y"])["y"].tolist() == ["a", "b"]


@pytest.mark.parametrize("size", [ALWAYS_ALLOWED_BYTES + MIB, 4 * ALWAYS_ALLOWED_BYTES])
def test_a_gzip_bomb_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(bytes(MIB))
    with pytest.raises(InvalidArgument, match="over 200 times"):
        gunzip(source(path))


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"x" * 100, mtime=0)[:-9]])
def test_a_broken_gzip_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(content)
    if content == b"":
        assert gunzip(source(path)) == b""
        return
    with pytest.raises(InvalidArgument, match="data must be readable"):
        gunzip(source(path))
