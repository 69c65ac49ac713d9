"""The policy in force: files, variables of the environment and options, in layers."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpaudit.files.documents import BROKEN, parse_toml, read_text, require_plain
from dpaudit.files.opening import SETTINGS, InputFile
from dpaudit.gate.layers import SECTIONS, Layer, LoadedPolicy, put_together
from dpaudit.gate.lines import key_lines
from dpaudit.gate.policy import Policy
from dpaudit.vocabulary.errors import InvalidArgument

OWN_FILE, SHARED_FILE = "dpaudit.toml", "pyproject.toml"
TABLE = "tool.dpaudit"
PREFIX = "DPAUDIT_POLICY_"
UNREADABLE = "unreadable"


def load_policy(
    path: Path | None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    assigned_by: str = "--set",
) -> LoadedPolicy:
    """Return the policy in force.

    From below: ``[tool.dpaudit]`` of pyproject.toml and dpaudit.toml of the working
    directory, or ``path`` in place of both; variables such as
    ``DPAUDIT_POLICY_CLAIM_MAX_EPSILON``; ``assignments`` such as ``claim.max_epsilon=3``, which
    the option or variable ``assigned_by`` gave.

    Raises:
        InvalidArgument: there is no policy, a file is missing or no TOML, a key is unknown
            or a value is not allowed; the message names it.
    """
    layers = [
        *_files(path),
        *_variables(environment),
        *(_assignment(text, assigned_by) for text in assignments),
    ]
    if not layers:
        raise InvalidArgument(
            "policy", "none", f"in {OWN_FILE} or {SHARED_FILE}: dpaudit init RUN writes one"
        )
    return put_together(layers)


def read_policy(path: Path) -> Policy:
    """Return the policy of one file alone.

    Raises:
        InvalidArgument: as ``load_policy``.
    """
    return put_together([_file(path)]).policy


def project_digest() -> str:
    """Return the digest of the working directory's own policy; empty if it has none.

    Where its files are no valid policy, no policy in force is equal to it.
    """
    try:
        layers = list(_files(None))
        return put_together(layers).policy.digest if layers else ""
    except InvalidArgument:
        return UNREADABLE


def shared_policy(folder: Path) -> bool:
    """Return whether the folder's pyproject.toml holds a policy."""
    path = folder / SHARED_FILE
    return (
        _is_there(path)
        and _table(_parsed(path, read_text(InputFile(path, "policy", SETTINGS)))) is not None
    )


def some_policy(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the working directory or the environment sets any of a policy."""
    return any(True for _ in _files(None)) or any(name.startswith(PREFIX) for name in environment)


def _files(path: Path | None) -> Iterator[Layer]:
    if path is not None:
        yield _file(path)
        return
    own = Path(OWN_FILE)
    if shared_policy(Path()):
        yield _file(Path(SHARED_FILE))
    if _is_there(own):
        yield _file(own)


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)  # a broken link is an error, not an absence


def _table(content: dict[str, Any]) -> Any:
    """Return what a pyproject.toml holds under [tool.dpaudit]; None: nothing."""
    tools = content.get("tool", {})
    return tools.get("dpaudit") if isinstance(tools, dict) else None


def _file(path: Path) -> Layer:
    text = read_text(InputFile(path, "policy", SETTINGS))
    content, lines = _parsed(path, text), key_lines(text)
    if path.name == SHARED_FILE:
        content = _table(content) or {}
        inside = f"{TABLE}."
        lines = {key.removeprefix(inside): n for key, n in lines.items() if key.startswith(inside)}
    if not isinstance(content, dict):
        raise InvalidArgument(TABLE, content, "a table")
    return Layer(str(path), content, lines, hashlib.sha256(text.encode()).hexdigest())


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        content = parse_toml(text)
        require_plain(content)
    except BROKEN as error:
        raise InvalidArgument("policy", str(path), f"valid TOML ({error})") from error
    return content


def _variables(environment: Mapping[str, str]) -> Iterator[Layer]:
    for name, text in sorted(environment.items()):
        if name.startswith(PREFIX):
            section, _, key = name.removeprefix(PREFIX).lower().partition("_")
            yield _single(f"${name}", section, key, text)


def _assignment(text: str, by: str) -> Layer:
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot):
        raise InvalidArgument("set", text, "KEY=VALUE, such as claim.max_epsilon=3")
    return _single(f"{by} {name.strip()}", section, key, value.strip())


def _single(source: str, section: str, key: str, text: str) -> Layer:
    """Return the layer of one key; what is no TOML value is a word."""
    if section not in SECTIONS or not key:
        raise InvalidArgument("policy", source, f"of one of the sections {', '.join(SECTIONS)}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        require_plain(value)
    except tomllib.TOMLDecodeError:
        value = text
    except BROKEN as error:
        raise InvalidArgument("policy", source, f"a TOML value ({error})") from error
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    return Layer(source, {section: {key: value}}, {}, digest)
