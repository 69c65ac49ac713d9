"""Pictures of membership inference: the ROC on two logarithmic axes, and the scores."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpaudit.files.writing import PRIVATE, write_output
from dpaudit.vocabulary.audit import MembershipResult
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:  # pragma: no cover - needs an environment without matplotlib
    raise MissingExtra("matplotlib", "report") from error

Array = NDArray[np.float64]

# Two of the colours of Okabe & Ito, which colour-blind people tell apart; lines differ, too.
BLUE, VERMILION, GREY = "#0072b2", "#d55e00", "#9a9a9a"
BINS = 60
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")


def write_roc(attacks: Sequence[MembershipResult], path: Path) -> None:
    """Draw a panel an attack: its ROC, the band of its intervals, and the others behind it.

    Raises:
        InvalidArgument: not a .png, .svg or .pdf, or a place that cannot be written.
    """
    figure, panels = _panels(len(attacks))
    edges = (
        min(1 / (2 * attack.nonmembers) for attack in attacks),
        min(1 / (2 * attack.members) for attack in attacks),
    )
    for axes, attack in zip(panels, attacks, strict=False):
        _draw_roc(axes, attack, [other for other in attacks if other is not attack], edges)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    _save(figure, path)


def _draw_roc(
    axes: Axes,
    attack: MembershipResult,
    others: Sequence[MembershipResult],
    edges: tuple[float, float],
) -> None:
    axes.plot([min(edges), 1], [min(edges), 1], color="black", linewidth=0.8, linestyle=":")
    axes.lines[0].set_label("guessing blindly")
    for place, other in enumerate(others):
        label = "the other attacks" if place == 0 else None
        axes.step(*_curve(other, edges), where="post", color=GREY, linewidth=0.6, label=label)
    if attack.band:
        fpr, lower, upper = np.array(attack.band).T
        ends = np.maximum(lower, edges[1]), np.maximum(upper, edges[1])
        label = "intervals, each by itself"
        axes.fill_between(fpr, *ends, color=BLUE, alpha=0.25, linewidth=0, label=label)
    axes.step(*_curve(attack, edges), where="post", color=BLUE, linewidth=1.6, label="this attack")
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(edges[0], 1),
        ylim=(edges[1], 1.1),
        xlabel="false-positive rate",
        ylabel="true-positive rate",
        title=f"{attack.attack}, AUC {attack.auc:.3f}",
    )
    axes.grid(which="major", alpha=0.3)


def _curve(attack: MembershipResult, edges: tuple[float, float]) -> tuple[Array, Array]:
    """Return the rates; one of 0 has no place on a logarithmic axis, and is drawn at the edge."""
    fpr, tpr = np.array(attack.roc).T
    return np.maximum(fpr, edges[0]), np.maximum(tpr, edges[1])


def write_histograms(scores: Mapping[str, tuple[Array, Array]], path: Path) -> None:
    """Draw the scores of members and of non-members, a panel an attack.

    Args:
        scores: Of members and of non-members, by attack.
        path: A .png, .svg or .pdf.

    Raises:
        InvalidArgument: another suffix, or a place that cannot be written.
    """
    figure, panels = _panels(len(scores))
    for axes, (name, (members, nonmembers)) in zip(panels, scores.items(), strict=False):
        _draw_histogram(axes, name, members, nonmembers)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    _save(figure, path)


def _draw_histogram(axes: Axes, name: str, members: Array, nonmembers: Array) -> None:
    # A few far scores would squeeze all others into one bin: they go into the last ones.
    both = np.concatenate([members, nonmembers])
    least, greatest = np.quantile(both, (0.001, 0.999))
    if not greatest > least:
        least, greatest = both[0] - 0.5, both[0] + 0.5
    edges = np.linspace(least, greatest, BINS + 1).tolist()
    for values, colour, line, label in (
        (nonmembers, BLUE, "-", "non-members"),
        (members, VERMILION, "--", "members"),
    ):
        weights = np.full(len(values), 1 / len(values))
        inside = np.clip(values, least, greatest)
        axes.hist(inside, edges, weights=weights, color=colour, alpha=0.35, label=label)
        axes.hist(inside, edges, weights=weights, color=colour, histtype="step", linestyle=line)
    axes.set(title=name, xlabel="score (larger: member)", ylabel="share of records")


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` panels in rows of three."""
    columns = min(3, count)
    rows = -(-count // columns)
    size = (max(5.0, 3.4 * columns), 2.8 * rows + 0.8)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def require_figure(name: str, path: Path) -> None:
    """Refuse a file that is no picture."""
    if path.suffix not in FIGURE_SUFFIXES:
        allowed = f"a file of kind {', '.join(FIGURE_SUFFIXES)}"
        raise InvalidArgument(name, str(path), allowed)


def _save(figure: Figure, path: Path) -> None:
    require_figure("plot", path)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.removeprefix("."))
    write_output(path, drawn.getvalue(), PRIVATE, "plot")
