"""The sum of clipped per-record gradients, as one flat vector.

Every trainable parameter enters, tied ones once: gradients are taken of each record's
own loss with respect to all of them (``torch.func``), so nothing can be skipped, no
operation can mix records, and the norm is joint by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

PerRecordLoss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, labels), records first, to losses of shape (records,)."""

# A clipped vector's norm is C up to float32 rounding: aim below by more than that, so
# that the sensitivity is C and not C (1 + 1e-7).
SHRINK = 1 - 2.0**-20


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """Return what each record's gradient is multiplied by, shape ``(records,)``, in float64.

    A norm that is not finite gives 0: such a record contributes nothing.
    """
    factors = (clip_norm * SHRINK / norms).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(norms))


def clipped_sum(parts: Sequence[Tensor], clip_norm: float) -> Tensor:
    """Return the sum over records of gradients clipped to a joint L2 norm of ``clip_norm``.

    Args:
        parts: One tensor a parameter, each of shape ``(records, size of the parameter)``.
        clip_norm: Largest norm of one record's gradient over all parts; above 0.

    Returns:
        Shape ``(d,)``. One record more moves it by at most ``clip_norm``.
    """
    # In float64 no finite float32 gradient's norm overflows.
    by_part = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts]
    factors = clip_factors(torch.linalg.vector_norm(torch.stack(by_part), dim=0), clip_norm)
    kept = factors > 0
    if not bool(kept.all()):  # 0 times infinity is NaN: what is left out must not be multiplied
        parts, factors = [part[kept] for part in parts], factors[kept]
    weights = factors.to(parts[0].dtype)
    return torch.cat([weights @ part for part in parts])


class PerRecordGradients:
    """Per-record gradients of a model's loss, in the order of its named parameters."""

    def __init__(self, model: nn.Module, loss: PerRecordLoss) -> None:
        self._model = model
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        buffers = dict(model.named_buffers())

        def loss_of_one(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            outputs = functional_call(model, (parameters, buffers), (x[None],))
            return loss(outputs, y[None]).sum()

        self._batched = vmap(grad(loss_of_one), in_dims=(None, 0, 0), randomness="different")

    @property
    def size(self) -> int:
        """Number of trainable parameters, d."""
        return sum(p.numel() for p in self._model.parameters() if p.requires_grad)

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the gradients of the records (x, y), one ``(records, size)`` a parameter."""
        parameters = {
            name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad
        }
        gradients = self._batched(parameters, x, y)
        return [gradients[name].flatten(1) for name in self.names]

    def clipped_sum(self, x: Tensor, y: Tensor, clip_norm: float, chunk: int) -> Tensor:
        """Return the clipped sum over all records, taking ``chunk`` of them at a time.

        The chunk is a matter of memory and speed alone; no records give zeros.
        """
        total = torch.zeros(self.size)
        for start in range(0, len(x), chunk):
            parts = self(x[start : start + chunk], y[start : start + chunk])
            total += clipped_sum(parts, clip_norm)
        return total
