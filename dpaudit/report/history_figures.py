"""Figures of past runs: claimed upper bound, measured lower bound and verdict of each."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.files.regular_files import PRIVATE, write_output
from dpaudit.report.svg_figure import (
    BLUE,
    inline_svg,
    integer_ticks,
    legend_below,
)
from dpaudit.report.text import printable_name
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra
from dpaudit.vocabulary.verdict import Outcome, PastRun

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as error:  # pragma: no cover - needs an environment without matplotlib
    raise MissingExtra("matplotlib", "report") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TEXT_COLOUR, CLAIM_COLOUR, FAIL_COLOUR, PASS_COLOUR, INCONCLUSIVE_COLOUR = (
    "#222222",
    "#2f7fc1",
    "#d55e00",
    "#009e73",
    "#b565a7",
)

# Colour and shape change together, so the figure can be read without colours.
OUTCOME_MARKERS = {
    Outcome.PASS: (PASS_COLOUR, "o"),
    Outcome.FAIL: (FAIL_COLOUR, "X"),
    Outcome.INCONCLUSIVE: (INCONCLUSIVE_COLOUR, "D"),
}
HISTORY_PLOT_SUFFIXES = (".svg", ".png")
MAX_RUN_LABELS = 24
MAX_RUN_LABEL_LENGTH = 20
HISTORY_STYLE: dict[Any, object] = {  # Any: matplotlib types each key as a literal of its own
    "svg.fonttype": "none",
    "svg.hashsalt": "dpaudit-history",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.edgecolor": TEXT_COLOUR,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def write_history_plot(runs: Sequence[PastRun], path: Path) -> None:
    """Write a plot of claims, lower bounds and attack rates over the runs.

    Args:
        runs: Past verdicts, in the order of the horizontal axis.
        path: A .svg or .png file to write.

    Raises:
        InvalidArgument: If there is no run, if the suffix is another one, or if the file
            cannot be written.
    """
    require_history_plot_suffix(path)
    if not runs:
        raise InvalidArgument("plot", "no verdict", "for a history with a verdict at least")
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # ignore the user's matplotlibrc
        mpl.rcParams.update(HISTORY_STYLE)
        warnings.filterwarnings("ignore", message="Glyph")  # names in other scripts
        figure = _history_figure(runs)
        drawn = io.BytesIO()
        figure.savefig(
            drawn,
            dpi=150,
            metadata=_metadata_without_date(path),
            format=path.suffix.removeprefix("."),
        )
        write_output(path, drawn.getvalue(), PRIVATE, "plot")


def require_history_plot_suffix(path: Path) -> None:
    """Check that a history plot can be written in the format of a file's suffix.

    Args:
        path: The file to write.

    Raises:
        InvalidArgument: If the suffix is none of ``HISTORY_PLOT_SUFFIXES``.
    """
    if path.suffix not in HISTORY_PLOT_SUFFIXES:
        raise InvalidArgument(
            "plot", str(path), f"a file of kind {' or '.join(HISTORY_PLOT_SUFFIXES)}"
        )


def _history_figure(runs: Sequence[PastRun]) -> Figure:
    """Draw a panel of epsilon and, where any rate was measured, a panel of rates below it."""
    panels: list[Callable[[Axes, Sequence[PastRun]], None]] = [_draw_epsilon]
    if any(past.tpr is not None for past in runs):
        panels.append(_draw_rates)
    width = min(16.0, max(6.0, 1.5 + 0.45 * len(runs)))
    figure = Figure(figsize=(width, 1.6 + 2.6 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, draw in zip(rows, panels, strict=True):
        draw(axes, runs)
        axes.set_ylim(bottom=0)
    _label_runs(rows[-1], runs)
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3)
    return figure


def _draw_epsilon(axes: Axes, runs: Sequence[PastRun]) -> None:
    upper = [past.epsilon_upper for past in runs]
    axes.plot(range(len(runs)), upper, color=CLAIM_COLOUR, label="claimed upper bound")
    places, lower = _known_values([past.epsilon_lower for past in runs])
    if lower:
        label = "measured lower bound"
        axes.plot(places, lower, color=TEXT_COLOUR, linestyle="--", marker="^", label=label)
    _mark_outcomes(axes, upper, runs)
    axes.set_title(f"epsilon {_common_value_in_words('delta', {past.delta for past in runs})}")


def _draw_rates(axes: Axes, runs: Sequence[PastRun]) -> None:
    places, rates = _known_values([past.tpr for past in runs])
    axes.plot(places, rates, color=TEXT_COLOUR, linestyle=":")
    _mark_outcomes(axes, rates, [runs[place] for place in places], places)
    fprs = {past.fpr for past in runs if past.fpr is not None}
    at = _common_value_in_words("FPR", fprs)
    axes.set_title(f"true-positive rate of the strongest attack, upper bound, {at}")


def _mark_outcomes(
    axes: Axes,
    heights: Sequence[float],
    runs: Sequence[PastRun],
    places: Sequence[int] | None = None,
) -> None:
    """Mark each run by its outcome; the legend has only outcomes that occur."""
    where = range(len(runs)) if places is None else places
    for outcome, (colour, marker) in OUTCOME_MARKERS.items():
        those = [number for number, past in enumerate(runs) if past.outcome is outcome]
        if those:
            x, y = [where[n] for n in those], [heights[n] for n in those]
            axes.plot(
                x,
                y,
                color=colour,
                linestyle="none",
                marker=marker,
                markersize=8,
                markeredgecolor=TEXT_COLOUR,
                label=outcome.value,
            )


def _known_values(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    """Return the positions and values of the entries that are not None."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    return [place for place, _ in known], [value for _, value in known]


