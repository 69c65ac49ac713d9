"""Each key of a TOML text is found on the line on which it is set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.gate import policy_layers
from dpaudit.gate.policy_layers import key_lines

TEXT = '''# a policy
[claim]  # what must be claimed
max_epsilon = 3.0
sampling = [
  "poisson",   # with [brackets] in a comment
  "full-batch",
]
"delta" = 1e-5

[audit]
max_tpr_at_fpr = { "0.1" = 0.3, "0.01" = 0.05 }

[audit.other]
note = """
[not.a.table]
key = 1
"""

[[waiver]]
rule = "claim.sampling"
reason = "a"
[[waiver]]
rule = "claim.delta"
'''


def test_every_table_and_key_has_its_line() -> None:
    assert key_lines(TEXT) == {
        "claim": 2,
        "claim.max_epsilon": 3,
        "claim.sampling": 4,
        "claim.delta": 8,
        "audit": 10,
        "audit.max_tpr_at_fpr": 11,
        "audit.max_tpr_at_fpr.0.1": 11,
        "audit.max_tpr_at_fpr.0.01": 11,
        "audit.other": 13,
        "audit.other.note": 14,
        "waiver.0": 19,
        "waiver.0.rule": 20,
        "waiver.0.reason": 21,
        "waiver.1": 22,
        "waiver.1.rule": 23,
    }


def test_a_dotted_key_has_the_line_of_its_assignment() -> None:
    assert key_lines("\nclaim.max_epsilon = 1\nclaim.delta = 2") == {
        "claim": 2,
        "claim.max_epsilon": 2,
        "claim.delta": 3,
    }


@given(st.lists(st.integers(0, 3), max_size=6))
def test_blank_lines_and_comments_move_lines_and_nothing_else(gaps: list[int]) -> None:
    text, expected = "[claim]\n", {"claim": 1}
    for place, gap in enumerate(gaps):
        text += "# comment\n\n"[: 10 if gap % 2 else 11] * gap + f"key{place} = {place}\n"
        expected[f"claim.key{place}"] = text.count("\n")
    assert key_lines(text) == expected


def test_a_very_long_value_is_tried_a_few_times_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    whole = policy_layers._is_whole
    monkeypatch.setattr(policy_layers, "_is_whole", lambda text: tried.append(text) or whole(text))
    text = "before = 1\na = [\n" + "1,\n" * 5000 + "]\n"
    assert key_lines(text) == {"before": 1, "a": 2}
    assert len(tried) < 200
