"""Adam for noisy gradients: the noise's share of the second moment is taken off.

Adam divides by the root of an average of squared gradients. Of private gradients, most of
that is noise of a known variance, which makes Adam a slow sign descent; taken off, steps
are again those that clean gradients would ask for (Tang, Shpilevskiy & Lecuyer 2024,
arXiv:2312.14334, Algorithm 1). What follows the noisy sum is post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dpaudit.vocabulary.errors import InvalidArgument, require_positive


class AdamCorrected(torch.optim.Optimizer):
    """DP-AdamBC.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: How much of the averages of gradients and of their squares is kept.
        least: Below it, what is left of the second moment counts as this; over 0.
        noise_deviation: Of one coordinate of the gradients, that is, noise_multiplier *
            clip_norm / expected_batch_size. ``make_private`` keeps it up to date.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        least: float = 1e-8,
        noise_deviation: float = 0.0,
    ) -> None:
        require_positive("lr", lr)
        require_positive("least", least)
        if not all(0 <= beta < 1 for beta in betas):
            raise InvalidArgument("betas", betas, "two numbers, at least 0 and below 1")
        if not 0 <= noise_deviation < math.inf:
            raise InvalidArgument("noise_deviation", noise_deviation, "at least 0 and finite")
        defaults = {"lr": lr, "betas": betas, "least": least, "noise_deviation": noise_deviation}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step on the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        first, second = group["betas"]
        state["step"] += 1
        steps = float(state["step"])
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        mean = state["mean"] / (1 - first**steps)
        clean = state["square"] / (1 - second**steps) - group["noise_deviation"] ** 2
        parameter.addcdiv_(mean, clean.clamp_(min=group["least"]).sqrt_(), value=-group["lr"])


def tell_noise(optimizer: torch.optim.Optimizer, deviation: float) -> None:
    """Let an optimizer that corrects for the noise know its deviation in the gradients."""
    for group in optimizer.param_groups:
        if "noise_deviation" in group:
            group["noise_deviation"] = deviation
