"""The ledger's format: canonical JSON lines in a hash chain, and what a torn last line may be.

Every line is {"entry": ..., "hash": SHA-256(hash of the line before + entry)}, with sorted
keys and without spaces. ``read_content`` is the one function that splits a file into whole
verified lines and a tail. A tail is the rest after the last newline:

none          the file ends with a newline
complete      a line without its newline whose hash verifies: it is kept
incomplete    a strict prefix of one canonical line: a write that a crash cut short
anything else is damage (zeroed pages, flipped bits, foreign text): ``IntegrityError``

A release is on the disk before its noise is used, so an incomplete line was not used, if the
disk keeps its word. If it does not, a line that had been synced may look incomplete. Therefore
an incomplete line that is a release, or may be one, is counted: ``Tail.stand_in`` is the release
that is recorded for it when the run is resumed, and that every reader counts before that.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dpaudit.runs.json_prefix import completed, end_of_value
from dpaudit.runs.strict_json import require_unique_keys
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import IntegrityError
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

GENESIS = "0" * 64
OPENING, BETWEEN, CLOSING = b'{"entry":', b',"hash":"', b'"}\n'
KINDS = (LedgerHeader, Begun, BookedRelease, Resumed, DeclaredChange, Checkpointed, Ended, Seal)
DROPPED_CHARACTERS = 2000
"""How much of a dropped line is kept, in the line that says so."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    entry: msgspec.Raw
    hash: str


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_entry = msgspec.json.Decoder(LedgerLine).decode
_decode_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder(order="sorted").encode
_BROKEN = (msgspec.MsgspecError, ValueError, RecursionError)


@dataclass(frozen=True)
class Tail:
    """What stands after the last newline.

    Attributes:
        text: Its bytes; empty if the file ends with a newline.
        complete: Whether it is a complete line, which the ledger then holds, but for the newline.
        may_be_release: Whether it is an incomplete line that is a release, or of which one
            cannot tell that it is none.
        release: The incomplete line's release, if its entry or its mechanism is complete.
    """

    text: bytes = b""
    complete: bool = False
    may_be_release: bool = False
    release: BookedRelease | None = None

    @property
    def dropped(self) -> str:
        """The incomplete line, as the line about the resumption names it; at most its beginning."""
        if self.complete:
            return ""
        return self.text.decode(errors="ignore")[:DROPPED_CHARACTERS]

    def stand_in(self, ledger: PrivacyLedger) -> BookedRelease | None:
        """Return the release that an incomplete line counts as, if it counts.

        The line's own mechanism, if all of it is there. Otherwise, if the line shows a part of
        it, that of the last recorded release that begins like the line; otherwise that of the
        last step, or of the last release of any kind.

        None for a line of another kind. None, too, if no release was ever recorded and the line
        shows no mechanism: there is none to repeat, and the run goes on from its first weights
        (a checkpoint with more releases than the ledger is refused by the cross-check).
        """
        if self.complete or not self.may_be_release:
            return None
        if self.release is not None:
            return BookedRelease(f"incomplete line: {self.release.what}", self.release.mechanism)
        recorded = ledger.releases[::-1]
        shown = b'"mechanism":' in self.text
        alike = (one for one in recorded if shown and _begins_like(one, self.text))
        steps = (one for one in recorded if one.step is not None)
        found = next(itertools.chain(alike, steps, recorded), None)
        if found is None:
            return None
        return BookedRelease("incomplete line: counted as a repetition", found.mechanism)


def _begins_like(entry: LedgerLine, text: bytes) -> bool:
    return (OPENING + _encode(entry)).startswith(text)


@dataclass(frozen=True)
class Content:
    """What a ledger's file holds.

    Attributes:
        ledger: The whole lines, and a complete last line without its newline.
        tail: What stands after the last newline.
    """

    ledger: PrivacyLedger
    tail: Tail

    @property
    def counted(self) -> PrivacyLedger:
        """The ledger as it counts: with the release that an incomplete line stands for."""
        more = self.tail.stand_in(self.ledger)
        if more is None:
            return self.ledger
        head = line_of(more, self.ledger.head)[1]
        return PrivacyLedger(self.ledger.header, (*self.ledger.lines, more), head)


