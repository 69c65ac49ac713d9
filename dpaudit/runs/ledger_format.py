"""Format of the ledger: canonical JSON lines in a hash chain, and its incomplete last line.

Every line is {"entry": ..., "hash": SHA-256(hash of the line before + entry)}, with sorted
keys and without spaces. ``parse_ledger`` is the only function that splits a file into whole
verified lines and a tail. The tail is the rest after the last newline:

none          the file ends with a newline
complete      a line whose hash verifies, without its newline: it is kept
incomplete    a strict prefix of one canonical line: a write that a crash interrupted
anything else is damage (zeroed pages, flipped bits, foreign text): ``IntegrityError``

A release is on disk before its noise is used. So the release of an incomplete line was not
used, if the disk really wrote what it acknowledged. If it did not, a line that had been synced
may appear incomplete. Therefore an incomplete line that is a release, or may be one, counts:
``LedgerTail.stand_in`` is the release that is recorded for it when the run is resumed, and that
every reader counts before that.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec.structs import replace

from dpaudit.runs.file_io import require_unique_keys
from dpaudit.vocabulary import SCHEMA_VERSION, is_readable
from dpaudit.vocabulary.errors import IntegrityError, UnsupportedVersion
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
from dpaudit.vocabulary.renamed import has_old_names, renamed

# Canonical JSON that is cut off: whether it may begin a value, and which entries it shows.


def end_of_value(text: bytes) -> int | None:
    """Return where the object or array at the beginning of a text ends.

    Args:
        text: Canonical JSON that begins with a bracket.

    Returns:
        Position after its closing bracket; None if the value is cut off.

    Raises:
        ValueError: If a byte cannot be in canonical JSON, or brackets do not match.
    """
    for at, _, stack in _scan(text):
        if not stack:
            return at + 1
    return None


def _scan(text: bytes) -> Iterator[tuple[int, str, list[str]]]:
    """Yield each position in canonical JSON, its state, and the brackets open after it.

    The state is "text" in a string, "escape" after a backslash in one, and "plain" elsewhere.
    ValueError is raised where no canonical line can continue.
    """
    stack: list[str] = []
    state = "plain"
    for at, byte in enumerate(text):
        if byte < 0x20 or (state == "plain" and byte in b" \x7f"):
            raise ValueError("it holds a byte that cannot be in a line")
        one = chr(byte)
        if state == "escape":
            state = "text"
        elif state == "text":
            state = {"\\": "escape", '"': "plain"}.get(one, "text")
        elif one == '"':
            state = "text"
        elif one in "{[":
            stack.append("}" if one == "{" else "]")
        elif one in "}]" and (not stack or stack.pop() != one):
            raise ValueError("its brackets do not match")
        yield at, state, stack


def complete_object(visible: bytes) -> bytes:
    """Return a JSON object that begins with a cut-off text, so that its entries can be read.

    Args:
        visible: Beginning of a canonical JSON object.

    Returns:
        The shortest completion that is tried and is valid JSON.

    Raises:
        ValueError: If there is none.
    """
    # The beginning of a cut character is dropped; any other error of UTF-8 is raised.
    text = codecs.getincrementaldecoder("utf-8")("strict").decode(visible, final=False)
    state, stack = "plain", list[str]()
    for _, state, stack in _scan(text.encode()):  # noqa: B007  the last state counts
        pass
    closers = "".join(reversed(stack))
    for more in _ENDS["plain" if state == "plain" else "text"]:
        candidate = (text + more + closers).encode()
        try:
            msgspec.json.decode(candidate)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
        return candidate
    raise ValueError("it is not the beginning of a JSON object")


_ENDS = {
    # After a value; after a colon or in an array; in a number; before a key; after a key; in
    # a literal.
    "plain": (
        *("", "null", "0", '"":null', ":null"),
        *("rue", "ue", "e", "alse", "lse", "se", "ull", "ll", "l"),
    ),
    # In a value or in a key: between characters, after a backslash, in the digits of \\u00XX.
    # Nothing else is escaped: canonical text is UTF-8.
    "text": tuple(
        more + end for more in ("", "n", "0", "00", "000", "0000") for end in ('"', '":null')
    ),
}


GENESIS_HASH = "0" * 64
ENTRY_PREFIX, HASH_SEPARATOR, LINE_SUFFIX = b'{"entry":', b',"hash":"', b'"}\n'
ENTRY_TYPES = (
    LedgerHeader,
    BeginEntry,
    ReleaseEntry,
    ResumeEntry,
    ChangeEntry,
    CheckpointEntry,
    RoundEntry,
    SpotCheckEntry,
    EndEntry,
    Seal,
)
MAX_DROPPED_CHARACTERS = 2000
"""Characters of a dropped line that the line about the resumption quotes."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line as it is decoded: the entry's own bytes, and the hash."""

    entry: msgspec.Raw
    hash: str


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_entry = msgspec.json.Decoder(LedgerEntry).decode
_decode_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder(order="sorted").encode
_BROKEN = (msgspec.MsgspecError, ValueError, RecursionError)


