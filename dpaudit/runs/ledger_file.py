"""The ledger on disk: read with every check, and appended to by one process alone.

A line is on the disk before the noise that it records is used, so a crash over-counts by at
most one release and never under-counts. ``ledger_lines`` has the format, ``crosscheck`` what
the other files of a run say.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NoReturn, TypeVar
from uuid import uuid4

from msgspec.structs import replace

from dpaudit.files.opening import KIB, LEDGER, InputFile, opened, read_at_most
from dpaudit.files.writing import write_error
from dpaudit.runs.checkpoints import complete_checkpoints, remove_checkpoint
from dpaudit.runs.crosscheck import (
    is_claimed,
    require_consistent,
    require_not_contradicted,
    require_resumable,
    seal_of,
)
from dpaudit.runs.files import sync
from dpaudit.runs.layout import RunFiles
from dpaudit.runs.ledger_lines import (
    GENESIS,
    Content,
    is_header,
    line_of,
    may_begin_header,
    read_content,
)
from dpaudit.vocabulary.errors import (
    DpauditError,
    ForkedSession,
    IntegrityError,
    InvalidArgument,
    RunExists,
)
from dpaudit.vocabulary.ledger import (
    Begun,
    BookedRelease,
    Checkpointed,
    DeclaredChange,
    Ended,
    LedgerHeader,
    LedgerLine,
    PrivacyLedger,
    Resumed,
    Seal,
)

T = TypeVar("T")

LONGEST_HEADER, SHORTEST_LINE, MANY_LINES = 64 * KIB, 80, 10_000
"""Bytes of a first line at most, and of any line, which has its hash, at least; and how many
lines are split whatever their length."""

LOOKS = 3
"""How often a file is read again, if another process wrote it while it was read."""


def read_ledger(path: Path) -> PrivacyLedger:
    """Read and verify a ledger that ends with a whole line.

    The other files of its run are not looked at: ``RunDirectory.read_ledger`` does that.

    Raises:
        IntegrityError: It is missing, torn, altered, or has an unknown major version.
    """
    content = read_content(path, _bytes(path))
    require_whole(path, content)
    return content.ledger


def require_whole(path: Path, content: Content) -> None:
    """Refuse a ledger that does not end with a whole line.

    Raises:
        IntegrityError: Its last line is incomplete, or lacks its newline.
    """
    if content.tail.text:
        raise IntegrityError(
            f"{path} ends in the middle of a line: truncated, or still written; complete it "
            "with dpaudit finish or dpaudit train --resume"
        )


def read_unfinished(path: Path) -> PrivacyLedger:
    """Read a ledger whose process may have died in the middle of its last line.

    An incomplete last line that is a release, or may be one, counts as a release, as it will
    when the run is resumed. The other files of the run are cross-checked.

    Raises:
        IntegrityError: It is missing, damaged or altered, or another file of its run says that
            it was cut.
    """
    return _settled(path, lambda content: _consistent(path, content))


def read_run(run: RunFiles) -> Content:
    """Read the ledger of a run and cross-check its other files.

    Raises:
        IntegrityError: As ``read_unfinished``.
    """

    def checked(content: Content) -> Content:
        require_consistent(run, content)
        return content

    return _settled(run.ledger, checked)


def read_dead_run(run: RunFiles) -> Content:
    """Read the ledger of a run that nobody writes, which may be sealed and lack its claim.

    Raises:
        IntegrityError: It is missing, damaged or altered, or another file contradicts it.
    """
    content = read_content(run.ledger, _bytes(run.ledger))
    require_not_contradicted(run, content)
    return content


def _settled(path: Path, check: Callable[[Content], T]) -> T:
    """Return what ``check`` says of a ledger; look again where it was written meanwhile.

    Files that are checked later than the ledger was read may know of more.
    """
    for _ in range(LOOKS):
        raw = _bytes(path)
        try:
            return check(read_content(path, raw))
        except IntegrityError:
            if _bytes(path) == raw:
                raise
    return check(read_content(path, _bytes(path)))


def _consistent(path: Path, content: Content) -> PrivacyLedger:
    run = _run_of(path)
    return content.counted if run is None else require_consistent(run, content)


def _run_of(path: Path) -> RunFiles | None:
    """Return the run that a ledger is of; None for a ledger by itself, of another name."""
    run = RunFiles(path.parent)
    return run if run.ledger.name == path.name else None


def _bytes(path: Path) -> bytes:
    source = InputFile(path, limit=LEDGER)
    with opened(source) as file:
        return _lines(source, file)


def _lines(source: InputFile, file: BinaryIO) -> bytes:
    """Return a ledger's bytes; what cannot be lines of a ledger is refused before it is split.

    Raises:
        IntegrityError: It has a line that is longer than any, or lines too short to be any.
    """
    begin = file.read(LONGEST_HEADER)
    if len(begin) == LONGEST_HEADER and b"\n" not in begin:
        raise source.error("its first line is longer than any header")
    content = begin + read_at_most(source, file)
    if content.count(b"\n") > max(MANY_LINES, len(content) // SHORTEST_LINE):
        raise source.error("it has lines that are too short for a ledger")
    return content


def is_ledger(path: Path) -> bool:
    """Return whether ``path`` begins like a ledger of ours, or is one that never got its header."""
    try:
        with opened(InputFile(path, limit=LEDGER)) as file:
            first = file.read(LONGEST_HEADER).partition(b"\n")[0]
    except DpauditError:
        return False
    return is_header(first) or may_begin_header(first)


def is_unbegun(path: Path) -> bool:
    """Return whether ``path`` is a ledger of ours without any release, that nobody writes.

    Its process died before it released anything: a new run may take its place. An incomplete
    last line that may be a release, a seal, and every file that a run makes by releases or after
    them, speak against it.
    """
    source = InputFile(path, limit=LEDGER)
    try:
        with opened(source) as file:
            _lock(path, file)
            return _holds_no_release(path, _lines(source, file))
    except DpauditError:
        return False


def _holds_no_release(path: Path, raw: bytes) -> bool:
    run = _run_of(path)
    if run is not None and (
        any(file.exists() for file in run.made_by_releases) or complete_checkpoints(run.checkpoints)
    ):
        return False
    if b"\n" not in raw and may_begin_header(raw):
        return True
    try:
        content = read_content(path, raw)
    except IntegrityError:
        return False
    return not (content.ledger.releases or content.ledger.seal or content.tail.may_be_release)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a ledger against every writer.

    Raises:
        RunExists: A process writes it.
    """
    with opened(InputFile(path, limit=LEDGER)) as file:
        _lock(path, file)
        yield


