"""Extraction of training texts: does the model complete a text from its beginning?

A text is split into a prefix and a suffix of fixed length. With p_z the probability that one
attempt generates the suffix after the prefix, the text is (n, p)-discoverably extractable if

    1 - (1 - p_z)^n >= p.

The tokens of an attempt are drawn one after the other, so log p_z is the sum of the suffix tokens'
log-probabilities under the sampling scheme, each given all tokens of the text before it. It is
computed, not sampled. Greedy decoding generates the suffix if each of its tokens is the most
probable one. The intervals are for the share of extractable texts in the population.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.attacks.language_models.token_signals import SamplingScheme, TokenSignals
from dpaudit.vocabulary.arrays import BoolArray
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    InvalidData,
    require_count,
    require_open_unit,
)
from dpaudit.vocabulary.language_models import ExtractedShare, ExtractionResult

DEFAULT_SUFFIX_TOKENS = 50
DEFAULT_QUERIES, DEFAULT_PROBABILITY = 100, 0.5


def attempt_log_probability(text: TokenSignals, suffix_tokens: int) -> float:
    """Compute the log-probability that one attempt generates the suffix of a text.

    Args:
        text: Signals of the text, with more tokens than the suffix.
        suffix_tokens: Number of tokens of the suffix.

    Returns:
        log p_z in nats, at most 0; minus infinity if the scheme cannot draw a token.

    Raises:
        InvalidArgument: If the text is not longer than the suffix.

    Example:
        >>> attempt_log_probability(TokenSignals(np.log([0.1, 0.5, 0.5])), 2) == math.log(0.25)
        True
    """
    _require_longer(text, suffix_tokens)
    values = text.log_probabilities if text.drawn is None else text.drawn
    return float(values[-suffix_tokens:].sum())


def succeeds_within(log_probability: float, queries: int, probability: float) -> bool:
    """Return whether at least one of several attempts succeeds with a given probability.

    Args:
        log_probability: Log-probability of success of one attempt in nats, at most 0.
        queries: Number of independent attempts, n.
        probability: The required probability, p, in (0, 1).

    Returns:
        Whether 1 - (1 - p_z)^n >= p.

    Raises:
        InvalidArgument: If an argument is out of its range.

    References:
        Hayes et al. (2024), arXiv:2410.19482: (n, p)-discoverable extraction.

    Example:
        >>> succeeds_within(math.log(0.5), 2, 0.74), succeeds_within(math.log(0.5), 2, 0.76)
        (True, False)
    """
    require_count("queries", queries)
    _require_attempt(log_probability, probability)
    # n log(1 - p_z) <= log(1 - p), without the rounding of 1 - p_z for small p_z.
    return queries * _log_failure(log_probability) <= math.log1p(-probability)


def queries_needed(log_probability: float, probability: float) -> float:
    """Compute the number of attempts after which one succeeded with a given probability.

    Args:
        log_probability: Log-probability of success of one attempt in nats, at most 0.
        probability: The required probability, p, in (0, 1).

    Returns:
        The least n with 1 - (1 - p_z)^n >= p; infinite if an attempt cannot succeed.

    Raises:
        InvalidArgument: If an argument is out of its range.

    References:
        Hayes et al. (2024), arXiv:2410.19482: (n, p)-discoverable extraction.

    Example:
        >>> queries_needed(math.log(0.5), 0.7), queries_needed(-math.inf, 0.7)
        (2.0, inf)
    """
    _require_attempt(log_probability, probability)
    failure = _log_failure(log_probability)
    if failure == 0:
        return math.inf
    return max(1.0, float(math.ceil(math.log1p(-probability) / failure)))


def _log_failure(log_probability: float) -> float:
    """Return log(1 - p_z)."""
    success = math.exp(log_probability)
    return -math.inf if success >= 1 else math.log1p(-success)


def _require_attempt(log_probability: float, probability: float) -> None:
    """Refuse a log-probability above 0 or NaN, and a probability outside of (0, 1)."""
    require_open_unit("probability", probability)
    if not log_probability <= 0:
        raise InvalidArgument("log_probability", log_probability, "at most 0")


def extract_verbatim(
    texts: Sequence[TokenSignals], member: BoolArray, *, suffix_tokens: int, confidence: float
) -> ExtractionResult:
    """Count the texts whose suffix greedy decoding generates after their prefix.

    Args:
        texts: Signals of each text, with ``greedy``.
        member: Whether the model was trained on each text, shape ``(texts,)``.
        suffix_tokens: Number of tokens of the suffix.
        confidence: Confidence of each interval by itself, in (0, 1).

    Returns:
        Shares of extracted members and non-members, with Clopper-Pearson intervals.

    Raises:
        InvalidArgument: If a text lacks ``greedy``, or an argument is out of range.
        InvalidData: If all members, or all non-members, are too short.

    References:
        Carlini et al. (2023), arXiv:2202.07646: discoverable extraction by greedy decoding.

    Example:
        >>> text = TokenSignals(np.log([0.1, 0.5]), greedy=np.array([False, True]))
        >>> member = np.array([True, False])
        >>> found = extract_verbatim([text, text], member, suffix_tokens=1, confidence=0.95)
        >>> found.members.extracted, found.members.texts
        (1, 1)
    """

    def extracted(text: TokenSignals) -> bool:
        """Whether each token of the suffix is the most probable one."""
        if text.greedy is None:
            allowed = "given for every text: greedy decoding chooses the most probable token"
            raise InvalidArgument("greedy", None, allowed)
        return bool(text.greedy[-suffix_tokens:].all())

    shares, short = _shares(texts, member, suffix_tokens, confidence, extracted)
    return ExtractionResult(
        "verbatim", suffix_tokens, *shares, "greedy decoding", 1, None, confidence, short
    )


def extract_probabilistically(
    texts: Sequence[TokenSignals],
    member: BoolArray,
    *,
    suffix_tokens: int,
    queries: int = DEFAULT_QUERIES,
    probability: float = DEFAULT_PROBABILITY,
    scheme: SamplingScheme | None = None,
    confidence: float,
) -> ExtractionResult:
    """Count the texts that are (n, p)-discoverably extractable.

    Args:
        texts: Signals of each text; ``drawn`` for another scheme than the model's distribution.
        member: Whether the model was trained on each text, shape ``(texts,)``.
        suffix_tokens: Number of tokens of the suffix.
        queries: Number of independent attempts, n.
        probability: Probability, p, with which at least one attempt succeeds, in (0, 1).
        scheme: The scheme of ``drawn``; None: the model's own distribution.
        confidence: Confidence of each interval by itself, in (0, 1).

    Returns:
        Shares of extractable members and non-members, with Clopper-Pearson intervals.

    Raises:
        InvalidArgument: If ``drawn`` is missing for the scheme, or an argument is out of range.
        InvalidData: If all members, or all non-members, are too short.

    References:
        Hayes et al. (2024), arXiv:2410.19482: (n, p)-discoverable extraction.

    Example:
        >>> member = np.array([True, False])
        >>> texts = [TokenSignals(np.log([0.1, 0.5])), TokenSignals(np.log([0.1, 1e-9]))]
        >>> found = extract_probabilistically(
        ...     texts, member, suffix_tokens=1, queries=2, probability=0.7, confidence=0.95
        ... )
        >>> found.members.extracted, found.nonmembers.extracted
        (1, 0)
    """
    require_open_unit("probability", probability)
    require_count("queries", queries)
    scheme = scheme or SamplingScheme()
    if not scheme.is_plain and any(one.drawn is None for one in texts):
        raise InvalidArgument("drawn", None, f"given for every text, under {scheme.description}")

    def extracted(text: TokenSignals) -> bool:
        """Whether the attempts succeed often enough."""
        return succeeds_within(attempt_log_probability(text, suffix_tokens), queries, probability)

    shares, short = _shares(texts, member, suffix_tokens, confidence, extracted)
    return ExtractionResult(
        "probabilistic",
        suffix_tokens,
        *shares,
        scheme.description,
        queries,
        probability,
        confidence,
        short,
    )


def _shares(
    texts: Sequence[TokenSignals],
    member: BoolArray,
    suffix_tokens: int,
    confidence: float,
    extracted: Callable[[TokenSignals], bool],
) -> tuple[tuple[ExtractedShare, ExtractedShare], int]:
    """Return the shares of members and of non-members, and the number of short texts."""
    require_count("suffix_tokens", suffix_tokens)
    require_open_unit("confidence", confidence)
    long_enough = np.array([len(text) > suffix_tokens for text in texts], dtype=np.bool_)
    found = []
    for name, chosen in (("members", member), ("non-members", ~member)):
        kept = [texts[i] for i in np.flatnonzero(chosen & long_enough).tolist()]
        if not kept:
            allowed = f"with some {name} of more than {suffix_tokens} predicted tokens"
            raise InvalidData("texts", f"no {name} that long", allowed)
        hits = sum(extracted(text) for text in kept)
        interval = clopper_pearson_interval(successes=hits, trials=len(kept), confidence=confidence)
        found.append(ExtractedShare(len(kept), hits, interval))
    return (found[0], found[1]), int((~long_enough).sum())


def _require_longer(text: TokenSignals, suffix_tokens: int) -> None:
    """Refuse a text without a predicted token before its suffix."""
    require_count("suffix_tokens", suffix_tokens)
    if len(text) <= suffix_tokens:
        allowed = f"below {len(text)}, the predicted tokens of the text"
        raise InvalidArgument("suffix_tokens", suffix_tokens, allowed)
