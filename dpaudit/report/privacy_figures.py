"""Figures of epsilon: against steps, against delta (the privacy profile), and lower bounds.

Every function takes ``label``, the text alternative of the figure, and returns one ``<svg>``
element. Axes and text are drawn in ``currentColor``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dpaudit.report.evidence import EpsilonCurve, ParticipantEpsilon, ProfilePoint
from dpaudit.report.svg_figure import (
    BLUE,
    GREEN,
    PURPLE,
    VERMILION,
    LineStyle,
    coordinates,
    inline_svg,
    integer_ticks,
    legend_below,
    line_styles,
    logarithmic_axis,
    short_name,
)
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.claim import Claim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND_STYLES = {
    BoundKind.CERTIFIED: LineStyle(GREEN, "-", "o"),
    BoundKind.CONDITIONAL: LineStyle(BLUE, "--", "D"),
    BoundKind.ESTIMATE: LineStyle(PURPLE, ":", "x"),
}


def draw_epsilon_over_steps(curves: Sequence[EpsilonCurve], *, label: str) -> str:
    """Draw upper bounds on epsilon against steps, one curve per accountant.

    Args:
        curves: One per accountant; where they differ tenfold, the vertical axis is logarithmic.
        label: Text alternative of the figure.

    Returns:
        One ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        for curve, style in zip(curves, line_styles(), strict=False):
            points = [
                pair
                for pair in zip(curve.steps, curve.epsilon, strict=True)
                if 0 < pair[1] < math.inf
            ]
            axes.plot(
                *coordinates(points),
                color=style.colour,
                linestyle=style.line,
                marker=style.marker,
                markevery=max(1, len(points) // 8),
                label=short_name(curve.accountant),
            )
        if differ_tenfold(curves):
            logarithmic_axis(axes, "y")
        else:
            axes.set_ylim(bottom=0)
        integer_ticks(axes)
        axes.set_title("upper bound on epsilon")
        axes.set_xlabel("steps")
        legend_below(axes)

    return inline_svg("steps", label, draw, height=2.9)


def differ_tenfold(curves: Iterable[EpsilonCurve]) -> bool:
    """Return whether the curves' largest finite values differ by more than a factor of 10."""
    heights = [max((e for e in curve.epsilon if 0 < e < math.inf), default=0) for curve in curves]
    known = [height for height in heights if height]
    return bool(known) and max(known) > 10 * min(known)


def draw_participant_epsilons(
    participants: Sequence[ParticipantEpsilon], claim: Claim, *, label: str
) -> str:
    """Draw the upper bound on epsilon of each participant of a federation, and the claim.

    Args:
        participants: Results by ledger; the server's is not drawn.
        claim: The claim, drawn as a line.
        label: Text alternative of the figure.

    Returns:
        One ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        points = [
            (float(one.name), one.epsilon.upper)
            for one in participants
            if one.name.isdecimal() and one.epsilon is not None and one.epsilon.upper < math.inf
        ]
        axes.plot(
            *coordinates(points), color=BLUE, linestyle="none", marker="o", label="participant"
        )
        axes.axhline(claim.epsilon.upper, color=VERMILION, linestyle="--", label="claim")
        axes.set_ylim(bottom=0)
        integer_ticks(axes)
        axes.set_title("upper bound on epsilon")
        axes.set_xlabel("participant")
        legend_below(axes)

    return inline_svg("participants", label, draw, height=2.9)


def draw_privacy_profile(points: Sequence[ProfilePoint], claim: Claim, *, label: str) -> str:
    """Draw the interval of epsilon at each delta as a band, and mark the claim.

    Args:
        points: The privacy profile; points at delta 0 are not drawn.
        claim: The claim, marked at its delta.
        label: Text alternative of the figure.

    Returns:
        One ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        delta, lower, upper = _profile_band(points)
        axes.fill_between(
            delta, lower, upper, color=BLUE, alpha=0.3, linewidth=0, label="interval of epsilon"
        )
        axes.plot(delta, upper, color=BLUE, linestyle="-", label="upper bound")
        axes.plot(delta, lower, color=BLUE, linestyle=":", label="lower bound")
        _mark_claim(axes, claim, VERMILION, "D")
        axes.lines[-1].set_label("claim")
        _finish_profile(axes)

    return inline_svg("profile", label, draw, height=2.9)


def draw_privacy_profiles(
    runs: Sequence[tuple[str, Sequence[ProfilePoint], Claim]], *, label: str
) -> str:
    """Draw the privacy profiles of several runs in one figure.

    Args:
        runs: Name, profile and claim of each run; the claim is marked.
        label: Text alternative of the figure.

    Returns:
        One ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        for (name, points, claim), style in zip(runs, line_styles(), strict=False):
            delta, lower, upper = _profile_band(points)
            colour = style.colour
            axes.fill_between(delta, lower, upper, color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                delta,
                upper,
                color=colour,
                linestyle=style.line,
                label=f"{short_name(name)}, upper bound",
            )
            _mark_claim(axes, claim, colour, style.marker)
        _finish_profile(axes)

    return inline_svg("profile", label, draw, height=2.9)


def _profile_band(points: Sequence[ProfilePoint]) -> tuple[list[float], list[float], list[float]]:
    """Return the positive deltas in rising order, with the lower and upper ends of epsilon."""
    shown = sorted((p for p in points if p.delta > 0), key=lambda point: point.delta)
    ends = [point.epsilon for point in shown]
    return [p.delta for p in shown], [end.lower for end in ends], [end.upper for end in ends]


def _mark_claim(axes: Axes, claim: Claim, colour: str, marker: str) -> None:
    axes.plot(
        [claim.delta],
        [claim.epsilon.upper],
        color=colour,
        marker=marker,
        markersize=7,
        linestyle="none",
    )


def _finish_profile(axes: Axes) -> None:
    logarithmic_axis(axes, "x")
    axes.set_ylim(bottom=0)
    axes.set_title("epsilon")
    axes.set_xlabel("delta")
    legend_below(axes)


def draw_audit_bounds(
    bounds: Sequence[AuditResult],
    claimed: float | None,
    delta: float,
    *,
    label: str,
    name: str = "audit",
    furthest: float = 0.0,
) -> str:
    """Draw each lower bound as a bar from 0, its kind by marker, and the claim as a line.

    Args:
        bounds: At least one.
        claimed: The claimed upper bound on epsilon; None without a claim.
        delta: The delta of the claim.
        label: Text alternative of the figure.
        name: Prefix of the ids in the figure.
        furthest: Least end of the axis, so that two figures have equal axes.

    Returns:
        One ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        for row, bound in enumerate(bounds):
            colour, line, marker = KIND_STYLES[bound.kind]
            axes.plot(
                [0, bound.epsilon_lower], [row, row], color=colour, linestyle=line, linewidth=2.5
            )
            # At 0, half of the mark is outside of the axes, so it is drawn without clipping.
            axes.plot(
                [bound.epsilon_lower],
                [row],
                color=colour,
                marker=marker,
                markersize=8,
                clip_on=False,
            )
            axes.text(0, row - 0.22, _row_name(bound, delta), verticalalignment="bottom")
        reached = max(claimed or 0.0, furthest, *(bound.epsilon_lower for bound in bounds))
        axes.set_xlim(0, 1.12 * reached or 1)
        if claimed is not None:
            _draw_claim(axes, claimed)
        axes.set_ylim(len(bounds) - 0.6, -0.75)  # the first bound is uppermost
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("lower bound on epsilon")

    return inline_svg(name, label, draw, height=0.85 + 0.37 * len(bounds))


def _draw_claim(axes: Axes, claimed: float) -> None:
    """Draw the claimed upper bound as a line and hatch the epsilons that contradict it."""
    axes.axvline(claimed, color=VERMILION, linewidth=1.8)
    # A bound beyond the line contradicts the claim. Hatched, so that colour is not needed.
    axes.axvspan(
        claimed,
        axes.get_xlim()[1],
        facecolor="none",
        edgecolor=VERMILION,
        alpha=0.7,
        hatch="///",
        linewidth=0,
    )
    axes.annotate(
        "claim",
        (claimed, 1.01),
        xycoords=("data", "axes fraction"),
        horizontalalignment="center",
    )


def _row_name(bound: AuditResult, delta: float) -> str:
    """Return name and kind of a bound, and its delta where that is not the claim's."""
    elsewhere = "" if bound.delta == delta else f", at delta {bound.delta!r}"
    return f"{short_name(bound.name)} ({bound.kind.value}{elsewhere})"
