"""Canonical JSON that is cut off: whether it can be the beginning of a value, and what it shows.

Canonical means as ``msgspec`` writes it: UTF-8, no space outside of strings, and within them
only quotes, backslashes and control characters escaped.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import msgspec


def end_of_value(text: bytes) -> int | None:
    """Return where the object or array that ``text`` begins with ends; None if it is cut off.

    Raises:
        ValueError: A byte can be in no canonical JSON, or a bracket closes another.
    """
    for at, _, stack in _scan(text):
        if not stack:
            return at + 1
    return None


def _scan(text: bytes) -> Iterator[tuple[int, str, list[str]]]:
    """Yield each place in canonical JSON, its state, and the brackets that are open after it.

    The state is "text" in a string, "escape" after a backslash in one, and "plain" elsewhere.

    Raises:
        ValueError: A byte can be in no canonical line, or a bracket closes another.
    """
    stack: list[str] = []
    state = "plain"
    for at, byte in enumerate(text):
        if byte < 0x20 or (state == "plain" and byte in b" \x7f"):
            raise ValueError("it holds a byte that no line holds")
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


def completed(visible: bytes) -> bytes:
    """Return a JSON object that begins with ``visible``, to see what that holds.

    Raises:
        ValueError: None does.
    """
    # A character that is cut in the middle is left out; any other error of UTF-8 is raised.
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
