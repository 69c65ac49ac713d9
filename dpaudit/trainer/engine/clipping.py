"""Clipping rules: the factor by which each record's gradient enters the sum.

A rule turns the squared norms per parameter and record into factors. Under every rule, one
record moves the sum by at most ``sensitivity`` in L2 norm, over all parameters jointly. A
record whose gradient is not finite contributes zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dpaudit.vocabulary.errors import InvalidArgument, require_positive

ROUNDING_MARGIN = 1 - 2.0**-18
"""Factor on the clip norm. The norm of a clipped float32 vector is C (1 + 1e-7) at worst; the
margin exceeds this rounding, so that the sensitivity is C."""


class Clipping(Protocol):
    """Protocol of a clipping rule: a sensitivity, and factors that keep it.

    Example:
        >>> import torch
        >>> rule: Clipping = Flat(1.0)
        >>> rule.factors(torch.tensor([[4.0], [12.0]]).double()).round(decimals=3)
        tensor([[0.2500],
                [0.2500]], dtype=torch.float64)
    """

    @property
    def sensitivity(self) -> float:
        """Upper bound on the L2 norm of one record's contribution to the sum."""

    def factors(self, squares: Tensor) -> Tensor:
        """Return the factor of each gradient.

        Args:
            squares: Squared norms, shape ``(parameters, records)``, float64, finite.

        Returns:
            Nonnegative factors, same shape.
        """


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """Return min(1, C / norm) for each norm, slightly rounded down.

    Args:
        norms: Gradient norms, shape ``(records,)``, float64.
        clip_norm: The bound C.

    Returns:
        Factors, shape ``(records,)``, float64. A norm that is not finite gives 0.
    """
    factors = norms.reciprocal().mul_(clip_norm * ROUNDING_MARGIN).clamp_(max=1.0)
    return factors.nan_to_num_(nan=0.0)  # C / infinity is 0


@dataclass(frozen=True)
class Flat:
    """Clip the norm over all parameters at ``clip_norm``: g min(1, C / |g|).

    Args:
        clip_norm: The bound C on each record's contribution.

    References:
        Abadi et al. (2016), arXiv:1607.00133, Algorithm 1.

    Example:
        >>> Flat(1.5).sensitivity
        1.5
    """

    clip_norm: float

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)

    @property
    def sensitivity(self) -> float:
        """The clip norm."""
        return self.clip_norm

    def factors(self, squares: Tensor) -> Tensor:
        """Return one factor per record, the same for all parameters.

        Args:
            squares: Squared norms, shape ``(parameters, records)``, float64, finite.

        Returns:
            Factors in (0, 1], same shape; float64.
        """
        return clip_factors(squares.sum(dim=0).sqrt(), self.clip_norm).expand_as(squares)


@dataclass(frozen=True)
class Automatic:
    """Scale every gradient to almost the same norm: C g / (|g| + stability).

    There is no clip norm to tune, as C only scales the step.

    Args:
        clip_norm: The scale C, an upper bound on each record's contribution.
        stability: Positive constant that keeps small gradients small.

    References:
        Bu et al. (2023), arXiv:2206.07136.

    Example:
        >>> import torch
        >>> Automatic(1.0, stability=1.0).factors(torch.tensor([[9.0]]).double()).round(decimals=3)
        tensor([[0.2500]], dtype=torch.float64)
    """

    clip_norm: float
    stability: float = 0.01

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        require_positive("stability", self.stability)

    @property
    def sensitivity(self) -> float:
        """The scale C, which no contribution reaches."""
        return self.clip_norm

    def factors(self, squares: Tensor) -> Tensor:
        """Return one factor per record, the same for all parameters.

        Args:
            squares: Squared norms, shape ``(parameters, records)``, float64, finite.

        Returns:
            Factors C / (norm + stability), same shape; above 1 for small gradients.
        """
        norms = squares.sum(dim=0).sqrt()
        return (self.clip_norm * ROUNDING_MARGIN / (norms + self.stability)).expand_as(squares)


@dataclass(frozen=True)
class PerLayer:
    """Clip each parameter's gradient at a norm of its own.

    The sensitivity is the root of the sum of squares of all clip norms.

    Args:
        clip_norms: One clip norm per trainable parameter, in the model's order.

    References:
        McMahan et al. (2018), arXiv:1710.06963.

    Example:
        >>> PerLayer((3.0, 4.0)).sensitivity
        5.0
    """

    clip_norms: tuple[float, ...]

    def __post_init__(self) -> None:
        for clip_norm in self.clip_norms:
            require_positive("clip_norms", clip_norm)

    @classmethod
    def evenly(cls, clip_norm: float, parameters: int) -> PerLayer:
        """Return equal clip norms whose joint sensitivity is ``clip_norm``.

        Args:
            clip_norm: The joint bound C.
            parameters: Number of trainable parameters, at least 1.

        Returns:
            The rule with clip norms C / sqrt(parameters).
        """
        return cls((clip_norm / math.sqrt(parameters),) * parameters)

    @property
    def sensitivity(self) -> float:
        """Root of the sum of the squared clip norms."""
        return math.hypot(*self.clip_norms)

    def factors(self, squares: Tensor) -> Tensor:
        """Return one factor per parameter and record.

        Args:
            squares: Squared norms, shape ``(parameters, records)``, float64, finite.

        Returns:
            Factors in (0, 1], same shape; float64.

        Raises:
            InvalidArgument: If the number of parameters is not that of the clip norms.
        """
        if len(squares) != len(self.clip_norms):
            raise InvalidArgument(
                "clip_norms", len(self.clip_norms), f"one for each of {len(squares)} parameters"
            )
        norms = squares.sqrt()
        return torch.stack(
            [clip_factors(n, c) for n, c in zip(norms, self.clip_norms, strict=True)]
        )


def finite_records(squares: Tensor) -> Tensor:
    """Return which records have finite gradients in all parameters.

    Args:
        squares: Squared norms, shape ``(parameters, records)``.

    Returns:
        Mask of shape ``(records,)``.
    """
    return torch.isfinite(squares.sum(dim=0))
