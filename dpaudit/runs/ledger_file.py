"""The ledger on disk: read with every check, and appended to by one process at a time.

A line is on disk before the noise that it records is used. So a crash over-counts by at most
one release and never under-counts. ``ledger_format`` has the format of lines, and
``consistency`` the cross-checks with the other files of a run.
"""

from __future__ import annotations

import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NoReturn, TypeVar
from uuid import uuid4

from msgspec.structs import replace

from dpaudit.files.regular_files import (
    LEDGER_LIMIT,
    InputFile,
    open_input,
    write_error,
)
from dpaudit.runs.checkpoints import complete_checkpoints, remove_checkpoint
from dpaudit.runs.consistency import (
    expected_seal,
    is_proven_by_claim,
    require_consistent,
    require_not_contradicted,
    require_resumable,
)
from dpaudit.runs.file_io import sync_to_disk
from dpaudit.runs.ledger_bytes import MAX_HEADER_BYTES, checked_lines, ledger_bytes
from dpaudit.runs.ledger_format import (
    GENESIS_HASH,
    LINE_SUFFIX,
    LedgerContent,
    encode_line,
    is_header,
    may_begin_header,
    parse_ledger,
)
from dpaudit.runs.participants import (
    foreign_entries,
    parse_run,
    run_of_ledger,
    server_ledger_of,
    with_participants,
)
from dpaudit.runs.run_files import RunFiles
from dpaudit.vocabulary.errors import (
    DpauditError,
    ForkedSession,
    IntegrityError,
    InvalidArgument,
    RunExists,
    RunLocked,
)
from dpaudit.vocabulary.ledger import (
    BeginEntry,
    ChangeEntry,
    CheckpointEntry,
    EndEntry,
    LedgerEntry,
    LedgerHeader,
    PrivacyLedger,
    ReleaseEntry,
    ResumeEntry,
    RoundEntry,
    Seal,
    SpotCheckEntry,
)

T = TypeVar("T")

READ_ATTEMPTS = 3
"""Repetitions of a check that fails while another process writes the file."""


def read_ledger(path: Path) -> PrivacyLedger:
    """Read and verify a ledger that ends with a whole line.

    The other files of its run are not compared; ``RunDirectory.read_ledger`` does that.

    Args:
        path: The ledger.

    Returns:
        The verified ledger.

    Raises:
        IntegrityError: If it is missing, incomplete or altered, or of an unknown major version.
    """
    content = parse_ledger(path, ledger_bytes(path))
    require_complete_last_line(path, content)
    return content.ledger


def require_complete_last_line(path: Path, content: LedgerContent) -> None:
    """Refuse a ledger that does not end with a whole line.

    Args:
        path: The ledger, for the error.
        content: What was read of it.

    Raises:
        IntegrityError: If its last line is incomplete, or lacks its newline.
    """
    if content.tail.text:
        raise IntegrityError(
            f"{path} ends in the middle of a line: truncated, or still written; complete it "
            "with dpaudit finish or dpaudit train --resume"
        )
    for name, one in content.participants.items():
        require_complete_last_line(RunFiles(path.parent).participants / name / path.name, one)


def read_unfinished(path: Path) -> PrivacyLedger:
    """Read a ledger whose process may have died in the middle of its last line.

    An incomplete last line that is a release, or may be one, counts as a release, as it will when
    the run is resumed. The other files of the run are cross-checked.

    Args:
        path: The ledger.

    Returns:
        The ledger to account for.

    Raises:
        IntegrityError: If it is missing, damaged or altered, or another file of its run
            contradicts it.
    """
    return _settled(path, lambda content: _consistent(path, content))


def read_run(run: RunFiles) -> LedgerContent:
    """Read the ledger of a run and cross-check its other files.

    Args:
        run: The files of the run.

    Returns:
        Whole lines and the tail.

    Raises:
        IntegrityError: If the ledger is missing, damaged or altered, or another file of its run
            contradicts it.
    """

    def checked(content: LedgerContent) -> LedgerContent:
        require_consistent(run, content)
        return content

    return _settled(run.ledger, checked)


