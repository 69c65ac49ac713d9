"""JSON of a run, read strictly: an object that names a key twice is refused, and so is NaN.

Which of two values counts differs between readers: msgspec keeps the last, others the first. A
file that means one thing to the gate and another to whoever reviews it is broken.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def require_unique_keys(text: bytes) -> None:
    """Refuse JSON in which an object, at any depth, names a key twice.

    Args:
        text: One JSON value, in UTF-8.

    Raises:
        ValueError: It does, or it is no JSON, or holds NaN or an infinity.
        RecursionError: It is nested too deeply.
    """
    json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"it names the key {twice!r} twice in one object")


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no JSON")
