"""The one module that prints: escapes control characters, colours outcomes, obeys -q and -v."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TextIO

import click

from dpaudit.files.regular_files import DISK_FAILURES
from dpaudit.vocabulary.errors import ClosedPipe, InputOutputError
from dpaudit.vocabulary.renamed import OldNameWarning

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

# C0 but for newline and tab, DEL and C1; marks that reorder or hide text; line separators; and
# surrogates, which stand for bytes of a path that are no UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)

# Whole words, so that a path such as PASSWORDS is left alone.
_OUTCOME = re.compile(r"\b(PASS|FAIL|INCONCLUSIVE)\b")
_COLOURS = {"PASS": "32", "FAIL": "31", "INCONCLUSIVE": "33"}  # green, red, yellow


class Verbosity(Enum):
    """How much is printed on standard error."""

    QUIET = "errors only"
    NORMAL = "errors, warnings and progress"
    VERBOSE = "details, too"


_verbosity = Verbosity.NORMAL
_BEGAN = time.monotonic()  # this module is imported when the process starts


def set_verbosity(level: Verbosity) -> None:
    """Set how much is printed on standard error until the command ends.

    Args:
        level: Of ``-q`` or ``-v``; where both are given, the later one counts.
    """
    global _verbosity  # noqa: PLW0603  of one process, as its streams are
    _verbosity = level
    _log_details(level is Verbosity.VERBOSE)


def verbosity() -> Verbosity:
    """Return how much is printed on standard error."""
    return _verbosity


class _Details(logging.Handler):
    """Prints what dpaudit logs, with the seconds since the process started."""

    def emit(self, record: logging.LogRecord) -> None:
        warn(f"dpaudit: [{time.monotonic() - _BEGAN:.2f} s] {record.getMessage()}")


_DETAILS = _Details()


def _log_details(wanted: bool) -> None:
    logger = logging.getLogger("dpaudit")
    logger.removeHandler(_DETAILS)
    if wanted:
        logger.addHandler(_DETAILS)
    logger.setLevel(logging.DEBUG if wanted else logging.NOTSET)
    logger.propagate = not wanted


def escaped(text: str) -> str:
    r"""Return ``text`` with each unsafe character as \xNN or \uNNNN, as Python writes it.

    Above ASCII it is \uNNNN alone, which JSON reads as the same character.
    """
    return _UNSAFE.sub(lambda found: _written(ord(found[0])), text)


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x7F else f"\\u{code:04x}"


def printable_path(path: object) -> str:
    """Return how a path or a name is printed: on one line, whatever is in it."""
    return escaped(str(path)).replace("\n", "\\n").replace("\t", "\\t")


def print_text(text: str, *, outcomes: bool = False) -> None:
    """Print ``text`` and a newline on standard output.

    Args:
        text: Any text; control characters are escaped.
        outcomes: Whether the words PASS, FAIL and INCONCLUSIVE are coloured on a terminal.

    Raises:
        ClosedPipe: If the reader of the output has ended.
        InputOutputError: If standard output is closed, or its disk is full or fails.
    """
    shown = escaped(text)
    if outcomes and has_colour(sys.stdout):
        shown = _OUTCOME.sub(lambda word: f"\x1b[{_COLOURS[word[0]]}m{word[0]}\x1b[0m", shown)
    _write(sys.stdout, f"{shown}\n")


def has_colour(stream: TextIO | None) -> bool:
    """Return whether a stream shows colours: a terminal, without NO_COLOR or TERM=dumb."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or os.name == "nt":
        return False
    return stream is not None and stream.isatty()


def warn(text: str) -> None:
    """Print a warning or a note as one line on standard error; nothing with -q."""
    if _verbosity is not Verbosity.QUIET:
        print_message(text)


def warn_written(path: object) -> None:
    """Name a file that was written, on standard error; nothing with -q."""
    warn(f"dpaudit: wrote {printable_path(path)}")


