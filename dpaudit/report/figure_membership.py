"""What attackers can do at most and what they did: trade-off curve, ROC, canary scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from dpaudit.report.evidence import CanaryScores, RatePoint
from dpaudit.report.figure_svg import (
    BLUE,
    INK,
    VERMILION,
    Style,
    columns,
    inline_svg,
    legend_below,
    logarithmic,
    short_name,
    styles,
)
from dpaudit.report.findings import strongest
from dpaudit.vocabulary.audit import MembershipResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLAIM = "the claim, at most"
BESIDE = 0.012
"""How far to the right of one attack's mark that of the next is drawn: to see both."""


def tradeoff(curve: Sequence[RatePoint], attacks: Sequence[MembershipResult], *, label: str) -> str:
    """Draw what the claim lets an attacker do, and below it what attacks did.

    Of the strongest attack the whole band is drawn, of each the points with their intervals.
    """

    def draw(axes: Axes) -> None:
        _rates_axes(axes)
        _draw_limit(axes, curve)
        found = strongest(tuple(attacks))
        for place, (attack, style) in enumerate(zip(attacks, _attack_styles(), strict=False)):
            if attack.band and found is not None and attack is found[0]:
                fpr, lower, upper = zip(*attack.band, strict=True)
                axes.fill_between(fpr, lower, upper, color=style.colour, alpha=0.2, linewidth=0)
            _points(axes, attack, style, BESIDE * place)
        legend_below(axes)

    return inline_svg("tradeoff", label, draw, height=4.2)


def tradeoffs(runs: Sequence[tuple[str, Sequence[RatePoint]]], *, label: str) -> str:
    """Draw what the claims of several runs let an attacker do, each by its name."""

    def draw(axes: Axes) -> None:
        _rates_axes(axes)
        for (name, curve), style in zip(runs, styles(), strict=False):
            axes.plot(
                *_upper_ends(curve),
                color=style.colour,
                linestyle=style.line,
                label=f"{short_name(name)}, at most",
            )
        legend_below(axes)

    return inline_svg("tradeoff", label, draw, height=4.2)


def _rates_axes(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.6, linewidth=1, label="guessing blindly")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_title("true-positive rate")
    axes.set_xlabel("false-positive rate")


def _draw_limit(axes: Axes, curve: Sequence[RatePoint]) -> None:
    fpr, tpr = _upper_ends(curve)
    axes.plot(fpr, tpr, color=VERMILION, linewidth=1.8, label=CLAIM)
    # Beyond the line no attacker can be: hatched, in case colour is lost.
    axes.fill_between(
        fpr, tpr, 1.02, facecolor="none", edgecolor=VERMILION, alpha=0.35, hatch="///", linewidth=0
    )


def _upper_ends(curve: Sequence[RatePoint]) -> tuple[list[float], list[float]]:
    return columns([(point.fpr, point.tpr.upper) for point in curve])


def _attack_styles() -> list[Style]:
    """Return styles of attacks: none has the colour of the claim."""
    found = styles()
    return [style for style in (next(found) for _ in range(60)) if style.colour != VERMILION]


def _points(axes: Axes, attack: MembershipResult, style: Style, beside: float) -> None:
    for rate in attack.tpr_at_fpr:
        ends = (rate.interval.lower, rate.interval.upper)
        axes.plot([rate.fpr + beside] * 2, ends, color=style.colour, linewidth=1.5)
    rates = [(rate.fpr + beside, rate.tpr) for rate in attack.tpr_at_fpr]
    axes.plot(
        *columns(rates),
        color=style.colour,
        marker=style.marker,
        linestyle="none",
        label=short_name(attack.attack),
    )


def roc(
    attacks: Sequence[MembershipResult],
    curve: Sequence[RatePoint] = (),
    *,
    label: str,
    name: str = "roc",
) -> str:
    """Draw the ROC curves on two logarithmic axes, with exact intervals and the claim's limit."""
    # A rate of 0 has no place on a logarithmic axis: it is drawn at the edge, half of one
    # non-member, or one member, away from nothing.
    least_fpr = 1 / (2 * max(2, *(attack.nonmembers for attack in attacks)))
    least_tpr = 1 / (2 * max(2, *(attack.members for attack in attacks)))

    def draw(axes: Axes) -> None:
        edge = min(least_fpr, least_tpr)
        axes.plot([edge, 1], [edge, 1], color=INK, alpha=0.6, linewidth=1, label="guessing blindly")
        if curve:
            limit = [(max(p.fpr, least_fpr), max(p.tpr.upper, least_tpr)) for p in curve if p.fpr]
            axes.plot(*columns(limit), color=VERMILION, linewidth=1.8, label=CLAIM)
        for attack, style in zip(attacks, _attack_styles(), strict=False):
            points = [(max(fpr, least_fpr), max(tpr, least_tpr)) for fpr, tpr in attack.roc]
            axes.plot(
                *columns(points),
                color=style.colour,
                linestyle=style.line,
                drawstyle="steps-post",  # rates between two thresholds were not attained
                label=short_name(attack.attack),
            )
            _intervals(axes, attack, style, least_tpr)
        logarithmic(axes, "x")
        logarithmic(axes, "y")
        axes.set_xlim(least_fpr, 1)
        axes.set_ylim(least_tpr, 1.05)
        axes.set_title("true-positive rate")
        axes.set_xlabel("false-positive rate")
        legend_below(axes)

    return inline_svg(name, label, draw, height=3.9)


def _intervals(axes: Axes, attack: MembershipResult, style: Style, least: float) -> None:
    colour = style.colour
    for rate in attack.tpr_at_fpr:
        ends = (max(rate.interval.lower, least), max(rate.interval.upper, least))
        axes.plot([rate.fpr] * 2, ends, color=colour, linewidth=1.5, marker="_", markersize=8)
        axes.plot([rate.fpr], [max(rate.tpr, least)], color=colour, marker=style.marker)


def canary_scores(
    scores: CanaryScores,
    *,
    label: str,
    name: str = "canaries",
    span: tuple[float, float] | None = None,
) -> str:
    """Draw how included and left-out canaries scored, each as shares of its own number.

    Args:
        scores: In bins.
        label: What the picture shows, for those who do not see it.
        name: Begins the ids of its parts.
        span: The scores that the axis shows, to be as long as another's.
    """

    def draw(axes: Axes) -> None:
        for counts, colour, line, hatch, what in (
            (scores.left_out, BLUE, "-", None, "left out"),
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

    return inline_svg(name, label, draw, height=3.2)


def middle(edges: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Return the bin that half of the canaries score at or below; at least one is counted."""
    half = sum(counts) / 2
    place = next(i for i, upto in enumerate(accumulate(counts)) if upto >= half)
    return edges[place], edges[place + 1]
