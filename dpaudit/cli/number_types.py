"""Numbers as people write them on the command line: 1e4 steps, a rate of 256/60000, 1%."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # generic since click 8.2 only
    _ParamType = click.ParamType

MOST_DIGITS = 1000
"""Longest number that is parsed: exact arithmetic with longer ones takes long."""

_PLAIN = r"[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d{1,4})?"
_NUMBER = re.compile(_PLAIN)
_QUOTIENT = re.compile(rf"({_PLAIN})\s*/\s*({_PLAIN})")
_PERCENT = re.compile(rf"({_PLAIN})\s*%")


class _Number(_ParamType):
    """Base of the types: converts text, and passes numbers on."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number that ``value`` is.

        Args:
            value: Text of the command line or of a variable, or a default.
            param: The option.
            ctx: The context of the command.

        Returns:
            An ``int`` or a ``float``.

        Raises:
            BadParameter: If ``value`` is no such number.
        """
        if not isinstance(value, str):
            return value
        return self.parse(value.strip(), lambda why: self.fail(why, param, ctx))

    def parse(self, text: str, fail: Callable[[str], Any]) -> Any:
        """Return the number in ``text``; ``fail`` raises the error."""
        raise NotImplementedError


class Count(_Number):
    """A whole number; 1e4 and 10_000 are accepted, 2.5 is not."""

    name = "integer"

    def parse(self, text: str, fail: Callable[[str], Any]) -> int:
        """Return the whole number in a text.

        Args:
            text: The text.
            fail: Raises an error with a reason.

        Returns:
            The number.
        """
        if len(text) > MOST_DIGITS or not _NUMBER.fullmatch(text):
            return int(fail(f"{_short(text)} is not a whole number, such as 10000 or 1e4"))
        exact = _exact(text)
        if exact is None or exact.denominator != 1:
            return int(fail(f"{_short(text)} is not a whole number, such as 10000 or 1e4"))
        return int(exact)


class Rate(_Number):
    """A probability: a number, a quotient as 256/60000, or a percentage as 1%."""

    name = "float"

    def to_double(self, exact: Fraction) -> float:
        """Return a quotient or a percentage rounded up: a larger rate never costs less.

        Args:
            exact: The number.

        Returns:
            The least double of at least ``exact``.
        """
        return _rounded_up(exact)

    def parse(self, text: str, fail: Callable[[str], Any]) -> float:
        """Return the number in a text.

        Args:
            text: The text.
            fail: Raises an error with a reason.

        Returns:
            The number.
        """
        why = f"{_short(text)} is not a number, a quotient as 256/60000, or a percentage as 1%"
        if len(text) > MOST_DIGITS:
            return float(fail(why))
        if quotient := _QUOTIENT.fullmatch(text):
            over, under = _exact(quotient[1]), _exact(quotient[2])
            if over is None or not under:
                return float(fail(why))
            return self.to_double(over / under)
        if percent := _PERCENT.fullmatch(text):
            exact = _exact(percent[1])
            return float(fail(why)) if exact is None else self.to_double(exact / 100)
        try:
            return float(text)
        except ValueError:
            return float(fail(why))


class LargestRate(Rate):
    """A probability that must not be exceeded."""

    def to_double(self, exact: Fraction) -> float:
        """Return a quotient or a percentage rounded down: a smaller limit is kept as well.

        Args:
            exact: The number.

        Returns:
            The largest double of at most ``exact``.
        """
        return 0.0 - _rounded_up(-exact)


class Rates(_Number):
    """Several probabilities, separated by commas."""

    name = "float[,float...]"

    def parse(self, text: str, fail: Callable[[str], Any]) -> tuple[float, ...]:
        """Return the numbers in a text.

        Args:
            text: The text.
            fail: Raises an error with a reason.

        Returns:
            The numbers, at least one.
        """
        one = Rate()
        return tuple(one.parse(part.strip(), fail) for part in text.split(","))


def _exact(text: str) -> Fraction | None:
    """Return a plain number exactly; None for one whose exponent no double has."""
    digits = text.replace("_", "")
    _, _, exponent = digits.lower().partition("e")
    return None if exponent and abs(int(exponent)) > 330 else Fraction(digits)


def _rounded_up(exact: Fraction) -> float:
    """Return the least double of at least an exact number."""
    try:
        near = float(exact)
    except OverflowError:
        return math.copysign(math.inf, exact)
    return near if Fraction(near) >= exact else math.nextafter(near, math.inf)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