def print_message(text: str) -> None:
    """Print why a command fails as one line on standard error, also with -q."""
    _print_on_stderr(" ".join(text.split()))


def print_error(code: str, text: str) -> None:
    """Print an error with its code as one line on standard error, also with -q."""
    print_message(f"dpaudit: error {code}: {text}")


def print_lines(text: str) -> None:
    """Print ``text``, which may have several lines, on standard error, also with -q."""
    _print_on_stderr(text.rstrip("\n"))


def _print_on_stderr(text: str) -> None:
    try:
        _write(sys.stderr, f"{escaped(text)}\n")
    except OSError:
        return  # there is nowhere left to say so


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:
        raise InputOutputError("standard output", "closed")
    with _typed():
        stream.write(text)
        stream.flush()


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ClosedPipe("the reader of the output ended") from error
    except OSError as error:
        raise InputOutputError("standard output", error.strerror or str(error)) from error


@contextmanager
def safe_streams() -> Iterator[None]:
    """Make the standard streams safe while a command runs.

    Descriptors 0 to 2 that were closed are opened, or a file of a run would get their numbers.
    A character that a stream cannot encode is escaped. Warnings are one line.
    """
    _fill_descriptors()
    set_verbosity(Verbosity.NORMAL)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        # Shown once each, and never an error: a file of an earlier version is no fault of the
        # command, whatever PYTHONWARNINGS says of warnings in Python code.
        warnings.filterwarnings("always", category=OldNameWarning)
        shown: set[str] = set()
        warnings.showwarning = partial(_show, shown)
        yield


class ProgressBars:
    """Shows each stage of a long command as a bar with the remaining time.

    Bars are on standard error, on a terminal only, and not with -q. With -v, the time that a
    stage took is printed after it.
    """

    def __init__(self) -> None:
        self._bar: ProgressBar[int] | None = None
        self._stage, self._started = "", 0.0

    def start(self, what: str, total: int) -> None:
        """Begin a stage; the one before it has ended.

        Args:
            what: What is done, for people.
            total: Units of work.
        """
        self.finish()
        self._stage, self._started = what, time.monotonic()
        if shows_progress():
            self._bar = click.progressbar(length=total, label=what, file=sys.stderr)
            self._bar.__enter__()

    def advance(self, units: int = 1) -> None:
        """Report that units of the stage are done.

        Args:
            units: How many more.
        """
        if self._bar is not None:
            self._bar.update(units)

    def finish(self) -> None:
        """End the stage."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
        if self._stage and _verbosity is Verbosity.VERBOSE:
            warn(f"dpaudit: {self._stage} took {time.monotonic() - self._started:.2f} s")
        self._stage = ""


@contextmanager
def progress_bars() -> Iterator[ProgressBars]:
    """Give what shows the progress of a command, and end its last bar."""
    bars = ProgressBars()
    try:
        yield bars
    finally:
        bars.finish()


def shows_progress() -> bool:
    """Return whether bars are shown: standard error is a terminal, and -q was not given."""
    return _verbosity is not Verbosity.QUIET and sys.stderr is not None and sys.stderr.isatty()


def flush_output() -> None:
    """Write what is still held back.

    Raises:
        ClosedPipe: Who read it has gone.
        InputOutputError: The disk is full or fails.
    """
    if sys.stdout is not None:
        with _typed():
            sys.stdout.flush()


def discard_output() -> None:
    """Let what is still held back go nowhere, so that the interpreter does not try it again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
        except (OSError, ValueError):  # a stream that is no file
            continue


def is_disk_failure(error: OSError) -> bool:
    """Return whether an error means that a disk is full or fails."""
    return error.errno in DISK_FAILURES


def _fill_descriptors() -> None:
    handle = os.open(os.devnull, os.O_RDWR)
    while handle <= 2:
        handle = os.open(os.devnull, os.O_RDWR)
    os.close(handle)


def _show(
    shown: set[str],
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line; the same text once per command."""
    if str(message) not in shown:
        shown.add(str(message))
        warn(f"dpaudit: warning: {message}")