def read_interrupted_run(run: RunFiles) -> LedgerContent:
    """Read the ledger of a run that no process writes; it may be sealed without a claim.

    Args:
        run: The files of the run.

    Returns:
        Whole lines and the tail.

    Raises:
        IntegrityError: If it is missing, damaged or altered, or another file contradicts it.
    """
    content = parse_run(run.ledger, ledger_bytes(run.ledger))
    require_not_contradicted(run, content)
    return content


def _settled(path: Path, check: Callable[[LedgerContent], T]) -> T:
    """Return the result of a check; repeat it if the ledger was written meanwhile.

    Other files are read after the ledger, so they may record more than it held then.
    """
    for _ in range(READ_ATTEMPTS):
        raw = ledger_bytes(path)
        try:
            return check(parse_run(path, raw))
        except IntegrityError:
            if ledger_bytes(path) == raw:  # nothing was written meanwhile: the finding stands
                raise
    return check(parse_run(path, ledger_bytes(path)))


def _consistent(path: Path, content: LedgerContent) -> PrivacyLedger:
    """Return the ledger to account for, cross-checked if it is that of a run."""
    run = run_of_ledger(path)
    return content.counted if run is None else require_consistent(run, content)


def is_ledger(path: Path) -> bool:
    """Return whether a file is a ledger, or the beginning of one.

    Args:
        path: Any path.

    Returns:
        Whether its first line is a header, or the beginning of one.
    """
    try:
        with open_input(InputFile(path, limit=LEDGER_LIMIT)) as file:
            first = file.read(MAX_HEADER_BYTES).partition(b"\n")[0]
    except DpauditError:
        return False
    return is_header(first) or may_begin_header(first)


def has_no_release(path: Path) -> bool:
    """Return whether a ledger has no release and no process writes it, so that it may be replaced.

    A last line that may be a release, a round, a seal, and any file that a run writes only after
    its first release each count as a release. So does a release of a participant.

    Args:
        path: Any path.

    Returns:
        False if the file is not a ledger, or cannot be read or locked.
    """
    source = InputFile(path, limit=LEDGER_LIMIT)
    try:
        with open_input(source) as file:
            _lock(path, file)
            return _holds_no_release(path, checked_lines(source, file))
    except DpauditError:
        return False


def _holds_no_release(path: Path, raw: bytes) -> bool:
    """Return whether neither a ledger's bytes nor the other files of its run show a release."""
    run = run_of_ledger(path)
    if run is not None and (
        any(file.exists() for file in run.files_after_release)
        or complete_checkpoints(run.checkpoints)
        or foreign_entries(run)
        or not all(has_no_release(ledger) for ledger in run.participant_ledgers)
    ):
        return False
    if b"\n" not in raw and may_begin_header(raw):
        return True
    try:
        content = parse_ledger(path, raw)
    except IntegrityError:
        return False
    ledger = content.ledger
    return not (ledger.releases or ledger.rounds or ledger.seal or content.tail.may_be_release)


@contextmanager
def ledger_lock(path: Path) -> Iterator[None]:
    """Hold the writer's lock of a ledger during the block.

    Args:
        path: The ledger.

    Yields:
        Nothing.

    Raises:
        RunLocked: If a process is writing the ledger.
        UnwritableFile: If the operating system or the file system has no locks.
    """
    with open_input(InputFile(path, limit=LEDGER_LIMIT)) as file:
        _lock(path, file)
        yield


def _lock(path: Path, file: BinaryIO) -> None:
    """Lock an open ledger, and make sure that its path still names the locked file."""
    # Between opening and locking, a resuming process may have replaced the file. A lock on
    # the old file would not exclude the writer of the new one.
    _lock_descriptor(path, file)
    if not _is_same_file(path, file):
        raise RunLocked(f"{path} was replaced by another process: try again")


def _lock_descriptor(path: Path, file: BinaryIO) -> None:
    """Lock an open file without waiting; refuse if another process or session holds the lock.

    Closing the file, or the end of the process, unlocks it. The lock is on the ledger itself, so
    there is no separate lock file to lose or leave behind. On Windows the first byte is locked
    against readers, too: there, other processes cannot read a ledger that is being written.
    """
    from filelock import lock_descriptor  # noqa: PLC0415  only writers need it

    try:
        locked = lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:
        raise write_error("ledger", path, error) from error
    if not locked:
        raise RunLocked(
            f"{path} is being written, by another process or by another session of this one"
        )


