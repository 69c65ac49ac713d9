"""Text canaries: tokens of their own, and distinct sentences drawn from a model."""

from __future__ import annotations

import numpy as np
import pytest

from dpaudit.attacks.canaries import assign_canaries
from dpaudit.attacks.canaries.text_canaries import new_token_sentences, synthetic_sentences
from dpaudit.vocabulary.errors import InvalidArgument


def test_every_canary_has_a_token_of_its_own_whatever_the_coins_are() -> None:
    canaries = new_token_sentences([f"line {row % 3}" for row in range(30)])
    assert len(set(canaries.new_tokens)) == 30
    for sentence, name in zip(canaries.sentences, canaries.new_tokens, strict=True):
        assert sentence.endswith(name)
        assert sum(name in other for other in canaries.sentences) == 1
    assignment = assign_canaries(canaries, np.random.default_rng(0))
    assert len(assignment.trained.sentences) == int(assignment.included.sum())
    assert len(assignment.trained.new_tokens) == int(assignment.included.sum())


def test_repeated_sentences_are_drawn_again() -> None:
    asked: list[int] = []

    def sample(count: int, number: int) -> list[str]:
        asked.append(count)
        return [f"{number}-{place // 2}" for place in range(count)]  # every sentence twice

    assert synthetic_sentences(4, sample).sentences == ("0-0", "0-1", "1-0", "2-0")
    assert asked == [4, 2, 1]


def test_a_model_that_repeats_itself_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most 1"):
        synthetic_sentences(3, lambda count, number: ["always"] * count)


@pytest.mark.parametrize("prefixes", [[], ["to be", ""]])
def test_prefixes_that_predict_nothing_are_refused(prefixes: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        new_token_sentences(prefixes)
