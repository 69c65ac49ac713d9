"""Baselines without a model: a random split passes, a shift of distribution is named."""

from __future__ import annotations

import numpy as np
import pytest

from dpaudit.attacks.language_models.distribution_shift import (
    FALSE_ALARM_LEVEL,
    blind_baselines,
    separation_warning,
)
from dpaudit.attacks.language_models.token_signals import TokenSignals
from dpaudit.vocabulary.language_models import BlindBaseline

WORDS = [f"word{number}" for number in range(60)]


def random_texts(count: int, rng: np.random.Generator) -> list[str]:
    return [" ".join(rng.choice(WORDS, rng.integers(5, 15))) for _ in range(count)]


def signals_of(texts: list[str]) -> list[TokenSignals]:
    return [TokenSignals(-np.ones(len(text.split()))) for text in texts]


def test_a_random_split_is_rejected_at_most_at_the_stated_level() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(40):
        texts = random_texts(60, rng)
        member = rng.permutation(60) < 30
        found = blind_baselines(texts, signals_of(texts), member, seed=seed)
        assert separation_warning(found) is None
        p_values.append([one.p_value for one in found])
    # Each p-value is at most x with probability about x: of 160, 8 are expected below 0.05.
    below = int((np.array(p_values) <= 0.05).sum())
    assert below <= 30


@pytest.mark.parametrize(("shift", "name"), [
    ("words", "bag of words"), ("length", "number of tokens"),
])  # fmt: skip
def test_a_shift_between_members_and_non_members_is_named(shift: str, name: str) -> None:
    rng = np.random.default_rng(1)
    member = rng.permutation(200) < 100
    texts = random_texts(200, rng)
    if shift == "words":
        texts = [
            text + (" 2023" if bit else " 2025") for text, bit in zip(texts, member, strict=True)
        ]
    else:
        texts = [text * (2 if bit else 1) for text, bit in zip(texts, member, strict=True)]
    warning = separation_warning(blind_baselines(texts, signals_of(texts), member))
    assert warning is not None
    assert name in warning if shift == "words" else "AUC" in warning
    assert "at random" in warning


def test_without_texts_the_number_of_tokens_and_the_compressed_size_are_compared() -> None:
    member = np.arange(100) < 50
    signals = [
        TokenSignals(-np.ones(3 if bit else 4), compressed_bytes=10 + row % 7)
        for row, bit in enumerate(member)
    ]
    found = blind_baselines(None, signals, member)
    assert [one.name for one in found] == ["number of tokens", "compressed size"]
    assert found[0].auc == 1
    warning = separation_warning(found)
    assert warning is not None
    assert warning.startswith("number of tokens")


def test_equal_texts_give_no_baseline_and_no_warning() -> None:
    member = np.arange(8) < 4
    assert blind_baselines(["same"] * 8, [TokenSignals(-np.ones(2))] * 8, member) == ()
    assert separation_warning(()) is None


def test_the_level_is_divided_among_the_baselines() -> None:
    just = BlindBaseline("length", 0.6, 0.9 * FALSE_ALARM_LEVEL)
    other = BlindBaseline("words", 0.5, 0.5)
    assert separation_warning([just]) is not None
    assert separation_warning([just, other]) is None
