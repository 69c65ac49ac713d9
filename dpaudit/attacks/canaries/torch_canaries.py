"""Canaries that need torch: dummy parameters and adversarial records.

The model gets one more parameter with one coordinate per canary. The loss of a canary is a large
multiple of its coordinate. Its gradient is therefore one coordinate, clipped like the gradient of
any record. It cannot interfere with records or other canaries, and does not cost accuracy. Only
the loss of the training loop changes:

    model = add_canary_parameters(model, count=500)
    losses = canary_losses(model, losses, canary)   # canary: its number, or -1 for a record
    observations = (after - before) / (update_scale * clip_norm)   # of model.canaries, each step
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dpaudit.attacks.canaries import LabelledRecords
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive

CANARY_GRADIENT_NORM = 1e4  # before clipping: larger than any clip norm in use


class ModelWithCanaries(nn.Module):
    """A model with one parameter coordinate per canary, which its forward pass ignores.

    Args:
        model: The model to train.
        count: Number of canaries.

    Attributes:
        model: The model itself. Release this one.
        canaries: The canaries' coordinates, shape ``(count,)``, initially 0.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        self.model, self.canaries = model, nn.Parameter(torch.zeros(count))

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return the output of the model."""
        return self.model(*args, **kwargs)


def add_canary_parameters(model: nn.Module, *, count: int) -> ModelWithCanaries:
    """Add gradient canaries to a model.

    Args:
        model: The model to train. It is not changed.
        count: Number of canaries, at least 1.

    Returns:
        The model with the canaries' parameter.

    Raises:
        InvalidArgument: If ``count`` is below 1.
    """
    require_count("count", count)
    return ModelWithCanaries(model, count)


def canary_losses(model: ModelWithCanaries, losses: Tensor, canary: Tensor) -> Tensor:
    """Replace the losses of canaries by multiples of their coordinates.

    Args:
        model: The model with the canaries' parameter.
        losses: One loss per record of the batch, shape ``(records,)``.
        canary: The number of the canary that a record stands for, or -1 for an ordinary record;
            integers, shape ``(records,)``.

    Returns:
        The losses, shape ``(records,)``.

    Raises:
        InvalidArgument: If the shapes differ, or a number has no canary.
    """
    if canary.shape != losses.shape:
        given = f"shape {tuple(canary.shape)}"
        raise InvalidArgument("canary", given, f"one number for each of {len(losses)} losses")
    if len(canary) and not -1 <= int(canary.min()) <= int(canary.max()) < len(model.canaries):
        given = f"{int(canary.min())} to {int(canary.max())}"
        raise InvalidArgument("canary", given, f"from -1 to {len(model.canaries) - 1}")
    # Products with one-hot rows, not indexing: every engine of per-record gradients supports them.
    rows = nn.functional.one_hot(canary.clamp(min=0), len(model.canaries)).to(losses)
    own = CANARY_GRADIENT_NORM * (rows * model.canaries).sum(dim=1)
    return torch.where(canary >= 0, own, losses)


# Adversarial input canaries: records with a large loss under a given model.
#
# Such a record changes a trained model more than an ordinary one, so its inclusion is easier to
# detect. Needs torch.


def adversarial_records(
    records: LabelledRecords,
    logits: Callable[[Tensor], Tensor],
    *,
    radius: float = 0.1,
    steps: int = 20,
) -> LabelledRecords:
    """Increase the loss of records by projected signed gradient ascent on their features.

    The labels stay. Wrong labels to start with give the largest losses.

    Args:
        records: The records to start from, such as ``mislabelled`` ones.
        logits: The model to craft against: a function from features, shape ``(n, ...)``, to
            logits, shape ``(n, classes)``.
        radius: Largest change of each feature, in standard deviations of all features; above 0.
        steps: Number of ascent steps, at least 1.

    Returns:
        The changed records. Their features stay within the range of all given features.

    Raises:
        InvalidArgument: If a number is out of range.

    References:
        Madry et al. (2018), arXiv:1706.06083.
    """
    require_positive("radius", radius)
    require_count("steps", steps)
    start, labels = torch.from_numpy(records.features), torch.from_numpy(records.labels)
    most = radius * float(records.features.std())
    moved = start.clone()
    for _ in range(steps):
        moved.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(logits(moved), labels, reduction="sum")
        (uphill,) = torch.autograd.grad(loss, [moved])
        moved = moved.detach() + 2.5 * most / steps * uphill.sign()
        moved = torch.clamp(moved, start - most, start + most)
    in_range = torch.clamp(moved, float(start.min()), float(start.max()))
    return LabelledRecords(np.asarray(in_range, dtype=np.float32), records.labels)
