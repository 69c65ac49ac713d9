"""Models of the selective SGD experiments, and models as one flat vector of parameters.

``mlp`` and ``cnn`` have the sizes that Shokri & Shmatikov (2015) give for MNIST at 32 x 32
pixels: 140,106 and 105,506 parameters. Images of 28 x 28 pixels are padded with zeros.

Use them by name: ``dpaudit.trainer.federated.selective_models:mlp``.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive

__all__ = ["FlatModel", "cnn", "mlp", "run_epoch"]

SIDE = 32
"""Side of the images after padding, in pixels."""


def _padding(shape: tuple[int, ...], model: str) -> nn.Module:
    """Return a layer from images of one channel to ``(records, 1, 32, 32)``."""
    sides = shape[-2:]
    one_channel = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
    if not one_channel or sides[0] != sides[1] or sides[0] > SIDE or (SIDE - sides[0]) % 2:
        allowed = f"for images of one channel with an even side of at most {SIDE}, not {shape}"
        raise InvalidArgument("model", model, allowed)
    channel = nn.Unflatten(1, (1, sides[0])) if len(shape) == 2 else nn.Identity()
    return nn.Sequential(channel, nn.ZeroPad2d((SIDE - sides[0]) // 2))


class _ChannelsLast(nn.Module):
    """Store activations with the channels last: the same values, pooled faster on the CPU."""

    def forward(self, activations: Tensor) -> Tensor:
        """Return the activations in that order of memory."""
        return activations.contiguous(memory_format=torch.channels_last)


def mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a perceptron 1024-128-64-classes with rectified linear units.

    Args:
        shape: Shape of one record: ``(side, side)`` or ``(1, side, side)``, with an even side of
            at most 32.
        classes: Number of classes.

    Returns:
        The network; 140,106 parameters for 10 classes.

    Raises:
        InvalidArgument: If records have another shape.

    Example:
        >>> sum(p.numel() for p in mlp((28, 28), 10).parameters())
        140106
    """
    return nn.Sequential(
        _padding(shape, "mlp"),
        nn.Flatten(),
        nn.Linear(SIDE * SIDE, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return two convolutions of 5 x 5 with pooling, and two linear layers, with tanh.

    Args:
        shape: Shape of one record: ``(side, side)`` or ``(1, side, side)``, with an even side of
            at most 32.
        classes: Number of classes.

    Returns:
        The network; 105,506 parameters for 10 classes.

    Raises:
        InvalidArgument: If records have another shape.

    Example:
        >>> sum(p.numel() for p in cnn((28, 28), 10).parameters())
        105506
    """
    return nn.Sequential(
        _padding(shape, "cnn"),
        nn.Conv2d(1, 32, 5),
        _ChannelsLast(),
        nn.MaxPool2d(3, 3),
        nn.Tanh(),  # after pooling: tanh rises, so the values are the same, of fewer elements
        nn.Conv2d(32, 64, 5),
        nn.MaxPool2d(2, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64 * 2 * 2, 200),
        nn.Tanh(),
        nn.Linear(200, classes),
    )


class FlatModel:
    """A model whose trainable parameters are parts of one flat vector.

    Args:
        model: A model on the CPU with float32 parameters; its parameters become views.

    Attributes:
        model: The model.
        vector: All trainable parameters, shape ``(d,)``, in the order of ``named_parameters``.

    Raises:
        InvalidArgument: If a parameter is not float32 on the CPU.

    Example:
        >>> flat = FlatModel(nn.Linear(2, 1))
        >>> flat.load(np.array([1.0, 2.0, 3.0], dtype=np.float32))
        >>> flat.model.bias.item()
        3.0
    """

    def __init__(self, model: nn.Module) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        for name, parameter in trained:
            if parameter.dtype != torch.float32 or not parameter.is_cpu:
                raise InvalidArgument(
                    name, f"{parameter.dtype} on {parameter.device}", "float32 on the CPU"
                )
        self.model = model
        self.vector = torch.cat([p.detach().flatten() for _, p in trained])
        self._parameters = [p for _, p in trained]
        start = 0
        for _, parameter in trained:
            end = start + parameter.numel()
            parameter.data = self.vector[start:end].view(parameter.shape)
            start = end

    def load(self, vector: NDArray[np.float32]) -> None:
        """Set all parameters.

        Args:
            vector: Shape ``(d,)``.
        """
        self.vector.copy_(torch.from_numpy(vector))

    def read(self) -> NDArray[np.float32]:
        """Return a copy of all parameters.

        Returns:
            Shape ``(d,)``.
        """
        return self.vector.numpy().copy()

    def descend(self, loss: Tensor, learning_rate: float) -> None:
        """Take one step of SGD.

        Args:
            loss: A scalar that depends on the parameters.
            learning_rate: Factor of the gradient.
        """
        gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
        with torch.no_grad():
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=learning_rate)


def run_epoch(
    flat: FlatModel,
    features: Tensor,
    labels: Tensor,
    order: NDArray[np.int64],
    *,
    batch_size: int,
    learning_rate: float,
) -> float:
    """Train one epoch of plain SGD on the mean cross-entropy of each batch.

    Args:
        flat: The model, which is changed.
        features: Shape ``(records, *shape)``.
        labels: Classes, shape ``(records,)``.
        order: Order of the records: a permutation, shape ``(records,)``.
        batch_size: Records per step; the last batch may be smaller.
        learning_rate: Factor of the gradient, above 0.

    Returns:
        Mean loss of the batches in nats, each before its step. It is not private.

    Example:
        >>> flat = FlatModel(nn.Linear(1, 2))
        >>> features, labels = torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)
        >>> before = flat.read()
        >>> _ = run_epoch(flat, features, labels, np.arange(4), batch_size=2, learning_rate=0.1)
        >>> bool((flat.read() != before).any())
        True
    """
    require_count("batch_size", batch_size)
    require_positive("learning_rate", learning_rate)
    chosen = torch.from_numpy(order)
    losses = []
    for some, targets in zip(
        torch.split(features[chosen], batch_size),
        torch.split(labels[chosen], batch_size),
        strict=True,
    ):
        loss = nn.functional.cross_entropy(flat.model(some), targets)
        losses.append(loss.detach())
        flat.descend(loss, learning_rate)
    return float(torch.stack(losses).mean()) if losses else 0.0