@dataclass(frozen=True)
class LedgerTail:
    """What follows the last newline of a ledger.

    Attributes:
        text: Its bytes; empty if the file ends with a newline.
        complete: Whether it is a complete line except for the newline, which the ledger holds.
        may_be_release: Whether it is an incomplete line that is, or may be, a release.
        release: The release of the incomplete line, if its entry or its mechanism is complete.
    """

    text: bytes = b""
    complete: bool = False
    may_be_release: bool = False
    release: ReleaseEntry | None = None

    @property
    def dropped(self) -> str:
        """The incomplete line, or its beginning, as the line about the resumption quotes it."""
        if self.complete:
            return ""
        return self.text.decode(errors="ignore")[:MAX_DROPPED_CHARACTERS]

    def stand_in(self, ledger: PrivacyLedger) -> ReleaseEntry | None:
        """Return the release that an incomplete line counts as.

        With a complete mechanism, it is the line's own release. If the line shows part of a
        mechanism, it is the last recorded release that begins like the line. Otherwise it is the
        release of the last step, or the last release of any kind.

        Args:
            ledger: The whole lines before the tail.

        Returns:
            The release; None for a line of another kind. None, too, if no release was ever recorded
            and the line shows no mechanism: then the run goes on from its first weights. (The
            cross-check refuses a checkpoint with more releases than the ledger.)
        """
        if self.complete or not self.may_be_release:
            return None
        if self.release is not None:
            return ReleaseEntry(f"incomplete line: {self.release.what}", self.release.mechanism)
        recorded = ledger.releases[::-1]
        shown = b'"mechanism":' in self.text
        alike = (one for one in recorded if shown and _begins_like(one, self.text))
        steps = (one for one in recorded if one.step is not None)
        found = next(itertools.chain(alike, steps, recorded), None)
        if found is None:
            return None
        return ReleaseEntry("incomplete line: counted as a repetition", found.mechanism)


def _begins_like(entry: LedgerEntry, text: bytes) -> bool:
    """Return whether a text is the beginning of an entry's line."""
    return (ENTRY_PREFIX + _encode(entry)).startswith(text)


@dataclass(frozen=True)
class LedgerContent:
    """What a ledger's file holds.

    Attributes:
        ledger: The whole lines, and a complete last line without its newline.
        tail: What follows the last newline.
        participants: The same of each participant's file, in the ledger of a federation.
    """

    ledger: PrivacyLedger
    tail: LedgerTail
    participants: dict[str, LedgerContent] = field(default_factory=dict)

    @property
    def counted(self) -> PrivacyLedger:
        """The ledger to account for: with the release that an incomplete line counts as.

        So are the ledgers of participants. Without incomplete lines it is ``ledger`` itself.
        """
        more = self.tail.stand_in(self.ledger)
        others = {name: one.counted for name, one in self.participants.items()}
        if more is None and all(
            others[name] is one.ledger for name, one in self.participants.items()
        ):
            return self.ledger
        if more is None:
            return replace(self.ledger, participants=others)
        head = encode_line(more, self.ledger.head)[1]
        return PrivacyLedger(self.ledger.header, (*self.ledger.lines, more), head, others)


def chain_hash(previous: str, entry: bytes) -> str:
    """Return the hash of a line.

    Args:
        previous: Hash of the line before, hexadecimal.
        entry: The line's encoded entry.

    Returns:
        SHA-256 of both, 64 hexadecimal digits.
    """
    return hashlib.sha256(previous.encode() + entry).hexdigest()


def encode_line(entry: LedgerEntry, previous: str) -> tuple[bytes, str]:
    """Encode an entry as a line.

    Args:
        entry: The entry.
        previous: Hash of the line before, hexadecimal.

    Returns:
        The line with its newline, and its hash.
    """
    encoded = _encode(entry)
    head = chain_hash(previous, encoded)
    return ENTRY_PREFIX + encoded + HASH_SEPARATOR + head.encode() + LINE_SUFFIX, head


def parse_ledger(path: Path, content: bytes) -> LedgerContent:
    """Split a ledger's bytes into verified lines and a classified tail.

    Args:
        path: Path for error messages; it is not opened.
        content: All bytes of the file.

    Returns:
        The verified lines and the tail.

    Raises:
        IntegrityError: If a whole line is broken or altered, the tail is not an incomplete
            line, the order of lines is impossible, or the major version is unknown.
    """
    end = content.rfind(b"\n") + 1
    entries, head = _whole_lines(path, content[:end])
    text = content[end:]
    if not text:
        return LedgerContent(_assemble(path, entries, head), LedgerTail())
    complete = _complete_line(path, text, head)
    if complete is not None:
        entry, head = complete
        return LedgerContent(
            _assemble(path, [*entries, entry], head), LedgerTail(text, complete=True)
        )
    tail = _incomplete(path, text, head)
    ledger = _assemble(path, entries, head)
    if ledger.seal is not None:
        raise IntegrityError(f"{path} continues after its seal, or has two headers")
    return LedgerContent(ledger, tail)


