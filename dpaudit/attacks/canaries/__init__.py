"""Canaries for any framework: a fair coin includes each one in the training set.

    from dpaudit.attacks import canaries

    assignment = canaries.assign_canaries(canaries.mislabelled(heldout, classes, rng), rng)
    assignment.trained       # for the trainer
    assignment.included      # for the auditor only

Input canaries are records: ``mislabelled``, ``blank``, ``out_of_distribution``, and
``adversarial.adversarial_records``. Text canaries are sentences with a secret
(``make_secrets``), with a token of their own (``new_token_sentences``), or drawn from a language
model (``synthetic_sentences``). ``dummy_parameters`` adds gradient canaries to your own torch
training loop; the trainer of this package has its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.canaries.text_canaries import (
    TextCanaries,
    new_token_sentences,
    synthetic_sentences,
)
from dpaudit.vocabulary import public_names
from dpaudit.vocabulary.errors import InvalidArgument, require_count

__all__ = [
    "CanaryAssignment",
    "LabelledRecords",
    "SecretSentences",
    "TextCanaries",
    "assign_canaries",
    "blank",
    "exposure",
    "make_secrets",
    "mislabelled",
    "new_token_sentences",
    "out_of_distribution",
    "synthetic_sentences",
]

__dir__ = public_names(__name__)


# Assignment of canaries to the training set by fair coins.
#
# The trainer gets the included canaries only. The auditor keeps the inclusion bits secret.

Bits = NDArray[np.bool_]


class _Selectable(Protocol):
    """A sequence of canaries that a bool array selects from."""

    def __len__(self) -> int: ...

    def __getitem__(self: T, index: Bits) -> T: ...


T = TypeVar("T", bound=_Selectable)


@dataclass(frozen=True)
class CanaryAssignment(Generic[T]):
    """Canaries with their names and their secret inclusion bits.

    Attributes:
        canaries: All canaries, included and excluded.
        ids: One name per canary, in the order of ``canaries``. Names do not depend on the bits.
        included: The secret inclusion bits, shape ``(m,)``.

    Example:
        >>> from dpaudit.attacks.canaries import LabelledRecords
        >>> records = LabelledRecords(np.zeros((3, 2), np.float32), np.array([0, 1, 0]))
        >>> assignment = CanaryAssignment(records, ("a", "b", "c"), np.array([True, False, True]))
        >>> len(assignment.trained), assignment.trained_ids
        (2, ('a', 'c'))
    """

    canaries: T
    ids: tuple[str, ...]
    included: Bits

    @property
    def trained(self) -> T:
        """The included canaries, for the trainer."""
        return self.canaries[self.included]

    @property
    def trained_ids(self) -> tuple[str, ...]:
        """The names of the included canaries."""
        pairs = zip(self.ids, self.included, strict=True)
        return tuple(name for name, included in pairs if included)


def assign_canaries(canaries: T, rng: np.random.Generator) -> CanaryAssignment[T]:
    """Include each canary by an independent fair coin.

    Args:
        canaries: The canaries, at least one. They support ``len`` and indexing by a bool array.
        rng: Random generator of the coins. Seed it from the operating system: the bits are
            secret only if the seed is.

    Returns:
        The canaries with names ``canary-0``, ``canary-1``, ... and their inclusion bits.

    Raises:
        InvalidArgument: If there is no canary.

    Example:
        >>> from dpaudit.attacks.canaries import LabelledRecords
        >>> records = LabelledRecords(np.zeros((20, 2), np.float32), np.zeros(20, np.int64))
        >>> assignment = assign_canaries(records, np.random.default_rng())
        >>> len(assignment.trained) == int(assignment.included.sum())
        True
    """
    if len(canaries) == 0:
        raise InvalidArgument("count", 0, "at least 1")
    width = len(str(len(canaries) - 1))
    ids = tuple(f"canary-{number:0{width}d}" for number in range(len(canaries)))
    return CanaryAssignment(canaries, ids, rng.random(len(canaries)) < 0.5)


# Input canaries: records that a model can only memorize.
#
# Their labels do not follow from their features, so a trained model has a low loss on them only if
# it was trained on them.

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class LabelledRecords:
    """Records with class labels.

    Attributes:
        features: Finite features, shape ``(records, ...)``.
        labels: Class numbers from 0, shape ``(records,)``.

    Example:
        >>> records = LabelledRecords(np.zeros((3, 2), np.float32), np.array([0, 1, 0]))
        >>> len(records[np.array([True, False, True])])
        2
    """

    features: Features
    labels: Labels

    def __post_init__(self) -> None:
        if len(self.features) != len(self.labels) or self.labels.ndim != 1:
            given = f"{len(self.features)} features, labels of shape {self.labels.shape}"
            raise InvalidArgument("records", given, "one label for each record")
        if not np.isfinite(self.features).all():
            raise InvalidArgument("records", "NaN or infinity", "finite")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[np.bool_]) -> LabelledRecords:
        return LabelledRecords(self.features[index], self.labels[index])


def mislabelled(
    records: LabelledRecords, classes: int, rng: np.random.Generator
) -> LabelledRecords:
    """Give each record a wrong label, uniformly at random.

    Args:
        records: Held-out records, which are not trained on otherwise.
        classes: Number of classes, at least 2.
        rng: Random generator of the labels.

    Returns:
        The records with other labels.

    Raises:
        InvalidArgument: If there are fewer than two classes.

    Example:
        >>> records = LabelledRecords(np.zeros((3, 2), np.float32), np.array([0, 1, 0]))
        >>> wrong = mislabelled(records, 3, np.random.default_rng(0))
        >>> bool((wrong.labels == records.labels).any())
        False
    """
    require_count("classes", classes, least=2)
    shifts = rng.integers(1, classes, len(records))
    return LabelledRecords(records.features, (records.labels + shifts) % classes)


def blank(records: LabelledRecords, classes: int, rng: np.random.Generator) -> LabelledRecords:
    """Make blank records with random labels.

    Each feature has its smallest value in ``records``. One feature, a different one in each
    record, has the largest value of all, so that no two records are equal.

    Args:
        records: Records that give the number, the shape and the range of the features.
        classes: Number of classes, at least 2.
        rng: Random generator of the labels and the marked features.

    Returns:
        As many records as given.

    Raises:
        InvalidArgument: If there are fewer than two classes, or more records than features.

    Example:
        >>> records = LabelledRecords(np.eye(3, dtype=np.float32), np.array([0, 1, 0]))
        >>> blank(records, 2, np.random.default_rng(0)).features.sum(axis=1)
        array([1., 1., 1.], dtype=float32)
    """
    require_count("classes", classes, least=2)
    count, size = len(records), int(np.prod(records.features.shape[1:]))
    if count > size:
        raise InvalidArgument("count", count, f"at most {size}, the number of features")
    flat = records.features.reshape(count, size)
    empty = np.tile(flat.min(axis=0), (count, 1))
    marked = rng.permutation(size)[:count]
    empty[np.arange(count), marked] = flat.max()
    features = empty.reshape(records.features.shape).astype(np.float32)
    return LabelledRecords(features, rng.integers(0, classes, count))


def out_of_distribution(
    records: LabelledRecords, classes: int, rng: np.random.Generator
) -> LabelledRecords:
    """Make records with independent uniform features and random labels.

    Each feature is uniform between its smallest and its largest value in ``records``, so that
    the records pass a check of ranges.

    Args:
        records: Records that give the number, the shape and the range of the features.
        classes: Number of classes, at least 2.
        rng: Random generator of the features and labels.

    Returns:
        As many records as given.

    Raises:
        InvalidArgument: If there are fewer than two classes.

    Example:
        >>> records = LabelledRecords(np.eye(3, dtype=np.float32), np.array([0, 1, 0]))
        >>> out_of_distribution(records, 2, np.random.default_rng(0)).features.shape
        (3, 3)
    """
    require_count("classes", classes, least=2)
    low, high = records.features.min(axis=0), records.features.max(axis=0)
    features = rng.uniform(low, high, records.features.shape).astype(np.float32)
    return LabelledRecords(features, rng.integers(0, classes, len(records)))


# Text canaries: sentences with a secret, and the exposure of secrets by a language model.
#
# A secret is drawn uniformly from a space of size N. With its rank by the model's loss among all
# secrets of the space,
#
#     exposure = log2 N - log2 rank        (Carlini et al. 2019, arXiv:1802.08232).

Array = NDArray[np.float64]

TEMPLATE = "The access code of user {user} is {secret}."
DIGITS = 9  # of a secret


@dataclass(frozen=True)
class SecretSentences:
    """Sentences with one secret each, and reference sentences with other secrets.

    Attributes:
        sentences: One sentence per canary.
        references: Sentences from the same distribution that are never trained on. They give
            the ranks of secrets by chance.
        space: Number of equally likely secrets.

    Example:
        >>> secrets = SecretSentences(("The code is 7.", "The code is 4."), ("The code is 1.",), 10)
        >>> secrets[np.array([True, False])].sentences
        ('The code is 7.',)
    """

    sentences: tuple[str, ...]
    references: tuple[str, ...]
    space: int

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: NDArray[np.bool_]) -> SecretSentences:
        chosen = tuple(s for s, wanted in zip(self.sentences, index, strict=True) if wanted)
        return SecretSentences(chosen, (), self.space)


def make_secrets(
    count: int,
    rng: np.random.Generator,
    *,
    references: int = 1000,
    template: str = TEMPLATE,
    digits: int = DIGITS,
) -> SecretSentences:
    """Make sentences with distinct random numbers as secrets.

    Args:
        count: Number of canaries, at least 1.
        rng: Random generator of users and secrets.
        references: Number of reference sentences.
        template: A sentence with ``{secret}``, and optionally ``{user}``.
        digits: Number of digits of a secret, from 1 to 15.

    Returns:
        The sentences and the references.

    Raises:
        InvalidArgument: If a number is out of range, the template lacks ``{secret}``, or the
            digits allow fewer than ten times as many secrets as are drawn.

    Example:
        >>> secrets = make_secrets(2, np.random.default_rng(0), references=10, digits=4)
        >>> len(secrets), len(secrets.references), secrets.space
        (2, 10, 10000)
    """
    require_count("count", count)
    require_count("references", references, least=0)
    require_count("digits", digits)
    if "{secret}" not in template:
        raise InvalidArgument("template", template, "a sentence with {secret}")
    if digits > 15 or 10**digits < 10 * (count + references):
        raise InvalidArgument("digits", digits, "at most 15, and enough for ten times the secrets")
    space = 10**digits
    drawn = _distinct_secrets(space, count + references, rng)
    users = rng.permutation(count + references)
    filled = [
        template.replace("{secret}", f"{secret:0{digits}d}").replace("{user}", str(user))
        for secret, user in zip(drawn, users, strict=True)
    ]
    return SecretSentences(tuple(filled[:count]), tuple(filled[count:]), space)


def _distinct_secrets(space: int, count: int, rng: np.random.Generator) -> list[int]:
    """Draw distinct numbers below ``space``; the keys of a dict keep the order of the draws."""
    secrets: dict[int, None] = {}
    while len(secrets) < count:
        secrets.update(dict.fromkeys(rng.integers(0, space, count - len(secrets)).tolist()))
    return list(secrets)


def exposure(scores: Array, references: Array, space: int) -> Array:
    """Compute each canary's exposure in bits, from its rank among the references.

    The rank in the space is estimated as space (1 + a)/(k + 1), where a of the k references have
    at least the canary's score. The exposure is then at most log2(k + 1) bits.

    Args:
        scores: Scores of the canaries, shape ``(m,)``; larger for a more likely sentence.
        references: Scores of sentences that were not trained on, shape ``(k,)``, k at least 1.
        space: Number of equally likely secrets.

    Returns:
        log2(space) - log2(rank) of each canary, shape ``(m,)``, in [0, log2(space)].

    Raises:
        InvalidArgument: If there are no scores or references, or one is not finite.

    References:
        Carlini et al. (2019), arXiv:1802.08232.

    Example:
        >>> exposure(np.array([-1.0, -9.0]), np.linspace(-20, -5, 1023), 10**9).round(1)
        array([10. ,  1.9])
    """
    for name, values in (("scores", scores), ("references", references)):
        if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
            raise InvalidArgument(
                name, f"shape {values.shape}", "one or more finite scores, in one dimension"
            )
    ranked = np.sort(references)
    above = len(ranked) - np.searchsorted(ranked, scores, side="left")
    bits = math.log2(len(ranked) + 1) - np.log2(1 + above)
    return np.asarray(np.clip(bits, 0.0, math.log2(space)))
