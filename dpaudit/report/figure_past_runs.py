"""The course of past runs: what each claimed, what audits found below, what the gate said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dpaudit.report.figure_svg import (
    BLUE,
    inline_svg,
    legend_below,
    whole_numbers,
)
from dpaudit.report.history_figure import OUTCOMES
from dpaudit.vocabulary.history import PastRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def past_runs(history: Sequence[PastRun], *, label: str) -> str:
    """Draw claimed epsilon and lower bound of each run in order, its outcome as the marker."""
    numbers = range(1, len(history) + 1)

    def draw(axes: Axes) -> None:
        claimed = [past.epsilon_upper for past in history]
        axes.plot(numbers, claimed, color=BLUE, linewidth=1.2, label="claimed, at most")
        for outcome, (colour, marker) in OUTCOMES.items():
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
        _lower_bounds(axes, history)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0.5, len(history) + 0.5)
        whole_numbers(axes)
        axes.set_title("epsilon")
        axes.set_xlabel("verdict, the oldest first")
        legend_below(axes)

    return inline_svg("history", label, draw, height=3.4)


def _lower_bounds(axes: Axes, history: Sequence[PastRun]) -> None:
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
            label="measured, at least",
        )
