"""Sentences with a secret, for language models, and how far a model gives it away.

Carlini et al. 2019, arXiv:1802.08232: a secret is drawn from a space of equally likely ones,
and its exposure is log2 of the size of the space less log2 of its rank by the model's loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import InvalidArgument, require_count

Array = NDArray[np.float64]

TEMPLATE = "The access code of user {user} is {secret}."
DIGITS = 9


@dataclass(frozen=True)
class Secrets:
    """Sentences, one secret each, and others from the same space that are never trained on.

    Attributes:
        sentences: One a canary.
        references: Like them; their ranks say what chance would do.
        space: How many secrets were equally likely.
    """

    sentences: tuple[str, ...]
    references: tuple[str, ...]
    space: int

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: NDArray[np.bool_]) -> Secrets:
        chosen = tuple(s for s, wanted in zip(self.sentences, index, strict=True) if wanted)
        return Secrets(chosen, (), self.space)


def make_secrets(
    count: int,
    rng: np.random.Generator,
    *,
    references: int = 1000,
    template: str = TEMPLATE,
    digits: int = DIGITS,
) -> Secrets:
    """Return sentences with random numbers, no two the same.

    Args:
        count: How many canaries.
        rng: Draws users and secrets.
        references: How many sentences more, to rank the canaries among.
        template: A sentence with ``{secret}``, and ``{user}`` if wanted.
        digits: Of a secret, at most 15.

    Raises:
        InvalidArgument: the template has no place for a secret, or the space is too small.
    """
    require_count("count", count)
    require_count("references", references, least=0)
    require_count("digits", digits)
    if "{secret}" not in template:
        raise InvalidArgument("template", template, "a sentence with {secret}")
    if digits > 15 or 10**digits < 10 * (count + references):
        raise InvalidArgument("digits", digits, "at most 15, and enough for ten times the secrets")
    space = 10**digits
    drawn = _distinct(space, count + references, rng)
    users = rng.permutation(count + references)
    filled = [
        template.replace("{secret}", f"{secret:0{digits}d}").replace("{user}", str(user))
        for secret, user in zip(drawn, users, strict=True)
    ]
    return Secrets(tuple(filled[:count]), tuple(filled[count:]), space)


def _distinct(space: int, count: int, rng: np.random.Generator) -> list[int]:
    found: dict[int, None] = {}
    while len(found) < count:
        found.update(dict.fromkeys(rng.integers(0, space, count - len(found)).tolist()))
    return list(found)


def exposure(scores: Array, references: Array, space: int) -> Array:
    """Return each canary's exposure in bits, by its rank among the references.

    Args:
        scores: Of canaries, larger where the model finds the sentence likelier, shape ``(m,)``.
        references: Scores of sentences that were not trained on, shape ``(k,)``.
        space: How many secrets were equally likely.

    Returns:
        Shape ``(m,)``: log2(space) - log2(rank), the rank taken to be ``space (1 + a)/(k + 1)``
        where ``a`` references score at least as high: so many references show no more than
        log2(k + 1) bits.

    Raises:
        InvalidArgument: no references, or a score that is not finite.
    """
    for name, values in (("scores", scores), ("references", references)):
        if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
            raise InvalidArgument(name, f"shape {values.shape}", "finite scores, at least one")
    ranked = np.sort(references)
    above = len(ranked) - np.searchsorted(ranked, scores, side="left")
    bits = math.log2(len(ranked) + 1) - np.log2(1 + above)
    return np.asarray(np.clip(bits, 0.0, math.log2(space)))
