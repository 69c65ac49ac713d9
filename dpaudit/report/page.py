"""The frame of every page: one file, no script, a policy that allows its own style sheet alone.

Whatever strings the evidence holds are text: the templates escape them, the figures too.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import cache
from importlib.resources import files

from dpaudit.report.page_words import day, exact
from dpaudit.vocabulary.errors import MissingExtra
from dpaudit.vocabulary.rounding import round_down, round_near, round_up

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
except ImportError as error:  # pragma: no cover - needs an environment without jinja2
    raise MissingExtra("jinja2", "report") from error

# Controls that would turn the words after them around, or that no file can carry.
UNWRITABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def page(template: str, /, **values: object) -> str:
    """Return a complete HTML document, made from one of this package's templates."""
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
    """Return the Content-Security-Policy of a page whose one style element holds ``style``."""
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


@cache
def style_sheet() -> str:
    """Return the style sheet as it stands in every page."""
    return files("dpaudit.report").joinpath("report.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
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
        "near": round_near,
        "exact": exact,
        "day": day,
    }
    return environment
