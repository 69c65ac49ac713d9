"""Signals of a torch model on token sequences: one forward pass per batch of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.language_models.token_signals import (
    SamplingScheme,
    TokenSignals,
    signals_of_log_distribution,
)
from dpaudit.vocabulary.arrays import FloatArray
from dpaudit.vocabulary.errors import InvalidData, MissingExtra

try:
    import torch
    from torch import Tensor
except ImportError as error:  # pragma: no cover - needs an environment without torch
    raise MissingExtra("torch", "llm") from error

TOKENS_AT_ONCE = 8192
"""Tokens of one forward pass, at most, padding included; a longer text is a batch by itself."""

POSITIONS_AT_ONCE = 128
"""Positions whose distribution over the vocabulary is in memory in float64."""

Logits = Callable[[Tensor], Tensor]
"""From tokens of shape ``(texts, length)`` to logits of shape ``(texts, length, vocabulary)``."""

Sequences = Sequence[NDArray[np.int64]]


def model_signals(
    logits: Logits,
    sequences: Sequences,
    *,
    scheme: SamplingScheme | None = None,
    on_texts: Callable[[int], None] = lambda count: None,
) -> tuple[TokenSignals, ...]:
    """Compute the signals of a causal language model on token sequences.

    Short sequences are padded on the right, which a causal model does not see.

    Args:
        logits: The model in evaluation mode.
        sequences: Tokens of each text, at least two.
        scheme: Sampling scheme of an extraction; None: ``drawn`` is not computed.
        on_texts: Called after each batch with its number of texts.

    Returns:
        Signals of each text for its tokens from the second on.

    Raises:
        InvalidData: If a text has fewer than two tokens.

    Example:
        >>> uniform = lambda tokens: torch.zeros(*tokens.shape, 4)
        >>> signals = model_signals(uniform, [np.array([0, 1, 2])])
        >>> signals[0].log_probabilities.round(3)
        array([-1.386, -1.386])
    """
    short = next((row for row, one in enumerate(sequences) if len(one) < 2), None)
    if short is not None:
        allowed = "two tokens or more: the first token is not predicted"
        raise InvalidData(f"text {short}", f"{len(sequences[short])} tokens", allowed)
    found: dict[int, TokenSignals] = {}
    with torch.no_grad():
        for batch in _batches(sequences):
            outputs = logits(_padded([sequences[row] for row in batch]))
            for row, output in zip(batch, outputs, strict=True):
                found[row] = _signals(output, sequences[row], scheme)
            on_texts(len(batch))
    return tuple(found[row] for row in range(len(sequences)))


def _batches(sequences: Sequences) -> Iterator[list[int]]:
    """Yield numbers of texts of similar length, so that little is padded."""
    batch: list[int] = []
    for row in np.argsort([len(one) for one in sequences], kind="stable").tolist():
        if batch and (len(batch) + 1) * len(sequences[row]) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _padded(sequences: Sequences) -> Tensor:
    """Return sequences as one tensor, with token 0 after the end of shorter ones."""
    tokens = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row, one in zip(tokens, sequences, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    return tokens


def _signals(
    logits: Tensor, tokens: NDArray[np.int64], scheme: SamplingScheme | None
) -> TokenSignals:
    """Return the signals of one text; logit t belongs to token t + 1."""
    parts, drawn = [], []
    for start in range(0, len(tokens) - 1, POSITIONS_AT_ONCE):
        stop = min(start + POSITIONS_AT_ONCE, len(tokens) - 1)
        some = logits[start:stop].double()
        wanted = tokens[start + 1 : stop + 1]
        parts.append(signals_of_log_distribution(_log_distribution(some), wanted))
        if scheme is not None:
            under = _log_distribution(_kept_logits(some, scheme))
            drawn.append(under[np.arange(len(wanted)), wanted])
    joined = TokenSignals(
        _joined(parts, "log_probabilities"),
        _joined(parts, "means"),
        _joined(parts, "deviations"),
        _joined(parts, "greedy"),
    )
    if scheme is None:
        return joined
    return replace(joined, drawn=np.minimum(np.concatenate(drawn), 0.0))


def _joined(parts: list[TokenSignals], name: str) -> NDArray[Any]:
    """Return one signal of all parts of a text."""
    return np.concatenate([getattr(part, name) for part in parts])


def _log_distribution(logits: Tensor) -> FloatArray:
    """Return log-probabilities of all tokens in float64."""
    return np.asarray(torch.log_softmax(logits, dim=-1).cpu().numpy())


def _kept_logits(logits: Tensor, scheme: SamplingScheme) -> Tensor:
    """Return the logits from which a scheme draws; minus infinity for tokens that it drops."""
    scaled = logits / scheme.temperature
    if scheme.top_k is None or scheme.top_k >= scaled.shape[-1]:
        return scaled
    kept = torch.topk(scaled, scheme.top_k, dim=-1)
    dropped = torch.full_like(scaled, -torch.inf)
    return dropped.scatter(-1, kept.indices, kept.values)


def sample_sequences(
    logits: Logits,
    prompts: Sequences,
    *,
    length: int,
    scheme: SamplingScheme,
    generator: torch.Generator,
) -> list[NDArray[np.int64]]:
    """Draw one continuation of each prompt from a model.

    Args:
        logits: The model in evaluation mode.
        prompts: Tokens that the sequences begin with, at least one each.
        length: Number of drawn tokens.
        scheme: The sampling scheme.
        generator: Generator of the draws.

    Returns:
        Each prompt with its drawn tokens.

    Example:
        >>> certain = lambda tokens: torch.eye(4)[(tokens + 1) % 4] * 1e9
        >>> drawn = sample_sequences(
        ...     certain, [np.array([0])], length=3, scheme=SamplingScheme(),
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> drawn[0]
        array([0, 1, 2, 3])
    """
    finished: dict[int, NDArray[np.int64]] = {}
    with torch.no_grad():
        for rows in _of_one_length(prompts):
            tokens = _padded([prompts[row] for row in rows])
            for _ in range(length):
                last = _kept_logits(logits(tokens)[:, -1].double(), scheme)
                drawn = torch.multinomial(torch.softmax(last, dim=-1), 1, generator=generator)
                tokens = torch.cat([tokens, drawn], dim=1)
            finished |= dict(zip(rows, tokens.numpy(), strict=True))
    return [finished[row] for row in range(len(prompts))]


PROMPTS_AT_ONCE = 64


def _of_one_length(prompts: Sequences) -> Iterator[list[int]]:
    """Yield numbers of prompts of equal length: drawn tokens follow without padding."""
    by_length: dict[int, list[int]] = {}
    for row, one in enumerate(prompts):
        by_length.setdefault(len(one), []).append(row)
    for rows in by_length.values():
        for start in range(0, len(rows), PROMPTS_AT_ONCE):
            yield rows[start : start + PROMPTS_AT_ONCE]
