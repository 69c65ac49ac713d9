"""Conversion of a matplotlib drawing to inline SVG in the colours of the page.

A strict Content-Security-Policy forbids style attributes. Colours and lines become presentation
attributes, which it allows. Nothing in the SVG refers to anything outside of the page.
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
    from matplotlib.backends.backend_svg import FigureCanvasSVG
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

SVG_STYLE: dict[Any, object] = {  # Any: matplotlib types each key as a literal of its own
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
MAX_NAME_LENGTH = 36  # characters


class LineStyle(NamedTuple):
    """Colour, matplotlib line style and matplotlib marker of one plotted series."""

    colour: str
    line: str
    marker: str


def line_styles() -> Iterator[LineStyle]:
    """Yield distinct styles without end.

    Colour, line and marker change together, so colour is never the only difference.

    Returns:
        An infinite iterator; any twenty styles in a row differ.
    """
    colours = cycle((BLUE, VERMILION, GREEN, PURPLE, OCHRE))
    return map(LineStyle, colours, cycle(("-", "--", "-.", ":")), cycle("os^Dv*P"))


def inline_svg(name: str, label: str, draw: Callable[[Axes], None], *, height: float) -> str:
    """Draw a figure as one ``<svg>`` element for a page.

    Args:
        name: Prefix of every id in the figure; unique in the page.
        label: Text alternative of the figure.
        draw: Draws on empty axes.
        height: In inches; the width is ``WIDTH``. The page scales the figure to its column.

    Returns:
        The element as text, without namespaces and styles.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # ignore the user's matplotlibrc
        mpl.rcParams.update({**SVG_STYLE, "svg.hashsalt": f"dpaudit-{name}"})
        # Names in other scripts: the browser has the glyphs that matplotlib misses.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=True)
        draw(axes)
        drawn = StringIO()
        for patch in (figure.patch, axes.patch):
            patch.set(facecolor="none", edgecolor="none")
        # Not savefig: it draws twice, the first time for the layout, which print_svg finds too.
        canvas: Any = FigureCanvasSVG(figure)  # print_svg has no types
        canvas.print_svg(drawn, metadata={"Date": None})
    return _inline(ET.fromstring(drawn.getvalue()), name, label)


def standalone_svg(picture: str) -> str:
    """Add the namespaces and the font that an SVG file of its own needs.

    Args:
        picture: An ``<svg>`` element for a page, as ``inline_svg`` draws it.

    Returns:
        The content of an SVG file.
    """
    return picture.replace(
        "<svg ",
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'font-family="sans-serif" ',
        1,
    )


def short_name(text: str) -> str:
    """Shorten a name for a legend.

    Args:
        text: Any string.

    Returns:
        One line of printable characters, about ``MAX_NAME_LENGTH`` at most; "unnamed" if empty.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "unnamed"
    if len(line) > MAX_NAME_LENGTH:
        line = line[: MAX_NAME_LENGTH - 1] + "…"
    return f" {line}" if line.startswith("_") else line  # matplotlib hides labels like "_x"


def coordinates(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Split points into the list of x and the list of y coordinates; both may be empty."""
    return [x for x, _ in points], [y for _, y in points]


def legend_below(axes: Axes) -> None:
    """Draw the legend below the axes, with fewer columns for longer names."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    across = 3 if longest < 12 else 2 if longest < 24 else 1
    axes.figure.legend(handles, labels, loc="outside lower left", ncols=across)


def integer_ticks(axes: Axes) -> None:
    """Place the ticks of the horizontal axis at whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def logarithmic_axis(axes: Axes, which: str) -> None:
    """Make one axis logarithmic, with labels that do not need mathtext.

    Args:
        axes: The axes; the data must be drawn already, since it sets the tick positions.
        which: ``x`` or ``y``.
    """
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    least, most = axis.get_view_interval()
    narrow = most < 300 * least  # one tick per decade would be too few
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=12))
    axis.set_major_formatter(lambda value, _: _power_label(value))
    axis.set_minor_locator(FixedLocator([]))


def _power_label(value: float) -> str:
    """Return 0.01, 50 or 10⁻⁵: matplotlib's own labels need mathtext, which is off."""
    if 1e-3 < value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.0e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if mantissa == "1" else f"{mantissa}·{power}"


def _inline(svg: ET.Element, name: str, label: str) -> str:
    """Convert ``svg`` to inline SVG: no namespaces, metadata or styles; ids start with ``name``."""
    _drop(svg, "metadata")
    for definitions in svg:
        _drop(definitions, "style")
    for element in svg.iter():
        element.tag = _local_name(element.tag)
        element.attrib = {
            key: _attribute(key, value, name) for key, value in _without_style(element)
        }
    view = svg.attrib["viewBox"]
    svg.attrib = {"class": "figure", "viewBox": view, "role": "img", "aria-label": label}
    return ET.tostring(svg, encoding="unicode")


def _drop(parent: ET.Element, tag: str) -> None:
    for child in [child for child in parent if _local_name(child.tag) == tag]:
        parent.remove(child)


def _without_style(element: ET.Element) -> Iterator[tuple[str, str]]:
    """Yield the attributes; a style is split into its declarations, without the font family."""
    for key, value in element.items():
        if _local_name(key) != "style":
            yield _local_name(key), value
            continue
        for declaration in value.split(";"):
            property_, _, setting = declaration.partition(":")
            if property_.strip() not in {"", "font-family"}:
                yield property_.strip(), setting.strip()


def _local_name(name: str) -> str:
    return name.rpartition("}")[2]


def _attribute(key: str, value: str, name: str) -> str:
    """Return the value with ids prefixed by ``name`` and the ink colour as currentColor."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href" and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
