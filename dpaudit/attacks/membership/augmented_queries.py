"""Several queries per record: the record and altered copies of it.

A model that trained on a record is often more confident on near copies as well, so each copy adds
evidence. Target and reference models are queried with the same copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.output_attacks import gaussian_jitter, random_flips
from dpaudit.attacks.membership.reference_models import ReferenceConfidences
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import FloatArray
from dpaudit.vocabulary.errors import InvalidArgument, require_count

Features = NDArray[np.float32]

# Copies must stay near the record: larger changes turn queries into other records.
FLIP_RATE = 0.01  # of binary features
RELATIVE_JITTER = 0.05  # of the standard deviation of all features
IMAGE_DIMENSIONS = (2, 3)  # of a record that is an image, without and with channels
MAX_SHIFT = 2  # pixels


def mean_over_queries(
    attack: Callable[[FloatArray, ReferenceConfidences], RecordScores],
    confidences: FloatArray,
    references: Sequence[ReferenceConfidences],
) -> RecordScores:
    """Score by the mean of an attack's scores over several queries per record.

    For LiRA, the mean is the log-likelihood ratio of independent laws per query, divided by the
    number of queries. For RMIA, it is the mean share of dominated records.

    Args:
        attack: Scores the confidences of one query against reference models.
        confidences: The target's confidences, shape ``(queries, records)``.
        references: The reference models' confidences of each query; one per query.

    Returns:
        Mean scores.

    Raises:
        InvalidArgument: If there is no query, the numbers of queries differ, or the attack
            refuses one.

    References:
        Carlini et al. (2022), arXiv:2112.03570, section VI.B: multiple queries.

    Example:
        >>> from dpaudit.attacks.membership import base_online
        >>> member = np.array([[True, False], [False, True]])
        >>> references = [ReferenceConfidences(np.where(member, 2.0, 0.0), member)] * 2
        >>> mean_over_queries(base_online, np.array([[2.0, 0.0]] * 2), references).values.round(4)
        array([ 0.2436, -0.3227])
    """
    if confidences.ndim != 2 or len(confidences) == 0 or len(confidences) != len(references):
        given = f"shape {confidences.shape} and references of {len(references)} queries"
        raise InvalidArgument("confidences", given, "of shape (queries, records), at least one")
    scores = [attack(one, found).values for one, found in zip(confidences, references, strict=True)]
    return RecordScores(np.mean(scores, axis=0))


def query_copies(features: Features, queries: int, *, seed: int) -> Iterator[Features]:
    """Yield the records, then altered copies of all of them.

    Images are shifted by up to two pixels, with their edge repeated. Binary features are flipped
    at random, and others get normal noise.

    Args:
        features: Shape ``(records, ...)``; images are ``(records, height, width)`` or
            ``(records, channels, height, width)``.
        queries: Number of queries per record, with the record itself; at least 1.
        seed: Seed of the copies.

    Yields:
        Features of one query, in the shape of ``features``.

    Raises:
        InvalidArgument: If ``queries`` is below 1, or exceeds 25 for images.

    Example:
        >>> images = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
        >>> [copy.shape for copy in query_copies(images, 3, seed=0)]
        [(2, 2, 2), (2, 2, 2), (2, 2, 2)]
    """
    require_count("queries", queries)
    generator = np.random.default_rng([seed, queries])
    yield features
    if features.ndim - 1 in IMAGE_DIMENSIONS:
        yield from (_shifted(features, *shift) for shift in _shifts(queries - 1, generator))
        return
    binary = bool(((features == 0) | (features == 1)).all())
    jitter = gaussian_jitter(RELATIVE_JITTER * float(features.std()))
    alter = random_flips(FLIP_RATE) if binary else jitter
    for _ in range(queries - 1):
        yield alter(features, generator).astype(np.float32)


def _shifts(count: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Return different shifts in pixels, small ones first."""
    steps = range(-MAX_SHIFT, MAX_SHIFT + 1)
    pairs = [(down, right) for down in steps for right in steps if (down, right) != (0, 0)]
    if count > len(pairs):
        raise InvalidArgument("queries", count + 1, f"at most {len(pairs) + 1} for images")
    order = generator.permutation(len(pairs))
    size = np.array([max(abs(down), abs(right)) for down, right in pairs])[order]
    return [pairs[place] for place in order[np.argsort(size, kind="stable")][:count]]


def _shifted(features: Features, down: int, right: int) -> Features:
    """Return images moved by some pixels; the edge is repeated."""
    height, width = features.shape[-2:]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return np.ascontiguousarray(features[..., rows[:, None], columns])
