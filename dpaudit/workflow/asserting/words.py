"""How a failed assertion is told: what is wrong, then lines of what, and what to do."""

from __future__ import annotations

import math

from dpaudit.vocabulary.rounding import round_down, round_up


def told(wrong: str, *lines: tuple[str, str]) -> str:
    """Return a headline, and under it what each name stands for."""
    width = max(len(name) for name, _ in lines)
    return "\n".join([wrong, *(f"  {name:{width}}  {text}" for name, text in lines)])


def at_most(value: float) -> str:
    """Return an upper bound, rounded up; NaN is shown, as this is where it is refused."""
    return "NaN" if math.isnan(value) else round_up(value)


def at_least(value: float) -> str:
    """Return a lower bound, rounded down; NaN is shown, too."""
    return "NaN" if math.isnan(value) else round_down(value)
