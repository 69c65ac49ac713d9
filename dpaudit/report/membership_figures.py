"""Figures of membership inference: trade-off curve, ROC curves, canary scores."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpaudit.files.regular_files import PRIVATE, write_output
from dpaudit.report.evidence import CanaryScoreHistogram, TradeoffPoint, strongest_attack
from dpaudit.report.svg_figure import (
    BLUE,
    INK,
    VERMILION,
    LineStyle,
    coordinates,
    inline_svg,
    legend_below,
    line_styles,
    logarithmic_axis,
    short_name,
)
from dpaudit.vocabulary.audit import MembershipResult
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:  # pragma: no cover - needs an environment without matplotlib
    raise MissingExtra("matplotlib", "report") from error


CLAIM_LABEL = "claim, upper bound"
RANDOM_GUESSING = "random guessing"
MARKER_OFFSET = 0.012
"""Horizontal distance between the marks of two attacks at the same false-positive rate."""


def draw_tradeoff(
    curve: Sequence[TradeoffPoint], attacks: Sequence[MembershipResult], *, label: str
) -> str:
    """Draw the trade-off curve of a claim and the measured rates of attacks.

    Args:
        curve: Points of the trade-off curve, by rising false-positive rate.
        attacks: Drawn as points with their intervals, the strongest one with its band.
        label: Text alternative of the figure.

    Returns:
        One ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        _rates_axes(axes)
        _draw_limit(axes, curve)
        found = strongest_attack(tuple(attacks))
        for place, (attack, style) in enumerate(zip(attacks, _attack_styles(), strict=False)):
            if attack.band and found is not None and attack is found[0]:
                fpr, lower, upper = zip(*attack.band, strict=True)
                axes.fill_between(fpr, lower, upper, color=style.colour, alpha=0.2, linewidth=0)
            _draw_points(axes, attack, style, MARKER_OFFSET * place)
        legend_below(axes)

    return inline_svg("tradeoff", label, draw, height=3.2)


def draw_tradeoffs(runs: Sequence[tuple[str, Sequence[TradeoffPoint]]], *, label: str) -> str:
    """Draw the trade-off curves of several claims in one figure.

    Args:
        runs: Name of each run, and the points of its curve by rising false-positive rate.
        label: Text alternative of the figure.

    Returns:
        One ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        _rates_axes(axes)
        for (name, curve), style in zip(runs, line_styles(), strict=False):
            axes.plot(
                *_upper_ends(curve),
                color=style.colour,
                linestyle=style.line,
                label=f"{short_name(name)}, upper bound",
            )
        legend_below(axes)

    return inline_svg("tradeoff", label, draw, height=3.2)


def _rates_axes(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.6, linewidth=1, label=RANDOM_GUESSING)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_title("true-positive rate")
    axes.set_xlabel("false-positive rate")


def _draw_limit(axes: Axes, curve: Sequence[TradeoffPoint]) -> None:
    """Draw the claim's upper bound on the true-positive rate, and hatch the area above it."""
    fpr, tpr = _upper_ends(curve)
    axes.plot(fpr, tpr, color=VERMILION, linewidth=1.8, label=CLAIM_LABEL)
    # No attacker exceeds the line. The area is hatched, so that colour is not needed.
    axes.fill_between(
        fpr, tpr, 1.02, facecolor="none", edgecolor=VERMILION, alpha=0.35, hatch="///", linewidth=0
    )


def _upper_ends(curve: Sequence[TradeoffPoint]) -> tuple[list[float], list[float]]:
    return coordinates([(point.fpr, point.tpr.upper) for point in curve])


def _attack_styles() -> list[LineStyle]:
    """Return line styles for attacks, without the colour of the claim."""
    found = line_styles()
    return [style for style in (next(found) for _ in range(60)) if style.colour != VERMILION]


def _draw_points(axes: Axes, attack: MembershipResult, style: LineStyle, beside: float) -> None:
    """Draw the measured rates and their intervals, moved by ``beside`` along the FPR axis."""
    for rate in attack.tpr_at_fpr:
        ends = (rate.interval.lower, rate.interval.upper)
        axes.plot([rate.fpr + beside] * 2, ends, color=style.colour, linewidth=1.5)
    rates = [(rate.fpr + beside, rate.tpr) for rate in attack.tpr_at_fpr]
    axes.plot(
        *coordinates(rates),
        color=style.colour,
        marker=style.marker,
        linestyle="none",
        label=short_name(attack.attack),
    )


