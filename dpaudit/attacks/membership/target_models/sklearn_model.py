"""Scikit-learn estimators in skops files, which cannot run code, as a pickle can."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.output_signals import logits_from_probabilities
from dpaudit.files.archives import open_zip
from dpaudit.files.regular_files import InputFile, read_bytes
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra


@dataclass(frozen=True)
class SklearnModel:
    """A scikit-learn classifier.

    Attributes:
        classifier: An estimator with ``predict_proba``.
    """

    classifier: Any

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Compute the log-probabilities of records, which are logits.

        Args:
            features: Shape ``(records, ...)``; flattened to ``(records, features)``.

        Returns:
            Shape ``(records, classes)``.

        Raises:
            InvalidArgument: If the estimator does not accept the records.
        """
        flat = features.reshape(len(features), -1)
        try:
            probabilities = np.asarray(self.classifier.predict_proba(flat), dtype=np.float64)
            if probabilities.shape[:1] != flat.shape[:1] or probabilities.ndim != 2:
                raise ValueError(f"its probabilities have shape {probabilities.shape}")
        except Exception as error:  # of any type, from scikit-learn or a broken estimator
            allowed = f"an estimator of records with {flat.shape[1]} features ({error})"
            raise InvalidArgument("checkpoint", type(self.classifier).__name__, allowed) from error
        return logits_from_probabilities(probabilities)


def load(source: InputFile) -> SklearnModel:
    """Open a scikit-learn classifier whose types skops trusts by default.

    Args:
        source: The .skops file.

    Returns:
        The target model.

    Raises:
        InvalidArgument: If the file cannot be read, contains another type, or its estimator has
            no ``predict_proba``.
        MissingExtra: If skops is not installed.
    """
    try:
        skops = import_module("skops.io")
    except ImportError as error:
        raise MissingExtra("skops", "skops") from error
    with open_zip(source):  # checks the inflated size
        content = read_bytes(source)
    try:
        classifier = skops.loads(content)
    except Exception as error:  # of any type, from zip, json or skops
        allowed = f"an estimator of types that skops trusts ({error})"
        raise InvalidArgument("checkpoint", str(source.path), allowed) from error
    if not hasattr(classifier, "predict_proba"):
        kind = type(classifier).__name__
        raise InvalidArgument("checkpoint", kind, "a classifier with predict_proba")
    return SklearnModel(classifier)
