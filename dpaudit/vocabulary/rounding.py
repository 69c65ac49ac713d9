"""Numbers as people read them: four digits, upper ends up and lower ends down."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

DIGITS = 4


def round_up(value: float) -> str:
    """Return ``value`` to four significant digits, never below it."""
    return _rounded(value, ROUND_CEILING)


def round_down(value: float) -> str:
    """Return ``value`` to four significant digits, never above it."""
    return _rounded(value, ROUND_FLOOR)


def _rounded(value: float, rounding: str) -> str:
    exact = Decimal(value)  # of the binary value itself, without an error of its own
    if exact.is_nan() or exact.is_infinite() or exact == 0:
        return f"{value:g}"
    last_digit = Decimal(1).scaleb(exact.adjusted() - DIGITS + 1)
    return f"{float(exact.quantize(last_digit, rounding=rounding)):.{DIGITS}g}"
