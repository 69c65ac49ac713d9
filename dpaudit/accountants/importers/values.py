"""Numbers as others write them: checked, and made plain Python numbers."""

from __future__ import annotations

import reprlib
from numbers import Integral, Real
from typing import Any

from dpaudit.vocabulary.errors import InvalidArgument

MOST = 2**53
"""The largest count: up to here a double holds every whole number."""


def number(name: str, value: Any) -> float:
    """Return a number of any library as a float, in the range of one."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidArgument(name, shown(value), "a number")
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidArgument(name, shown(value), "in the range of a double") from error


def whole(name: str, value: Any) -> int:
    """Return a whole number of any library as an int."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidArgument(name, shown(value), "a whole number")
    if not abs(int(value)) <= MOST:
        raise InvalidArgument(name, shown(value), f"at most {MOST}")
    return int(value)


class Shown(str):
    """Text that stands in a message as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def shown(value: Any) -> Shown:
    """Return what a message says of ``value``: short, however long it is."""
    return Shown(reprlib.repr(value))