def chain(previous: str, entry: bytes) -> str:
    """Return the hash of a line, from that of the line before and its encoded entry."""
    return hashlib.sha256(previous.encode() + entry).hexdigest()


def line_of(entry: LedgerLine, previous: str) -> tuple[bytes, str]:
    """Return the line of ``entry``, with its newline, and its hash."""
    encoded = _encode(entry)
    head = chain(previous, encoded)
    return OPENING + encoded + BETWEEN + head.encode() + CLOSING, head


def read_content(path: Path, content: bytes) -> Content:
    """Split a ledger's bytes into verified lines and a classified tail.

    Args:
        path: Named in errors; it is not opened.
        content: All of the file's bytes.

    Raises:
        IntegrityError: A whole line is broken or altered, the tail is no incomplete line, the
            lines are in no possible order, or their major version is unknown.
    """
    end = content.rfind(b"\n") + 1
    entries, head = _whole_lines(path, content[:end])
    text = content[end:]
    if not text:
        return Content(_assemble(path, entries, head), Tail())
    complete = _complete_line(text, head)
    if complete is not None:
        entry, head = complete
        return Content(_assemble(path, [*entries, entry], head), Tail(text, complete=True))
    tail = _incomplete(path, text, head)
    ledger = _assemble(path, entries, head)
    if ledger.seal is not None:
        raise IntegrityError(f"{path} goes on after its seal, or has two headers")
    return Content(ledger, tail)


def is_header(line: bytes) -> bool:
    """Return whether ``line`` is a ledger's first line, whatever its hash."""
    try:
        return isinstance(_decode_entry(bytes(_decode_line(line).entry)), LedgerHeader)
    except _BROKEN:
        return False


def may_begin_header(text: bytes) -> bool:
    """Return whether ``text`` is an incomplete first line of a ledger, or nothing at all."""
    try:
        if not text:
            return True
        _whole_entry(text, GENESIS)  # what follows an entry must be its hash
        return LedgerHeader in _possible_kinds(text)
    except _BROKEN:
        return False


def _whole_lines(path: Path, content: bytes) -> tuple[list[LedgerLine], str]:
    entries: list[LedgerLine] = []
    head = GENESIS
    for number, raw in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            line = _decode_line(raw)
            if number == 1:
                _require_known_version(path, bytes(line.entry))
            entry = _decode_entry(bytes(line.entry))
            _require_unique_keys(raw, line, entry)
        except _BROKEN as error:
            raise IntegrityError(f"{path}, line {number} is broken: {error}") from error
        head = chain(head, bytes(line.entry))
        if line.hash != head:
            raise IntegrityError(f"{path}, line {number} was altered: its hash does not match")
        entries.append(entry)
    return entries, head


def _require_unique_keys(raw: bytes, line: _Line, entry: LedgerLine) -> None:
    """Refuse a line that names a key twice; what this version would write itself does not.

    Raises:
        ValueError: It does.
    """
    own = OPENING + _encode(entry) + BETWEEN + line.hash.encode() + CLOSING
    if own.rstrip(b"\n") != raw:  # an older version's line may lack fields
        require_unique_keys(raw)


def _require_known_version(path: Path, header: bytes) -> None:
    version = str(msgspec.json.decode(header, type=dict).get("schema_version"))
    if version.split(".", maxsplit=1)[0] != SCHEMA_VERSION.split(".")[0]:
        raise IntegrityError(
            f"{path} has schema_version {version}; this dpaudit reads {SCHEMA_VERSION}: "
            "use the dpaudit that wrote it, or a newer one"
        )


def _assemble(path: Path, entries: list[LedgerLine], head: str) -> PrivacyLedger:
    if not entries or not isinstance(entries[0], LedgerHeader):
        raise IntegrityError(f"{path} does not begin with a header")
    header, lines = entries[0], tuple(e for e in entries[1:] if not isinstance(e, LedgerHeader))
    seals = [number for number, line in enumerate(lines) if isinstance(line, Seal)]
    if len(lines) != len(entries) - 1 or (seals and seals != [len(lines) - 1]):
        raise IntegrityError(f"{path} goes on after its seal, or has two headers")
    ledger = PrivacyLedger(header, lines, head)
    if ledger.seal is not None and ledger.seal.releases != len(ledger.releases):
        raise IntegrityError(f"{path} is sealed for another number of releases than it holds")
    return ledger


