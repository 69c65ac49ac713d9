"""An interval that a true value is certain to lie in."""

from __future__ import annotations

import math

import msgspec

from dpaudit.vocabulary.errors import AccountingError


class Bound(msgspec.Struct, frozen=True):
    """``lower <= truth <= upper``; both ends finite, so that NaN never passes."""

    lower: float
    upper: float

    def __post_init__(self) -> None:
        if not -math.inf < self.lower <= self.upper < math.inf:
            raise AccountingError(f"no interval: lower {self.lower!r}, upper {self.upper!r}")

    @property
    def width(self) -> float:
        """Absolute width."""
        return self.upper - self.lower
