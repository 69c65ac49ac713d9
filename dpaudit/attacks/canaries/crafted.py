"""Records crafted against a model: its loss on them is as large as small changes make it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dpaudit.attacks.canaries.inputs import Records
from dpaudit.vocabulary.errors import require_count, require_positive


def crafted(
    records: Records, logits: Callable[[Tensor], Tensor], *, radius: float = 0.1, steps: int = 20
) -> Records:
    """Return the records, moved by signed gradient ascent on the loss of their labels.

    Projected gradient ascent as in Madry et al. 2018, arXiv:1706.06083. The labels stay: with
    wrong ones to begin with, the model has most to learn.

    Args:
        records: Where to begin, such as ``mislabelled`` ones.
        logits: A model that the canaries are crafted against, from features to logits.
        radius: How far each feature may move, in standard deviations of all features.
        steps: How many moves there are.
    """
    require_positive("radius", radius)
    require_count("steps", steps)
    begin, labels = torch.from_numpy(records.features), torch.from_numpy(records.labels)
    most = radius * float(records.features.std())
    moved = begin.clone()
    for _ in range(steps):
        moved.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(logits(moved), labels, reduction="sum")
        (uphill,) = torch.autograd.grad(loss, [moved])
        moved = moved.detach() + 2.5 * most / steps * uphill.sign()
        moved = torch.clamp(moved, begin - most, begin + most)
    inside = torch.clamp(moved, float(begin.min()), float(begin.max()))
    return Records(np.asarray(inside, dtype=np.float32), records.labels)
