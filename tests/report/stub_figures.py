"""Pages without the slow part: each figure keeps its words and loses its lines."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from dpaudit.report import history_figures, membership_figures, privacy_figures


def empty_svg(name: str, label: str, draw: Callable[..., None], *, height: float) -> str:
    """Return what ``inline_svg`` does, with nothing inside."""
    attributes = {"class": "figure", "viewBox": "0 0 1 1", "role": "img", "aria-label": label}
    return ET.tostring(ET.Element("svg", attributes), encoding="unicode")


@contextmanager
def undrawn() -> Iterator[None]:
    """Draw nothing meanwhile."""
    with ExitStack() as stack:
        for module in (privacy_figures, membership_figures, history_figures):
            stack.enter_context(patch.object(module, "inline_svg", empty_svg))
        yield
