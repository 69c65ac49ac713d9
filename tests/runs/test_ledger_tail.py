"""What stands after the last newline: kept, counted or refused, and never silently lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import header, step_release

from dpaudit.runs.ledger_file import LedgerWriter, read_ledger, read_unfinished
from dpaudit.runs.ledger_format import (
    GENESIS_HASH,
    complete_object,
    encode_line,
    may_begin_header,
    parse_ledger,
)
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import (
    BeginEntry,
    ChangeEntry,
    CheckpointEntry,
    LedgerEntry,
    Randomness,
    ReleaseEntry,
    RenyiBudget,
    ResumeEntry,
    Seal,
)
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, RandomAllocation

RESUMED = ResumeEntry(2, Randomness.SECURE)
SYNCED = 3
TEXT = 'a "quote", a \\ backslash, \n, \x01, é and \U0001f600'
HEADER = header(unaccounted=(TEXT,), budget=RenyiBudget(1.0, 1e-5, (1.5, 2.0)))
COUNT = ReleaseEntry("record count", Gaussian(7.0))

LINES: list[LedgerEntry] = [
    BeginEntry({"config.toml": "ab" * 32, TEXT: "cd"}),
    step_release(SYNCED),
    ReleaseEntry(TEXT, PoissonSampled(Gaussian(1e-7), 0.5)),
    ReleaseEntry("gradient sum", RandomAllocation(Gaussian(2.0), 12), 3),
    ResumeEntry(1, Randomness.SEEDED, '{"entry":{"kind":"rel'),
    ChangeEntry(TEXT, 3),
    CheckpointEntry(3, {"model.safetensors": "ef" * 32}),
    Seal(SYNCED + 1, {"model.safetensors": "ab" * 32}),
    Seal(SYNCED + 1, {}),
]
KINDS = [type(line).__name__ for line in LINES]

in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def content_before() -> tuple[bytes, str]:
    text, head = encode_line(HEADER, GENESIS_HASH)
    for one in (COUNT, *(step_release(step) for step in range(SYNCED))):
        line, head = encode_line(one, head)
        text += line
    return text, head


BEFORE, HEAD = content_before()
SO_FAR = SYNCED + 1


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(BEFORE)
    return path


def resumed(path: Path) -> int:
    LedgerWriter.resume(path, RESUMED).close()
    return len(read_ledger(path).releases)


@pytest.mark.parametrize("last", LINES, ids=KINDS)
def test_a_line_cut_anywhere_never_loses_a_release(ledger: Path, last: LedgerEntry) -> None:
    line, _ = encode_line(last, HEAD)
    is_release = isinstance(last, ReleaseEntry)
    for cut in range(len(line)):
        content = parse_ledger(ledger, BEFORE + line[:cut])
        counted = len(content.counted.releases)
        assert content.tail.complete == (cut == len(line) - 1)
        assert counted >= SO_FAR
        if is_release and cut:
            assert counted == SO_FAR + 1
        if isinstance(last, Seal) and content.tail.complete:
            assert content.ledger.seal == last


@pytest.mark.parametrize("last", [one for one in LINES if not isinstance(one, Seal)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_what_readers_count_is_what_the_resumed_ledger_holds(
    ledger: Path, last: LedgerEntry, share: float
) -> None:
    line, _ = encode_line(last, HEAD)
    cut = line[: int(share * len(line))]
    ledger.write_bytes(BEFORE + cut)
    counted = read_unfinished(ledger)
    assert resumed(ledger) == len(counted.releases)
    after = read_ledger(ledger)
    assert after.releases == counted.releases
    assert after.lines[-1] == ResumeEntry(2, Randomness.SECURE, cut.decode(errors="ignore"))


def test_an_incomplete_line_shows_its_own_mechanism_if_all_of_it_is_there(ledger: Path) -> None:
    last = ReleaseEntry("record count", Gaussian(0.25), step=None)
    line, _ = encode_line(last, HEAD)
    for end in (b'0.25},"', b'"step":null,', b'"what":"record count"}', b'"hash":"'):
        cut = line[: line.index(end) + len(end)]
        ledger.write_bytes(BEFORE + cut)
        assert read_unfinished(ledger).releases[-1].mechanism == Gaussian(0.25)


def test_an_incomplete_line_is_counted_as_what_it_begins_like(ledger: Path) -> None:
    line, _ = encode_line(COUNT, HEAD)
    ledger.write_bytes(BEFORE + line[: line.index(b"noise_mult")])
    assert read_unfinished(ledger).releases[-1].mechanism == COUNT.mechanism
    ledger.write_bytes(BEFORE + line[: line.index(b'"mechanism"')])
    assert read_unfinished(ledger).releases[-1].mechanism == step_release(0).mechanism


def test_without_any_recorded_release_there_is_none_to_repeat(ledger: Path) -> None:
    first, head = encode_line(HEADER, GENESIS_HASH)
    ledger.write_bytes(first + encode_line(step_release(0), head)[0][:40])
    assert read_unfinished(ledger).releases == ()
    assert resumed(ledger) == 0
    assert '"dropped":"{' in ledger.read_text()


def test_a_long_line_is_named_by_its_beginning(ledger: Path) -> None:
    line, _ = encode_line(ChangeEntry("x" * 100_000, 3), HEAD)
    ledger.write_bytes(BEFORE + line[:-10])
    resumed(ledger)
    last = read_ledger(ledger).lines[-1]
    assert isinstance(last, ResumeEntry)
    assert line.decode().startswith(last.dropped)
    assert 100 < len(last.dropped) < 10_000


# Damage.


def refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    outcomes = set[bool]()
    for read in (read_unfinished, lambda p: LedgerWriter.resume(p, RESUMED)):
        try:
            read(path)
            outcomes.add(False)
        except IntegrityError:
            outcomes.add(True)
            assert path.read_bytes() == content
    (outcome,) = outcomes
    return outcome


@pytest.mark.parametrize("zeros", [1, 7, 100, 333, 512, 1000])
def test_a_zeroed_end_is_refused(ledger: Path, zeros: int) -> None:
    line, _ = encode_line(step_release(SYNCED), HEAD)
    whole = BEFORE + line
    assert refused(ledger, whole[:-zeros] + bytes(zeros))
    assert refused(ledger, whole + bytes(zeros))
    assert refused(ledger, whole[: 7 - len(line)] + bytes(zeros))


@pytest.mark.parametrize("other", [b" ", b"\r", b"\0", b"}", b"{", b"\xff", b",", b"\x8a"])
def test_a_damaged_newline_is_refused(ledger: Path, other: bytes) -> None:
    assert refused(ledger, BEFORE[:-1] + other)
    middle = BEFORE.rindex(b"\n", 0, -1)
    assert refused(ledger, BEFORE[:middle] + other + BEFORE[middle + 1 :])
    assert refused(ledger, BEFORE[:middle] + other)


@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_in_the_last_line_never_loses_it(ledger: Path, bit: int) -> None:
    start = BEFORE.rindex(b"\n", 0, -1) + 1
    for end in (len(BEFORE), len(BEFORE) - 1):
        for at in range(start, end):
            damaged = bytearray(BEFORE[:end])
            damaged[at] ^= 1 << bit
            try:
                content = parse_ledger(ledger, bytes(damaged))
            except IntegrityError:
                continue
            assert len(content.counted.releases) >= SO_FAR, (at, bit)


@pytest.mark.parametrize(
    "tail",
    [
        *(b"x", b"\xef\xbb\xbf", b"null", b"[", b'{"entries"', b'{"entry":[', b'{"entry":"'),
        *(b'{"entry":{ ', b'{"entry":{"kind":"reset', b'{"entry":{"kind":"release"}'),
        *(b'{"entry":{"kind":"release","step":', b'{"entry":{"kind":"release","what":"'),
        *(b'{"entry":{"mechanism":{', b'{"entry":{"colour":"', b'{"entry":{"kind":3,'),
        b'{"entry":{"kind":"release","mechanism":{"kind":"gaussian","noise_multiplier":0},"what',
        b'{"entry":{"files":{},"kind":"seal","releases":1}}',
        b'{"entry":{"files":{},"kind":"seal","releases":1},"hash":"g',
        b'{"entry":{"kind":"declared-change","step":1,"what":"\xc3\x28',
        b'{"entry":{"kind":"declared-change","step":1,"what":"\x1f',
        b'{"entry":{"kind":"declared-change","step":1],',
    ],
)
def test_what_is_no_incomplete_line_is_refused(ledger: Path, tail: bytes) -> None:
    assert refused(ledger, BEFORE + tail)


@given(st.data())
@settings(parent=in_one_folder, max_examples=300)
def test_no_damage_at_the_end_loses_a_release(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = BEFORE.splitlines(keepends=True)
    start = data.draw(st.integers(len(BEFORE) - len(lines[-1]), len(BEFORE)))
    garbage = data.draw(st.binary(max_size=30) | st.text(max_size=30).map(str.encode))
    try:
        counted = len(parse_ledger(path, BEFORE[:start] + garbage).counted.releases)
    except IntegrityError:
        return
    assert counted >= SO_FAR - (start == len(BEFORE) - len(lines[-1]))


@given(st.integers(0, 10_000), st.integers(0, 10_000))
@settings(parent=in_one_folder, max_examples=100)
def test_a_ledger_cut_or_zeroed_is_never_priced_as_less_than_its_whole_lines(
    tmp_path: Path, cut: int, zeros: int
) -> None:
    path = tmp_path / "ledger.jsonl"
    kept = BEFORE[: cut % len(BEFORE)]
    whole = kept.count(b"\n") - 1
    try:
        counted = len(parse_ledger(path, kept + bytes(zeros % 3)).counted.releases)
    except IntegrityError:
        return
    assert zeros % 3 == 0
    assert whole <= counted <= whole + (kept[-1:] != b"\n")


def test_a_header_whose_end_was_damaged_is_no_beginning() -> None:
    first, _ = encode_line(HEADER, GENESIS_HASH)
    assert all(may_begin_header(first[:cut]) for cut in range(len(first)))
    for damaged in (first[:-1] + b"\0" * 50, first[:-4] + b"zz", first[:100] + b"\0"):
        assert not may_begin_header(damaged)
    assert not may_begin_header(encode_line(BeginEntry({}), GENESIS_HASH)[0][:40])


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8,
), st.integers(0, 1000))  # fmt: skip
def test_every_beginning_of_canonical_json_can_be_completed(value: object, cut: int) -> None:
    import msgspec

    whole = msgspec.json.encode({"a": value})
    visible = whole[: 1 + cut % len(whole)]
    assert isinstance(msgspec.json.decode(complete_object(visible)), dict)


# A crash while a resumed process accounts for an incomplete line.


@pytest.mark.parametrize("call", ["flock", "fsync", "replace", "write"])
def test_a_crash_while_resuming_leaves_the_old_ledger_or_the_new_one(
    ledger: Path, call: str
) -> None:
    torn = BEFORE + encode_line(step_release(SYNCED), HEAD)[0][:-20]
    ledger.write_bytes(torn)
    child = os.fork()
    if child == 0:  # pragma: no cover
        die_at(call)
        LedgerWriter.resume(ledger, RESUMED)
        os._exit(0)
    assert os.waitpid(child, 0)[1] != 0
    assert ledger.read_bytes() == torn
    assert resumed(ledger) == SO_FAR + 1


def die_at(call: str) -> None:
    import fcntl

    from dpaudit.runs import ledger_file

    def die(*_: object) -> None:
        os._exit(9)

    def half(file: object, text: bytes) -> None:
        file.write(text[: len(text) // 2])  # type: ignore[attr-defined]
        os._exit(9)

    owner, name = {
        "flock": (fcntl, "flock"),
        "fsync": (os, "fsync"),
        "replace": (Path, "replace"),
        "write": (ledger_file, "_write_all"),
    }[call]
    setattr(owner, name, half if call == "write" else die)
