"""Adam for noisy gradients: the noise variance is subtracted from the second moment.

Adam divides by the root of an average of squared gradients. With private gradients, most of
that average is noise of known variance, and the steps approach slow sign descent. With the
variance subtracted, steps approximate those on clean gradients. Everything after the noisy
sum is post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dpaudit.vocabulary.errors import InvalidArgument, require_positive


class AdamCorrected(torch.optim.Optimizer):
    """DP-AdamBC: Adam whose second moment is corrected for the noise variance.

    Args:
        params: Parameters, or parameter groups.
        lr: Learning rate.
        betas: Decay rates of the averages of the gradients and of their squares, in [0, 1).
        least: Lower bound of the corrected second moment; above 0.
        noise_deviation: Standard deviation of the noise on one coordinate of the gradients:
            noise_multiplier * clip_norm / expected_batch_size. A trainer of ``make_private``
            sets it in each step.

    Raises:
        InvalidArgument: If an argument is out of range.

    References:
        Tang, Shpilevskiy & Lecuyer (2024), arXiv:2312.14334, Algorithm 1.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> weight.grad = torch.ones(1)
        >>> AdamCorrected([weight], lr=0.1).step()
        >>> round(weight.item(), 4)
        0.9
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
        """Update the parameters that have a gradient.

        Args:
            closure: Recomputes the loss, as for any optimizer of torch; None if there is none.

        Returns:
            The closure's loss; None without a closure.
        """
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
        """Update one parameter with bias-corrected moments, less the noise variance."""
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
        # E[g^2] = (clean second moment) + (noise variance), for independent noise of mean zero.
        clean = state["square"] / (1 - second**steps) - group["noise_deviation"] ** 2
        parameter.addcdiv_(mean, clean.clamp_(min=group["least"]).sqrt_(), value=-group["lr"])


def set_noise_deviation(optimizer: torch.optim.Optimizer, deviation: float) -> None:
    """Set the noise deviation of an optimizer that corrects for it; others stay unchanged.

    Args:
        optimizer: Any optimizer; groups without ``noise_deviation`` are left as they are.
        deviation: Standard deviation of the noise on one coordinate of the gradients.
    """
    for group in optimizer.param_groups:
        if "noise_deviation" in group:
            group["noise_deviation"] = deviation