def line_hashes(content: bytes) -> list[str]:
    """Return the hash of each whole line of a ledger that ``parse_ledger`` accepted.

    Args:
        content: All bytes of the file.

    Returns:
        Hexadecimal hashes, in order; the rest after the last newline has none.
    """
    return [_decode_line(line).hash for line in content.split(b"\n")[:-1]]


def is_header(line: bytes) -> bool:
    """Return whether a line is a ledger's first line, whatever its hash is.

    Args:
        line: One line, without its newline.

    Returns:
        Whether its entry is a header.
    """
    try:
        return isinstance(_decode_entry(bytes(_decode_line(line).entry)), LedgerHeader)
    except _BROKEN:
        return False


def may_begin_header(text: bytes) -> bool:
    """Return whether a text may be an incomplete first line.

    Args:
        text: Bytes without a newline; empty text qualifies.

    Returns:
        Whether some header's line begins with it.
    """
    try:
        if not text:
            return True
        _whole_entry(text, GENESIS_HASH)  # refuses an entry that its hash does not follow
        return LedgerHeader in _possible_kinds(text)
    except _BROKEN:
        return False


def _whole_lines(path: Path, content: bytes) -> tuple[list[LedgerEntry], str]:
    """Return the entries of all whole lines, with the hash chain verified, and the last hash."""
    entries: list[LedgerEntry] = []
    head = GENESIS_HASH
    for number, raw in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            line = _decode_line(raw)
            if number == 1:
                _require_known_version(path, bytes(line.entry))
            entry = _decode_entry(_with_present_names(path, bytes(line.entry), number))
            _require_unique_keys(raw, line, entry)
        except _BROKEN as error:
            raise IntegrityError(f"{path}, line {number} is broken: {error}") from error
        head = chain_hash(head, bytes(line.entry))
        if line.hash != head:
            raise IntegrityError(f"{path}, line {number} was altered: its hash does not match")
        entries.append(entry)
    return entries, head


def _with_present_names(path: Path, entry: bytes, number: int) -> bytes:
    """Return an entry with the names of version 0.1 mapped; only headers had other names.

    The hash is that of the entry as it was written.
    """
    if number != 1 or not has_old_names(entry):
        return entry
    return _encode(renamed(msgspec.json.decode(entry), str(path)))


def _require_unique_keys(raw: bytes, line: _Line, entry: LedgerEntry) -> None:
    """Refuse a line that repeats a key; a line that encodes back to itself does not."""
    own = ENTRY_PREFIX + _encode(entry) + HASH_SEPARATOR + line.hash.encode() + LINE_SUFFIX
    if own.rstrip(b"\n") != raw:  # also if an older version's line lacks fields
        require_unique_keys(raw)


def _require_known_version(path: Path, header: bytes) -> None:
    """Refuse a header of an unknown major version."""
    version = msgspec.json.decode(header, type=dict).get("schema_version")
    if not is_readable(version):
        raise UnsupportedVersion(
            f"{path} has schema_version {version}; this dpaudit reads {SCHEMA_VERSION}: "
            "use the dpaudit that wrote it, or a newer one"
        )


def _assemble(path: Path, entries: list[LedgerEntry], head: str) -> PrivacyLedger:
    """Return the ledger of some entries, if their order is possible."""
    if not entries or not isinstance(entries[0], LedgerHeader):
        raise IntegrityError(f"{path} does not begin with a header")
    header, lines = entries[0], tuple(e for e in entries[1:] if not isinstance(e, LedgerHeader))
    seals = [number for number, line in enumerate(lines) if isinstance(line, Seal)]
    if len(lines) != len(entries) - 1 or (seals and seals != [len(lines) - 1]):
        raise IntegrityError(f"{path} continues after its seal, or has two headers")
    ledger = PrivacyLedger(header, lines, head)
    if ledger.seal is not None and ledger.seal.releases != len(ledger.releases):
        raise IntegrityError(f"{path} is sealed for another number of releases than it holds")
    return ledger


# The tail.


def _complete_line(path: Path, text: bytes, previous: str) -> tuple[LedgerEntry, str] | None:
    """Return entry and hash of a line that lacks only its newline; None for any other text."""
    try:
        line = _decode_line(text)
        present = _with_present_names(path, bytes(line.entry), 1 if previous == GENESIS_HASH else 2)
        entry, head = _decode_entry(present), chain_hash(previous, bytes(line.entry))
        _require_unique_keys(text, line, entry)
    except _BROKEN:
        return None
    whole = ENTRY_PREFIX + bytes(line.entry) + HASH_SEPARATOR + head.encode() + LINE_SUFFIX
    return (entry, head) if text == whole.removesuffix(b"\n") else None


