"""What stacked models say of records, as the arrays that attacks read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpaudit.attacks.membership.confidence import (
    features_for_classifier,
    logit_scaled,
    logits_of_outputs,
)
from dpaudit.attacks.membership.scores import Array
from dpaudit.attacks.membership.stacks import Stack, logits

MOST_NUMBERS = 2**24  # that one part of the records may be, once for each model


@dataclass(frozen=True)
class Signals:
    """What models say of the same records.

    Attributes:
        confidences: Logit-scaled, of the true class, shape ``(models, records)``.
        outputs: What the attack classifier reads, shape ``(models, records, features)``.
    """

    confidences: Array
    outputs: NDArray[np.float32]

    def __getitem__(self, which: slice) -> Signals:
        return Signals(self.confidences[which], self.outputs[which])


def signals_of(
    stack: Stack, features: NDArray[np.float32], labels: NDArray[np.int64], *, classes: int
) -> Signals:
    """Return the signals of every model of ``stack`` on every record, part by part.

    Args:
        stack: Trained models.
        features: Shape ``(records, ...)``.
        labels: Shape ``(records,)``.
        classes: How many there are.
    """
    size = max(1, MOST_NUMBERS // (len(stack) * max(classes, features[0].size)))
    confidences, outputs = [], []
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        said = logits(stack, torch.from_numpy(features[part])).numpy()
        confidences.append(logit_scaled(said, labels[part]))
        outputs.append(features_for_classifier(said, labels[part]))
    return Signals(np.concatenate(confidences, axis=1), np.concatenate(outputs, axis=1))


@dataclass(frozen=True)
class OfStack:
    """One model of a stack, as a model to attack."""

    stack: Stack
    place: int

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Return logits, shape ``(records, classes)``."""
        alone = self.stack[slice(self.place, self.place + 1)]
        return logits_of_outputs(logits(alone, torch.from_numpy(features))[0].numpy())