def _is_same_file(path: Path, file: BinaryIO) -> bool:
    """Return whether a path still names an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _open_to_write(path: Path) -> BinaryIO:
    """Return a ledger's file, locked and unbuffered; no other writer of its run may be at work."""
    # Before, so that a refused attempt does not disturb the writer. After, so that a run that
    # began in between is seen.
    _require_no_writer_of_run(path)
    file = _locked_file(path)
    try:
        _require_no_writer_of_run(path)
    except BaseException:
        file.close()
        raise
    return file


def _require_no_writer_of_run(path: Path) -> None:
    """Refuse a participant's ledger whose run another process or session is writing.

    A run with many participants closes ledgers between lines (``LedgerWriter.suspend``). Its own
    lock, on the server's ledger, then excludes other writers of the participants' ledgers.
    """
    server = server_ledger_of(path)
    if server is None or not server.exists():
        return
    place, run = path.absolute(), server.absolute()
    writers = list(_writers)
    if any(one.path == place and one.suspended for one in writers):
        raise RunLocked(f"{path} is being written by another session of this process")
    if not any(one.path == run and one.is_open for one in writers):
        with ledger_lock(server):
            pass


def _locked_file(path: Path) -> BinaryIO:
    """Return a regular file, locked and unbuffered."""
    with open_input(InputFile(path, limit=LEDGER_LIMIT)):  # refuses all but regular files
        file = path.open("r+b", buffering=0)
    try:
        _lock(path, file)
    except BaseException:
        file.close()
        raise
    return file


_writers: weakref.WeakSet[LedgerWriter] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close a forked process's copies of the descriptors, which would keep the locks."""
    for writer in list(_writers):
        with suppress(OSError):
            writer._file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@dataclass
class _End:
    """State of the file after the writer's last line.

    Attributes:
        head: Hash of the last line.
        releases: Number of recorded releases.
        size: Size of the file in bytes.
        unended: Whether the last line still lacks its newline.
    """

    head: str
    releases: int
    size: int
    unended: bool = False


