"""The report's figures: inline SVG that follows the page's colours and names nothing outside it.

Every function takes ``label``, what the figure says to those who cannot see it, and
returns one ``<svg>`` element. Axes and text are drawn in ``currentColor``.
"""

from __future__ import annotations

import math
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from itertools import cycle
from typing import TYPE_CHECKING, Any

from dpaudit.report.evidence import Curve, ProfilePoint
from dpaudit.vocabulary.audit import AuditResult, BoundKind, MembershipResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import MissingExtra

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter
except ImportError as error:  # pragma: no cover - needs an environment without matplotlib
    raise MissingExtra("matplotlib", "report") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK = "#010203"  # stands in for currentColor, which matplotlib does not know
BLUE, VERMILION, GREEN, PURPLE = "#2f7fc1", "#d55e00", "#009e73", "#b565a7"

# Colour, line and marker change together: colour is never the only difference.
STYLES = ((BLUE, "-", "o"), (VERMILION, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"))
KINDS = {
    BoundKind.CERTIFIED: (GREEN, "-", "o"),
    BoundKind.CONDITIONAL: (BLUE, "--", "D"),
    BoundKind.ESTIMATE: (PURPLE, ":", "x"),
}

SETTINGS: dict[Any, object] = {  # Any: matplotlib types each key as a literal of its own
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "lines.markersize": 4.5,
} | dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"),
    INK,
)
WIDTH = 4.7  # inches; narrow, so that a phone does not shrink the text away
LONGEST_NAME = 36


def epsilon_against_steps(curves: Sequence[Curve], *, label: str) -> str:
    """Draw the upper bounds of each accountant; logarithmic where they lie far apart."""

    def draw(axes: Axes) -> None:
        for curve, (colour, line, marker) in zip(curves, cycle(STYLES), strict=False):
            points = [
                pair
                for pair in zip(curve.steps, curve.epsilon, strict=True)
                if 0 < pair[1] < math.inf
            ]
            axes.plot(
                *_columns(points),
                color=colour,
                linestyle=line,
                marker=marker,
                markevery=max(1, len(points) // 8),
                label=_name(curve.accountant),
            )
        if lie_far_apart(curves):
            _logarithmic(axes, "y")
        else:
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_title("epsilon, at most")
        axes.set_xlabel("steps")
        _legend_below(axes)

    return _svg("steps", label, draw, height=3.2)


def lie_far_apart(curves: Iterable[Curve]) -> bool:
    """Say whether the largest values of the curves differ by more than ten times."""
    heights = [max((e for e in curve.epsilon if 0 < e < math.inf), default=0) for curve in curves]
    seen = [height for height in heights if height]
    return bool(seen) and max(seen) > 10 * min(seen)


def privacy_profile(points: Sequence[ProfilePoint], claim: Claim, *, label: str) -> str:
    """Draw the interval of epsilon at each delta as a band, and the claim on it."""

    def draw(axes: Axes) -> None:
        shown = sorted((p for p in points if p.delta > 0), key=lambda point: point.delta)
        delta = [point.delta for point in shown]
        lower, upper = [p.epsilon.lower for p in shown], [p.epsilon.upper for p in shown]
        axes.fill_between(
            delta, lower, upper, color=BLUE, alpha=0.3, linewidth=0, label="truth lies in here"
        )
        axes.plot(delta, upper, color=BLUE, linestyle="-", label="epsilon, at most")
        axes.plot(delta, lower, color=BLUE, linestyle=":", label="epsilon, at least")
        axes.plot(
            [claim.delta],
            [claim.epsilon.upper],
            color=VERMILION,
            marker="D",
            markersize=7,
            linestyle="none",
            label="the claim",
        )
        _logarithmic(axes, "x")
        axes.set_ylim(bottom=0)
        axes.set_title("epsilon")
        axes.set_xlabel("delta")
        _legend_below(axes)

    return _svg("profile", label, draw, height=3.2)


def audit_bounds(
    bounds: Sequence[AuditResult], claimed: float | None, delta: float, *, label: str
) -> str:
    """Draw each lower bound as a bar from 0, its kind by marker, against the claim's line.

    Args:
        bounds: At least one.
        claimed: The claimed epsilon, its upper end; None where nothing is claimed.
        delta: The delta of the claim.
        label: What the picture shows, for those who do not see it.
    """

    def draw(axes: Axes) -> None:
        for row, bound in enumerate(bounds):
            colour, line, marker = KINDS[bound.kind]
            axes.plot(
                [0, bound.epsilon_lower], [row, row], color=colour, linestyle=line, linewidth=2.5
            )
            axes.plot([bound.epsilon_lower], [row], color=colour, marker=marker, markersize=8)
            axes.text(0, row - 0.22, _row_name(bound, delta), verticalalignment="bottom")
        furthest = max(claimed or 0.0, *(bound.epsilon_lower for bound in bounds), 0.0)
        axes.set_xlim(0, 1.12 * furthest or 1)
        if claimed is not None:
            _draw_claim(axes, claimed)
        axes.set_ylim(len(bounds) - 0.6, -0.75)  # the first bound on top
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("epsilon, at least")

    return _svg("audit", label, draw, height=1.1 + 0.55 * len(bounds))


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


def alone(picture: str) -> str:
    """Return a picture as a file of its own: inside of a page, its namespace is known."""
    return picture.replace(
        "<svg ",
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ',
        1,
    )


def _row_name(bound: AuditResult, delta: float) -> str:
    elsewhere = "" if bound.delta == delta else f", at delta {bound.delta!r}"
    return f"{_name(bound.name)} ({bound.kind.value}{elsewhere})"


def roc(attacks: Sequence[MembershipResult], *, label: str) -> str:
    """Draw the ROC curves on two logarithmic axes, with exact intervals and the diagonal."""
    # A rate of 0 has no place on a logarithmic axis: it is drawn at the edge, half of one
    # non-member, or one member, away from nothing.
    least_fpr = 1 / (2 * max(2, *(attack.nonmembers for attack in attacks)))
    least_tpr = 1 / (2 * max(2, *(attack.members for attack in attacks)))

    def draw(axes: Axes) -> None:
        edge = min(least_fpr, least_tpr)
        axes.plot([edge, 1], [edge, 1], color=INK, alpha=0.6, linewidth=1, label="guessing blindly")
        for attack, (colour, line, marker) in zip(attacks, cycle(STYLES), strict=False):
            points = [(max(fpr, least_fpr), max(tpr, least_tpr)) for fpr, tpr in attack.roc]
            axes.plot(
                *_columns(points),
                color=colour,
                linestyle=line,
                drawstyle="steps-post",  # rates between two thresholds were not attained
                label=_name(attack.attack),
            )
            _intervals(axes, attack, colour, marker, least_tpr)
        _logarithmic(axes, "x")
        _logarithmic(axes, "y")
        axes.set_xlim(least_fpr, 1)
        axes.set_ylim(least_tpr, 1.05)
        axes.set_title("true-positive rate")
        axes.set_xlabel("false-positive rate")
        _legend_below(axes)

    return _svg("roc", label, draw, height=3.9)


def _intervals(
    axes: Axes, attack: MembershipResult, colour: str, marker: str, least: float
) -> None:
    for rate in attack.tpr_at_fpr:
        ends = (max(rate.interval.lower, least), max(rate.interval.upper, least))
        axes.plot([rate.fpr] * 2, ends, color=colour, linewidth=1.5, marker="_", markersize=8)
        axes.plot([rate.fpr], [max(rate.tpr, least)], color=colour, marker=marker)


def _columns(
    points: Sequence[tuple[float, float]],
) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _name(text: str) -> str:
    """Return a name on one line, not too long, free of what XML cannot carry."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "unnamed"
    if len(line) > LONGEST_NAME:
        line = line[: LONGEST_NAME - 1] + "…"
    return f" {line}" if line.startswith("_") else line  # matplotlib hides labels like "_x"


def _legend_below(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max(len(label) for label in labels)
    columns = 3 if longest < 12 else 2 if longest < 24 else 1
    axes.figure.legend(handles, labels, loc="outside lower left", ncols=columns)


def _logarithmic(axes: Axes, which: str) -> None:
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    least, most = axis.get_view_interval()
    narrow = most < 300 * least  # then a decade alone marks the axis too sparsely
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=12))
    axis.set_major_formatter(lambda value, _: _power(value))
    axis.set_minor_formatter(NullFormatter())
    if narrow:
        axis.set_minor_locator(FixedLocator([]))


def _power(value: float) -> str:
    """Return 0.01, 50 or 10⁻⁵: matplotlib's own labels need mathtext, which is off."""
    if 1e-3 < value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _svg(name: str, label: str, draw: Callable[[Axes], None], *, height: float) -> str:
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # whatever the user's own matplotlibrc says
        mpl.rcParams.update({**SETTINGS, "svg.hashsalt": f"dpaudit-{name}"})
        # Names in other scripts: the browser has the glyphs that matplotlib misses.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=True)
        draw(axes)
        drawn = StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return _inline(ET.fromstring(drawn.getvalue()), name, label)


def _inline(svg: ET.Element, name: str, label: str) -> str:
    """Return ``svg`` as HTML wants it: no namespaces, no metadata, ids of its own."""
    _drop(svg, "metadata")
    # The style element would reach every line on the page; report.css has its rule.
    for definitions in svg:
        _drop(definitions, "style")
    for element in svg.iter():
        element.tag = _bare(element.tag)
        element.attrib = {
            _bare(key): _attribute(_bare(key), value, name) for key, value in element.items()
        }
    view = svg.attrib["viewBox"]
    svg.attrib = {"class": "figure", "viewBox": view, "role": "img", "aria-label": label}
    return ET.tostring(svg, encoding="unicode")


def _drop(parent: ET.Element, tag: str) -> None:
    for child in [child for child in parent if _bare(child.tag) == tag]:
        parent.remove(child)


def _bare(name: str) -> str:
    return name.rpartition("}")[2]


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
