"""Tables for people, and numbers of a readable length."""

from __future__ import annotations

import math
from collections.abc import Sequence


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows under a heading, each column as wide as it must be."""
    every = [tuple(heading), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(heading))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in every
    )


def titled(title: str, *blocks: str) -> str:
    """Return blocks under an underlined title."""
    return "\n\n".join([f"{title}\n{'=' * len(title)}", *blocks])


def fixed(value: float | None, digits: int = 6) -> str:
    """Return a number with a fixed count of decimals; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def short(value: float | None) -> str:
    """Return a number to three digits."""
    return "-" if value is None else f"{value:.3g}"


def percent(value: float, reference: float) -> str:
    """Return how far ``value`` lies above ``reference``."""
    if not math.isfinite(value):
        return "no bound"
    return f"{100 * (value / reference - 1):+.3g}%"


def quantile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that at least ``part`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan
