"""The course of many runs as one picture: what was claimed, measured and said of each."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpaudit.files.writing import PRIVATE, write_output
from dpaudit.report.history_text import one_line
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra
from dpaudit.vocabulary.history import PastRun
from dpaudit.vocabulary.verdict import Outcome

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as error:  # pragma: no cover - needs an environment without matplotlib
    raise MissingExtra("matplotlib", "report") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, BLUE, VERMILION, GREEN, PURPLE = "#222222", "#2f7fc1", "#d55e00", "#009e73", "#b565a7"

# Colour and shape change together: the picture reads without colours, too.
OUTCOMES = {
    Outcome.HOLDS: (GREEN, "o"),
    Outcome.VIOLATED: (VERMILION, "X"),
    Outcome.INCONCLUSIVE: (PURPLE, "D"),
}
SUFFIXES = (".svg", ".png")
MOST_NAMES = 24
LONGEST_NAME = 20
SETTINGS: dict[Any, object] = {  # Any: matplotlib types each key as a literal of its own
    "svg.fonttype": "none",
    "svg.hashsalt": "dpaudit-history",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def write_history(runs: Sequence[PastRun], path: Path) -> None:
    """Draw claims, lower bounds and attack rates over the runs, in the order of ``runs``.

    Raises:
        InvalidArgument: there is no run, another suffix than .svg or .png, or a place that
            cannot be written.
    """
    require_picture(path)
    if not runs:
        raise InvalidArgument("plot", "no verdict", "for a history with a verdict at least")
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # whatever the user's own matplotlibrc says
        mpl.rcParams.update(SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph")  # names in other scripts
        figure = _drawn(runs)
        drawn = io.BytesIO()
        figure.savefig(
            drawn, dpi=150, metadata=_timeless(path), format=path.suffix.removeprefix(".")
        )
        write_output(path, drawn.getvalue(), PRIVATE, "plot")


def require_picture(path: Path) -> None:
    """Refuse a file that is no picture of a known kind."""
    if path.suffix not in SUFFIXES:
        raise InvalidArgument("plot", str(path), f"a file of kind {' or '.join(SUFFIXES)}")


def _drawn(runs: Sequence[PastRun]) -> Figure:
    panels: list[Callable[[Axes, Sequence[PastRun]], None]] = [_draw_epsilon]
    if any(past.tpr is not None for past in runs):
        panels.append(_draw_rates)
    width = min(16.0, max(6.0, 1.5 + 0.45 * len(runs)))
    figure = Figure(figsize=(width, 1.6 + 2.6 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, draw in zip(rows, panels, strict=True):
        draw(axes, runs)
        axes.set_ylim(bottom=0)
    _name_runs(rows[-1], runs)
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3)
    return figure


def _draw_epsilon(axes: Axes, runs: Sequence[PastRun]) -> None:
    upper = [past.epsilon_upper for past in runs]
    axes.plot(range(len(runs)), upper, color=BLUE, label="epsilon claimed, at most")
    places, lower = _present([past.epsilon_lower for past in runs])
    if lower:
        label = "epsilon measured, at least"
        axes.plot(places, lower, color=INK, linestyle="--", marker="^", label=label)
    _mark_outcomes(axes, upper, runs)
    axes.set_title(f"epsilon {_each_at('delta', {past.delta for past in runs})}")


def _draw_rates(axes: Axes, runs: Sequence[PastRun]) -> None:
    places, rates = _present([past.tpr for past in runs])
    axes.plot(places, rates, color=INK, linestyle=":")
    _mark_outcomes(axes, rates, [runs[place] for place in places], places)
    fprs = {past.fpr for past in runs if past.fpr is not None}
    axes.set_title(f"strongest attack's true-positive rate, at most, {_each_at('FPR', fprs)}")


def _mark_outcomes(
    axes: Axes,
    heights: Sequence[float],
    runs: Sequence[PastRun],
    places: Sequence[int] | None = None,
) -> None:
    """Mark each run by what was said of it; an outcome that none has is not in the legend."""
    where = range(len(runs)) if places is None else places
    for outcome, (colour, marker) in OUTCOMES.items():
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
                markeredgecolor=INK,
                label=outcome.value,
            )


def _present(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    return [place for place, _ in known], [value for _, value in known]


def _each_at(name: str, values: set[float]) -> str:
    """Return "at delta 1e-05", or that the runs differ in it: then their figures do not compare."""
    if len(values) == 1:
        return f"at {name} {next(iter(values)):g}"
    return f"(the runs differ in {name}: these figures do not compare)"


def _name_runs(axes: Axes, runs: Sequence[PastRun]) -> None:
    every = -(-len(runs) // MOST_NAMES)
    shown = range(0, len(runs), every)
    axes.set_xticks(shown, [_name(runs[place]) for place in shown], rotation=45, ha="right")
    axes.set_xlim(-0.5, len(runs) - 0.5)


def _name(past: PastRun) -> str:
    name = one_line(past.run)
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return f"{short}\n{past.judged.astimezone(UTC):%Y-%m-%d}"


def _timeless(path: Path) -> dict[str, None]:
    """Return metadata without the time of drawing: the same history is the same file."""
    return {"Date": None} if path.suffix == ".svg" else {}
