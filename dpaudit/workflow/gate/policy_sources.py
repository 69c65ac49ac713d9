"""Load the policy in force from files, environment variables and options."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpaudit.files.documents import DOCUMENT_ERRORS, parse_toml, read_text, require_shallow_document
from dpaudit.files.regular_files import SETTINGS_LIMIT, InputFile
from dpaudit.gate.policy import Policy
from dpaudit.gate.policy_layers import (
    POLICY_SECTIONS,
    LoadedPolicy,
    PolicyLayer,
    key_lines,
    keys_named,
    merge_layers,
)
from dpaudit.vocabulary.errors import InvalidArgument, InvalidPolicy
from dpaudit.vocabulary.renamed import present_key, renamed

POLICY_FILE, PYPROJECT_FILE = "dpaudit.toml", "pyproject.toml"
PYPROJECT_TABLE = "tool.dpaudit"
VARIABLE_PREFIX = "DPAUDIT_POLICY_"
UNREADABLE_FILE = "unreadable"


def load_policy(
    path: Path | None,
    assignments: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    assignment_source: str = "--set",
    path_name: str | None = None,
) -> LoadedPolicy:
    """Load the policy in force.

    In ascending precedence: ``[tool.dpaudit]`` of pyproject.toml and dpaudit.toml of the working
    directory; variables such as ``DPAUDIT_POLICY_CLAIM_MAX_EPSILON``; assignments.

    Args:
        path: A file in place of both files of the working directory; None: these files.
        assignments: Assignments such as ``claim.max_epsilon=3``.
        environment: Environment variables.
        assignment_source: The option or variable that gave ``assignments``, for the record.
        path_name: What the file is called in messages and in the record; None: ``path``.

    Returns:
        The policy, and the origin of each key.

    Raises:
        InvalidPolicy: If there is no policy, if a file is missing or no TOML, or if a key is
            unknown or a value is not allowed; the message contains the key.
    """
    layers = [
        *_files(path, path_name),
        *_variables(environment),
        *(_assignment(text, assignment_source) for text in assignments),
    ]
    if not layers:
        raise InvalidPolicy(
            "policy", "none", f"in {POLICY_FILE} or {PYPROJECT_FILE}: dpaudit init RUN writes one"
        )
    return merge_layers(layers)


def read_policy(path: Path) -> Policy:
    """Read the policy of one file, without variables and options.

    Args:
        path: The file.

    Returns:
        The policy.

    Raises:
        InvalidPolicy: If the file is missing or no TOML, or if a key is unknown or a value is
            not allowed.
    """
    return merge_layers([_file(path)]).policy


def project_digest() -> str:
    """Return the digest of the policy in the working directory's files.

    Returns:
        SHA-256 of the policy; empty without a policy. For files that are no valid policy, a text
        that equals no digest.
    """
    try:
        layers = list(_files(None))
        return merge_layers(layers).policy.digest if layers else ""
    except InvalidArgument:
        return UNREADABLE_FILE


def demanded_confidence() -> tuple[float, str] | None:
    """Return the least confidence of audits by the policy in force, and where it is set.

    Returns:
        The confidence and its origin; None without a policy, without its section ``audit``, or
        if it is no valid policy, which the gate reports.
    """
    try:
        loaded = load_policy(None)
    except InvalidArgument:
        return None
    audit = loaded.policy.audit
    if audit is None:
        return None
    return audit.confidence, str(loaded.origin_of("audit.confidence"))


def pyproject_has_policy(folder: Path) -> bool:
    """Return whether the folder's pyproject.toml holds a policy."""
    path = folder / PYPROJECT_FILE
    return (
        _is_there(path)
        and _table(_parsed(str(path), read_text(InputFile(path, "policy", SETTINGS_LIMIT))))
        is not None
    )


def is_policy_configured(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the working directory or the environment sets any of a policy."""
    return any(True for _ in _files(None)) or any(
        name.startswith(VARIABLE_PREFIX) for name in environment
    )


def _files(path: Path | None, name: str | None = None) -> Iterator[PolicyLayer]:
    if path is not None:
        yield _file(path, name)
        return
    own = Path(POLICY_FILE)
    if pyproject_has_policy(Path()):
        yield _file(Path(PYPROJECT_FILE))
    if _is_there(own):
        yield _file(own)


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)  # a broken link is an error, not an absence


def _table(content: dict[str, Any]) -> Any:
    """Return the table [tool.dpaudit] of a pyproject.toml; None if it has none."""
    tools = content.get("tool", {})
    return tools.get("dpaudit") if isinstance(tools, dict) else None


def _file(path: Path, name: str | None = None) -> PolicyLayer:
    name = name or str(path)
    text = read_text(InputFile(path, "policy", SETTINGS_LIMIT))
    content, lines = _parsed(name, text), key_lines(text)
    if path.name == PYPROJECT_FILE:
        content = _table(content) or {}
        inside = f"{PYPROJECT_TABLE}."
        lines = {key.removeprefix(inside): n for key, n in lines.items() if key.startswith(inside)}
    if not isinstance(content, dict):
        raise InvalidPolicy(PYPROJECT_TABLE, content, "a table")
    content = _with_present_names(content, name)
    lines = {present_key(key): number for key, number in lines.items()}
    return PolicyLayer(name, content, lines, hashlib.sha256(text.encode()).hexdigest())


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        content = parse_toml(text)
        require_shallow_document(content)
    except DOCUMENT_ERRORS as error:
        raise InvalidPolicy("policy", name, f"valid TOML ({error})") from error
    return content


def _variables(environment: Mapping[str, str]) -> Iterator[PolicyLayer]:
    seen: dict[str, str] = {}
    for name, text in sorted(environment.items()):
        if name.startswith(VARIABLE_PREFIX):
            section, _, key = name.removeprefix(VARIABLE_PREFIX).lower().partition("_")
            present = present_key(f"{section}.{key}")
            if present in seen:
                allowed = f"given once: ${seen[present]} sets {present}, too"
                raise InvalidPolicy("policy", f"${name}", allowed)
            seen[present] = name
            yield _single(f"${name}", section, key, text)


def _assignment(text: str, by: str) -> PolicyLayer:
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot):
        full = next(iter(keys_named(name.strip())), "claim.max_epsilon")
        allowed = f"KEY=VALUE with the section of the key: {full}={value.strip() or 3}"
        raise InvalidPolicy("set", text, allowed)
    return _single(f"{by} {name.strip()}", section, key, value.strip())


def _single(source: str, section: str, key: str, text: str) -> PolicyLayer:
    """Return a layer of one key; a text that is no TOML value is a string."""
    if section not in POLICY_SECTIONS or not key:
        raise InvalidPolicy(
            "policy", source, f"of one of the sections {', '.join(POLICY_SECTIONS)}"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        require_shallow_document(value)
    except tomllib.TOMLDecodeError:
        value = text
    except DOCUMENT_ERRORS as error:
        raise InvalidPolicy("policy", source, f"a TOML value ({error})") from error
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    content = _with_present_names({section: {key: value}}, source)
    return PolicyLayer(source, content, {}, digest)


def _with_present_names(content: dict[str, Any], source: str) -> dict[str, Any]:
    """Return a policy's keys, with those of version 0.1 renamed."""
    try:
        mapped: dict[str, Any] = renamed(content, source)
    except ValueError as error:
        raise InvalidPolicy("policy", source, f"one name for each key ({error})") from error
    return mapped