class LedgerWriter:
    """Appends lines to a ledger: one process at a time, one line at a time.

    A forked process cannot use it, and it cannot be copied or pickled. Before each line, the file
    must be as the last line left it. After a failed write, nothing more is recorded.

    Args:
        path: The ledger.
        file: The ledger's file, locked, unbuffered and positioned at its end.
        end: State of the file.

    Attributes:
        exclusive: Lock; while it is held, other threads wait to record.
    """

    def __init__(self, path: Path, file: BinaryIO, end: _End) -> None:
        self._path, self._file, self._end = path.absolute(), file, end
        self._process, self._failed = os.getpid(), False
        self._suspended: os.stat_result | None = None
        self.exclusive = threading.RLock()
        _writers.add(self)

    @property
    def path(self) -> Path:
        """The ledger's absolute path."""
        return self._path

    @property
    def releases(self) -> int:
        """Number of releases in the ledger."""
        return self._end.releases

    @property
    def suspended(self) -> bool:
        """Whether the file is closed until the next line."""
        return self._suspended is not None

    @property
    def is_open(self) -> bool:
        """Whether this process has the file open, and so holds its lock."""
        return not self._file.closed and os.getpid() == self._process

    @classmethod
    def create(cls, path: Path, header: LedgerHeader) -> LedgerWriter:
        """Begin a new ledger.

        A ledger without any release, whose process died, is replaced, with the files that its run
        left.

        Args:
            path: The ledger; its folder must exist.
            header: The first line.

        Returns:
            The writer; the header is on disk.

        Raises:
            RunExists: If there is another file, or checkpoints of an earlier run beside it.
            RunLocked: If a process is writing the ledger.
            InvalidArgument: If no file can be created there.
        """
        _require_no_checkpoints(path)
        # Of two processes, one creates the file. Both try to lock it, and one of them fails.
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
            writer = cls(path, file, _End(GENESIS_HASH, 0, 0))
            writer._append(header)
            sync_to_disk(path.parent)  # the entry of the folder, too, must survive a crash
        except BaseException:
            file.close()
            raise
        return writer

    @classmethod
    def _in_place_of(cls, path: Path, header: LedgerHeader) -> LedgerWriter:
        """Begin a ledger in the file of one without any release."""
        file = _open_to_write(path)
        try:
            if not _holds_no_release(path, file.read()):
                raise RunExists(f"{path} exists: another run has begun here")
            run = run_of_ledger(path)
            if run is not None:
                _remove_beginnings(run)
            file.truncate(0)
            file.seek(0)
            writer = cls(path, file, _End(GENESIS_HASH, 0, 0))
            writer._append(header)
        except BaseException:
            file.close()
            raise
        return writer

    @classmethod
    def resume(cls, path: Path, resumed: ResumeEntry) -> LedgerWriter:
        """Continue a ledger whose process died.

        A complete last line gets its newline. An incomplete one is removed and quoted in the
        ``resumed`` line. If it is a release, or may be one, a release is recorded for it. Both
        happen in one replacement of the file, so a crash leaves the old file or the new one.

        Args:
            path: The ledger. The other files of its run are cross-checked, the newest checkpoint
                digest by digest.
            resumed: The line that records the resumption; its ``dropped`` is filled in.

        Returns:
            The writer; the ``resumed`` line is on disk.

        Raises:
            IntegrityError: If the ledger is damaged, or a file of its run contradicts it. The
                ledger is unchanged.
            RunExists: If the run is finished, or lacks only its seal.
            RunLocked: If another process is writing the ledger.
        """
        file = _open_to_write(path)
        try:
            content = parse_ledger(path, file.read())
            _require_unended(path, with_participants(path, content))
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
        """Record the digests of settings and canaries, before the first release.

        Args:
            files: SHA-256 by file name.
        """
        self._append(BeginEntry(files))

    def record_release(self, release: ReleaseEntry) -> None:
        """Record one release; the line is on disk when this returns.

        Args:
            release: The release, whose noise must not be used before.

        Raises:
            ForkedSession: If this process is not the one that opened the ledger.
            IntegrityError: If another process wrote, replaced or removed the file, or an earlier
                write failed. Nothing was written.
            InvalidArgument: If the writer is closed.
            InputOutputError: If the disk is full or fails. The file ends with the last whole line,
                if it could be restored.
        """
        self._append(release)

    def record_releases(self, releases: Sequence[ReleaseEntry]) -> None:
        """Record several releases at once; all lines are on disk when this returns.

        For releases of steps to come: a process that dies in between has recorded too many,
        never too few.

        Args:
            releases: The releases in order.

        Raises:
            IntegrityError: As for ``record_release``. Nothing was written.
            InputOutputError: As for ``record_release``.
        """
        self._append(*releases)

    def declare(self, change: ChangeEntry) -> None:
        """Record that the model was changed outside of the recorded steps.

        Args:
            change: The change.
        """
        self._append(change)

    def record_spot_check(self, check: SpotCheckEntry) -> None:
        """Record that the gradients of a step were checked, before the release of the step.

        Args:
            check: The step and the result.
        """
        self._append(check)

    def checkpointed(self, checkpoint: CheckpointEntry) -> None:
        """Record the digests of a checkpoint's files.

        Call it before the checkpoint gets its marker, so that every complete checkpoint has a line.

        Args:
            checkpoint: Step and digests.
        """
        self._append(checkpoint)

    def record_round(self, ended: RoundEntry) -> None:
        """Record the end of one round of a federation.

        Call it after the last line of every participant's ledger in this round is on disk.

        Args:
            ended: Number, heads of the participants' ledgers, and rejected updates.
        """
        self._append(ended)

    def end(self, files: dict[str, str]) -> None:
        """Record the digests of the final files, after the last step.

        Args:
            files: SHA-256 by file name.
        """
        self._append(EndEntry(files))

    @property
    def head(self) -> str:
        """Hash of the last line that is on disk, as ``RoundEntry.heads`` records it."""
        return self._end.head

    def head_after_seal(self, files: dict[str, str]) -> str:
        """Return the hash of the line that ``seal`` would write now.

        Args:
            files: SHA-256 by file name, as for ``seal``.

        Returns:
            64 hexadecimal digits.
        """
        return encode_line(Seal(self._end.releases, files), self._end.head)[1]

    def seal(self, files: dict[str, str]) -> None:
        """Record the seal and close the ledger; nothing can be recorded afterwards.

        ``directory.seal_run`` writes the claim before it calls this.

        Args:
            files: SHA-256 by file name.
        """
        self._require_own_process()
        with self.exclusive:
            self._append(Seal(self._end.releases, files))
            self.close()

    def require_writable(self) -> None:
        """Refuse a writer that cannot record, before other files are written.

        Raises:
            ForkedSession: If this process is not the one that opened the ledger.
            IntegrityError: If another process wrote the file, or an earlier write failed.
            InvalidArgument: If the writer is closed.
        """
        self._require_own_process()
        with self.exclusive:
            self._continue()
            self._require_untouched()

    def close(self) -> None:
        """Unlock and close the ledger, which can then be resumed."""
        self._suspended = None
        self._file.close()

    def suspend(self, run: LedgerWriter) -> None:
        """Close the file of a participant's ledger until its next line.

        A process may open few files at once. The lock on the run's own ledger keeps other
        processes from writing to this one meanwhile. When the file is opened again, it must be
        the same file with the same last line.

        Args:
            run: Open writer of the run's own ledger. Close this writer before that one.

        Raises:
            InvalidArgument: If ``run`` does not write the ledger of this participant's run.
        """
        self._require_own_process()
        with self.exclusive:
            if self._file.closed:
                return
            server = server_ledger_of(self._path)
            if server is None or run.path != server.absolute() or not run.is_open:
                allowed = "the open writer of the ledger of this participant's run"
                raise InvalidArgument("run", str(run.path), allowed)
            self._suspended = os.fstat(self._file.fileno())
            self._file.close()

    def _continue(self) -> None:
        """Open a suspended file again; refuse another file, or one with another last line."""
        if self._suspended is None:
            return
        file = _locked_file(self._path)
        try:
            if not os.path.samestat(os.fstat(file.fileno()), self._suspended):
                raise IntegrityError(f"{self._path} was replaced: nothing more is recorded")
            last = len(self._end.head) + len(LINE_SUFFIX)
            file.seek(max(0, file.seek(0, os.SEEK_END) - last))
            if self._end.head.encode() not in file.read(last):
                raise IntegrityError(
                    f"{self._path} does not end with the last line of this process: another "
                    "process wrote it; nothing more is recorded"
                )
        except BaseException:
            file.close()
            raise
        self._file, self._suspended = file, None

    def _append(self, *entries: LedgerEntry) -> None:
        """Write lines and wait until they are on disk."""
        self._require_own_process()
        with self.exclusive:
            self._continue()
            self._require_untouched()
            end = self._end
            text, head = b"\n" * end.unended, end.head
            for entry in entries:
                line, head = encode_line(entry, head)
                text += line
            more = sum(isinstance(entry, ReleaseEntry) for entry in entries)
            # Invariant: ``_end`` is the state of the file up to the last line that is surely
            # on disk. It advances only after fsync has returned; the caller may use the noise
            # only after that.
            try:
                _write_all(self._file, text)
                os.fsync(self._file.fileno())
                self._end = _End(head, end.releases + more, end.size + len(text))
            except OSError as error:
                # After a failed fsync, it is unknown which pages are on disk, and a second
                # fsync may succeed without writing them. So nothing more is recorded.
                self._cut_back(end)
                self._failed = True
                raise write_error("ledger", self._path, error) from error
            except BaseException:  # Ctrl-C: the disk works, so recording may continue
                self._cut_back(end)
                raise

    def _require_own_process(self) -> None:
        """Refuse a process that was forked from the one that opened the ledger."""
        if os.getpid() != self._process:
            raise ForkedSession(
                f"{self._path} is written by process {self._process}, and this is process "
                f"{os.getpid()}: call make_private in each process, with a ledger of its own"
            )

    def _require_untouched(self) -> None:
        """Refuse a file that is not as this writer left it."""
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
                "another process wrote it; nothing more is recorded"
            )

    def _cut_back(self, end: _End) -> None:
        """Remove what a failed write left; if that fails, too, one line too many may remain."""
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
    """Write the seal, or its missing part, of a run whose claim proves it.

    A seal that lacks only its newline gets it.

    Args:
        run: The files of the run.

    Raises:
        IntegrityError: If the claim does not prove the seal, or another file contradicts the
            ledger.
        RunLocked: If a process is writing the ledger.
    """
    file = _open_to_write(run.ledger)
    with file:
        raw = file.read()
        content = parse_run(run.ledger, raw)
        require_consistent(run, content)
        # Only the missing bytes are appended, so a crash here leaves a longer beginning of
        # the same seal, which the claim still proves.
        if content.ledger.seal is not None:
            rest = b"\n" * content.tail.complete
        elif is_proven_by_claim(run, content):
            line, _ = encode_line(expected_seal(run, content.ledger), content.ledger.head)
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
    """Write all bytes to an unbuffered file, which may take fewer at once."""
    left = memoryview(text)
    while left:
        left = left[file.write(left) :]


