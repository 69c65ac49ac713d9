"""The ledger on disk: what was recorded is read back, or nothing is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from dpaudit.runs import ledger_format
from dpaudit.runs.ledger_file import LedgerWriter, has_no_release, ledger_lock, read_ledger
from dpaudit.vocabulary.errors import (
    DpauditError,
    IntegrityError,
    RunExists,
    RunLocked,
    UnwritableFile,
)
from dpaudit.vocabulary.ledger import (
    LedgerHeader,
    PrivacyLedger,
    Randomness,
    ReleaseEntry,
    ResumeEntry,
    Sampling,
    Seal,
)
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, RandomizedResponse
from dpaudit.vocabulary.privacy_terms import Adjacency

HEADER = LedgerHeader(
    adjacency=Adjacency.ADD_OR_REMOVE_ONE,
    sampling=Sampling.POISSON,
    randomness=Randomness.SECURE,
    schedule_fixed_in_advance=True,
    clip_norm=0.5,
    versions={"dpaudit": "1", "torch": "2"},
    run="00ff" * 8,
    unaccounted=("hyper-parameter tuning",),
    assumed_public=("feature shape", "label set"),
)
RESUMED = ResumeEntry(2, Randomness.SECURE)

gaussians = st.builds(Gaussian, st.floats(1e-3, 1e3))
answers = st.builds(RandomizedResponse, st.floats(0.5, 0.99))
sampled = st.builds(PoissonSampled, gaussians | answers, st.floats(1e-6, 1))
releases = st.builds(
    ReleaseEntry,
    st.text(max_size=20),
    gaussians | answers | sampled,
    st.none() | st.integers(0, 2**40),
)

in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def release(step: int) -> ReleaseEntry:
    return ReleaseEntry("gradient sum", PoissonSampled(Gaussian(1.1), 0.1), step)


def write(
    path: Path,
    recorded: list[ReleaseEntry],
    *,
    sealed: bool = True,
    header: LedgerHeader = HEADER,
) -> Path:
    path.unlink(missing_ok=True)
    with LedgerWriter.create(path, header) as writer:
        for one in recorded:
            writer.record_release(one)
        if sealed:
            writer.seal({"model.safetensors": "ab" * 32})
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return write(tmp_path / "ledger.jsonl", [release(step) for step in range(4)])


@pytest.fixture
def unsealed(tmp_path: Path) -> Path:
    return write(tmp_path / "ledger.jsonl", [release(step) for step in range(4)], sealed=False)


def rechained(entries: list[Any]) -> bytes:
    """The file that an unkeyed hash chain cannot tell from an honest one."""
    head, lines = ledger_format.GENESIS_HASH, []
    for entry in entries:
        raw = json.dumps(entry, separators=(",", ":")).encode()
        head = ledger_format.chain_hash(head, raw)
        lines.append(b'{"entry":' + raw + b',"hash":"' + head.encode() + b'"}\n')
    return b"".join(lines)


def entries_of(path: Path) -> list[Any]:
    return [json.loads(line)["entry"] for line in path.read_bytes().splitlines()]


# What is written is read.


@given(st.lists(releases, max_size=6), st.booleans())
@settings(parent=in_one_folder, max_examples=25)
def test_what_was_recorded_is_read_back(
    tmp_path: Path, recorded: list[ReleaseEntry], sealed: bool
) -> None:
    ledger = read_ledger(write(tmp_path / "ledger.jsonl", recorded, sealed=sealed))
    assert ledger.header == HEADER
    assert ledger.releases == tuple(recorded)
    assert ledger.seal == (
        Seal(len(recorded), {"model.safetensors": "ab" * 32}) if sealed else None
    )


def test_the_mechanism_counts_every_booking(ledger: Path) -> None:
    with_count = [release(0), release(1), ReleaseEntry("record count", Gaussian(50.0))]
    read = read_ledger(write(ledger, with_count))
    times = Counter({part.mechanism: part.times for part in read.mechanism.mechanisms})
    assert times == {release(0).mechanism: 2, Gaussian(50.0): 1}


def test_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "one", [release(0)])
    assert one.read_bytes() == write(tmp_path / "other", [release(0)]).read_bytes()


def test_each_booking_is_on_the_disk_when_book_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    synced: list[bytes] = []

    def sync(descriptor: int) -> None:
        synced.append(path.read_bytes())

    with LedgerWriter.create(path, HEADER) as writer:
        monkeypatch.setattr(os, "fsync", sync)
        for step in range(3):
            writer.record_release(release(step))
            assert len(synced) == step + 1
            assert synced[-1] == path.read_bytes()
            assert len(read_ledger(path).releases) == step + 1


def test_the_ledger_holds_no_line_about_how_many_records_there_are(ledger: Path) -> None:
    header = set(entries_of(ledger)[0])
    assert header == set(msgspec.to_builtins(HEADER)) | {"kind"}
    told = header - {"unaccounted"}  # names what the claim does not cover
    assert not [field for field in told if "record" in field or "count" in field]


# What was altered is refused.


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("honest") / "ledger.jsonl"
    return write(path, [release(0), release(1)]).read_bytes()


def reads_or_none(path: Path, content: bytes) -> PrivacyLedger | None:
    path.write_bytes(content)
    try:
        return read_ledger(path)
    except IntegrityError:
        return None


@given(data=st.data())
@settings(parent=in_one_folder, max_examples=500)
def test_any_byte_altered_is_an_integrity_error(
    tmp_path: Path, honest: bytes, data: st.DataObject
) -> None:
    content = bytearray(honest)
    at = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255))
    assume(content[at] != value)
    content[at] = value
    assert reads_or_none(tmp_path / "ledger.jsonl", bytes(content)) is None


def test_a_line_end_altered_is_an_integrity_error(ledger: Path) -> None:
    content = ledger.read_bytes()
    assert reads_or_none(ledger, content.replace(b"\n", b"\r", 1)) is None


@given(data=st.data())
@settings(parent=in_one_folder, max_examples=200)
def test_no_byte_added_or_dropped_makes_another_ledger(
    tmp_path: Path, honest: bytes, data: st.DataObject
) -> None:
    path = tmp_path / "ledger.jsonl"
    at = data.draw(st.integers(0, len(honest) - 1))
    added = data.draw(st.binary(max_size=3))
    dropped = data.draw(st.integers(0, 3))
    altered = reads_or_none(path, honest[:at] + added + honest[at + dropped :])
    assert altered in (None, reads_or_none(path, honest))


@pytest.mark.parametrize("at", range(5))
def test_a_line_dropped_is_an_integrity_error(ledger: Path, at: int) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert reads_or_none(ledger, b"".join(lines[:at] + lines[at + 1 :])) is None


@pytest.mark.parametrize("at", range(6))
def test_duplicated_line_is_an_integrity_error(ledger: Path, at: int) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert reads_or_none(ledger, b"".join([*lines[: at + 1], *lines[at:]])) is None


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (2, 4), (4, 5)])
def test_lines_swapped_are_an_integrity_error(ledger: Path, one: int, other: int) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    lines[one], lines[other] = lines[other], lines[one]
    assert reads_or_none(ledger, b"".join(lines)) is None


def test_a_line_of_another_ledger_is_an_integrity_error(tmp_path: Path, ledger: Path) -> None:
    other = msgspec.structs.replace(HEADER, run="another")
    theirs = write(tmp_path / "other", [release(step) for step in range(4)], header=other)
    ours, lines = ledger.read_bytes().splitlines(keepends=True), theirs.read_bytes().splitlines()
    assert reads_or_none(ledger, b"".join([*ours[:2], lines[2] + b"\n", *ours[3:]])) is None


@given(st.integers(0, 10_000))
@in_one_folder
def test_a_ledger_cut_off_never_reads_as_sealed(tmp_path: Path, honest: bytes, kept: int) -> None:
    cut = honest[: kept % len(honest)]
    ledger = reads_or_none(tmp_path / "ledger.jsonl", cut)
    assert ledger is None or (ledger.seal is None and cut.endswith(b"\n"))


@pytest.mark.parametrize("content", [b"", b"\n", b"\n\n", b"{}\n", b"null\n", b"[]\n", b"\xff\n"])
def test_what_is_no_ledger_is_an_integrity_error(tmp_path: Path, content: bytes) -> None:
    assert reads_or_none(tmp_path / "ledger.jsonl", content) is None


def test_a_line_nested_without_end_is_an_integrity_error(tmp_path: Path) -> None:
    deep = b'{"entry":' + b"[" * 100_000 + b"]" * 100_000 + b',"hash":""}\n'
    assert reads_or_none(tmp_path / "ledger.jsonl", deep) is None


def test_no_file_and_a_folder_are_integrity_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(IntegrityError, match="cannot be read"):
            read_ledger(path)
        with pytest.raises(IntegrityError, match="cannot be read"):
            LedgerWriter.resume(path, RESUMED)


# What makes no sense is refused, though its hashes fit.


def test_a_seal_for_another_number_of_releases_is_refused(ledger: Path) -> None:
    entries = entries_of(ledger)
    assert reads_or_none(ledger, rechained(entries[:2] + entries[3:])) is None


@pytest.mark.parametrize(
    "order", [[0, 1, 5, 2], [0, 1, 2, 3, 4, 5, 5], [0, 0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [5]]
)
def test_lines_after_the_seal_and_other_headers_are_refused(ledger: Path, order: list[int]) -> None:
    entries = entries_of(ledger)
    assert reads_or_none(ledger, rechained(entries)) is not None
    assert reads_or_none(ledger, rechained([entries[at] for at in order])) is None


@pytest.mark.parametrize("mechanism", [
    {"kind": "gaussian", "noise_multiplier": 0},
    {"kind": "gaussian", "noise_multiplier": -1.0},
    {"kind": "gaussian", "noise_multiplier": None},
    {"kind": "gaussian", "noise_multiplier": float("nan")},
    {"kind": "gaussian", "noise_multiplier": float("inf")},
    {"kind": "gaussian", "noise_multiplier": 1.0, "times": 0},
    {"kind": "poisson-sampled", "mechanism": {"kind": "gaussian", "noise_multiplier": 1.0},
     "sampling_rate": 1.7},
    {"kind": "nothing at all"},
    {},
])  # fmt: skip
def test_a_release_that_cannot_be_is_refused(ledger: Path, mechanism: object) -> None:
    entries = entries_of(ledger)
    entries[1]["mechanism"] = mechanism
    assert reads_or_none(ledger, rechained(entries)) is None


def test_an_unknown_major_version_is_refused_and_an_unknown_minor_one_read(ledger: Path) -> None:
    entries = entries_of(ledger)
    entries[0]["schema_version"] = "2.999"
    assert reads_or_none(ledger, rechained(entries)) is not None
    entries[0]["schema_version"] = "3.0"
    ledger.write_bytes(rechained(entries))
    with pytest.raises(IntegrityError, match=r"schema_version 3\.0"):
        read_ledger(ledger)
    entries[1] = {"kind": "something that version 2 invents"}
    ledger.write_bytes(rechained(entries))
    with pytest.raises(IntegrityError, match=r"schema_version 3\.0"):
        read_ledger(ledger)


# A torn last line.


@pytest.mark.parametrize("torn", [2, 60, 100, 150, -3, -2])
def test_a_torn_last_line_is_refused_when_read_and_counted_when_resumed(
    tmp_path: Path, torn: int
) -> None:
    path = write(tmp_path / "ledger.jsonl", [release(step) for step in range(3)], sealed=False)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -(torn % len(last))])
    with pytest.raises(IntegrityError, match="middle of a line"):
        read_ledger(path)
    with LedgerWriter.resume(path, RESUMED) as writer:
        writer.record_release(release(9))
    ledger = read_ledger(path)
    dropped = path.read_text().splitlines()[4]
    assert [line.mechanism for line in ledger.releases] == [release(0).mechanism] * 4
    assert ledger.lines[2].what.startswith("incomplete line")
    assert ledger.lines[3] == ResumeEntry(
        2, Randomness.SECURE, last[: -(torn % len(last))].decode()
    )
    assert '"dropped":"{' in dropped


def test_a_line_that_lacks_its_newline_alone_is_kept(unsealed: Path) -> None:
    whole = unsealed.read_bytes()
    unsealed.write_bytes(whole[:-1])
    with LedgerWriter.resume(unsealed, RESUMED) as writer:
        writer.record_release(release(9))
    assert unsealed.read_bytes().startswith(whole)
    steps = [recorded.step for recorded in read_ledger(unsealed).releases]
    assert steps == [0, 1, 2, 3, 9]


def test_resume_drops_no_whole_line(unsealed: Path) -> None:
    before = unsealed.read_bytes()
    LedgerWriter.resume(unsealed, RESUMED).__exit__(None, None, None)
    assert unsealed.read_bytes().startswith(before)
    assert read_ledger(unsealed).lines[-1] == RESUMED


def test_an_altered_line_stops_resume_and_leaves_the_file(unsealed: Path) -> None:
    content = unsealed.read_bytes().replace(b"1.1", b"9.9", 1) + b'{"entry":{"ki'
    unsealed.write_bytes(content)
    with pytest.raises(IntegrityError):
        LedgerWriter.resume(unsealed, RESUMED)
    assert unsealed.read_bytes() == content


def test_a_header_that_was_never_whole_cannot_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for content in (b"", b'{"entry":{"adja'):
        path.write_bytes(content)
        with pytest.raises(IntegrityError):
            LedgerWriter.resume(path, RESUMED)


# One writer at a time, and none after the seal.


def test_a_second_writer_is_refused_and_changes_nothing(unsealed: Path) -> None:
    with LedgerWriter.resume(unsealed, RESUMED) as first:
        before = unsealed.read_bytes()
        with pytest.raises(RunLocked, match="another process"):
            LedgerWriter.resume(unsealed, RESUMED)
        assert unsealed.read_bytes() == before
        first.record_release(release(5))
    assert len(read_ledger(unsealed).releases) == 5


def test_a_second_process_is_refused(unsealed: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from dpaudit.runs.ledger_file import LedgerWriter\n"
        "from dpaudit.vocabulary.ledger import ResumeEntry, Randomness\n"
        "LedgerWriter.resume(Path(sys.argv[1]), ResumeEntry(2, Randomness.SECURE))\n"
    )
    with LedgerWriter.resume(unsealed, RESUMED):
        before = unsealed.read_bytes()
        second = subprocess.run(
            [sys.executable, "-c", program, str(unsealed)], capture_output=True, check=False
        )
        assert second.returncode != 0
        assert b"RunLocked" in second.stderr
        assert unsealed.read_bytes() == before


def test_a_lock_leaves_no_file_behind(unsealed: Path) -> None:
    before = {path.name for path in unsealed.parent.iterdir()}
    with LedgerWriter.resume(unsealed, RESUMED):
        assert {path.name for path in unsealed.parent.iterdir()} == before


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_nothing_is_written(
    unsealed: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    before = unsealed.read_bytes()
    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(UnwritableFile, match=os.strerror(number)):
        LedgerWriter.resume(unsealed, RESUMED)
    with pytest.raises(UnwritableFile), ledger_lock(unsealed):
        pytest.fail("locked")
    assert not has_no_release(unsealed)
    assert unsealed.read_bytes() == before


def test_no_release_is_lost_that_another_process_recorded_before_the_lock(
    unsealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process takes its last step, and ends, just before we lock the file."""
    lock = fcntl.flock
    other = LedgerWriter.resume(unsealed, RESUMED)

    def lock_when_the_other_has_ended(descriptor: object, operation: int) -> None:
        if not other._file.closed:
            other.record_release(release(4))
            other.__exit__(None, None, None)
        lock(descriptor, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", lock_when_the_other_has_ended)
    with contextlib.suppress(DpauditError):  # to refuse is allowed; to lose a booking is not
        LedgerWriter.resume(unsealed, RESUMED).__exit__(None, None, None)
    steps = [recorded.step for recorded in read_ledger(unsealed).releases]
    assert steps == [0, 1, 2, 3, 4]


def test_existing_ledger_is_never_restarted(ledger: Path) -> None:
    before = ledger.read_bytes()
    with pytest.raises(RunExists):
        LedgerWriter.create(ledger, HEADER)
    assert ledger.read_bytes() == before


def test_a_sealed_ledger_cannot_be_resumed(ledger: Path) -> None:
    before = ledger.read_bytes()
    with pytest.raises(RunExists, match="finished"):
        LedgerWriter.resume(ledger, RESUMED)
    assert ledger.read_bytes() == before


def test_nothing_is_recorded_after_the_seal(unsealed: Path) -> None:
    writer = LedgerWriter.resume(unsealed, RESUMED)
    writer.seal({})
    before = unsealed.read_bytes()
    with pytest.raises((ValueError, DpauditError)):
        writer.record_release(release(9))
    assert unsealed.read_bytes() == before
    assert read_ledger(unsealed).seal == Seal(4, {})


def test_the_seal_counts_the_releases_of_every_process(unsealed: Path) -> None:
    with LedgerWriter.resume(unsealed, RESUMED) as writer:
        writer.record_release(release(2))
        writer.seal({})
    assert read_ledger(unsealed).seal == Seal(5, {})


def test_a_booking_that_the_disk_refuses_is_never_used_and_never_hides_one(
    unsealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with LedgerWriter.resume(unsealed, RESUMED) as writer:
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            writer.record_release(release(4))
    monkeypatch.undo()
    with LedgerWriter.resume(unsealed, RESUMED) as writer:
        writer.record_release(release(4))
    steps = [recorded.step for recorded in read_ledger(unsealed).releases]
    assert steps in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 4])
