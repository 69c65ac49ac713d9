"""Merge the layers of a policy, and record the file and line that set each key."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dpaudit.gate.policy import AuditPolicy, ClaimPolicy, Policy, RegressionPolicy, Waiver
from dpaudit.vocabulary.errors import InvalidArgument, InvalidPolicy, did_you_mean

POLICY_SECTIONS = ("claim", "audit", "regression")
_SECTION_TYPES: dict[str, type[msgspec.Struct]] = {
    "claim": ClaimPolicy,
    "audit": AuditPolicy,
    "regression": RegressionPolicy,
}


@dataclass(frozen=True)
class KeyOrigin:
    """The place that set a key.

    Attributes:
        source: A file, an environment variable (``$NAME``) or an option (``--name``).
        line: Line in the file, from 1; None for variables and options.
    """

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


DEFAULT_ORIGIN = KeyOrigin("default")


@dataclass(frozen=True)
class PolicyLayer:
    """Some of a policy's keys, from one source.

    Attributes:
        source: The file, the variable or the option that sets them.
        content: The keys, as in dpaudit.toml.
        lines: The line of each key, from 1; empty for variables and options.
        sha256: Digest of the file's bytes, or of the text of a variable or option.
    """

    source: str
    content: Mapping[str, Any]
    lines: Mapping[str, int]
    sha256: str = ""

    @property
    def overrides_files(self) -> bool:
        """Whether the source is a variable or an option, which override every file."""
        return self.source.startswith(("$", "--"))

    def origin(self, key: str) -> KeyOrigin:
        """Return the source and line at which this layer sets ``key``."""
        return KeyOrigin(self.source, self.lines.get(key))


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy, and the origin of each key and section that was set.

    Attributes:
        policy: The merged policy.
        origins: Where each key was set.
        layers: Every source; later ones take precedence.
    """

    policy: Policy
    origins: Mapping[str, KeyOrigin]
    layers: tuple[PolicyLayer, ...] = ()

    def origin_of(self, rule: str) -> KeyOrigin:
        """Find where the key that a rule comes from was set.

        Args:
            rule: Name of a rule, such as ``claim.max_epsilon`` or ``waiver.audit.evidence``.

        Returns:
            The origin of the key, or else of the nearest enclosing section; ``DEFAULT_ORIGIN`` if
            neither was set.
        """
        waiver, _, waived = rule.partition("waiver.")
        if not waiver and waived:
            return self._of_waiver(waived)
        return _nearest(rule, self.origins)

    def overriding_keys(self) -> dict[str, KeyOrigin]:
        """Return the keys that an option or a variable sets, which override files, with origins."""
        return {
            key: origin
            for key, origin in self.origins.items()
            if key not in POLICY_SECTIONS and origin.source.startswith(("$", "--"))
        }

    def _of_waiver(self, rule: str) -> KeyOrigin:
        places = [i for i, waiver in enumerate(self.policy.waiver) if waiver.rule == rule]
        keys = [*(f"waiver.{place}" for place in places), "waiver"]
        return next((self.origins[key] for key in keys if key in self.origins), DEFAULT_ORIGIN)


def keys_named(name: str) -> tuple[str, ...]:
    """Find the keys of all sections that have a name.

    Args:
        name: The name of a key without its section, such as ``max_epsilon``.

    Returns:
        Dotted keys, such as ``claim.max_epsilon``; none if no section has it.

    Example:
        >>> keys_named("max_epsilon")
        ('claim.max_epsilon',)
    """
    return tuple(
        f"{section}.{name}"
        for section, kind in _SECTION_TYPES.items()
        if name in kind.__struct_fields__
    )


def merge_layers(layers: Sequence[PolicyLayer]) -> LoadedPolicy:
    """Merge layers into one policy.

    Keys replace keys. Limits by false-positive rate are merged by rate, and waivers are
    concatenated.

    Args:
        layers: The sources, in ascending precedence.

    Returns:
        The policy and the origin of each key.

    Raises:
        InvalidPolicy: If a key is unknown, a value is not allowed, or nothing at all is
            demanded; the message contains the key.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, KeyOrigin] = {}
    for layer in layers:
        for key, value in _keys(layer):
            _put(merged, key, value)
            if key not in POLICY_SECTIONS or layer.lines:  # a layer of one key sets no section
                origins[key] = layer.origin(key)
        waivers = len(merged.get("waiver", ())) - len(layer.content.get("waiver", ()))
        for key in layer.lines:  # keys inside of keys, too
            origins[_moved(key, waivers)] = layer.origin(key)
    return LoadedPolicy(_converted(merged, layers, origins), origins, tuple(layers))


def _moved(key: str, below: int) -> str:
    """Return a waiver's key, with its number among the waivers of all layers."""
    name, _, rest = key.partition(".")
    number, dot, inner = rest.partition(".")
    if name != "waiver" or not number.isdigit():
        return key
    return f"waiver.{int(number) + below}{dot}{inner}"


