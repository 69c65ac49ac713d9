"""The robust attack: does training on this record explain the target better than on others?

A record x is compared with records z of the population by
LR(x, z) = (Pr(x | target) / Pr(x)) / (Pr(z | target) / Pr(z)); the score is the share of z
with LR(x, z) >= gamma. Pr(x) is the mean over models that trained on x and models that did
not. Source: Zarifzadeh, Liu & Shokri 2024, arXiv:2312.03262, Equations 3, 4 and 11.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.confidence import probabilities
from dpaudit.attacks.membership.references import References, require_outside, sides
from dpaudit.attacks.membership.scores import Array, RecordScores
from dpaudit.vocabulary.errors import InvalidArgument

# Every gamma ranks the records of one target alike; 1 keeps the best of them furthest apart.
GAMMA = 1.0
OFFLINE_SCALE = 0.3  # a of Equation 11
LEAST = 1e-300  # a probability that a double still divides by


def rmia_online(
    confidences: Array,
    references: References,
    *,
    population: NDArray[np.bool_] | None = None,
    gamma: float = GAMMA,
    offline_scale: float = OFFLINE_SCALE,
) -> RecordScores:
    """Score with references that trained on some of the records.

    A record that lacks a side has it filled in by the offline rule, from the other side.

    Args:
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        references: Reference models on the same records.
        population: Which records are the z, shape ``(records,)``; None for all of them. Scores
            rise in steps of one in as many: fewer z than non-members tie the best scores.
        gamma: How much better x must explain the target than z; above 0.
        offline_scale: The a of the offline rule, in [0, 1].

    Raises:
        InvalidArgument: other records, or a parameter out of range.
    """
    _check(confidences, references, gamma, offline_scale)
    found = sides(probabilities(references.confidences), references.member)
    outside = np.where(
        found.count_outside > 0, found.outside, _outside_of(found.inside, offline_scale)
    )
    inside = np.where(found.count_inside > 0, found.inside, _inside_of(outside, offline_scale))
    return _dominated(confidences, (inside + outside) / 2, population, gamma)


def rmia_offline(
    confidences: Array,
    references: References,
    *,
    population: NDArray[np.bool_] | None = None,
    gamma: float = GAMMA,
    offline_scale: float = OFFLINE_SCALE,
) -> RecordScores:
    """Score with what references say of records that they did not train on, and no more.

    Pr(x) = ((1 + a) Pr_out(x) + 1 - a) / 2, a the ``offline_scale``. A record that all
    references trained on has Pr_out guessed by the same rule turned round. Arguments and
    errors are those of ``rmia_online``.
    """
    _check(confidences, references, gamma, offline_scale)
    found = sides(probabilities(references.confidences), references.member)
    require_outside(found)
    outside = np.where(
        found.count_outside > 0, found.outside, _outside_of(found.inside, offline_scale)
    )
    mean = (_inside_of(outside, offline_scale) + outside) / 2
    return _dominated(confidences, mean, population, gamma)


def _inside_of(outside: Array, scale: float) -> Array:
    """Return Pr_in = a Pr_out + 1 - a: training on a record lifts it towards 1."""
    return scale * outside + 1 - scale


def _outside_of(inside: Array, scale: float) -> Array:
    return np.clip((inside - (1 - scale)) / max(scale, LEAST), 0.0, 1.0)


def _dominated(
    confidences: Array, mean: Array, population: NDArray[np.bool_] | None, gamma: float
) -> RecordScores:
    ratio = probabilities(confidences) / np.maximum(mean, LEAST)
    others = np.sort(ratio if population is None else ratio[population])
    if len(others) == 0:
        raise InvalidArgument("population", "no records", "one record at least")
    return RecordScores(np.searchsorted(others, ratio / gamma, side="right") / len(others))


def _check(confidences: Array, references: References, gamma: float, scale: float) -> None:
    references.require_records(confidences)
    if not 0 < gamma < np.inf:
        raise InvalidArgument("gamma", gamma, "above 0 and finite")
    if not 0 <= scale <= 1:
        raise InvalidArgument("offline_scale", scale, "at least 0 and at most 1")
