"""A policy put together of layers, each above the one before, and where each key came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dpaudit.gate.policy import Policy
from dpaudit.vocabulary.errors import InvalidArgument

SECTIONS = ("claim", "audit", "regression")


@dataclass(frozen=True)
class Origin:
    """Where a key was set: a file and its line, or what stands above all files."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


DEFAULT = Origin("default")


@dataclass(frozen=True)
class Layer:
    """Some of a policy's keys.

    Attributes:
        source: The file, the variable, or the option that sets them.
        content: The keys, as in dpaudit.toml.
        lines: The line of each key, from 1, where there are lines.
        sha256: Digest of the file's bytes, or of the text of a variable or option.
    """

    source: str
    content: Mapping[str, Any]
    lines: Mapping[str, int]
    sha256: str = ""

    @property
    def overrides_files(self) -> bool:
        """Whether a variable or an option sets it."""
        return self.source.startswith(("$", "--"))

    def origin(self, key: str) -> Origin:
        """Return where this layer sets ``key``."""
        return Origin(self.source, self.lines.get(key))


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy, and the origin of each key and section that was set.

    Attributes:
        policy: What is demanded.
        origins: Where each key was set.
        layers: Every source; later ones take precedence.
    """

    policy: Policy
    origins: Mapping[str, Origin]
    layers: tuple[Layer, ...] = ()

    def origin_of(self, rule: str) -> Origin:
        """Return where the key that ``rule`` comes from was set: the nearest that was."""
        waiver, _, waived = rule.partition("waiver.")
        if not waiver and waived:
            return self._of_waiver(waived)
        key = rule
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, DEFAULT)

    def above_files(self) -> dict[str, Origin]:
        """Return the keys that an option or a variable sets, above whatever files say."""
        return {
            key: origin
            for key, origin in self.origins.items()
            if key not in SECTIONS and origin.source.startswith(("$", "--"))
        }

    def _of_waiver(self, rule: str) -> Origin:
        places = [i for i, waiver in enumerate(self.policy.waiver) if waiver.rule == rule]
        keys = [*(f"waiver.{place}" for place in places), "waiver"]
        return next((self.origins[key] for key in keys if key in self.origins), DEFAULT)


def put_together(layers: Sequence[Layer]) -> LoadedPolicy:
    """Return the policy that ``layers`` make, the last one on top.

    Keys replace keys; limits by false-positive rate, and waivers, add up.

    Raises:
        InvalidArgument: a key is unknown or a value is not allowed, or nothing at all is
            demanded; the message names it.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for layer in layers:
        for key, value in _keys(layer):
            _put(merged, key, value)
            if key not in SECTIONS or layer.lines:  # what sets a key alone has no section
                origins[key] = layer.origin(key)
        waivers = len(merged.get("waiver", ())) - len(layer.content.get("waiver", ()))
        for key in layer.lines:  # keys inside of keys, too
            origins[_moved(key, waivers)] = layer.origin(key)
    return LoadedPolicy(_converted(merged, layers), origins, tuple(layers))


def _moved(key: str, below: int) -> str:
    """Return a waiver's key with its number among those of all layers."""
    name, _, rest = key.partition(".")
    number, dot, inner = rest.partition(".")
    if name != "waiver" or not number.isdigit():
        return key
    return f"waiver.{int(number) + below}{dot}{inner}"


def _keys(layer: Layer) -> Iterator[tuple[str, Any]]:
    for section, value in layer.content.items():
        if section == "waiver" and not isinstance(value, list):
            raise InvalidArgument(f"{section} in {layer.source}", value, "tables under [[waiver]]")
        if section not in SECTIONS:
            yield section, value
            continue
        if not isinstance(value, Mapping):
            raise InvalidArgument(f"{section} in {layer.source}", value, "a section of keys")
        yield section, {}
        yield from ((f"{section}.{name}", inner) for name, inner in value.items())


def _put(merged: dict[str, Any], key: str, value: Any) -> None:
    """Put a key above what is there; limits by rate, and waivers, add to those of below."""
    section, _, name = key.partition(".")
    place, key = (merged[section], name) if name else (merged, section)
    below = place.get(key)
    if isinstance(below, Mapping) and isinstance(value, Mapping):
        place[key] = {**below, **value}
    elif isinstance(below, list) and isinstance(value, list) and not name:
        place[key] = below + value
    else:
        place[key] = value


def _converted(content: dict[str, Any], layers: Sequence[Layer]) -> Policy:
    sources = ", ".join(layer.source for layer in layers)
    if not set(SECTIONS) & set(content):
        allowed = f"a policy with one of the sections {', '.join(SECTIONS)}"
        raise InvalidArgument("policy", sources, allowed)
    try:
        return msgspec.convert(content, Policy)
    except InvalidArgument:
        raise
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InvalidArgument):
            raise error.__cause__ from error
        raise InvalidArgument("policy", sources, f"a valid policy ({error})") from error


def values(policy: Policy) -> Iterator[tuple[str, Any]]:
    """Yield every key of a policy with its value; a section that is not there has none."""
    content = msgspec.to_builtins(policy)
    for section in SECTIONS:
        for name, value in (content[section] or {}).items():
            yield f"{section}.{name}", value
    yield "waiver_max_days", content["waiver_max_days"]
    for place, waiver in enumerate(content["waiver"]):
        yield f"waiver.{place}", waiver
