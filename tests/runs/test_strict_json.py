"""JSON in which an object names a key twice is refused, at any depth."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.runs.file_io import require_unique_keys

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(values)
def test_what_python_writes_names_no_key_twice(value: object) -> None:
    require_unique_keys(json.dumps(value).encode())


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": {"b": [1, {"c": 0, "d": 1, "c": 2}]}}',
        '[[{"": 1, "": 2}]]',
        r'{"a": 1, "\u0061": 2}',
    ],
)
def test_a_key_that_comes_twice_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="twice"):
        require_unique_keys(text.encode())


@pytest.mark.parametrize("text", ['{"a": NaN}', "[Infinity]", '{"a": {"b": -Infinity}}', "{", ""])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the reader's own words
        require_unique_keys(text.encode())


def test_one_key_in_two_objects_is_fine() -> None:
    require_unique_keys(b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}')
