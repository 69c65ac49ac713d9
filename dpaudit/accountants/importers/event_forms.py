"""The forms in which a dp_accounting event comes: how each says its class and its fields.

an object        a class of the attrs library, whose name and fields are public
a named tuple    ``event.to_named_tuple()``: module_name, class_name, then the fields
JSON of that     a list [module, class, field, ...] as json.dumps writes it, or an object
                 with the key "class_name", as its ``_asdict()`` becomes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpaudit.accountants.importers.values import shown
from dpaudit.vocabulary.errors import InvalidArgument

Given = Mapping[str, Any] | Sequence[Any]
"""Fields by name, or in the order of the class."""


def unpack(event: Any) -> tuple[str, Given]:
    """Return the name of an event's class, and its fields.

    Raises:
        InvalidArgument: it comes in none of these forms.
    """
    name, given = _name_and_fields(event)
    if isinstance(name, bytes):
        name = name.decode(errors="replace")
    if not isinstance(name, str):
        raise InvalidArgument(
            "event", shown(event), "a DpEvent, its named tuple, or the JSON of that"
        )
    return name, given


def is_list(value: Any) -> bool:
    """Return whether ``value`` is a list of things, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _name_and_fields(event: Any) -> tuple[Any, Given]:
    attributes = getattr(type(event), "__attrs_attrs__", None)
    if attributes is not None:
        fields = {one.name: getattr(event, one.name) for one in attributes}
        return type(event).__name__, fields
    if isinstance(event, tuple) and hasattr(event, "_asdict"):
        event = event._asdict()
    if isinstance(event, Mapping):
        fields = {key: value for key, value in event.items() if key != "module_name"}
        return fields.pop("class_name", None), fields
    if is_list(event) and len(event) >= 2:
        return event[1], event[2:]
    return None, ()
