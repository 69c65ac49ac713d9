"""Results of attacks on language models: extraction, and baselines without the model."""

from __future__ import annotations

import msgspec

from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_open_unit,
    require_part,
    require_rate,
)
from dpaudit.vocabulary.privacy_terms import Bound


class ExtractedShare(msgspec.Struct, frozen=True):
    """How many texts of one class can be extracted.

    Attributes:
        texts: Number of texts that are long enough.
        extracted: How many of them can be extracted.
        interval: Clopper-Pearson interval of the share on the population of texts.

    Raises:
        InvalidArgument: If a number is out of its range.
    """

    texts: int
    extracted: int
    interval: Bound

    def __post_init__(self) -> None:
        require_count("texts", self.texts)
        require_part("extracted", self.extracted, self.texts)
        require_rate("interval.lower", self.interval.lower)
        require_rate("interval.upper", self.interval.upper)
        if not self.interval.lower <= self.extracted / self.texts <= self.interval.upper:
            given = f"{self.interval.lower:g} to {self.interval.upper:g}"
            raise InvalidArgument("interval", given, "an interval around the measured share")


class ExtractionResult(msgspec.Struct, frozen=True):
    """How many texts a model completes from their beginning.

    Attributes:
        name: ``verbatim`` for greedy decoding, or ``probabilistic``.
        suffix_tokens: Number of tokens at the end of each text that must be generated.
        members: Texts that the model was trained on.
        nonmembers: Texts that it was not trained on: what a model can guess without memory.
        scheme: How tokens are drawn, as text.
        queries: Number of independent attempts, n; 1 for greedy decoding.
        probability: Probability, p, that at least one attempt succeeds; None for greedy decoding.
        confidence: Confidence of each interval by itself.
        too_short: Number of texts without a token before the suffix, which are left out.

    Raises:
        InvalidArgument: If a number is out of its range.
    """

    name: str
    suffix_tokens: int
    members: ExtractedShare
    nonmembers: ExtractedShare
    scheme: str
    queries: int
    probability: float | None
    confidence: float
    too_short: int = 0

    def __post_init__(self) -> None:
        require_count("suffix_tokens", self.suffix_tokens)
        require_count("queries", self.queries)
        require_count("too_short", self.too_short, least=0)
        require_open_unit("confidence", self.confidence)
        if self.probability is not None:
            require_open_unit("probability", self.probability)


class BlindBaseline(msgspec.Struct, frozen=True):
    """How well members differ from non-members without any model.

    Attributes:
        name: What the baseline reads of the texts.
        auc: Area under the ROC curve, in [0, 1]; the direction is chosen so that it is at least
            one half, except for a classifier, which has a direction.
        p_value: Probability of such a difference if members are a random choice of the texts.

    Raises:
        InvalidArgument: If a number is out of its range.
    """

    name: str
    auc: float
    p_value: float

    def __post_init__(self) -> None:
        require_rate("auc", self.auc)
        require_rate("p_value", self.p_value)
