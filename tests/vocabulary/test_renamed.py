"""Files of version 0.1 are read by the present names; nothing in them is ignored."""

from __future__ import annotations

import warnings

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.vocabulary.renamed import (
    KEYS,
    VALUES,
    OldNameWarning,
    has_old_names,
    present_key,
    renamed,
    with_present_names,
)

NAMES = st.sampled_from([*KEYS, *KEYS.values(), "epsilon", "outcome", "rule", "verdict"])
OLD_VALUES = [old for values in VALUES.values() for old in values]
CONTENT = st.recursive(
    st.none() | st.integers() | st.sampled_from([*OLD_VALUES, "PASS", "words"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(("old", "new"), KEYS.items())
def test_old_key_is_renamed_with_a_warning(old: str, new: str) -> None:
    with pytest.warns(OldNameWarning, match=f"claim.json .* {old} as {new}"):
        assert renamed({"inner": [{old: ["tuning"]}]}, "claim.json") == {
            "inner": [{new: ["tuning"]}]
        }


@pytest.mark.parametrize(("old", "new"), KEYS.items())
@pytest.mark.parametrize("old_first", [True, False])
def test_both_names_of_one_key_are_refused(old: str, new: str, old_first: bool) -> None:
    names = (old, new) if old_first else (new, old)
    with pytest.raises(ValueError, match="one key"):
        with_present_names(dict.fromkeys(names, ()))


def test_words_that_are_no_outcome_are_kept() -> None:
    content = {"why": "HOLDS", "names": ["VIOLATED", "leaves_out"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert renamed(content, "verdict.json") == content


@given(CONTENT)
def test_renaming_twice_changes_nothing_more(content: object) -> None:
    try:
        once, _ = with_present_names(content)
    except ValueError:
        return
    assert with_present_names(once) == (once, {})


@given(CONTENT)
def test_fast_search_misses_nothing(content: object) -> None:
    try:
        _, found = with_present_names(content)
    except ValueError:
        return
    assert has_old_names(msgspec.json.encode(content)) or not found


def test_dotted_keys_are_renamed_part_by_part() -> None:
    assert present_key("claim.may_leave_out") == "claim.allow_unaccounted"
    assert present_key("audit.max_tpr_at_fpr.0.01") == "audit.max_tpr_at_fpr.0.01"
