"""Whether a page is nothing but text and drawing, by a parser that reads it as browsers do."""

from __future__ import annotations

import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser

TEXT = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer"),
    *("h1", "h2", "h3", "p", "strong", "span", "small", "b", "a", "code", "pre", "div"),
    *("ul", "ol", "li", "nav", "dl", "dt", "dd", "figure", "figcaption"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
}
DRAWING = {"svg", "g", "path", "use", "text", "tspan", "defs", "clippath", "rect", "pattern"}
WORDS = {"aria-label", "content"}
"""Attributes that hold words for people."""

Element = tuple[str, dict[str, str]]


def elements(html: str) -> list[Element]:
    """Return every element with its attributes, in order, those inside of templates too."""
    return list(_below(LexborHTMLParser(html).root))


def _below(node: object) -> Iterator[Element]:
    yield from (
        (one.tag.lower(), {key.lower(): value or "" for key, value in one.attributes.items()})
        for one in node.css("*")  # type: ignore[attr-defined]
    )


def shape(html: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return what a string in the evidence can never change: elements and attributes' names."""
    return [(name, tuple(attributes)) for name, attributes in elements(html)]


def assert_inert(html: str) -> None:
    """Fail where anything could run, fetch, point elsewhere or be styled."""
    found = elements(html)
    assert {name for name, _ in found} <= TEXT | DRAWING
    assert sum(name == "style" for name, _ in found) == 1
    for name, attributes in found:
        assert not [key for key in attributes if key.startswith("on")], name
        assert not {"src", "style", "srcdoc", "action"} & set(attributes), name
        for key, value in attributes.items():
            if key.endswith("href"):
                assert value.startswith("#"), (name, value)
            if key not in WORDS:
                assert not re.search(r"url\((?!#)|script:|expression", value), (name, key, value)
