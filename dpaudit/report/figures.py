"""What was spent and what was measured of it, in pictures: epsilon over steps, profile, bounds.

Every function takes ``label``, what the figure says to those who cannot see it, and
returns one ``<svg>`` element. Axes and text are drawn in ``currentColor``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dpaudit.report.evidence import Curve, ProfilePoint
from dpaudit.report.figure_svg import (
    BLUE,
    GREEN,
    PURPLE,
    VERMILION,
    Style,
    alone,
    columns,
    inline_svg,
    legend_below,
    logarithmic,
    short_name,
    styles,
    whole_numbers,
)
from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.claim import Claim

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "alone",
    "audit_bounds",
    "epsilon_against_steps",
    "lie_far_apart",
    "privacy_profile",
    "privacy_profiles",
]

KINDS = {
    BoundKind.CERTIFIED: Style(GREEN, "-", "o"),
    BoundKind.CONDITIONAL: Style(BLUE, "--", "D"),
    BoundKind.ESTIMATE: Style(PURPLE, ":", "x"),
}


def epsilon_against_steps(curves: Sequence[Curve], *, label: str) -> str:
    """Draw the upper bounds of each accountant; logarithmic where they lie far apart."""

    def draw(axes: Axes) -> None:
        for curve, style in zip(curves, styles(), strict=False):
            points = [
                pair
                for pair in zip(curve.steps, curve.epsilon, strict=True)
                if 0 < pair[1] < math.inf
            ]
            axes.plot(
                *columns(points),
                color=style.colour,
                linestyle=style.line,
                marker=style.marker,
                markevery=max(1, len(points) // 8),
                label=short_name(curve.accountant),
            )
        if lie_far_apart(curves):
            logarithmic(axes, "y")
        else:
            axes.set_ylim(bottom=0)
        whole_numbers(axes)
        axes.set_title("epsilon, at most")
        axes.set_xlabel("steps")
        legend_below(axes)

    return inline_svg("steps", label, draw, height=3.2)


def lie_far_apart(curves: Iterable[Curve]) -> bool:
    """Say whether the largest values of the curves differ by more than ten times."""
    heights = [max((e for e in curve.epsilon if 0 < e < math.inf), default=0) for curve in curves]
    seen = [height for height in heights if height]
    return bool(seen) and max(seen) > 10 * min(seen)


def privacy_profile(points: Sequence[ProfilePoint], claim: Claim, *, label: str) -> str:
    """Draw the interval of epsilon at each delta as a band, and the claim on it."""

    def draw(axes: Axes) -> None:
        delta, lower, upper = _band(points)
        axes.fill_between(
            delta, lower, upper, color=BLUE, alpha=0.3, linewidth=0, label="truth lies in here"
        )
        axes.plot(delta, upper, color=BLUE, linestyle="-", label="epsilon, at most")
        axes.plot(delta, lower, color=BLUE, linestyle=":", label="epsilon, at least")
        _mark_claim(axes, claim, VERMILION, "D")
        axes.lines[-1].set_label("the claim")
        _finish_profile(axes)

    return inline_svg("profile", label, draw, height=3.2)


def privacy_profiles(
    runs: Sequence[tuple[str, Sequence[ProfilePoint], Claim]], *, label: str
) -> str:
    """Draw several runs' profiles over each other, each by its name, with its claim."""

    def draw(axes: Axes) -> None:
        for (name, points, claim), style in zip(runs, styles(), strict=False):
            delta, lower, upper = _band(points)
            colour = style.colour
            axes.fill_between(delta, lower, upper, color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                delta,
                upper,
                color=colour,
                linestyle=style.line,
                label=f"{short_name(name)}, at most",
            )
            _mark_claim(axes, claim, colour, style.marker)
        _finish_profile(axes)

    return inline_svg("profile", label, draw, height=3.2)


def _band(points: Sequence[ProfilePoint]) -> tuple[list[float], list[float], list[float]]:
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
    logarithmic(axes, "x")
    axes.set_ylim(bottom=0)
    axes.set_title("epsilon")
    axes.set_xlabel("delta")
    legend_below(axes)


def audit_bounds(
    bounds: Sequence[AuditResult],
    claimed: float | None,
    delta: float,
    *,
    label: str,
    name: str = "audit",
    furthest: float = 0.0,
) -> str:
    """Draw each lower bound as a bar from 0, its kind by marker, against the claim's line.

    Args:
        bounds: At least one.
        claimed: The claimed epsilon, its upper end; None where nothing is claimed.
        delta: The delta of the claim.
        label: What the picture shows, for those who do not see it.
        name: Begins the ids of its parts.
        furthest: An epsilon that the axis reaches at least, to be as long as another's.
    """

    def draw(axes: Axes) -> None:
        for row, bound in enumerate(bounds):
            colour, line, marker = KINDS[bound.kind]
            axes.plot(
                [0, bound.epsilon_lower], [row, row], color=colour, linestyle=line, linewidth=2.5
            )
            # At 0 half of the mark lies outside of the axes: it is drawn all the same.
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
        axes.set_ylim(len(bounds) - 0.6, -0.75)  # the first bound on top
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("epsilon, at least")

    return inline_svg(name, label, draw, height=1.1 + 0.55 * len(bounds))


def _draw_claim(axes: Axes, claimed: float) -> None:
    axes.axvline(claimed, color=VERMILION, linewidth=1.8)
    # Beyond the line a bound would contradict the claim: hatched, in case colour is lost.
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
        "the claim",
        (claimed, 1.01),
        xycoords=("data", "axes fraction"),
        horizontalalignment="center",
    )


def _row_name(bound: AuditResult, delta: float) -> str:
    elsewhere = "" if bound.delta == delta else f", at delta {bound.delta!r}"
    return f"{short_name(bound.name)} ({bound.kind.value}{elsewhere})"