def _keys(layer: PolicyLayer) -> Iterator[tuple[str, Any]]:
    for section, value in layer.content.items():
        if section == "waiver" and not isinstance(value, list):
            raise InvalidPolicy(f"{section} in {layer.source}", value, "tables under [[waiver]]")
        if section not in POLICY_SECTIONS:
            yield section, value
            continue
        if not isinstance(value, Mapping):
            raise InvalidPolicy(f"{section} in {layer.source}", value, "a section of keys")
        yield section, {}
        yield from ((f"{section}.{name}", inner) for name, inner in value.items())


def _put(merged: dict[str, Any], key: str, value: Any) -> None:
    """Set a key over lower layers; limits by rate, and waivers, add to theirs."""
    section, _, name = key.partition(".")
    place, key = (merged[section], name) if name else (merged, section)
    below = place.get(key)
    if isinstance(below, Mapping) and isinstance(value, Mapping):
        place[key] = {**below, **value}
    elif isinstance(below, list) and isinstance(value, list) and not name:
        place[key] = below + value
    else:
        place[key] = value


_KINDS = {"float": "a number", "int": "a whole number", "bool": "true or false"}
_QUOTED = re.compile(r"Expected `(?P<kind>float|int|bool)(?: \| null)?`, got `str`")
_AT = re.compile(r" - at `\$\.(?P<path>[^`]*)`$")  # where msgspec found a wrong value


def _converted(
    content: dict[str, Any], layers: Sequence[PolicyLayer], origins: Mapping[str, KeyOrigin]
) -> Policy:
    """Return the policy; every error names a key, and the file and line that set it."""
    sources = ", ".join(layer.source for layer in layers)
    _require_known_keys(content, origins)
    if not set(POLICY_SECTIONS) & set(content):
        allowed = f"a policy with one of the sections {', '.join(POLICY_SECTIONS)}"
        raise InvalidPolicy("policy", sources, allowed)
    try:
        return msgspec.convert(content, Policy)
    except InvalidArgument as error:
        raise _at_origin(error, error.name, origins) from error
    except msgspec.ValidationError as error:
        found = _AT.search(str(error))
        path = re.sub(r"\[(\d+)\]", r".\1", found["path"]) if found else ""
        cause = error.__cause__
        if isinstance(cause, InvalidArgument):
            key = path if path.startswith("waiver") else cause.name
            raise _at_origin(cause, key, origins) from error
        if not path:
            raise InvalidPolicy("policy", sources, f"a valid policy ({error})") from error
        place = _place(_nearest(path, origins))
        quoted = _QUOTED.match(str(error))
        if quoted is not None:  # as a rule, a number or a boolean in quotes
            kind = _KINDS[quoted["kind"]]
            text = f"{path}{place} must be {kind}, got text: write it without quotes"
            raise InvalidPolicy.with_text(path, text) from error
        raise InvalidPolicy.with_text(path, f"{path}{place}: {_AT.sub('', str(error))}") from error


def _require_known_keys(content: Mapping[str, Any], origins: Mapping[str, KeyOrigin]) -> None:
    """Refuse a key that no policy has, with the closest one that it may stand for."""
    for key, word, known in _unknown_keys(content):
        # A mistyped section has the place of its first key where an option set it.
        origin = next((origins[one] for one in origins if _is_below(one, key)), DEFAULT_ORIGIN)
        text = f"unknown key {key}{_place(origin)}{did_you_mean(word, known)}"
        raise InvalidPolicy.with_text(key, text)