# The tail.


def _complete_line(text: bytes, previous: str) -> tuple[LedgerLine, str] | None:
    """Return entry and hash of a line that lacks its newline alone; None if it is no such line."""
    try:
        line = _decode_line(text)
        entry, head = _decode_entry(bytes(line.entry)), chain(previous, bytes(line.entry))
        _require_unique_keys(text, line, entry)
    except _BROKEN:
        return None
    whole = OPENING + bytes(line.entry) + BETWEEN + head.encode() + CLOSING
    return (entry, head) if text == whole.removesuffix(b"\n") else None


def _incomplete(path: Path, text: bytes, previous: str) -> Tail:
    """Return the tail that ``text`` is.

    Raises:
        IntegrityError: It is not the beginning of one canonical line.
    """
    try:
        kinds = _possible_kinds(text)
        entry = _whole_entry(text, previous)
        release = _release_by_mechanism(text) if entry is None else entry
    except _BROKEN as error:
        raise IntegrityError(
            f"{path} ends with {len(text)} bytes that are no incomplete line ({error}): the "
            "ledger was damaged, and what it has lost cannot be told; restore it from a copy"
        ) from error
    if BookedRelease not in kinds:
        return Tail(text)
    known = release if isinstance(release, BookedRelease) else None
    return Tail(text, may_be_release=True, release=known)


def _whole_entry(text: bytes, previous: str) -> LedgerLine | None:
    """Return the entry of an incomplete line, if all of it is there; None otherwise.

    Raises:
        ValueError: The visible part of the hash is another line's, or none can follow.
    """
    end = _end_of_entry(text)
    if end is None:
        return None
    encoded, rest = text[len(OPENING) : end], text[end:]
    entry = _decode_entry(encoded)
    expected = BETWEEN + chain(previous, encoded).encode() + CLOSING
    if not expected.startswith(rest):
        raise ValueError("its hash does not match")
    return entry


def _possible_kinds(text: bytes) -> set[type]:
    """Return the kinds of which an incomplete line may be.

    Raises:
        ValueError: It is the beginning of no line.
    """
    opening = OPENING + b"{"
    if len(text) < len(opening):
        if not opening.startswith(text):
            raise ValueError("it does not begin like a line")
        return set(KINDS)
    if not text.startswith(opening):
        raise ValueError("it does not begin like a line")
    end = _end_of_entry(text)
    visible = text[len(OPENING) : end]
    parts = _decode_parts(completed(visible)) if end is None else _decode_parts(visible)
    kinds: set[type] = {kind for kind in KINDS if _fits(kind, parts, complete=end is not None)}
    if not kinds:
        raise ValueError("it is of no known kind")
    return kinds


def _fits(kind: type[msgspec.Struct], parts: dict[str, msgspec.Raw], *, complete: bool) -> bool:
    """Return whether ``parts`` may be the first fields of ``kind``; the last may be cut off.

    Fields that a kind got later, and has defaults for, may be missing. Keys are sorted.
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
    # What the last key may be, of which only the beginning may be visible.
    ends = [one for one in known if one.startswith(cut or "") and one > before]
    if not any({one for one in needed if one < end} <= set(whole) for end in ends):
        return False
    said = msgspec.json.decode(parts["kind"]) if "kind" in parts else None
    if "kind" in whole:
        return bool(said == _tag(kind))
    return cut != "kind" or said is None or (isinstance(said, str) and _tag(kind).startswith(said))


def _tag(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)


def _release_by_mechanism(text: bytes) -> BookedRelease | None:
    """Return the release of an incomplete entry whose mechanism is all there."""
    parts = _decode_parts(completed(text[len(OPENING) :])) if len(text) > len(OPENING) else {}
    if list(parts)[:2] != ["kind", "mechanism"] or len(parts) < 3:
        return None  # the mechanism is missing, or the last thing that is visible
    known = b'{"kind":"release","mechanism":' + bytes(parts["mechanism"]) + b',"what":"release"}'
    entry = _decode_entry(known)
    return entry if isinstance(entry, BookedRelease) else None


def _end_of_entry(text: bytes) -> int | None:
    """Return where the entry of a line ends; None if it is cut off."""
    end = end_of_value(text[len(OPENING) :])
    return None if end is None else len(OPENING) + end
