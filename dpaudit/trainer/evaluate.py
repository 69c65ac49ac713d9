"""What a trained model says of records: confidences, losses and accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model
from torch import nn

from dpaudit.files.opening import DATA, InputFile, opened
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.data import Records, Split
from dpaudit.trainer.models import make_model
from dpaudit.vocabulary.errors import IntegrityError

CHUNK = 2048


@dataclass(frozen=True)
class Evaluation:
    """What a model says of records.

    Attributes:
        confidences: ln(p / (1 - p)) with p the probability of the record's class, shape
            ``(records,)``. They tell records apart whose losses round to 0.
        accuracy: Share of right predictions, in [0, 1].
    """

    confidences: NDArray[np.float64]
    accuracy: float

    @property
    def losses(self) -> NDArray[np.float64]:
        """Cross-entropy in nats, shape ``(records,)``."""
        return np.logaddexp(0.0, -self.confidences)


def evaluate(model: nn.Module, records: Records) -> Evaluation:
    """Return confidences and accuracy of ``model`` in evaluation mode."""
    model.eval()
    confidences, right = [np.empty(0)], 0
    with torch.no_grad():
        for start in range(0, len(records), CHUNK):
            outputs = model(torch.from_numpy(records.features[start : start + CHUNK]))
            labels = torch.from_numpy(records.labels[start : start + CHUNK])
            confidences.append(logit_scaled(outputs, labels).numpy())
            right += int((outputs.argmax(1) == labels).sum())
    return Evaluation(np.concatenate(confidences), right / max(1, len(records)))


def logit_scaled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return ln(p / (1 - p)) of each record's class, in float64.

    ln p itself is 0 in float32 from a gap of 17 between the logits on, and the loss is 0 for
    every such record. This is the gap itself: the class's logit less the log-sum-exp of the
    others.

    Args:
        logits: Shape ``(records, classes)``.
        labels: Shape ``(records,)``.
    """
    wide, own = logits.double(), labels[:, None]
    others = wide.scatter(1, own, -torch.inf)
    return wide.gather(1, own)[:, 0] - others.logsumexp(1)


def load_trained_model(run: RunDirectory, split: Split) -> nn.Module:
    """Return the run's model with its shipped weights.

    Raises:
        IntegrityError: the weights are missing, broken or of another model.
    """
    config = run.read_config()
    model = make_model(config.model.model, split.shape, len(split.classes), seed=0)
    with opened(InputFile(run.model, limit=DATA)):
        pass  # a regular file: safetensors opens it by its name
    try:
        load_model(model, run.model)
    except Exception as error:  # safetensors raises its own and torch's kinds
        raise IntegrityError(f"{run.model} does not fit the run's model: {error}") from error
    return model
