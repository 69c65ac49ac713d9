"""Text canaries: sentences with a token of their own, and sentences drawn at high temperature.

Sentences with a secret number are in ``dpaudit.attacks.canaries`` (``make_secrets``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import InvalidArgument, require_count

TOKEN_NAME = "<|canary-{number}|>"
SAMPLING_ROUNDS = 20
"""Rounds in which repeated sentences are drawn again."""


@dataclass(frozen=True)
class TextCanaries:
    """Sentences to train on, one per canary.

    Attributes:
        sentences: One sentence per canary, distinct.
        new_tokens: The token that only this canary contains, at its end; empty for sentences of
            ordinary tokens.

    Example:
        >>> canaries = TextCanaries(("to be", "or not"), ())
        >>> canaries[np.array([False, True])].sentences
        ('or not',)
    """

    sentences: tuple[str, ...]
    new_tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: NDArray[np.bool_]) -> TextCanaries:
        pairs = zip(self.sentences, index, strict=True)
        names = zip(self.new_tokens, index, strict=bool(self.new_tokens))
        return TextCanaries(
            tuple(sentence for sentence, wanted in pairs if wanted),
            tuple(name for name, wanted in names if wanted),
        )


def new_token_sentences(prefixes: Sequence[str]) -> TextCanaries:
    """Append to each prefix a token that occurs nowhere else.

    Add all the tokens to the tokenizer, those of excluded canaries as well, so that the vocabulary
    does not depend on the coins. A model can predict such a token only if it was trained on the
    canary.

    Args:
        prefixes: Beginnings of held-out texts, not empty. Short ones give more weight to the
            token in a mean loss.

    Returns:
        One sentence per prefix.

    Raises:
        InvalidArgument: If there is no prefix, or one is empty.

    References:
        Panda et al. (2025), arXiv:2503.06808: new tokens as canaries.

    Example:
        >>> new_token_sentences(["to be", "or"]).sentences
        ('to be<|canary-0|>', 'or<|canary-1|>')
    """
    require_count("count", len(prefixes))
    if not all(prefixes):
        allowed = "a text before the token, which it is predicted from"
        raise InvalidArgument("prefix", "an empty text", allowed)
    names = tuple(TOKEN_NAME.format(number=number) for number in range(len(prefixes)))
    return TextCanaries(
        tuple(prefix + name for prefix, name in zip(prefixes, names, strict=True)), names
    )


def synthetic_sentences(count: int, sample: Callable[[int, int], Sequence[str]]) -> TextCanaries:
    """Draw distinct sentences from a language model, best at high temperature.

    Such sentences are not private, look like the training data, and are improbable enough for a
    model to know them only by heart. The language model must not have seen the private data.

    Args:
        count: Number of sentences, at least 1.
        sample: Draws sentences: called with their number and the number of the round.

    Returns:
        The sentences.

    Raises:
        InvalidArgument: If sentences repeat too often to draw ``count`` distinct ones.

    References:
        Mitchell et al. (2026), arXiv:2606.10481: canaries by sampling at a temperature of 0.8 or
        more.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> drawn = synthetic_sentences(3, lambda n, _: [str(x) for x in rng.integers(0, 9, n)])
        >>> len(set(drawn.sentences))
        3
    """
    require_count("count", count)
    found: dict[str, None] = {}  # its keys keep the order of the draws
    for number in range(SAMPLING_ROUNDS):
        if len(found) < count:
            drawn = sample(count - len(found), number)
            found.update(dict.fromkeys(one for one in drawn if one))
    if len(found) < count:
        allowed = f"at most {len(found)}, or a higher temperature: the model repeats itself"
        raise InvalidArgument("count", count, allowed)
    return TextCanaries(tuple(found), ())
