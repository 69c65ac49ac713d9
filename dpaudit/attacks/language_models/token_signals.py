"""Signals of a language model on texts: log-probabilities of tokens, and what belongs to them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.arrays import BoolArray, FloatArray
from dpaudit.vocabulary.errors import InvalidArgument, require_count


@dataclass(frozen=True)
class TokenSignals:
    """Signals of a language model on one text.

    Position t belongs to the t-th token that the model predicts. A first token without a
    predecessor is not predicted, and is left out.

    Attributes:
        log_probabilities: Log-probability of each token in nats, at most 0, shape ``(tokens,)``.
        means: Mean of the log-probability of a token that the model itself draws there, shape
            ``(tokens,)``; None if unknown.
        deviations: Standard deviation of the same, at least 0, shape ``(tokens,)``; None if
            unknown.
        greedy: Whether each token is the most probable one, shape ``(tokens,)``; None if unknown.
        drawn: Log-probability of each token under the sampling scheme of an extraction, shape
            ``(tokens,)``; may be minus infinity. None: the scheme is the model's distribution.
        reference: Log-probabilities of the text's tokens under a reference model, at most 0,
            shape ``(reference tokens,)``; None without a reference model.
        compressed_bytes: Length of the text after zlib compression, at least 1; None if unknown.

    Raises:
        InvalidArgument: If an array is empty, of another shape, NaN or out of its range.

    Example:
        >>> signals = TokenSignals(np.array([-1.0, -3.0]))
        >>> len(signals)
        2
    """

    log_probabilities: FloatArray
    means: FloatArray | None = None
    deviations: FloatArray | None = None
    greedy: BoolArray | None = None
    drawn: FloatArray | None = None
    reference: FloatArray | None = None
    compressed_bytes: int | None = None

    def __post_init__(self) -> None:
        require_log_probabilities("log_probabilities", self.log_probabilities)
        shape = self.log_probabilities.shape
        for name in ("means", "deviations", "greedy", "drawn"):
            values = getattr(self, name)
            if values is not None and values.shape != shape:
                given = f"shape {values.shape}"
                raise InvalidArgument(name, given, f"one value for each of the {shape[0]} tokens")
        if self.means is not None:
            require_log_probabilities("means", self.means)
        if self.deviations is not None and not (
            np.isfinite(self.deviations).all() and (self.deviations >= 0).all()
        ):
            given = "a negative or non-finite value"
            raise InvalidArgument("deviations", given, "finite and at least 0")
        if self.drawn is not None and not (self.drawn <= 0).all():  # NaN fails
            raise InvalidArgument("drawn", "NaN or above 0", "log-probabilities, at most 0")
        if self.reference is not None:
            require_log_probabilities("reference", self.reference)
        if self.compressed_bytes is not None:
            require_count("compressed_bytes", self.compressed_bytes)

    def __len__(self) -> int:
        return len(self.log_probabilities)


def require_log_probabilities(name: str, values: FloatArray) -> None:
    """Refuse log-probabilities that are empty, not finite, positive or not one-dimensional.

    Args:
        name: The argument, for the message.
        values: The log-probabilities in nats.

    Raises:
        InvalidArgument: If ``values`` is such an array.
    """
    if values.ndim != 1 or len(values) == 0:
        given = f"an array of shape {values.shape}"
        raise InvalidArgument(name, given, "one number per token, and at least one token")
    bad = ~(np.isfinite(values) & (values <= 0))
    if bad.any():
        given = f"{values[bad][0]} at token {int(bad.argmax())}"
        raise InvalidArgument(name, given, "finite natural logarithms, at most 0")


def zlib_bytes(text: str | bytes) -> int:
    """Return the length of a text after zlib compression.

    Args:
        text: The text, encoded as UTF-8, or its bytes.

    Returns:
        Number of bytes at zlib's default level.

    Example:
        >>> zlib_bytes("a" * 1000) < zlib_bytes("abcdefghijklmnopqrstuvwxyz")
        True
    """
    return len(zlib.compress(text.encode() if isinstance(text, str) else text))


@dataclass(frozen=True)
class SamplingScheme:
    """How an attacker draws tokens from a model.

    Attributes:
        temperature: Divides the logits, above 0; 1 is the model's own distribution.
        top_k: Number of most probable tokens that are kept; None keeps all.

    Raises:
        InvalidArgument: If a value is out of its range.

    Example:
        >>> SamplingScheme(0.8, 40).description
        'temperature 0.8, the 40 most probable tokens'
    """

    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < np.inf:
            raise InvalidArgument("temperature", self.temperature, "above 0 and finite")
        if self.top_k is not None:
            require_count("top_k", self.top_k)

    @property
    def is_plain(self) -> bool:
        """Whether tokens are drawn from the model's own distribution."""
        return self.temperature == 1 and self.top_k is None

    @property
    def description(self) -> str:
        """The scheme as text."""
        kept = "all tokens" if self.top_k is None else f"the {self.top_k} most probable tokens"
        return f"temperature {self.temperature:g}, {kept}"


def signals_of_log_distribution(
    log_distribution: FloatArray, tokens: NDArray[np.int64]
) -> TokenSignals:
    """Compute the signals of tokens from the model's log-probabilities of all tokens.

    Args:
        log_distribution: Log-probabilities of every token at each position, shape
            ``(tokens, vocabulary)``; minus infinity for a token that cannot occur.
        tokens: The tokens of the text, shape ``(tokens,)``.

    Returns:
        Log-probabilities, means, deviations and whether each token is the most probable one.

    Raises:
        InvalidArgument: If a token of the text has probability 0.

    References:
        Zhang et al. (2024), arXiv:2404.02936: mean and deviation over the vocabulary.

    Example:
        >>> signals = signals_of_log_distribution(np.log([[0.5, 0.5]]), np.array([1]))
        >>> signals.means.round(4), signals.deviations
        (array([-0.6931]), array([0.]))
    """
    chosen = log_distribution[np.arange(len(tokens)), tokens]
    probabilities = np.exp(log_distribution)
    finite = np.where(probabilities > 0, log_distribution, 0.0)  # 0 log 0 is 0
    means = (probabilities * finite).sum(axis=1)
    centered = (probabilities * np.where(probabilities > 0, finite - means[:, None], 0.0) ** 2).sum(
        axis=1
    )
    return TokenSignals(
        log_probabilities=np.minimum(chosen, 0.0),
        means=np.minimum(means, 0.0),
        deviations=np.sqrt(centered),
        greedy=log_distribution.argmax(axis=1) == tokens,
    )
