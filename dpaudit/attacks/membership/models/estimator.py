"""Scikit-learn estimators, saved by skops: a pickle could run anything, this cannot."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.confidence import logits_of_probabilities
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra


@dataclass(frozen=True)
class Estimator:
    """A classifier with ``predict_proba``; records are flattened for it."""

    classifier: Any

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return log-probabilities, shape ``(records, classes)``."""
        flat = features.reshape(len(features), -1)
        return logits_of_probabilities(self.classifier.predict_proba(flat))


def load(path: Path) -> Estimator:
    """Return the estimator in ``path``, made of types that skops trusts, and no others.

    Raises:
        InvalidArgument: it cannot be read, holds another type, or gives no probabilities.
        MissingExtra: skops is not installed.
    """
    try:
        skops = import_module("skops.io")
    except ImportError as error:
        raise MissingExtra("skops", "skops") from error
    try:
        classifier = skops.load(str(path))
    except Exception as error:  # zip, json, skops: whatever a broken file brings
        allowed = f"an estimator of types that skops trusts ({error})"
        raise InvalidArgument("checkpoint", str(path), allowed) from error
    if not hasattr(classifier, "predict_proba"):
        kind = type(classifier).__name__
        raise InvalidArgument("checkpoint", kind, "a classifier with predict_proba")
    return Estimator(classifier)
