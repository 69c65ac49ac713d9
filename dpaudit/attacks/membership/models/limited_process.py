"""A process that runs another's model within limits, and the pipes to it.

What the process gets: the records, as plain arrays over a pipe. What it cannot do is said in
``program_process``; what it can still do is said in README, "Model files". Nothing here trusts
what the process writes, or waits for it beyond the limit.
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

from dpaudit.files.opening import GIB, MIB, InputFile, opened
from dpaudit.vocabulary.errors import InvalidArgument

AT_ONCE = 2048
CHILD = Path(__file__).with_name("program_process.py")
KEPT_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_LIBRARY_PATH", "SYSTEMROOT")
MOST_OUTPUT, LONGEST_MESSAGE, MOST_SIDES = GIB, 4096, 8
FLOATS = {4: np.float32, 8: np.float64}
UNLIMITED = {
    1: "its network",
    2: "its changes to names of files (Landlock is missing)",
    4: "its memory",
    8: "the files that it opens",
    16: "what it does to your other processes (seccomp is missing)",
}
"""By bit of the process's first answer: what this system did not let it limit."""


@dataclass(frozen=True)
class Limits:
    """What a model's process may use.

    Attributes:
        seconds: Wall time to load the model, and for each batch of records.
        cpu_seconds: Of all threads together, until the process ends.
        memory: Bytes beyond what the library itself takes.
    """

    seconds: float = 600.0
    cpu_seconds: int = 3600
    memory: int = 4 * GIB


class LimitedProcess:
    """A process that has loaded one model, and ends with this object.

    Args:
        source: The file.
        kind: ``script``, ``export`` or ``onnx``.
        limits: What the process may use.
        libraries: Top-level packages that it imports.
        reported: Bits of ``UNLIMITED`` of which a warning says that they are not limited.

    Attributes:
        rows: How many records the model takes at once; 0 for any number.
    """

    def __init__(
        self,
        source: InputFile,
        kind: str,
        limits: Limits,
        libraries: tuple[str, ...],
        reported: int = 0xFF,
    ) -> None:
        self.path, self.limits = source.path, limits
        self.folder = tempfile.mkdtemp(prefix="dpaudit-")
        with opened(source) as file:
            handle = file.fileno()
            os.set_inheritable(handle, True)
            numbers = map(str, (handle, limits.cpu_seconds, limits.memory))
            self.process = subprocess.Popen(
                [sys.executable, "-I", str(CHILD), kind, *numbers, *_places(libraries)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                bufsize=0, pass_fds=(handle,), cwd=self.folder, env=_environment(self.folder),
                start_new_session=True,  # what it may have started ends with it
            )  # fmt: skip
        self.end = weakref.finalize(self, _end, self.process, self.folder)
        with self._exchange("loaded") as pipes:
            _warn(source.path, _exactly(pipes, 1)[0] & reported)
            self._require(pipes, b"R")
            (self.rows,) = struct.unpack("<I", _exactly(pipes, 4))

    def ask(self, what: bytes, *arrays: NDArray[Any]) -> NDArray[Any]:
        """Return the array that answers a request with ``arrays``.

        Raises:
            InvalidArgument: The model raised an error, exceeded a limit, or has no output of
                shape ``(records, classes)``.
        """
        with self._exchange(f"run on records of shape {arrays[0].shape[1:]}") as pipes:
            pipes.write(what)
            for array in arrays:
                whole = np.ascontiguousarray(array, dtype=np.float32)
                sides = struct.pack(f"<BB{whole.ndim}Q", 4, whole.ndim, *whole.shape)
                pipes.write(sides + whole.tobytes())
            self._require(pipes, b"A")
            return _array(pipes)

    def outputs(self, features: NDArray[Any]) -> NDArray[Any]:
        """Return what the model says of one batch, shape ``(records, classes)``."""
        found = self.ask(b"P", features)
        if found.ndim != 2 or len(found) != len(features):
            raise self.error(f"its output has shape {found.shape}")
        return found

    def gradient(self, features: NDArray[Any], outside: NDArray[Any]) -> NDArray[Any]:
        """Return the gradient by the features of the outputs' product with ``outside``."""
        found = self.ask(b"V", features, outside)
        if found.shape != features.shape:
            raise self.error(f"its gradient has shape {found.shape}")
        return found

    def error(self, why: str) -> InvalidArgument:
        """Return what to raise of a model that did not run."""
        return InvalidArgument(
            "checkpoint", str(self.path), f"a model that runs within its limits ({why})"
        )

    def _require(self, pipes: _Pipes, wanted: bytes) -> None:
        answer = _exactly(pipes, 1)
        if answer == b"E":
            (length,) = struct.unpack("<I", _exactly(pipes, 4))
            text = _exactly(pipes, min(length, LONGEST_MESSAGE)).decode(errors="replace")
            raise self.error(text)
        if answer != wanted:
            raise self.error("it wrote into its own answers")

    @contextmanager
    def _exchange(self, doing: str) -> Iterator[_Pipes]:
        """End the process if it takes too long; say why where it ended."""
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
        except BaseException:  # an interruption: what it has yet to answer must not count later
            self.end()
            raise


class _Pipes:
    """This side's ends of a process's pipes, which wait no longer than a deadline.

    Another process may hold the other ends: that the process is killed does not end a read.
    """

    def __init__(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdout.fileno(), process.stdin.fileno()
        self._deadline = deadline
        os.set_blocking(self._out, False)

    def read(self, size: int) -> bytes:
        self._wait(self._in, select.POLLIN)
        return os.read(self._in, size)

    def write(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            self._wait(self._out, select.POLLOUT)
            with suppress(BlockingIOError):  # fewer free bytes than it takes
                rest = rest[os.write(self._out, rest) :]

    def _wait(self, handle: int, event: int) -> None:
        waiting = select.poll()
        waiting.register(handle, event)
        left = self._deadline - time.monotonic()
        if left <= 0 or not waiting.poll(math.ceil(1000 * left)):
            raise TimeoutError("the process takes too long")


def _places(libraries: tuple[str, ...]) -> list[str]:
    found = [find_spec(library) for library in libraries]
    origins = [spec.origin for spec in found if spec is not None and spec.origin is not None]
    return [str(Path(origin).parent.parent) for origin in origins]


def _environment(folder: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}


def _warn(path: Path, unlimited: int) -> None:
    missing = [what for bit, what in UNLIMITED.items() if unlimited & bit]
    if missing:
        warnings.warn(
            f"{path} runs in a process of its own, and this system does not limit "
            f"{' or '.join(missing)}",
            stacklevel=2,
        )


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    """Kill the process, and those that it started and that stayed in its group."""
    if process.returncode is None:  # not reaped: no other group can have its number yet
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    shutil.rmtree(folder, ignore_errors=True)


def _exactly(pipes: _Pipes, size: int) -> bytes:
    parts = []
    while size:
        part = pipes.read(min(size, MIB))
        if not part:
            raise EOFError("the process ended")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _array(pipes: _Pipes) -> NDArray[Any]:
    """Read an array of floats, whose sizes may be false."""
    width, count = _exactly(pipes, 2)
    if width not in FLOATS or count > MOST_SIDES:
        raise ValueError("an array of another format")
    shape = struct.unpack(f"<{count}Q", _exactly(pipes, 8 * count))
    size = math.prod(max(side, 1) for side in shape) * width
    if size > MOST_OUTPUT:
        raise ValueError(f"an array of {size} bytes")
    content = bytearray(_exactly(pipes, math.prod(shape) * width))
    return np.frombuffer(content, dtype=FLOATS[width]).reshape(shape)