def _incomplete(path: Path, text: bytes, previous: str) -> LedgerTail:
    """Return the tail of an incomplete line; refuse what is not the beginning of a line."""
    try:
        kinds = _possible_kinds(text)
        entry = _whole_entry(text, previous)
        release = _release_by_mechanism(text) if entry is None else entry
    except _BROKEN as error:
        raise IntegrityError(
            f"{path} ends with {len(text)} bytes that are not an incomplete line ({error}): the "
            "ledger was damaged, and its lost lines are unknown; restore it from a copy"
        ) from error
    if ReleaseEntry not in kinds:
        return LedgerTail(text)
    known = release if isinstance(release, ReleaseEntry) else None
    return LedgerTail(text, may_be_release=True, release=known)


def _whole_entry(text: bytes, previous: str) -> LedgerEntry | None:
    """Return the entry of an incomplete line, None if it is cut off; refuse a wrong hash."""
    end = _end_of_entry(text)
    if end is None:
        return None
    encoded, rest = text[len(ENTRY_PREFIX) : end], text[end:]
    entry = _decode_entry(encoded)
    expected = HASH_SEPARATOR + chain_hash(previous, encoded).encode() + LINE_SUFFIX
    if not expected.startswith(rest):
        raise ValueError("its hash does not match")
    return entry


def _possible_kinds(text: bytes) -> set[type]:
    """Return the kinds of entry that an incomplete line may have; refuse if there are none."""
    opening = ENTRY_PREFIX + b"{"
    if len(text) < len(opening):
        if not opening.startswith(text):
            raise ValueError("it does not begin like a line")
        return set(ENTRY_TYPES)
    if not text.startswith(opening):
        raise ValueError("it does not begin like a line")
    end = _end_of_entry(text)
    visible = text[len(ENTRY_PREFIX) : end]
    parts = _decode_parts(complete_object(visible)) if end is None else _decode_parts(visible)
    kinds: set[type] = {
        kind for kind in ENTRY_TYPES if _fits(kind, parts, complete=end is not None)
    }
    if not kinds:
        raise ValueError("it is of no known kind")
    return kinds


def _fits(kind: type[msgspec.Struct], parts: dict[str, msgspec.Raw], *, complete: bool) -> bool:
    """Return whether a kind of entry may have these first fields; the last may be cut off.

    Keys are sorted. Fields with defaults, which later versions added, may be missing.
    """
    required = {field.encode_name for field in msgspec.structs.fields(kind) if field.required}
    known, needed = {*kind.__struct_fields__, "kind"}, {*required, "kind"}
    names = list(parts)
    whole, cut = (names, None) if complete else (names[:-1], next(iter(names[-1:]), None))
    before = "" if not whole else whole[-1]
    if whole != sorted(whole) or not set(whole) <= known:
        return False
    if complete:
        return needed <= set(whole) and msgspec.json.decode(parts["kind"]) == _tag(kind)
    # Only the beginning of the last key may be visible: all keys that it may become. Required
    # keys that sort before it must be among the whole ones.
    ends = [one for one in known if one.startswith(cut or "") and one > before]
    if not any({one for one in needed if one < end} <= set(whole) for end in ends):
        return False
    said = msgspec.json.decode(parts["kind"]) if "kind" in parts else None
    if "kind" in whole:
        return bool(said == _tag(kind))
    return cut != "kind" or said is None or (isinstance(said, str) and _tag(kind).startswith(said))


def _tag(kind: type[msgspec.Struct]) -> str:
    """Return the value of a kind's field "kind"."""
    return str(kind.__struct_config__.tag)


def _release_by_mechanism(text: bytes) -> ReleaseEntry | None:
    """Return the release of an incomplete entry whose mechanism is complete."""
    parts = (
        _decode_parts(complete_object(text[len(ENTRY_PREFIX) :]))
        if len(text) > len(ENTRY_PREFIX)
        else {}
    )
    if list(parts)[:2] != ["kind", "mechanism"] or len(parts) < 3:
        return None  # the mechanism is missing, or is the last visible value: maybe cut off
    known = b'{"kind":"release","mechanism":' + bytes(parts["mechanism"]) + b',"what":"release"}'
    entry = _decode_entry(known)
    return entry if isinstance(entry, ReleaseEntry) else None


def _end_of_entry(text: bytes) -> int | None:
    """Return where the entry of a line ends; None if it is cut off."""
    end = end_of_value(text[len(ENTRY_PREFIX) :])
    return None if end is None else len(ENTRY_PREFIX) + end
