"""How much of each record's gradient enters the sum.

A rule turns squared norms, by parameter and record, into factors. Whatever the rule, a
record moves the sum by at most ``sensitivity`` in L2 norm over all parameters together,
and one whose gradient is not finite not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dpaudit.vocabulary.errors import InvalidArgument, require_positive

# A clipped vector's norm is C up to float32 rounding: aim below by more than that, so
# that the sensitivity is C and not C (1 + 1e-7).
SHRINK = 1 - 2.0**-18


class Clipping(Protocol):
    """Turns norms into factors."""

    @property
    def sensitivity(self) -> float:
        """The largest norm of what one record adds to the sum."""

    def factors(self, squares: Tensor) -> Tensor:
        """Return by what each gradient is multiplied.

        Args:
            squares: Squared norms, shape ``(parameters, records)``, float64, finite.

        Returns:
            Shape ``(parameters, records)``.
        """


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """Return what each record's gradient is multiplied by, shape ``(records,)``, in float64.

    A norm that is not finite gives 0: such a record contributes nothing.
    """
    factors = (clip_norm * SHRINK / norms).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(norms))


@dataclass(frozen=True)
class Flat:
    """One norm over all parameters, cut at ``clip_norm`` (Abadi et al. 2016)."""

    clip_norm: float

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)

    @property
    def sensitivity(self) -> float:
        """See ``Clipping``."""
        return self.clip_norm

    def factors(self, squares: Tensor) -> Tensor:
        """See ``Clipping``."""
        return clip_factors(squares.sum(dim=0).sqrt(), self.clip_norm).expand_as(squares)


@dataclass(frozen=True)
class Automatic:
    """Every gradient is scaled to almost the same norm: C g / (|g| + stability).

    Bu et al. 2023, arXiv:2206.07136: no clip norm to tune, as C only scales the step.
    """

    clip_norm: float
    stability: float = 0.01

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        require_positive("stability", self.stability)

    @property
    def sensitivity(self) -> float:
        """See ``Clipping``."""
        return self.clip_norm

    def factors(self, squares: Tensor) -> Tensor:
        """See ``Clipping``."""
        norms = squares.sum(dim=0).sqrt()
        return (self.clip_norm * SHRINK / (norms + self.stability)).expand_as(squares)


@dataclass(frozen=True)
class PerLayer:
    """Each parameter's gradient is cut at a norm of its own (McMahan et al. 2018).

    Attributes:
        clip_norms: One for each trainable parameter, in the model's order.
    """

    clip_norms: tuple[float, ...]

    def __post_init__(self) -> None:
        for clip_norm in self.clip_norms:
            require_positive("clip_norms", clip_norm)

    @classmethod
    def evenly(cls, clip_norm: float, parameters: int) -> PerLayer:
        """Return clip norms that are equal and amount to ``clip_norm`` together."""
        return cls((clip_norm / math.sqrt(parameters),) * parameters)

    @property
    def sensitivity(self) -> float:
        """See ``Clipping``."""
        return math.hypot(*self.clip_norms)

    def factors(self, squares: Tensor) -> Tensor:
        """See ``Clipping``."""
        if len(squares) != len(self.clip_norms):
            raise InvalidArgument(
                "clip_norms", len(self.clip_norms), f"one for each of {len(squares)} parameters"
            )
        norms = squares.sqrt()
        return torch.stack(
            [clip_factors(n, c) for n, c in zip(norms, self.clip_norms, strict=True)]
        )


def finite_records(squares: Sequence[Tensor]) -> Tensor:
    """Return which records have finite gradients throughout, shape ``(records,)``."""
    return torch.isfinite(torch.stack(list(squares)).sum(dim=0))
