"""Rendering of HTML pages: one file each, without scripts, with one embedded style sheet.

Strings of the evidence are always text: the templates and the figures escape them.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import cache
from importlib.resources import files

from dpaudit.report.page_labels import day, exact
from dpaudit.vocabulary.errors import MissingExtra
from dpaudit.vocabulary.rounding import round_down, round_nearest, round_up

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
except ImportError as error:  # pragma: no cover - needs an environment without jinja2
    raise MissingExtra("jinja2", "report") from error

# Controls that reverse the direction of the text after them, and characters that UTF-8 or HTML
# cannot hold.
UNWRITABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def render_page(template: str, /, **values: object) -> str:
    """Render one template of this package as a complete page.

    Args:
        template: Name of the template.
        **values: Variables of the template, by name. A missing one raises jinja2's error.

    Returns:
        An HTML document; control characters are replaced by U+FFFD.
    """
    style = style_sheet()
    text = (
        _environment()
        .get_template(template)
        .render(
            style=Markup(style),  # safe: a file of ours
            security_policy=security_policy(style),
            **values,
        )
    )
    return UNWRITABLE.sub("\ufffd", text)


def security_policy(style: str) -> str:
    """Build the Content-Security-Policy of a page.

    Args:
        style: Content of the page's only style element.

    Returns:
        A policy that allows this style sheet and nothing else.
    """
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


@cache
def style_sheet() -> str:
    """Return the style sheet that every page embeds."""
    return files("dpaudit.report").joinpath("report.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    """Build the environment: strings are escaped, and numbers are rounded by the filters."""
    environment = Environment(
        loader=PackageLoader("dpaudit.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "up": round_up,
        "down": round_down,
        "near": round_nearest,
        "exact": exact,
        "day": day,
    }
    return environment
