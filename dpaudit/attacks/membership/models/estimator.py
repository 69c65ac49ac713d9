"""Scikit-learn estimators, saved by skops: a pickle could run anything, this cannot."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.confidence import logits_of_probabilities
from dpaudit.files.archives import opened_zip
from dpaudit.files.opening import InputFile, read
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra


@dataclass(frozen=True)
class Estimator:
    """A classifier with ``predict_proba``; records are flattened for it."""

    classifier: Any

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return log-probabilities, shape ``(records, classes)``.

        Raises:
            InvalidArgument: The estimator takes no such records.
        """
        flat = features.reshape(len(features), -1)
        try:
            probabilities = np.asarray(self.classifier.predict_proba(flat), dtype=np.float64)
            if probabilities.shape[:1] != flat.shape[:1] or probabilities.ndim != 2:
                raise ValueError(f"its probabilities have shape {probabilities.shape}")
        except Exception as error:  # scikit-learn, and what a broken estimator brings
            allowed = f"an estimator of records with {flat.shape[1]} features ({error})"
            raise InvalidArgument("checkpoint", type(self.classifier).__name__, allowed) from error
        return logits_of_probabilities(probabilities)


def load(source: InputFile) -> Estimator:
    """Return the estimator in a file, made of types that skops trusts, and no others.

    Raises:
        InvalidArgument: it cannot be read, holds another type, or gives no probabilities.
        MissingExtra: skops is not installed.
    """
    try:
        skops = import_module("skops.io")
    except ImportError as error:
        raise MissingExtra("skops", "skops") from error
    with opened_zip(source):  # it inflates to no more than it may
        content = read(source)
    try:
        classifier = skops.loads(content)
    except Exception as error:  # zip, json, skops: whatever a broken file brings
        allowed = f"an estimator of types that skops trusts ({error})"
        raise InvalidArgument("checkpoint", str(source.path), allowed) from error
    if not hasattr(classifier, "predict_proba"):
        kind = type(classifier).__name__
        raise InvalidArgument("checkpoint", kind, "a classifier with predict_proba")
    return Estimator(classifier)
