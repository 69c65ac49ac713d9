"""A process that runs an untrusted model within limits, and the pipes to it.

The process gets the records as plain arrays through a pipe. ``sandbox_child`` describes what it
cannot do, and docs/reference/files.md what it still can. This module checks everything that the
process writes, and does not wait longer than the time limit.
"""

from __future__ import annotations

import math
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.files.regular_files import GIB, MIB, InputFile, open_input
from dpaudit.vocabulary.errors import InvalidArgument

RECORDS_PER_CALL = 2048
CHILD_SCRIPT = Path(__file__).with_name("sandbox_child.py")
PASSED_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_LIBRARY_PATH", "SYSTEMROOT")
MAX_OUTPUT_BYTES, MAX_MESSAGE_BYTES, MAX_DIMENSIONS = GIB, 4096, 8
FLOAT_TYPES = {4: np.float32, 8: np.float64}
UNENFORCED_LIMITS = {
    1: "its network",
    2: "its changes to file names (Landlock is missing)",
    4: "its memory",
    8: "the files that it opens",
    16: "its access to your other processes (seccomp is missing)",
}
"""Limits that the system does not offer, by their bit in the first byte from the process."""


@dataclass(frozen=True)
class ProcessLimits:
    """Limits of the process of a model.

    Attributes:
        seconds: Wall time for loading the model, and for each batch of records, in seconds.
        cpu_seconds: Processor time of all threads, until the process ends, in seconds.
        memory: Memory beyond that of the library, in bytes.
    """

    seconds: float = 600.0
    cpu_seconds: int = 3600
    memory: int = 4 * GIB


