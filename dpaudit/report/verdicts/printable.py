"""Foreign words, such as the name of a run, made fit for one line of any output."""

from __future__ import annotations

import re

# What steers a terminal, turns words around, or cannot be written in XML or in UTF-8.
UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def one_line(text: str) -> str:
    """Return ``text`` with each run of white space as one blank, the unprintable as U+FFFD."""
    return UNPRINTABLE.sub("\ufffd", " ".join(text.split()))
