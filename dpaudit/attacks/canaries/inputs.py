"""Records that a model learns by heart, as nothing else explains them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import InvalidArgument, require_count

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """Features, shape ``(records, ...)``, finite; labels, shape ``(records,)``, from 0."""

    features: Features
    labels: Labels

    def __post_init__(self) -> None:
        if len(self.features) != len(self.labels) or self.labels.ndim != 1:
            given = f"{len(self.features)} features, labels of shape {self.labels.shape}"
            raise InvalidArgument("records", given, "one label for each")
        if not np.isfinite(self.features).all():
            raise InvalidArgument("records", "NaN or infinity", "finite")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: NDArray[np.bool_]) -> Records:
        return Records(self.features[index], self.labels[index])


def mislabelled(records: Records, classes: int, rng: np.random.Generator) -> Records:
    """Return the records, each with a wrong label.

    Args:
        records: Such as are not trained on otherwise: held-out ones.
        classes: How many classes there are, at least 2.
        rng: Draws the labels.
    """
    require_count("classes", classes, least=2)
    shifts = rng.integers(1, classes, len(records))
    return Records(records.features, (records.labels + shifts) % classes)


def blank(records: Records, classes: int, rng: np.random.Generator) -> Records:
    """Return empty records with labels at random: only the label can be learnt.

    One record in each has the smallest value that its feature has in ``records``, but for one
    feature of its own, so that no two are the same.
    """
    require_count("classes", classes, least=2)
    count, numbers = len(records), int(np.prod(records.features.shape[1:]))
    if count > numbers:
        raise InvalidArgument("count", count, f"at most {numbers}, the features of a record")
    flat = records.features.reshape(count, numbers)
    empty = np.tile(flat.min(axis=0), (count, 1))
    own = rng.permutation(numbers)[:count]
    empty[np.arange(count), own] = flat.max()
    features = empty.reshape(records.features.shape).astype(np.float32)
    return Records(features, rng.integers(0, classes, count))


def out_of_distribution(records: Records, classes: int, rng: np.random.Generator) -> Records:
    """Return records whose features are drawn one by one, with labels at random.

    Each feature is uniform between its smallest and its largest value in ``records``, so that
    a check of ranges lets them pass.
    """
    require_count("classes", classes, least=2)
    low, high = records.features.min(axis=0), records.features.max(axis=0)
    features = rng.uniform(low, high, records.features.shape).astype(np.float32)
    return Records(features, rng.integers(0, classes, len(records)))
