"""Models of the federated benchmarks that the package does not have."""

from __future__ import annotations

import torch
from torch import nn

from dpaudit.trainer.models.factories import cnn_model


def linear_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the built-in CNN without its hidden layer: two convolutions and a linear layer.

    For MNIST it has 14,394 parameters, where the built-in one has 26,010.

    Args:
        shape: Shape of one record: ``(side, side)`` or ``(channels, side, side)``.
        classes: Number of classes.

    Returns:
        The network.
    """
    body = cnn_model(shape, classes)[0]
    with torch.no_grad():
        features = body(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(body, nn.Linear(features, classes))