def _common_value_in_words(name: str, values: set[float]) -> str:
    """Return text such as "at delta 1e-05", or a note that the runs differ in it."""
    if len(values) == 1:
        return f"at {name} {next(iter(values)):g}"
    return f"(the runs differ in {name}: these figures do not compare)"


def _label_runs(axes: Axes, runs: Sequence[PastRun]) -> None:
    """Label every run, or every k-th where there are more than ``MAX_RUN_LABELS``."""
    every = -(-len(runs) // MAX_RUN_LABELS)
    shown = range(0, len(runs), every)
    axes.set_xticks(shown, [_run_label(runs[place]) for place in shown], rotation=45, ha="right")
    axes.set_xlim(-0.5, len(runs) - 0.5)


def _run_label(past: PastRun) -> str:
    name = printable_name(past.run)
    short = name if len(name) <= MAX_RUN_LABEL_LENGTH else name[: MAX_RUN_LABEL_LENGTH - 1] + "…"
    return f"{short}\n{past.judged.astimezone(UTC):%Y-%m-%d}"


def _metadata_without_date(path: Path) -> dict[str, None]:
    """Return metadata without a time, so that the same history gives the same file."""
    return {"Date": None} if path.suffix == ".svg" else {}


# The same history as a figure of a report.


def draw_past_runs(history: Sequence[PastRun], *, label: str) -> str:
    """Draw the claimed upper bound and the measured lower bound of each run.

    Args:
        history: Past verdicts, the oldest first; the marker shows the outcome.
        label: Text alternative of the figure.

    Returns:
        One ``<svg>`` element.
    """
    numbers = range(1, len(history) + 1)

    def draw(axes: Axes) -> None:
        claimed = [past.epsilon_upper for past in history]
        axes.plot(numbers, claimed, color=BLUE, linewidth=1.2, label="claimed upper bound")
        for outcome, (colour, marker) in OUTCOME_MARKERS.items():
            of_it = [
                pair for pair in zip(numbers, history, strict=True) if pair[1].outcome is outcome
            ]
            if of_it:
                axes.plot(
                    [number for number, _ in of_it],
                    [past.epsilon_upper for _, past in of_it],
                    color=colour,
                    marker=marker,
                    markersize=7,
                    linestyle="none",
                    label=outcome.value,
                )
        _draw_lower_bounds(axes, history)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0.5, len(history) + 0.5)
        integer_ticks(axes)
        axes.set_title("epsilon")
        axes.set_xlabel("verdict number, the oldest first")
        legend_below(axes)

    return inline_svg("history", label, draw, height=3.4)


def _draw_lower_bounds(axes: Axes, history: Sequence[PastRun]) -> None:
    found = [
        (number, past.epsilon_lower)
        for number, past in enumerate(history, 1)
        if past.epsilon_lower is not None
    ]
    if found:
        axes.plot(
            [number for number, _ in found],
            [lower for _, lower in found],
            color=BLUE,
            marker="^",
            linestyle=":",
            label="measured lower bound",
        )
