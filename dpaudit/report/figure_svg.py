"""From a drawing to inline SVG that follows the page's colours and names nothing outside it.

A page under a strict Content-Security-Policy takes no style from an attribute: whatever the
drawing says of colours and lines becomes presentation attributes, which are no style.
"""

from __future__ import annotations

import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

from dpaudit.vocabulary.errors import MissingExtra

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator
except ImportError as error:  # pragma: no cover - needs an environment without matplotlib
    raise MissingExtra("matplotlib", "report") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

INK = "#010203"  # stands in for currentColor, which matplotlib does not know
BLUE, VERMILION, GREEN, PURPLE = "#2f7fc1", "#d55e00", "#009e73", "#b565a7"
OCHRE = "#b8860b"

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


class Style(NamedTuple):
    """How one of several things is drawn."""

    colour: str
    line: str
    marker: str


def styles() -> Iterator[Style]:
    """Yield styles without end.

    Colour, line and marker change together: colour is never the only difference, and twenty
    in a row are all different.
    """
    colours = cycle((BLUE, VERMILION, GREEN, PURPLE, OCHRE))
    return map(Style, colours, cycle(("-", "--", "-.", ":")), cycle("os^Dv*P"))


def inline_svg(name: str, label: str, draw: Callable[[Axes], None], *, height: float) -> str:
    """Return one ``<svg>`` element, to stand inside of a page.

    Args:
        name: Begins every id in it: one a page.
        label: What the picture shows, for those who do not see it.
        draw: Draws on empty axes.
        height: In inches; it is ``WIDTH`` wide.
    """
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


def alone(picture: str) -> str:
    """Return a picture as a file of its own: inside of a page, namespace and font are known."""
    return picture.replace(
        "<svg ",
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'font-family="sans-serif" ',
        1,
    )


def short_name(text: str) -> str:
    """Return a name on one line, not too long, free of what XML cannot carry."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "unnamed"
    if len(line) > LONGEST_NAME:
        line = line[: LONGEST_NAME - 1] + "…"
    return f" {line}" if line.startswith("_") else line  # matplotlib hides labels like "_x"


def columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the two coordinates of points, each by itself."""
    return [x for x, _ in points], [y for _, y in points]


def legend_below(axes: Axes) -> None:
    """Put the names of what is drawn below the picture."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    across = 3 if longest < 12 else 2 if longest < 24 else 1
    axes.figure.legend(handles, labels, loc="outside lower left", ncols=across)


def whole_numbers(axes: Axes) -> None:
    """Mark the horizontal axis at whole numbers alone."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def logarithmic(axes: Axes, which: str) -> None:
    """Make the axis ``x`` or ``y`` logarithmic, with labels that need no mathematics."""
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    least, most = axis.get_view_interval()
    narrow = most < 300 * least  # then a decade alone marks the axis too sparsely
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=12))
    axis.set_major_formatter(lambda value, _: _power(value))
    axis.set_minor_locator(FixedLocator([]))


def _power(value: float) -> str:
    """Return 0.01, 50 or 10⁻⁵: matplotlib's own labels need mathtext, which is off."""
    if 1e-3 < value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _inline(svg: ET.Element, name: str, label: str) -> str:
    """Return ``svg`` as HTML wants it: no namespaces, no metadata, no styles, ids of its own."""
    _drop(svg, "metadata")
    for definitions in svg:
        _drop(definitions, "style")
    for element in svg.iter():
        element.tag = _bare(element.tag)
        element.attrib = {
            key: _attribute(key, value, name) for key, value in _without_style(element)
        }
    view = svg.attrib["viewBox"]
    svg.attrib = {"class": "figure", "viewBox": view, "role": "img", "aria-label": label}
    return ET.tostring(svg, encoding="unicode")


def _drop(parent: ET.Element, tag: str) -> None:
    for child in [child for child in parent if _bare(child.tag) == tag]:
        parent.remove(child)


def _without_style(element: ET.Element) -> Iterator[tuple[str, str]]:
    """Yield the attributes, each declaration of a style as one of its own; fonts are the page's."""
    for key, value in element.items():
        if _bare(key) != "style":
            yield _bare(key), value
            continue
        for declaration in value.split(";"):
            property_, _, said = declaration.partition(":")
            if property_.strip() not in {"", "font-family"}:
                yield property_.strip(), said.strip()


def _bare(name: str) -> str:
    return name.rpartition("}")[2]


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
