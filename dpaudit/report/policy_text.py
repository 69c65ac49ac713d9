"""The policy in force, for the terminal."""

from __future__ import annotations

import json
from typing import Any

from dpaudit.gate.layers import DEFAULT, LoadedPolicy, values
from dpaudit.report.text import table


def policy_text(loaded: LoadedPolicy) -> str:
    """Return every key with its value, defaults included."""
    return "\n".join(table([(key, shown(value)) for key, value in values(loaded.policy)]))


def policy_with_origins(loaded: LoadedPolicy) -> str:
    """Return every key with its value and where it was set."""
    rows = [
        (key, shown(value), str(loaded.origins.get(key, DEFAULT)))
        for key, value in values(loaded.policy)
    ]
    return "\n".join(table(rows))


def shown(value: Any) -> str:
    """Return a value as TOML would have it; what is not demanded is a dash."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        inside = ", ".join(f"{json.dumps(key)} = {shown(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return json.dumps(value)
