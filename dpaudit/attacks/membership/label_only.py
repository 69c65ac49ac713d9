"""Label-only: members stay rightly labelled under more perturbations.

For models that give away a class and nothing else. With the record itself as the only copy
this is the gap attack of Yeom et al. 2018. Source: Choquette-Choo et al. 2021,
arXiv:2007.14321, sections 3.3 and 3.4.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.confidence import right
from dpaudit.attacks.membership.models import Model
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.errors import InvalidArgument

Features = NDArray[np.float32]
Perturb = Callable[[Features, np.random.Generator], Features]


def label_only(right_labels: NDArray[np.bool_]) -> RecordScores:
    """Score by the share of perturbed copies that keep their label.

    Args:
        right_labels: Shape ``(copies, records)``; the first copy is the record as it is.

    Raises:
        InvalidArgument: not booleans of that shape.
    """
    if right_labels.ndim != 2 or right_labels.dtype != np.bool_ or len(right_labels) == 0:
        given = f"{right_labels.dtype} of shape {right_labels.shape}"
        raise InvalidArgument("right_labels", given, "booleans of shape (copies, records)")
    return RecordScores(right_labels.mean(axis=0))


def stays_right(
    model: Model,
    features: Features,
    labels: NDArray[np.int64],
    *,
    perturb: Perturb,
    copies: int,
    generator: np.random.Generator,
) -> NDArray[np.bool_]:
    """Return whether ``model`` labels each of ``copies`` copies rightly, the record itself first.

    The result, of shape ``(copies, records)``, is what ``label_only`` takes.
    """
    seen = [features, *(perturb(features, generator) for _ in range(copies - 1))]
    return np.stack([right(model.predict(copy), labels) for copy in seen])


def flipped(rate: float) -> Perturb:
    """Return a perturbation of binary features: each flips with probability ``rate``."""

    def perturb(features: Features, generator: np.random.Generator) -> Features:
        return np.where(generator.random(features.shape) < rate, 1 - features, features)

    return perturb


def jittered(deviation: float) -> Perturb:
    """Return a perturbation of other features: normal noise of this standard deviation."""

    def perturb(features: Features, generator: np.random.Generator) -> Features:
        return features + deviation * generator.standard_normal(features.shape, dtype=np.float32)

    return perturb