def draw_roc(
    attacks: Sequence[MembershipResult],
    curve: Sequence[TradeoffPoint] = (),
    *,
    label: str,
    name: str = "roc",
) -> str:
    """Draw ROC curves on two logarithmic axes, with intervals and the claim's upper bound.

    Args:
        attacks: At least one.
        curve: Points of the claim's trade-off curve; not drawn if empty.
        label: Text alternative of the figure.
        name: Prefix of the ids in the figure.

    Returns:
        One ``<svg>`` element.
    """
    # A rate of 0 has no place on a logarithmic axis. It is drawn at the edge: at the rate of
    # half a non-member, or of half a member.
    least_fpr = 1 / (2 * max(2, *(attack.nonmembers for attack in attacks)))
    least_tpr = 1 / (2 * max(2, *(attack.members for attack in attacks)))

    def draw(axes: Axes) -> None:
        edge = min(least_fpr, least_tpr)
        axes.plot([edge, 1], [edge, 1], color=INK, alpha=0.6, linewidth=1, label=RANDOM_GUESSING)
        if curve:
            limit = [(max(p.fpr, least_fpr), max(p.tpr.upper, least_tpr)) for p in curve if p.fpr]
            axes.plot(*coordinates(limit), color=VERMILION, linewidth=1.8, label=CLAIM_LABEL)
        for attack, style in zip(attacks, _attack_styles(), strict=False):
            points = [(max(fpr, least_fpr), max(tpr, least_tpr)) for fpr, tpr in attack.roc]
            axes.plot(
                *coordinates(points),
                color=style.colour,
                linestyle=style.line,
                drawstyle="steps-post",  # rates between two thresholds were not attained
                label=short_name(attack.attack),
            )
            _draw_intervals(axes, attack, style, least_tpr)
        logarithmic_axis(axes, "x")
        logarithmic_axis(axes, "y")
        axes.set_xlim(least_fpr, 1)
        axes.set_ylim(least_tpr, 1.05)
        axes.set_title("true-positive rate")
        axes.set_xlabel("false-positive rate")
        legend_below(axes)

    return inline_svg(name, label, draw, height=3.2)


def _draw_intervals(axes: Axes, attack: MembershipResult, style: LineStyle, least: float) -> None:
    colour = style.colour
    for rate in attack.tpr_at_fpr:
        ends = (max(rate.interval.lower, least), max(rate.interval.upper, least))
        axes.plot([rate.fpr] * 2, ends, color=colour, linewidth=1.5, marker="_", markersize=8)
        axes.plot([rate.fpr], [max(rate.tpr, least)], color=colour, marker=style.marker)


def draw_canary_scores(
    scores: CanaryScoreHistogram,
    *,
    label: str,
    name: str = "canaries",
    span: tuple[float, float] | None = None,
) -> str:
    """Draw histograms of the scores of included and of excluded canaries.

    Args:
        scores: Counts in bins; each histogram shows shares of its own total.
        label: Text alternative of the figure.
        name: Prefix of the ids in the figure.
        span: Least and greatest score on the axis; None for those of the bins.

    Returns:
        One ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        for counts, colour, line, hatch, what in (
            (scores.left_out, BLUE, "-", None, "not included"),
            (scores.included, VERMILION, "--", "///", "included"),
        ):
            total = sum(counts)
            shares = [count / total if total else 0.0 for count in counts]
            axes.stairs(shares, scores.edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(
                shares,
                scores.edges,
                color=colour,
                linestyle=line,
                linewidth=1.4,
                hatch=hatch,
                label=f"{what} ({total})",
            )
        axes.set_ylim(bottom=0)
        if span is not None:
            axes.set_xlim(*span)
        axes.set_title("share of canaries")
        axes.set_xlabel("score (larger: more likely included)")
        legend_below(axes)

    return inline_svg(name, label, draw, height=3.0)


def median_bin(edges: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Find the bin that holds the median score.

    Args:
        edges: Edges of the bins, rising, one more than there are bins.
        counts: Canaries per bin; at least one in total.

    Returns:
        Lower and upper edge of the bin.
    """
    half = sum(counts) / 2
    place = next(i for i, upto in enumerate(accumulate(counts)) if upto >= half)
    return edges[place], edges[place + 1]


# Plots as files: ROC curves on logarithmic axes, and histograms of scores.


Array = NDArray[np.float64]

