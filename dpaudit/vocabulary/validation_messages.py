"""Errors of a document in the reader's words: its keys, the allowed ones, and the nearest one.

msgspec reports "Object contains unknown field `x` - at `$.privacy`" or "Expected `int`, got `str`".
Here they become "without the unknown key privacy.x; did you mean y?" and "with a whole number as
privacy.steps, not text: write it without quotes". Each ends a sentence: "FILE must be a plan ...".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from dpaudit.vocabulary.errors import did_you_mean

MOST_KEYS = 40
"""Number of allowed keys that a message lists."""

_PLACE = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_TYPES = re.compile(r"Expected `(?P<wanted>[^`]*)`, got `(?P<given>[^`]*)`")
_VALUE = re.compile(r"Invalid (?:enum )?value (?P<quote>['\"]?)(?P<name>.*)(?P=quote)$")
_PART = re.compile(r"\.?([^.\[\]]+)|\[(\d+|\.\.\.)\]")

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "null",
}
"""msgspec's names of types, in words."""


def explain_validation(error: msgspec.ValidationError, document: Any, kind: Any) -> str:
    """Return what a document must be, from the error of its conversion.

    Args:
        error: What ``msgspec.convert`` raised.
        document: The document.
        kind: The type that it was converted to.

    Returns:
        The end of a sentence: "with ...", "without ..." or the cause in parentheses.
    """
    text = str(error)
    found = _PLACE.search(text)
    path, cause = (found["path"] if found else ""), _PLACE.sub("", text)
    place = path.lstrip(".")
    inside = _type_at(document, kind, path)
    if match := _UNKNOWN.fullmatch(cause):
        known = _keys(inside)
        hint = did_you_mean(match["name"], known)
        listed = f"; allowed here: {', '.join(known[:MOST_KEYS])}" if known else ""
        return f"without the unknown key {_joined(place, match['name'])}{hint}{listed}"
    if match := _MISSING.fullmatch(cause):
        return f"with the key {_joined(place, match['name'])}, which is missing"
    if match := _TYPES.fullmatch(cause):
        kinds = [one for one in match["wanted"].split(" | ") if one != "null"] or ["null"]
        wanted = " or ".join(map(_in_words, kinds))
        given = "a boolean" if match["given"] == "bool" else _in_words(match["given"])
        quoted = given == "text" and {"int", "float", "bool"} & set(kinds)
        hint = ": write it without quotes" if quoted else ""
        return f"with {wanted} as {place or 'the whole'}, not {given}{hint}"
    if match := _VALUE.fullmatch(cause):
        known = _values(inside) or _tags(_type_at(document, kind, path.rpartition(".")[0]))
        listed = f"; there are {', '.join(known[:MOST_KEYS])}" if known else ""
        more = did_you_mean(match["name"], known) or listed
        return f"with a known {place or 'value'}, not {match['name']!r}{more}"
    where = f" in {place}" if place else ""
    return f"without an error{where} ({cause[:1].lower()}{cause[1:]})"


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _in_words(name: str) -> str:
    return KINDS.get(name, name)


def _type_at(document: Any, kind: Any, path: str) -> inspect.Type | None:
    """Return the type of the value at a path, as far as the document determines it."""
    found: inspect.Type | None = _resolved(inspect.type_info(kind), document)
    for match in _PART.finditer(path):
        name, place = match[1], match[2]
        if name is not None:
            document = document.get(name) if isinstance(document, Mapping) else None
            found = _field_type(found, name)
        else:
            at = int(place) if place.isdigit() else 0
            long = isinstance(document, Sequence) and len(document) > at
            document = document[at] if long else None
            found = getattr(found, "item_type", None)
        found = None if found is None else _resolved(found, document)
    return found


def _field_type(kind: inspect.Type | None, name: str) -> inspect.Type | None:
    """Return the type of one field of a struct."""
    fields = kind.fields if isinstance(kind, inspect.StructType) else ()
    return next((field.type for field in fields if field.encode_name == name), None)


def _resolved(kind: inspect.Type, document: Any) -> inspect.Type:
    """Return the member of a union that a document is meant for; another type unchanged."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    if isinstance(document, Mapping):
        structs = [one for one in kind.types if isinstance(one, inspect.StructType)]
        for one in structs:
            if one.tag is not None and document.get(str(one.tag_field)) == one.tag:
                return one
        return structs[0] if len(structs) == 1 else kind
    if isinstance(document, Sequence) and not isinstance(document, str):
        return next((one for one in kind.types if hasattr(one, "item_type")), kind)
    return next((one for one in kind.types if isinstance(one, inspect.EnumType)), kind)


def _keys(kind: inspect.Type | None) -> list[str]:
    """Return the keys of a struct, its tag first."""
    if not isinstance(kind, inspect.StructType):
        return []
    tag = [str(kind.tag_field)] if kind.tag_field is not None else []
    return [*tag, *(field.encode_name for field in kind.fields)]


def _values(kind: inspect.Type | None) -> list[str]:
    """Return the values of an enumeration."""
    return [str(one.value) for one in kind.cls] if isinstance(kind, inspect.EnumType) else []


def _tags(kind: inspect.Type | None) -> list[str]:
    """Return the tags of a union of structs."""
    types = kind.types if isinstance(kind, inspect.UnionType) else ()
    return [str(one.tag) for one in types if isinstance(one, inspect.StructType)]
