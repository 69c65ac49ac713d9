"""Where golden values are kept: one JSON beside the script that made it."""

from __future__ import annotations

import json
from pathlib import Path

from mpmath import mp

DIGITS = 20


def digits(value: object) -> str:
    """Return ``value`` to the 20 digits that every golden value is given to."""
    return str(mp.nstr(value, DIGITS))


def write(script: str, about: str, values: list[dict[str, object]]) -> None:
    """Write ``make_x.py``'s values to ``x.json`` beside it."""
    path = Path(script)
    target = path.with_name(path.stem.removeprefix("make_") + ".json")
    lines = ",\n".join("  " + json.dumps(value) for value in values)
    target.write_text(f'{{"about": {json.dumps(about)},\n "values": [\n{lines}\n]}}\n')
    print(f"{target.name}: {len(values)} values")
