"""Base class of the frozen types whose JSON holds their name in the field ``kind``."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from dpaudit.vocabulary.errors import InvalidArgument, to_python_number


def _kebab(name: str) -> str:
    """Return the tag of a class in JSON: ``PureDP`` becomes ``pure-dp``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


class Tagged(msgspec.Struct, frozen=True, tag_field="kind", tag=_kebab, forbid_unknown_fields=True):
    """Base of the types whose JSON holds their name in the field ``kind``."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            given = getattr(self, name)
            if (number := to_python_number(given)) is not given:
                msgspec.structs.force_setattr(self, name, number)
        self._require_valid()

    def _require_valid(self) -> None:
        """Refuse fields that are out of their range."""


MOST_NAMED_KINDS = 20
"""Kinds of mechanisms up to which a message names them all."""


def require_kind(name: str, value: object, kind: Any) -> None:
    """Refuse a value that is not of a class, or of a union of classes."""
    if not isinstance(value, kind):
        members = getattr(kind, "__args__", (kind,))
        names = " or ".join(member.__name__ for member in members)
        many = len(members) > MOST_NAMED_KINDS
        raise InvalidArgument(name, value, "a mechanism, as Gaussian(1.0)" if many else names)
