"""How results show themselves in a notebook: tables in HTML, and figures by matplotlib.

Every text is escaped: names and paths in a ledger are data of someone else. The tables have no
script, style sheet or link. matplotlib is the extra ``report``; it is imported by ``plot`` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from textwrap import fill, shorten
from typing import TYPE_CHECKING, Any

from dpaudit.vocabulary.errors import MissingExtra
from dpaudit.vocabulary.rounding import round_down, round_up

if TYPE_CHECKING:
    from dpaudit.vocabulary.privacy_terms import Bound

MOST_ROWS = 50
"""Rows of a table; a note tells how many more there are."""

MOST_LABELS = 6
"""Entries of a legend that are named, before one for all others."""
LABEL_LINE, LABEL_LENGTH = 48, 140
"""Characters of a line of a label, and of a label."""


def legend_label(text: str) -> str:
    """Return a label that leaves room for the figure, and that matplotlib shows as it is.

    Args:
        text: The label.

    Returns:
        Lines of at most 48 characters, 140 in all. A dollar sign would start a formula.
    """
    return fill(shorten(text, LABEL_LENGTH, placeholder=" ..."), LABEL_LINE).replace("$", r"\$")


def bound_in_words(bound: Bound) -> str:
    """Return an interval with the lower end rounded down and the upper end rounded up.

    Args:
        bound: The interval.

    Returns:
        Text such as ``1.828 to 1.829``.
    """
    return f"{round_down(bound.lower) if bound.lower > 0 else '0'} to {round_up(bound.upper)}"


def table_html(
    title: str, rows: Iterable[tuple[object, ...]], heading: tuple[str, ...] = ()
) -> str:
    """Return a table in HTML.

    Args:
        title: The caption.
        rows: The cells of each row; texts are escaped.
        heading: Names of the columns; none where the first cell of each row is its name.

    Returns:
        A ``table`` element.
    """
    listed = [tuple(row) for row in rows]
    parts = [f"<table><caption>{escape(title)}</caption>"]
    if heading:
        cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in heading)
        parts.append(f"<thead><tr>{cells}</tr></thead>")
    parts.append("<tbody>")
    for name, *cells_of_row in listed[:MOST_ROWS]:
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells_of_row)
        parts.append(f'<tr><th scope="row">{escape(str(name))}</th>{cells}</tr>')
    parts.append("</tbody>")
    if len(listed) > MOST_ROWS:
        parts.append(f"<tfoot><tr><td>{len(listed) - MOST_ROWS} more rows</td></tr></tfoot>")
    return "".join([*parts, "</table>"])


def axes_or_new(axes: Any = None) -> Any:
    """Return axes to draw on.

    Args:
        axes: Axes of matplotlib; None: those of a new figure.

    Returns:
        The axes.

    Raises:
        MissingExtra: If matplotlib is not installed.
    """
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot  # noqa: PLC0415  an extra
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    return pyplot.subplots()[1]


def plot_tradeoff(axes: Any, fpr: Sequence[float], tpr: Sequence[Bound]) -> Any:
    """Draw intervals of the true positive rate over the false positive rate.

    Args:
        axes: Axes of matplotlib; None: those of a new figure.
        fpr: False positive rates, rising.
        tpr: The intervals, one per rate.

    Returns:
        The axes.

    Raises:
        MissingExtra: If matplotlib is not installed.
    """
    axes = axes_or_new(axes)
    lower, upper = [one.lower for one in tpr], [one.upper for one in tpr]
    axes.fill_between(fpr, lower, upper, alpha=0.3, label="certified interval")
    axes.plot(fpr, upper, marker=".", label="no attacker is above")
    axes.plot([0, 1], [0, 1], linestyle=":", color="gray", label="guessing")
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.legend()
    return axes


def plot_intervals(axes: Any, intervals: Mapping[str, Bound], label: str) -> Any:
    """Draw one horizontal interval per name.

    Args:
        axes: Axes of matplotlib; None: those of a new figure.
        intervals: The intervals by their names.
        label: Name of the axis of values.

    Returns:
        The axes.

    Raises:
        MissingExtra: If matplotlib is not installed.
    """
    axes = axes_or_new(axes)
    # A dollar sign would start a formula.
    names = [name.replace("$", r"\$") for name in intervals]
    widths = [one.upper - one.lower for one in intervals.values()]
    axes.barh(names, widths, left=[one.lower for one in intervals.values()], alpha=0.5)
    axes.plot([one.upper for one in intervals.values()], names, "|", color="black")
    axes.set_xlabel(label)
    axes.invert_yaxis()
    return axes
