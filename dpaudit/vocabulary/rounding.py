"""Numbers as people read them: four digits, upper ends up and lower ends down.

What is rounded is the shortest decimal that names the float, as JSON writes it: so 0.1
is shown as 0.1.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

from dpaudit.vocabulary.errors import AccountingError

DIGITS = 4


def round_up(value: float) -> str:
    """Return an upper bound in four significant digits, never below ``value``."""
    return _rounded(value, ROUND_CEILING)


def round_down(value: float) -> str:
    """Return a lower bound in four significant digits, never above ``value``."""
    return _rounded(value, ROUND_FLOOR)


def round_near(value: float) -> str:
    """Return an estimate, which bounds nothing, in the nearest four significant digits."""
    return _rounded(value, ROUND_HALF_EVEN)


def in_digits(number: Decimal, rounding: str) -> str:
    """Return ``number`` in four significant digits, plain where that is short."""
    short = Context(prec=DIGITS, rounding=rounding).plus(number).normalize()
    plain = short.is_zero() or -4 <= short.adjusted() < 7
    return f"{short:f}" if plain else f"{short:e}"


def _rounded(value: float, rounding: str) -> str:
    if math.isnan(value):
        raise AccountingError("a number to show is NaN: it would be read as if measured")
    if math.isinf(value):
        return "infinite"
    return in_digits(Decimal(repr(float(value))), rounding)