class SandboxedProcess:
    """A process that has loaded one model, and ends with this object.

    Args:
        source: The file.
        kind: ``script``, ``export`` or ``onnx``.
        limits: Limits of the process.
        libraries: Top-level packages that the process imports.
        reported: Bits of ``UNENFORCED_LIMITS`` that a warning names if they are not enforced.

    Attributes:
        rows: Number of records that the model accepts at once; 0 for any number.

    Raises:
        InvalidArgument: If the model cannot be loaded within the limits.
    """

    def __init__(
        self,
        source: InputFile,
        kind: str,
        limits: ProcessLimits,
        libraries: tuple[str, ...],
        reported: int = 0xFF,
    ) -> None:
        self.path, self.limits = source.path, limits
        self.folder = tempfile.mkdtemp(prefix="dpaudit-")
        with open_input(source) as file:
            handle = file.fileno()
            os.set_inheritable(handle, True)
            numbers = map(str, (handle, limits.cpu_seconds, limits.memory))
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(CHILD_SCRIPT), kind, *numbers, *_folders(libraries)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                bufsize=0, pass_fds=(handle,), cwd=self.folder, env=_environment(self.folder),
                start_new_session=True,  # killed together with all that it may have started
            )  # fmt: skip
        self.end = weakref.finalize(self, _end_process, self.process, self.folder)
        with self._exchange("loaded") as pipes:
            _warn_unenforced(source.path, _read_exactly(pipes, 1)[0] & reported)
            self._require(pipes, b"R")
            (self.rows,) = struct.unpack("<I", _read_exactly(pipes, 4))

    def request(self, what: bytes, *arrays: NDArray[Any]) -> NDArray[Any]:
        """Send a request and return the array of the answer.

        Args:
            what: ``b"P"`` for outputs, ``b"V"`` for a gradient.
            *arrays: Arrays of the request, which are sent as float32.

        Returns:
            The answer, of any shape: the caller must check it.

        Raises:
            InvalidArgument: If the model raises an error, exceeds a limit, or has no output of
                shape ``(records, classes)``.
        """
        with self._exchange(f"run on records of shape {arrays[0].shape[1:]}") as pipes:
            pipes.write(what)
            for array in arrays:
                whole = np.ascontiguousarray(array, dtype=np.float32)
                sides = struct.pack(f"<BB{whole.ndim}Q", 4, whole.ndim, *whole.shape)
                pipes.write(sides + whole.tobytes())
            self._require(pipes, b"A")
            return _read_array(pipes)

    def outputs(self, features: NDArray[Any]) -> NDArray[Any]:
        """Compute the outputs of the model on one batch.

        Args:
            features: Shape ``(records, ...)``.

        Returns:
            Shape ``(records, classes)``.

        Raises:
            InvalidArgument: If the model raises an error, exceeds a limit, or has no output of
                that shape.
        """
        found = self.request(b"P", features)
        if found.ndim != 2 or len(found) != len(features):
            raise self.error(f"its output has shape {found.shape}")
        return found

    def gradient(self, features: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
        """Compute the gradient of a weighted sum of outputs with respect to the features.

        Args:
            features: Shape ``(records, ...)``.
            weights: Weights of the outputs, shape ``(records, classes)``.

        Returns:
            Shape of ``features``.

        Raises:
            InvalidArgument: If the model raises an error, exceeds a limit, or has no gradient.
        """
        found = self.request(b"V", features, weights)
        if found.shape != features.shape:
            raise self.error(f"its gradient has shape {found.shape}")
        return found

    def error(self, why: str) -> InvalidArgument:
        """Return an error about the model.

        Args:
            why: The reason, as text.

        Returns:
            An error to raise; it names the file.
        """
        return InvalidArgument(
            "checkpoint", str(self.path), f"a model that runs within its limits ({why})"
        )

    def _require(self, pipes: _Pipes, wanted: bytes) -> None:
        """Read the first byte of an answer; raise the error that the process reports."""
        answer = _read_exactly(pipes, 1)
        if answer == b"E":
            (length,) = struct.unpack("<I", _read_exactly(pipes, 4))
            text = _read_exactly(pipes, min(length, MAX_MESSAGE_BYTES)).decode(errors="replace")
            raise self.error(text)
        if answer != wanted:
            raise self.error("its answer does not follow the protocol")

    @contextmanager
    def _exchange(self, doing: str) -> Iterator[_Pipes]:
        """Open the pipes for one exchange; end the process and raise an error if it fails."""
        try:
            yield _Pipes(self.process, time.monotonic() + self.limits.seconds)
        except InvalidArgument:
            self.end()
            raise
        except (OSError, EOFError, ValueError) as error:
            self.end()
            late = isinstance(error, TimeoutError)
            code = self.process.returncode
            why = f"over {self.limits.seconds:g} s" if late else f"exit code {code}"
            raise self.error(f"it ended before it was {doing}: {why}") from error
        except BaseException:  # interrupted: its late answer must not be read as the next one
            self.end()
            raise


class _Pipes:
    """The pipes to a process, with a deadline for reading and writing.

    Another process may have inherited the other ends, so killing the process need not end a read.
    """

    def __init__(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdout.fileno(), process.stdin.fileno()
        self._deadline = deadline
        os.set_blocking(self._out, False)

    def read(self, size: int) -> bytes:
        """Return at least one and at most ``size`` bytes; none if the pipe is closed."""
        self._wait(self._in, select.POLLIN)
        return os.read(self._in, size)

    def write(self, content: bytes) -> None:
        """Write all of ``content``."""
        rest = memoryview(content)
        while rest:
            self._wait(self._out, select.POLLOUT)
            with suppress(BlockingIOError):  # the pipe is full
                rest = rest[os.write(self._out, rest) :]

    def _wait(self, handle: int, event: int) -> None:
        """Wait until a pipe is ready, or raise TimeoutError at the deadline."""
        waiting = select.poll()
        waiting.register(handle, event)
        left = self._deadline - time.monotonic()
        if left <= 0 or not waiting.poll(math.ceil(1000 * left)):
            raise TimeoutError("the process exceeds its time limit")


def _folders(libraries: tuple[str, ...]) -> list[str]:
    """Return the folders from which the child, which runs isolated, imports the libraries."""
    found = [find_spec(library) for library in libraries]
    origins = [spec.origin for spec in found if spec is not None and spec.origin is not None]
    return [str(Path(origin).parent.parent) for origin in origins]


def _environment(folder: str) -> dict[str, str]:
    """Return the environment of the child, without variables that it does not need."""
    kept = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    return kept | {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}


def _warn_unenforced(path: Path, unlimited: int) -> None:
    """Warn if a limit of ``UNENFORCED_LIMITS`` is not enforced."""
    missing = [what for bit, what in UNENFORCED_LIMITS.items() if unlimited & bit]
    if missing:
        warnings.warn(
            f"{path} runs in its own process, and this system does not limit "
            f"{' or '.join(missing)}",
            stacklevel=2,
        )


def _end_process(process: subprocess.Popen[bytes], folder: str) -> None:
    """Kill the process and the processes of its group, and remove its folder."""
    if process.returncode is None:  # not reaped, so its number cannot belong to another group yet
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    shutil.rmtree(folder, ignore_errors=True)


def _read_exactly(pipes: _Pipes, size: int) -> bytes:
    """Read ``size`` bytes, in parts, so that a false size does not allocate memory at once."""
    parts = []
    while size:
        part = pipes.read(min(size, MIB))
        if not part:
            raise EOFError("the process ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _read_array(pipes: _Pipes) -> NDArray[Any]:
    """Read an array of floats; its header is untrusted and checked first."""
    width, count = _read_exactly(pipes, 2)
    if width not in FLOAT_TYPES or count > MAX_DIMENSIONS:
        raise ValueError("an array of another format")
    shape = struct.unpack(f"<{count}Q", _read_exactly(pipes, 8 * count))
    # Dimensions of 0 count as 1: a false shape such as (0, 2^60) must not pass the limit.
    size = math.prod(max(side, 1) for side in shape) * width
    if size > MAX_OUTPUT_BYTES:
        raise ValueError(f"an array of {size} bytes")
    content = bytearray(_read_exactly(pipes, math.prod(shape) * width))
    return np.frombuffer(content, dtype=FLOAT_TYPES[width]).reshape(shape)