def _end_of(content: LedgerContent, size: int) -> _End:
    """Return the state of a file that was read as ``content``."""
    ledger = content.ledger
    return _End(ledger.head, len(ledger.releases), size, content.tail.complete)


def _require_unended(path: Path, content: LedgerContent) -> None:
    """Refuse a ledger that is sealed, lacks only its seal, or is contradicted by other files."""
    run = run_of_ledger(path)
    if run is not None and content.ledger.seal is None:
        require_resumable(run, content)
        if is_proven_by_claim(run, content):
            raise RunExists(
                f"{path.parent} has its claim and lacks only its seal: complete it with "
                "dpaudit finish"
            )
    if content.ledger.seal is not None:
        raise RunExists(f"{path.parent} is finished: there is nothing to resume")


def _without_tail(
    path: Path, file: BinaryIO, content: LedgerContent, resumed: ResumeEntry
) -> tuple[BinaryIO, _End]:
    """Replace a ledger by one that quotes and counts its incomplete last line."""
    # Order: lock the new file, write it, sync it, rename it over the ledger, sync the folder,
    # and only then unlock the old file. So at every moment the file at the ledger's path is
    # locked, and after a crash it is the old or the new one as a whole.
    ledger = content.counted
    end = os.fstat(file.fileno()).st_size - len(content.tail.text)
    file.seek(0)
    lines = [file.read(end)]
    if ledger is not content.ledger:
        lines.append(encode_line(ledger.lines[-1], content.ledger.head)[0])
    line, head = encode_line(replace(resumed, dropped=content.tail.dropped), ledger.head)
    text = b"".join((*lines, line))
    target = path.resolve()  # replace the file, not a symlink to it
    partial = target.with_name(f"{target.name}.{uuid4().hex}.partial")
    new = partial.open("x+b", buffering=0)
    try:
        _lock_descriptor(partial, new)
        partial.chmod(os.fstat(file.fileno()).st_mode & 0o7777)
        _write_all(new, text)
        os.fsync(new.fileno())
        partial.replace(target)
        sync_to_disk(target.parent)
    except BaseException as error:
        new.close()
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise write_error("ledger", path, error) from error
        raise
    file.close()
    return new, _End(head, len(ledger.releases), len(text))


def _require_no_checkpoints(path: Path) -> None:
    """Refuse a new ledger beside an earlier run's checkpoints, which would contradict it."""
    run = run_of_ledger(path)
    if run is not None and complete_checkpoints(run.checkpoints):
        raise RunExists(
            f"{run.checkpoints} holds checkpoints of an earlier run: choose another folder, or "
            "remove them"
        )


def _remove_beginnings(run: RunFiles) -> None:
    """Remove the settings, canaries and temporary files of a run without any release."""
    for left in (run.config, run.canaries, run.secret_canaries, *run.path.glob("*.partial")):
        left.unlink(missing_ok=True)
    if run.checkpoints.is_dir():
        for folder in run.checkpoints.iterdir():
            remove_checkpoint(folder)
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    shutil.rmtree(run.participants, ignore_errors=True)
