"""Scores of text canaries: how probable a model finds the part that only the canary contains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpaudit.attacks.language_models.token_signals import TokenSignals
from dpaudit.vocabulary.arrays import FloatArray
from dpaudit.vocabulary.errors import InvalidData

NEW_TOKENS, SECRETS = "new-tokens", "secrets"


def sentence_scores(signals: Sequence[TokenSignals]) -> FloatArray:
    """Score sentences by their log-probability.

    Args:
        signals: Signals of each sentence.

    Returns:
        Sums over the tokens: minus the log-perplexity of Carlini et al. (2019), in nats.

    References:
        Carlini et al. (2019), arXiv:1802.08232.

    Example:
        >>> sentence_scores([TokenSignals(np.array([-1.0, -3.0]))])
        array([-4.])
    """
    return np.array([one.log_probabilities.sum() for one in signals], dtype=np.float64)


def token_position(tokens: Sequence[int], part: Sequence[int]) -> int:
    """Return the last place at which a part occurs in a sequence of tokens.

    Args:
        tokens: Tokens of a text.
        part: Tokens that it contains, at least one.

    Returns:
        Index of the first token of the part.

    Raises:
        InvalidData: If the part does not occur, or occurs before the first predicted token.

    Example:
        >>> token_position([5, 6, 7, 6, 7, 0], [6, 7])
        3
    """
    size = len(part)
    for start in range(len(tokens) - size, 0, -1):
        if tuple(tokens[start : start + size]) == tuple(part):
            return start
    raise InvalidData(
        "canaries", "a canary whose own token is not among its tokens",
        "canaries whose tokens were added to the tokenizer, after a prefix",
    )  # fmt: skip


def part_scores(
    signals: Sequence[TokenSignals], tokens: Sequence[Sequence[int]], parts: Sequence[Sequence[int]]
) -> FloatArray:
    """Score sentences by the log-probability of the part that only the canary contains.

    Args:
        signals: Signals of each sentence, whose first token is not predicted.
        tokens: All tokens of each sentence.
        parts: Tokens of the canary's own part.

    Returns:
        Sums over the tokens of the part.

    Raises:
        InvalidData: If a sentence does not contain its part.

    Example:
        >>> part_scores([TokenSignals(np.array([-1.0, -3.0, -0.5]))], [[5, 6, 7, 0]], [[7]])
        array([-3.])
    """
    found = []
    for one, sentence, part in zip(signals, tokens, parts, strict=True):
        start = token_position(sentence, part) - 1  # the first token has no signal
        found.append(one.log_probabilities[start : start + len(part)].sum())
    return np.array(found, dtype=np.float64)
