"""The text of a schema does not depend on the version that generates it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import make_schemas
import msgspec
import pytest

Change = Callable[[dict[str, Any]], dict[str, Any]]


def everywhere(schema: Any, change: Change) -> Any:
    """Apply a change to every object in a schema, from the inside out."""
    if isinstance(schema, list):
        return [everywhere(item, change) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return change({key: everywhere(value, change) for key, value in schema.items()})


def described(text: Callable[[str], str]) -> Change:
    def change(schema: dict[str, Any]) -> dict[str, Any]:
        said = schema.get("description")
        return schema | {"description": text(said)} if isinstance(said, str) else schema

    return change


def raw_docstring(text: str) -> str:
    """Return a docstring as it stands in a class, its last line with the closing quotes."""
    first, *more = text.splitlines()
    indented = [line and f"    {line}" for line in more]
    return "\n".join([first, *indented, "    "]) if more else first


def reordered(first_is_null: bool) -> Change:
    def change(schema: dict[str, Any]) -> dict[str, Any]:
        choices = schema.get("anyOf")
        if not isinstance(choices, list):
            return schema
        ordered = sorted(choices, key=lambda choice: choice == {"type": "null"})
        return schema | {"anyOf": ordered[::-1] if first_is_null else ordered}

    return change


VERSIONS = {
    "docstrings keep their indentation": described(raw_docstring),
    "docstrings without indentation": described(str.strip),
    "null first": reordered(True),
    "null last": reordered(False),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", make_schemas.KINDS)
def test_each_version_generates_the_shipped_text(
    name: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = (make_schemas.FOLDER / f"{name}.json").read_text()
    schema = everywhere(make_schemas.normalised(_schema(name)), VERSIONS[version])
    monkeypatch.setattr(msgspec.json, "schema", lambda kind: schema)
    assert make_schemas.schema_text(make_schemas.KINDS[name]) == shipped


def _schema(name: str) -> Any:
    return msgspec.json.schema(make_schemas.KINDS[name])


def test_the_emulated_versions_differ() -> None:
    """Otherwise the test above would compare a text with itself."""
    schema = _schema("policy")
    texts = {repr(everywhere(schema, change)) for change in VERSIONS.values()}
    assert len(texts) >= 3  # one of the four can be the version at hand


def test_a_property_called_description_is_no_description() -> None:
    schema = {"properties": {"description": {"description": "One.\n\n    Two."}}}
    assert make_schemas.normalised(schema) == {
        "properties": {"description": {"description": "One.\n\nTwo."}}
    }
