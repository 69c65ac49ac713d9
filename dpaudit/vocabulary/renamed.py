"""Names that files of dpaudit 0.1 use, and their present names.

Policies, ledgers, claims, verdicts and baselines of 0.1 are still read. Each reader applies
``renamed`` to the parsed content before it is converted, so that an old key is never ignored. A
claim without its ``leaves_out`` would cover more than its ledger does.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

from dpaudit.vocabulary import SCHEMA_VERSION

KEYS = {
    "leaves_out": "unaccounted",
    "takes_as_public": "assumed_public",
    "booked": "recorded",
    "may_leave_out": "allow_unaccounted",
}
"""Old keys of policies, settings, ledgers, claims and baselines."""

VALUES = {
    "outcome": {"HOLDS": "PASS", "VIOLATED": "FAIL"},
    "verdict": {"HOLDS": "PASS", "VIOLATED": "FAIL"},
    "rule": {"claim.may_leave_out": "claim.allow_unaccounted"},
    "schema_version": {"1.0": SCHEMA_VERSION},
}
"""Old values, by the key that holds them. Mapped content has the present schema version."""

_OLD = "|".join([*KEYS, *(re.escape(old) for values in VALUES.values() for old in values)])
_OLD_IN_JSON = re.compile(f'"(?:{_OLD})"'.encode())


class OldNameWarning(UserWarning):
    """Warning: a file of an earlier version uses old names, which were mapped to the new ones."""


def has_old_names(content: bytes) -> bool:
    """Return whether JSON may contain a key or value of version 0.1.

    A search in the bytes, which is much faster than parsing.

    Args:
        content: JSON as dpaudit writes it, in UTF-8 and without escaped ASCII.

    Returns:
        False if there is certainly no old name. True if the text of one occurs in quotes.

    Example:
        >>> has_old_names(b'{"booked": []}'), has_old_names(b'{"recorded": []}')
        (True, False)
    """
    return _OLD_IN_JSON.search(content) is not None


def renamed(content: Any, source: str) -> Any:
    """Return ``content`` with its old keys and values renamed, and warn if there were any.

    Args:
        content: Parsed JSON or TOML: dicts, lists and scalars.
        source: Name of the file, for the warning.

    Returns:
        A copy with the present names; values other than dicts and lists are shared.

    Raises:
        ValueError: If a table has a key under both its old and its new name.
    """
    result, found = with_present_names(content)
    if found:
        changes = ", ".join(f"{old} as {new}" for old, new in found.items())
        text = f"{source} uses names of dpaudit 0.1, which were replaced by new names: {changes}"
        warnings.warn(text, OldNameWarning, stacklevel=3)
    return result


def with_present_names(content: Any) -> tuple[Any, dict[str, str]]:
    """Return ``content`` with its old keys and values renamed, and the names that were mapped.

    Args:
        content: Parsed JSON or TOML: dicts, lists and scalars.

    Returns:
        A copy with the present names, and a dict from each old name that occurs to its
        present name. Schema versions are mapped but not listed.

    Raises:
        ValueError: If a table has a key under both its old and its new name.

    Example:
        >>> with_present_names({"booked": [], "verdict": "HOLDS"})
        ({'recorded': [], 'verdict': 'PASS'}, {'booked': 'recorded', 'HOLDS': 'PASS'})
    """
    found: dict[str, str] = {}
    return _renamed(content, found), found


def present_key(path: str) -> str:
    """Return a dotted key with the present name of each part.

    Args:
        path: A key such as ``claim.may_leave_out``.

    Returns:
        The key with present names; unknown parts are unchanged.

    Example:
        >>> present_key("claim.may_leave_out")
        'claim.allow_unaccounted'
    """
    return ".".join(KEYS.get(part, part) for part in path.split("."))


def _renamed(content: Any, found: dict[str, str]) -> Any:
    """Rename recursively, and add each old name that occurs to ``found``."""
    if isinstance(content, dict):
        result: dict[str, Any] = {}
        for key, new, value in _entries(content, found):
            if new in result or (new != key and new in content):
                raise ValueError(f"it has both {key} and {new}, which are one key: keep {new}")
            result[new] = _renamed(value, found)
        return result
    if isinstance(content, list):
        return [_renamed(item, found) for item in content]
    return content


def _entries(content: dict[str, Any], found: dict[str, str]) -> Iterator[tuple[str, str, Any]]:
    """Yield the key, its present name and the value under its present name."""
    for key, value in content.items():
        new = KEYS.get(key, key)
        if new != key:
            found[key] = new
        values = VALUES.get(key, {})
        if isinstance(value, str) and value in values:
            if key != "schema_version":
                found[value] = values[value]
            value = values[value]  # noqa: PLW2901
        yield key, new, value
