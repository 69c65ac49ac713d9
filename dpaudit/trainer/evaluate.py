"""What a trained model says of records: losses and accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model
from torch import nn

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.data import Records, Split
from dpaudit.trainer.models import make_model
from dpaudit.vocabulary.errors import IntegrityError

CHUNK = 2048


@dataclass(frozen=True)
class Evaluation:
    """Per-record losses, shape ``(records,)``, in nats, and the accuracy in [0, 1]."""

    losses: NDArray[np.float64]
    accuracy: float


def evaluate(model: nn.Module, records: Records) -> Evaluation:
    """Return losses and accuracy of ``model`` in evaluation mode."""
    model.eval()
    losses, right = [np.empty(0)], 0
    with torch.no_grad():
        for start in range(0, len(records), CHUNK):
            outputs = model(torch.from_numpy(records.features[start : start + CHUNK]))
            labels = torch.from_numpy(records.labels[start : start + CHUNK])
            of_each = nn.functional.cross_entropy(outputs, labels, reduction="none")
            losses.append(of_each.double().numpy())
            right += int((outputs.argmax(1) == labels).sum())
    return Evaluation(np.concatenate(losses), right / max(1, len(records)))


def load_trained_model(run: RunDirectory, split: Split) -> nn.Module:
    """Return the run's model with its shipped weights.

    Raises:
        IntegrityError: the weights are missing, broken or of another model.
    """
    config = run.read_config()
    model = make_model(config.model.model, split.shape, len(split.classes), seed=0)
    try:
        load_model(model, run.model)
    except Exception as error:  # safetensors raises its own and torch's kinds
        raise IntegrityError(f"{run.model} does not fit the run's model: {error}") from error
    return model