# Two colours of Okabe and Ito, chosen to be safe for colour-blind readers; lines differ, too.
PLOT_BLUE, PLOT_VERMILION, PLOT_GREY = "#0072b2", "#d55e00", "#9a9a9a"
HISTOGRAM_BINS = 60
PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def write_roc_plot(attacks: Sequence[MembershipResult], path: Path) -> None:
    """Write a plot with one panel per attack: its ROC curve, its intervals, the others in grey.

    Args:
        attacks: At least one.
        path: A .png, .svg or .pdf file to write.

    Raises:
        InvalidArgument: If the suffix is another one, or if the file cannot be written.
    """
    figure, panels = _panels(len(attacks))
    edges = (
        min(1 / (2 * attack.nonmembers) for attack in attacks),
        min(1 / (2 * attack.members) for attack in attacks),
    )
    for axes, attack in zip(panels, attacks, strict=False):
        _plot_roc(axes, attack, [other for other in attacks if other is not attack], edges)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    _save(figure, path)


def _plot_roc(
    axes: Axes,
    attack: MembershipResult,
    others: Sequence[MembershipResult],
    edges: tuple[float, float],
) -> None:
    """Draw one panel; ``edges`` are the smallest false-positive and true-positive rate shown."""
    axes.plot([min(edges), 1], [min(edges), 1], color="black", linewidth=0.8, linestyle=":")
    axes.lines[0].set_label("random guessing")
    for place, other in enumerate(others):
        label = "the other attacks" if place == 0 else None
        axes.step(
            *_visible_rates(other, edges), where="post", color=PLOT_GREY, linewidth=0.6, label=label
        )
    if attack.band:
        fpr, lower, upper = np.array(attack.band).T
        ends = np.maximum(lower, edges[1]), np.maximum(upper, edges[1])
        label = "intervals"
        axes.fill_between(fpr, *ends, color=PLOT_BLUE, alpha=0.25, linewidth=0, label=label)
    axes.step(
        *_visible_rates(attack, edges),
        where="post",
        color=PLOT_BLUE,
        linewidth=1.6,
        label="this attack",
    )
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


def _visible_rates(attack: MembershipResult, edges: tuple[float, float]) -> tuple[Array, Array]:
    """Return the ROC curve's rates, raised to ``edges``: a logarithmic axis has no 0."""
    fpr, tpr = np.array(attack.roc).T
    return np.maximum(fpr, edges[0]), np.maximum(tpr, edges[1])


def write_score_histograms(scores: Mapping[str, tuple[Array, Array]], path: Path) -> None:
    """Write a plot of the scores of members and non-members, one panel per attack.

    Args:
        scores: Scores of members, shape ``(members,)``, and of non-members, by attack.
        path: A .png, .svg or .pdf file to write.

    Raises:
        InvalidArgument: If the suffix is another one, or if the file cannot be written.
    """
    figure, panels = _panels(len(scores))
    for axes, (name, (members, nonmembers)) in zip(panels, scores.items(), strict=False):
        _plot_histogram(axes, name, members, nonmembers)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    _save(figure, path)


def _plot_histogram(axes: Axes, name: str, members: Array, nonmembers: Array) -> None:
    # Outliers would squeeze all other scores into one bin, so the outer bins count them.
    both = np.concatenate([members, nonmembers])
    least, greatest = np.quantile(both, (0.001, 0.999))
    if not greatest > least:
        least, greatest = both[0] - 0.5, both[0] + 0.5
    edges = np.linspace(least, greatest, HISTOGRAM_BINS + 1).tolist()
    for values, colour, line, label in (
        (nonmembers, PLOT_BLUE, "-", "non-members"),
        (members, PLOT_VERMILION, "--", "members"),
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


def require_plot_suffix(name: str, path: Path) -> None:
    """Check that a plot can be written in the format of a file's suffix.

    Args:
        name: Argument that gave the path, for the error.
        path: The file to write.

    Raises:
        InvalidArgument: If the suffix is none of ``PLOT_SUFFIXES``.
    """
    if path.suffix not in PLOT_SUFFIXES:
        allowed = f"a file of kind {', '.join(PLOT_SUFFIXES)}"
        raise InvalidArgument(name, str(path), allowed)


def _save(figure: Figure, path: Path) -> None:
    require_plot_suffix("plot", path)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.removeprefix("."))
    write_output(path, drawn.getvalue(), PRIVATE, "plot")