def _lock(path: Path, file: BinaryIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunExists(
            f"{path} is being written, by another process or by another session of this one"
        ) from error
    if not _is_same_file(path, file):
        raise RunExists(f"{path} was replaced by another process: try again")


def _is_same_file(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _open_to_write(path: Path) -> BinaryIO:
    """Return a ledger's file, locked; what is written to it is not buffered."""
    with opened(InputFile(path, limit=LEDGER)):  # a regular file
        file = path.open("r+b", buffering=0)
    try:
        _lock(path, file)
    except BaseException:
        file.close()
        raise
    return file


_writers: weakref.WeakSet[LedgerWriter] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close a forked process's copies of the descriptors: they would keep the locks alive."""
    for writer in list(_writers):
        with suppress(OSError):
            writer._file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@dataclass
class _End:
    """What the file is after the writer's last line.

    Attributes:
        head: Hash of the last line.
        releases: How many releases are recorded.
        size: The file's size in bytes.
        unended: Whether the last line still lacks its newline.
    """

    head: str
    releases: int
    size: int
    unended: bool = False


class LedgerWriter:
    """Appends to a ledger: one process at a time, one line at a time.

    A forked process cannot use it, nor can it be copied or pickled. Before each line, the
    file must be what the last line left. After a failed write nothing more is recorded.

    Attributes:
        exclusive: A lock; while it is held, other threads wait to record anything.
    """

    def __init__(self, path: Path, file: BinaryIO, end: _End) -> None:
        self._path, self._file, self._end = path.absolute(), file, end
        self._process, self._failed = os.getpid(), False
        self.exclusive = threading.RLock()
        _writers.add(self)

    @property
    def path(self) -> Path:
        """The ledger's file."""
        return self._path

    @property
    def releases(self) -> int:
        """How many releases are recorded."""
        return self._end.releases

    @classmethod
    def create(cls, path: Path, header: LedgerHeader) -> LedgerWriter:
        """Begin a new ledger.

        A ledger of ours without any release, whose process died, is replaced: nothing was
        released. What its run left beside it is removed.

        Raises:
            RunExists: There is another file, checkpoints of an earlier run are beside it, or
                a process writes it.
            InvalidArgument: No file can be made there.
        """
        _require_no_checkpoints(path)
        try:
            file = path.open("xb", buffering=0)
        except FileExistsError as error:
            if not path.is_file():
                raise RunExists(f"{path} exists: another run has begun here") from error
            return cls._in_place_of(path, header)
        except (OSError, ValueError) as error:  # of a name with a NUL byte: ValueError
            raise write_error("ledger", path, error) from error
        try:
            _lock(path, file)
            writer = cls(path, file, _End(GENESIS, 0, 0))
            writer._append(header)
            sync(path.parent)  # the file's name, too, must survive a crash
        except BaseException:
            file.close()
            raise
        return writer

    @classmethod
    def _in_place_of(cls, path: Path, header: LedgerHeader) -> LedgerWriter:
        file = _open_to_write(path)
        try:
            if not _holds_no_release(path, file.read()):
                raise RunExists(f"{path} exists: another run has begun here")
            run = _run_of(path)
            if run is not None:
                _remove_beginnings(run)
            file.truncate(0)
            file.seek(0)
            writer = cls(path, file, _End(GENESIS, 0, 0))
            writer._append(header)
        except BaseException:
            file.close()
            raise
        return writer

    @classmethod
    def resume(cls, path: Path, resumed: Resumed) -> LedgerWriter:
        """Go on with a ledger whose process died.

        A complete last line gets its newline. An incomplete one is removed and named in the
        ``resumed`` line; if it is a release, or may be one, a release is recorded for it.
        Both are done at once: after a crash the old file is there, or the new one.

        Args:
            path: The ledger. The other files of its run are cross-checked, the newest
                checkpoint digest by digest.
            resumed: The line that says so; its ``dropped`` is filled in.

        Raises:
            IntegrityError: The ledger is damaged, or a file of its run contradicts it; the
                file is as it was.
            RunExists: The run is finished, or lacks its seal alone, or another process writes
                the ledger.
        """
        file = _open_to_write(path)
        try:
            content = read_content(path, file.read())
            _require_unended(path, content)
            if content.tail.dropped:
                file, end = _without_tail(path, file, content, resumed)
                return cls(path, file, end)
            writer = cls(path, file, _end_of(content, os.fstat(file.fileno()).st_size))
            writer._append(resumed)
        except BaseException:
            file.close()
            raise
        return writer

    def begin(self, files: dict[str, str]) -> None:
        """Bind the run to the digests of its settings and canaries."""
        self._append(Begun(files))

    def book(self, release: BookedRelease) -> None:
        """Record one release; when this returns, the line is on the disk.

        Raises:
            ForkedSession: This process is not the one that opened the ledger.
            IntegrityError: Somebody else wrote, replaced or removed the file, or an earlier
                write failed; nothing was written.
            InvalidArgument: The writer was closed.
            InputOutputError: The disk refused; the file ends with the last whole line, if it
                could be restored.
        """
        self._append(release)

    def declare(self, change: DeclaredChange) -> None:
        """Record that the model was changed outside of the recorded steps."""
        self._append(change)

    def checkpointed(self, checkpoint: Checkpointed) -> None:
        """Record the digests of a checkpoint's files.

        Before the checkpoint gets its marker: a complete checkpoint has a line.
        """
        self._append(checkpoint)

    def end(self, files: dict[str, str]) -> None:
        """Record the digests of what ships, once the last step was taken."""
        self._append(Ended(files))

    def head_after_seal(self, files: dict[str, str]) -> str:
        """Return the hash of the line that ``seal(files)`` would write now."""
        return line_of(Seal(self._end.releases, files), self._end.head)[1]

    def seal(self, files: dict[str, str]) -> None:
        """Close the run: nothing can be recorded any more.

        ``sealing.seal_run`` writes the claim before that.
        """
        self._require_own_process()
        with self.exclusive:
            self._append(Seal(self._end.releases, files))
            self.close()

    def require_writable(self) -> None:
        """Refuse a writer that can record nothing, before something is written beside it.

        Raises:
            ForkedSession: This process is not the one that opened the ledger.
            IntegrityError: Somebody else wrote the file, or an earlier write failed.
            InvalidArgument: The writer was closed.
        """
        self._require_own_process()
        with self.exclusive:
            self._require_untouched()

    def close(self) -> None:
        """Give the ledger free; it can be resumed."""
        self._file.close()

    def _append(self, entry: LedgerLine) -> None:
        self._require_own_process()
        with self.exclusive:
            self._require_untouched()
            end = self._end
            line, head = line_of(entry, end.head)
            text = b"\n" * end.unended + line
            more = isinstance(entry, BookedRelease)
            try:
                _write_all(self._file, text)
                os.fsync(self._file.fileno())
                self._end = _End(head, end.releases + more, end.size + len(text))
            except OSError as error:
                self._cut_back(end)
                self._failed = True
                raise write_error("ledger", self._path, error) from error
            except BaseException:  # after Ctrl-C the disk is as good as before
                self._cut_back(end)
                raise

    def _require_own_process(self) -> None:
        if os.getpid() != self._process:
            raise ForkedSession(
                f"{self._path} is written by process {self._process}, and this is process "
                f"{os.getpid()}: call make_private in each process, with a ledger of its own"
            )

    def _require_untouched(self) -> None:
        if self._failed:
            raise IntegrityError(
                f"{self._path}: an earlier write failed, so this process records nothing more; "
                "resume the run in a new one"
            )
        if self._file.closed:
            raise InvalidArgument("ledger", str(self._path), "one that is open: it was closed")
        if not _is_same_file(self._path, self._file):
            raise IntegrityError(
                f"{self._path} was removed or replaced while this process wrote it: nothing "
                "more is recorded"
            )
        size = os.fstat(self._file.fileno()).st_size
        if size != self._end.size:
            raise IntegrityError(
                f"{self._path} has {size} bytes, and this process left {self._end.size}: "
                "somebody else wrote it; nothing more is recorded"
            )

    def _cut_back(self, end: _End) -> None:
        """Remove what a failed write left; if that fails, too, a line too many may count."""
        self._end = end
        try:
            self._file.truncate(end.size)
            self._file.seek(end.size)
            os.fsync(self._file.fileno())
        except OSError:
            self._failed = True

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise ForkedSession(
            f"{self._path} has one writer, which cannot be copied or pickled: call make_private "
            "in each process, with a ledger of its own"
        )

    def __enter__(self) -> LedgerWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def complete_seal(run: RunFiles) -> None:
    """Write the seal, or what it lacks, of a run whose claim is there and proves it.

    A seal that lacks its newline alone gets it.

    Raises:
        IntegrityError: The claim does not prove it, or another file contradicts the ledger.
        RunExists: A process writes the ledger.
    """
    file = _open_to_write(run.ledger)
    with file:
        raw = file.read()
        content = read_content(run.ledger, raw)
        require_consistent(run, content)
        if content.ledger.seal is not None:
            rest = b"\n" * content.tail.complete
        elif is_claimed(run, content):
            line, _ = line_of(seal_of(run, content.ledger), content.ledger.head)
            rest = b"\n" + line if content.tail.complete else line[len(content.tail.text) :]
        else:
            raise IntegrityError(f"{run.path} has no claim that proves its seal")
        file.seek(len(raw))
        try:
            _write_all(file, rest)
            os.fsync(file.fileno())
        except OSError as error:
            raise write_error("ledger", run.ledger, error) from error


def _write_all(file: BinaryIO, text: bytes) -> None:
    left = memoryview(text)
    while left:
        left = left[file.write(left) :]


def _end_of(content: Content, size: int) -> _End:
    ledger = content.ledger
    return _End(ledger.head, len(ledger.releases), size, content.tail.complete)


def _require_unended(path: Path, content: Content) -> None:
    """Refuse a ledger to which nothing can be added.

    Raises:
        IntegrityError: A file of its run contradicts it.
        RunExists: It is sealed, or lacks its seal alone.
    """
    run = _run_of(path)
    if run is not None and content.ledger.seal is None:
        require_resumable(run, content)
        if is_claimed(run, content):
            raise RunExists(
                f"{path.parent} has its claim and lacks its seal alone: complete it with "
                "dpaudit finish"
            )
    if content.ledger.seal is not None:
        raise RunExists(f"{path.parent} is finished: there is nothing to resume")


def _without_tail(
    path: Path, file: BinaryIO, content: Content, resumed: Resumed
) -> tuple[BinaryIO, _End]:
    """Replace a ledger by one in which its incomplete last line is named and accounted for.

    The new file is locked before it has the ledger's name, and the old one until after.
    """
    ledger = content.counted
    end = os.fstat(file.fileno()).st_size - len(content.tail.text)
    file.seek(0)
    lines = [file.read(end)]
    if ledger is not content.ledger:
        lines.append(line_of(ledger.lines[-1], content.ledger.head)[0])
    line, head = line_of(replace(resumed, dropped=content.tail.dropped), ledger.head)
    text = b"".join((*lines, line))
    target = path.resolve()  # a link goes on to name the same file
    partial = target.with_name(f"{target.name}.{uuid4().hex}.partial")
    new = partial.open("x+b", buffering=0)
    try:
        fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(new.fileno(), os.fstat(file.fileno()).st_mode & 0o7777)
        _write_all(new, text)
        os.fsync(new.fileno())
        partial.replace(target)
        sync(target.parent)
    except BaseException as error:
        new.close()
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error("ledger", path, error) from error
        raise
    file.close()
    return new, _End(head, len(ledger.releases), len(text))


def _require_no_checkpoints(path: Path) -> None:
    """Refuse a new ledger beside an earlier run's checkpoints, which would contradict it.

    Raises:
        RunExists: There are some.
    """
    run = _run_of(path)
    if run is not None and complete_checkpoints(run.checkpoints):
        raise RunExists(
            f"{run.checkpoints} holds checkpoints of an earlier run: choose another folder, or "
            "remove them"
        )


def _remove_beginnings(run: RunFiles) -> None:
    """Remove what a run left that never released anything: its settings and canaries."""
    for left in (run.config, run.canaries, run.secret_canaries, *run.path.glob("*.partial")):
        left.unlink(missing_ok=True)
    if run.checkpoints.is_dir():
        for folder in run.checkpoints.iterdir():
            remove_checkpoint(folder)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
