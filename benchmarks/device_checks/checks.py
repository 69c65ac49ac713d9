"""One check of a device: what was found, what is allowed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dpaudit.trainer import Private, make_private
from dpaudit.trainer.noise.gradient_noise import GradientNoise


@dataclass(frozen=True)
class Check:
    """One figure with its limit.

    Attributes:
        name: What is compared.
        found: The figure.
        allowed: The largest value that passes.
    """

    name: str
    found: float
    allowed: float

    @property
    def passes(self) -> bool:
        """Whether the figure is within its limit; NaN is not."""
        return self.found <= self.allowed


def relative_gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference over that of the second, taken in float64 on the CPU."""
    flat = [
        torch.cat([values[name].detach().double().cpu().flatten() for name in other])
        for values in (one, other)
    ]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def trainer(
    model: nn.Module, records: int, *, noise: GradientNoise | None = None, seed: int | None = None
) -> Private:
    """Return a trainer whose every batch is all records.

    Args:
        model: The model.
        records: Number of records.
        noise: Kind of noise; None: the default of the device.
        seed: Seed of the noise; None: a fresh key.
    """
    return make_private(
        model,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05),
        noise_multiplier=1.0,
        clip_norm=0.5,
        sampling_rate=1.0,
        expected_batch_size=records,
        noise=noise,
        seed=seed,
    )


def require_exact_products() -> None:
    """Make float32 products as exact on a GPU as on a CPU: no TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
