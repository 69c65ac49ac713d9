"""Past verdicts as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC

from dpaudit.vocabulary.history import PastRun
from dpaudit.vocabulary.rounding import round_down, round_up

HEADING = (
    *("judged", "run", "outcome", "epsilon at most", "epsilon at least", "delta"),
    *("TPR at most", "accuracy", "steps"),
)
NOTE = (
    "times in UTC; TPR: of the strongest attack, upper end of its interval; "
    "- where nothing was measured"
)


def history_text(runs: Sequence[PastRun]) -> str:
    """Return a row a verdict, the oldest first, and how to read them."""
    rows = [HEADING, *(_row(past) for past in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", NOTE])


def _row(past: PastRun) -> tuple[str, ...]:
    return (
        f"{past.judged.astimezone(UTC):%Y-%m-%d %H:%M}",
        one_line(past.run),
        past.outcome.value,
        round_up(past.epsilon_upper),
        "-" if past.epsilon_lower is None else round_down(past.epsilon_lower),
        f"{past.delta:g}",
        "-" if past.tpr is None else f"{round_up(past.tpr)} at FPR {past.fpr:g}",
        "-" if past.accuracy is None else f"{past.accuracy:.1%}",
        str(past.steps),
    )


def one_line(name: str) -> str:
    """Return a name without what would move a terminal's cursor or break a row."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name) or "unnamed"
