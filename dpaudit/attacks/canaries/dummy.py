"""Gradient canaries for one's own torch loop: parameters that no record but a canary touches.

A model gets one more parameter, a number for each canary. A canary's loss is a large multiple
of its own number, so that its gradient is one coordinate, clipped like any record's: it
cannot interfere with records or other canaries, and costs no accuracy. Nothing of the
training loop changes but its loss:

    model = with_canaries(model, count=500)
    losses = canary_losses(model, losses, canary)   # canary: -1 for a record, else its number
    shown = (after - before) / (update_scale * clip_norm)   # of model.canaries, each step
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpaudit.vocabulary.errors import InvalidArgument, require_count

EXCESS = 1e4  # a canary's raw gradient: larger than any clip norm that one would choose


class WithCanaries(nn.Module):
    """A model and the canaries' numbers, which it does not read.

    Attributes:
        model: The model, unchanged: this is what ships.
        canaries: Shape ``(count,)``, zero to begin with.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        self.model, self.canaries = model, nn.Parameter(torch.zeros(count))

    def forward(self, *args: object, **kwargs: object) -> object:
        """Return what the model returns."""
        return self.model(*args, **kwargs)


def with_canaries(model: nn.Module, *, count: int) -> WithCanaries:
    """Return ``model`` with ``count`` canaries beside it."""
    require_count("count", count)
    return WithCanaries(model, count)


def canary_losses(model: WithCanaries, losses: Tensor, canary: Tensor) -> Tensor:
    """Return the losses, those of canaries in place of their records'.

    Args:
        model: Whose canaries they are.
        losses: One for each record of the batch, shape ``(records,)``.
        canary: The number of the canary that a record stands for, -1 for an ordinary record;
            whole numbers, shape ``(records,)``.

    Raises:
        InvalidArgument: a number without a canary, or another shape.
    """
    if canary.shape != losses.shape:
        given = f"shape {tuple(canary.shape)}"
        raise InvalidArgument("canary", given, f"one number for each of {len(losses)} losses")
    if len(canary) and not -1 <= int(canary.min()) <= int(canary.max()) < len(model.canaries):
        given = f"{int(canary.min())} to {int(canary.max())}"
        raise InvalidArgument("canary", given, f"from -1 to {len(model.canaries) - 1}")
    # Products with a one-hot row, not an index: every per-record engine knows them.
    rows = nn.functional.one_hot(canary.clamp(min=0), len(model.canaries)).to(losses)
    own = EXCESS * (rows * model.canaries).sum(dim=1)
    return torch.where(canary >= 0, own, losses)