def _unknown_keys(content: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    yield from _others(content, Policy, "")
    for name, kind in _SECTION_TYPES.items():
        if isinstance(section := content.get(name), Mapping):
            yield from _others(section, kind, f"{name}.")
    for place, waiver in enumerate(content.get("waiver", ())):
        if isinstance(waiver, Mapping):
            yield from _others(waiver, Waiver, f"waiver.{place}.")


def _others(
    table: Mapping[str, Any], kind: type[msgspec.Struct], prefix: str
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    known = kind.__struct_fields__
    yield from ((f"{prefix}{name}", name, known) for name in table if name not in known)


def _is_below(key: str, above: str) -> bool:
    return key == above or key.startswith(f"{above}.")


def _nearest(key: str, origins: Mapping[str, KeyOrigin]) -> KeyOrigin:
    """Return where a key was set, or the innermost table around it that was."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, DEFAULT_ORIGIN)


def _place(origin: KeyOrigin) -> str:
    if origin == DEFAULT_ORIGIN:
        return ""
    return f" in {origin}" if origin.line is not None else f" (set by {origin})"


def _at_origin(error: InvalidArgument, key: str, origins: Mapping[str, KeyOrigin]) -> InvalidPolicy:
    """Return an error about a key with the place where it was set."""
    place = _place(_nearest(key, origins))
    text = str(error)
    if not text.startswith(f"{error.name} "):
        return InvalidPolicy.with_text(error.name, f"{text}{place}")
    return InvalidPolicy.with_text(error.name, f"{error.name}{place}{text[len(error.name) :]}")


def policy_values(policy: Policy) -> Iterator[tuple[str, Any]]:
    """List every key of a policy with its value; an absent section has none.

    Args:
        policy: The policy.

    Yields:
        Dotted key and value, in the order of the sections; then ``waiver_max_days``, and each
        waiver as ``waiver.0``, ``waiver.1`` ...
    """
    content = msgspec.to_builtins(policy)
    for section in POLICY_SECTIONS:
        for name, value in (content[section] or {}).items():
            yield f"{section}.{name}", value
    yield "waiver_max_days", content["waiver_max_days"]
    for place, waiver in enumerate(content["waiver"]):
        yield f"waiver.{place}", waiver


# The line of each key in a TOML file, which tomllib does not report; nor does tomlkit 0.15, whose
# items have no positions.

TABLE_HEADER = re.compile(r"\s*\[")
LONG_VALUE_LINES = 100
"""Above this number of lines, not every line is tried as the last of a value."""


def key_lines(text: str) -> dict[str, int]:
    """Find the first line of every table and key of a valid TOML text.

    Args:
        text: Valid TOML.

    Returns:
        Line numbers from 1, by key. Keys are joined by dots; the second table of an array
        ``waiver`` is ``waiver.1``.
    """
    lines: dict[str, int] = {}
    tables: Counter[str] = Counter()
    table: list[str] = []
    for number, statement in _statements(text):
        if TABLE_HEADER.match(statement):
            table = _path(tomllib.loads(statement))
            name = ".".join(table)
            if statement.lstrip().startswith("[["):
                tables[name] += 1
            lines.setdefault(_numbered(name, tables), number)
        elif statement.strip():
            for place in range(1, len(table) + 1):
                lines.setdefault(_numbered(".".join(table[:place]), tables), number)
            for path in _keys_of_statement(tomllib.loads(statement)):
                lines.setdefault(_numbered(".".join([*table, *path]), tables), number)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield each header, comment or assignment with its first line; values may span lines."""
    held: list[str] = []
    due = 1
    for number, line in enumerate(text.split("\n"), 1):
        held.append(line)
        if len(held) < due:
            continue
        statement = "\n".join(held)
        if _is_whole(statement):
            yield number - len(held) + 1, statement
            held, due = [], 1
        else:
            # To parse a growing value at every line takes quadratic time: try less often.
            due = len(held) + 1 + (len(held) // 4 if len(held) > LONG_VALUE_LINES else 0)
    if held and _is_whole(statement := "\n".join(held)):
        yield text.count("\n") + 2 - len(held), statement


def _is_whole(statement: str) -> bool:
    try:
        tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _path(content: Any) -> list[str]:
    """Return the names from the root to the innermost table of a table header."""
    if isinstance(content, list):
        return _path(content[0])
    if not content:
        return []
    ((name, inner),) = content.items()
    return [name, *_path(inner)]


def _keys_of_statement(content: Any) -> Iterator[list[str]]:
    if isinstance(content, list) and content and isinstance(content[0], dict):
        yield from _keys_of_statement(content[0])
    elif isinstance(content, dict):
        for name, inner in content.items():
            yield [name]
            yield from ([name, *rest] for rest in _keys_of_statement(inner))


def _numbered(path: str, tables: Counter[str]) -> str:
    """Return the path, with the number of the current table after the name of its array."""
    if not tables:
        return path
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        table = ".".join(parts[:end])
        if table in tables:
            return f"{table}.{tables[table] - 1}{path[len(table) :]}"
    return path
