"""Base class of the frozen types whose JSON holds their name in the field ``kind``."""

from __future__ import annotations

import re

import msgspec

from dpaudit.vocabulary.errors import to_python_number


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
