"""Membership attacks on language models, from log-probabilities of tokens.

Every score is larger for a text that the model is more likely to have been trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from dpaudit.attacks.language_models.token_signals import TokenSignals
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import FloatArray
from dpaudit.vocabulary.errors import InvalidArgument

SMALLEST_SHARE = 0.2
"""Share of the tokens that Min-K% and Min-K%++ average, as in the papers' default."""

Texts = Sequence[TokenSignals]
Value = TypeVar("Value")


def loss_scores(texts: Texts) -> RecordScores:
    """Score texts by the mean log-probability of their tokens.

    Args:
        texts: Signals of each text.

    Returns:
        Minus the mean loss of each text, in nats per token.

    References:
        Yeom et al. (2018), arXiv:1709.01604; for language models Carlini et al. (2021),
        arXiv:2012.07805, as perplexity.

    Example:
        >>> loss_scores([TokenSignals(np.array([-1.0, -3.0]))]).values
        array([-2.])
    """
    return RecordScores(_means(texts))


def zlib_scores(texts: Texts) -> RecordScores:
    """Score texts by the mean log-probability divided by the size after zlib compression.

    Args:
        texts: Signals of each text, with ``compressed_bytes``.

    Returns:
        Minus the mean loss over the number of compressed bytes.

    Raises:
        InvalidArgument: If a text lacks its compressed size.

    References:
        Carlini et al. (2021), arXiv:2012.07805: perplexity against zlib entropy.

    Example:
        >>> zlib_scores([TokenSignals(np.array([-1.0, -3.0]), compressed_bytes=4)]).values
        array([-0.5])
    """
    sizes = np.array([_needed(one.compressed_bytes, "zlib_bytes") for one in texts], np.float64)
    return RecordScores(_means(texts) / sizes)


def reference_ratio_scores(texts: Texts) -> RecordScores:
    """Score texts by the ratio of the losses of the model and of a reference model.

    Args:
        texts: Signals of each text, with ``reference``.

    Returns:
        Minus the mean loss of the model over the mean loss of the reference, per token of each
        model. Minus 1: the reference predicts the text as well.

    Raises:
        InvalidArgument: If a text has no reference, or the reference's loss is 0.

    References:
        Carlini et al. (2021), arXiv:2012.07805: ratio of log-perplexities.

    Example:
        >>> text = TokenSignals(np.array([-1.0, -3.0]), reference=np.array([-4.0, -4.0]))
        >>> reference_ratio_scores([text]).values
        array([-0.5])
    """
    references = np.array([_needed(one.reference, "reference_logprobs").mean() for one in texts])
    if not (references < 0).all():
        raise InvalidArgument("reference", "a loss of 0", "below 0: the ratio divides by it")
    return RecordScores(-_means(texts) / references)


def reference_difference_scores(texts: Texts) -> RecordScores:
    """Score texts by the log-likelihood ratio of the model and a reference model, per token.

    Args:
        texts: Signals of each text, with ``reference``.

    Returns:
        Log-likelihood under the model minus that under the reference, over the model's number
        of tokens.

    Raises:
        InvalidArgument: If a text has no reference.

    References:
        Mireshghallah et al. (2022), arXiv:2203.03929: likelihood ratio, here per token.

    Example:
        >>> text = TokenSignals(np.array([-1.0, -3.0]), reference=np.array([-4.0, -4.0]))
        >>> reference_difference_scores([text]).values
        array([2.])
    """
    totals = [
        one.log_probabilities.sum() - _needed(one.reference, "reference_logprobs").sum()
        for one in texts
    ]
    return RecordScores(np.array(totals) / np.array([len(one) for one in texts]))


def min_k_scores(texts: Texts, *, share: float = SMALLEST_SHARE) -> RecordScores:
    """Score texts by the mean log-probability of their least probable tokens.

    Args:
        texts: Signals of each text.
        share: Share of the tokens that is averaged, in (0, 1]; at least one token.

    Returns:
        Min-K% of each text.

    Raises:
        InvalidArgument: If ``share`` is out of range.

    References:
        Shi et al. (2024), arXiv:2310.16789.

    Example:
        >>> min_k_scores([TokenSignals(np.array([-1.0, -3.0, -5.0]))], share=0.7).values
        array([-4.])
    """
    return RecordScores(
        np.array([_mean_of_smallest(one.log_probabilities, share) for one in texts])
    )


def min_k_plus_plus_scores(texts: Texts, *, share: float = SMALLEST_SHARE) -> RecordScores:
    """Score texts by the least normalized log-probabilities of their tokens.

    A log-probability is normalized by mean and standard deviation over the vocabulary. Where all
    tokens have the same probability, the deviation is 0, and the normalized value is 0.

    Args:
        texts: Signals of each text, with ``means`` and ``deviations``.
        share: Share of the tokens that is averaged, in (0, 1]; at least one token.

    Returns:
        Min-K%++ of each text.

    Raises:
        InvalidArgument: If a text lacks means or deviations, or ``share`` is out of range.

    References:
        Zhang et al. (2024), arXiv:2404.02936.

    Example:
        >>> text = TokenSignals(np.array([-1.0, -3.0]), np.array([-2.0, -2.0]), np.ones(2))
        >>> min_k_plus_plus_scores([text], share=0.5).values
        array([-1.])
    """
    return RecordScores(np.array([_mean_of_smallest(_normalized(one), share) for one in texts]))


LIKELIHOOD_ATTACKS: dict[str, Callable[[Texts], RecordScores]] = {
    "loss": loss_scores,
    "zlib": zlib_scores,
    "min-k": min_k_scores,
    "min-k++": min_k_plus_plus_scores,
    "reference-ratio": reference_ratio_scores,
    "reference-difference": reference_difference_scores,
}
"""Each attack under its name: a function from the signals of texts to their scores."""


def possible_attacks(texts: Texts) -> tuple[str, ...]:
    """Return the attacks whose signals every text has.

    Args:
        texts: Signals of each text.

    Returns:
        Names in ``LIKELIHOOD_ATTACKS``, in its order.

    Example:
        >>> possible_attacks([TokenSignals(np.array([-1.0]))])
        ('loss', 'min-k')
    """
    has = {
        "zlib": all(one.compressed_bytes is not None for one in texts),
        "min-k++": all(one.means is not None and one.deviations is not None for one in texts),
        "reference-ratio": all(one.reference is not None for one in texts),
        "reference-difference": all(one.reference is not None for one in texts),
    }
    return tuple(name for name in LIKELIHOOD_ATTACKS if has.get(name, True))


def _means(texts: Texts) -> FloatArray:
    """Return the mean log-probability of each text."""
    return np.array([one.log_probabilities.mean() for one in texts], dtype=np.float64)


def _needed(value: Value | None, name: str) -> Value:
    """Return a signal; refuse one that is missing."""
    if value is None:
        raise InvalidArgument(name, None, "given for every text: this attack reads it")
    return value


def _normalized(text: TokenSignals) -> FloatArray:
    """Return the log-probabilities in standard deviations from their means."""
    gaps = text.log_probabilities - _needed(text.means, "means")
    deviations = _needed(text.deviations, "deviations")
    return np.divide(gaps, deviations, out=np.zeros_like(gaps), where=deviations > 0)


def _mean_of_smallest(values: FloatArray, share: float) -> float:
    """Return the mean of the smallest ``share`` of the values, of at least one."""
    if not 0 < share <= 1:
        raise InvalidArgument("share", share, "above 0 and at most 1")
    count = max(1, math.floor(share * len(values) * (1 + 1e-12)))  # 0.29 of 100 is 29
    return float(np.partition(values, count - 1)[:count].mean())
