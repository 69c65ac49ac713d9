"""Test of LiRA's assumption that a record's confidences are normal over models.

A wrong assumption weakens the attack and does not invalidate its rates, which are measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from dpaudit.attacks.membership.reference_models import ReferenceConfidences
from dpaudit.vocabulary.arrays import BoolArray, FloatArray
from dpaudit.vocabulary.errors import InvalidArgument

TAIL = 0.005  # share of normal residuals in each tail
MIN_MODELS = 4  # with 3, the largest possible residual is hardly beyond the others
FACTOR = 2.0  # a tail that is this much heavier is reported


@dataclass(frozen=True)
class NormalityDiagnostics:
    """Tails of the residuals of reference confidences, on one side.

    Attributes:
        residuals: Number of residuals; 0 if no record has enough models.
        lower_tail: Share of the residuals below the normal quantile for ``TAIL``, in [0, 1].
        upper_tail: Share of the residuals above the normal quantile for 1 - ``TAIL``.
    """

    residuals: int
    lower_tail: float
    upper_tail: float

    @property
    def heavy_tails(self) -> bool:
        """Whether a tail has over ``FACTOR`` times the residuals of a normal law."""
        return max(self.lower_tail, self.upper_tail) > FACTOR * TAIL


def normality_diagnostics(
    references: ReferenceConfidences, which: BoolArray
) -> NormalityDiagnostics:
    """Compare the residuals of reference confidences with those of normal samples.

    A residual is the confidence minus the record's mean, divided by the record's standard
    deviation s, over the models of one side. For n normal confidences, its square times
    n / (n - 1)^2 has a Beta(1/2, n/2 - 1) law, so the expected share in each tail is exactly
    ``TAIL``.

    Args:
        references: Reference models.
        which: The confidences of one side, shape ``(models, records)``:
            ``references.member`` for in-models, its negation for out-models.

    Returns:
        Shares of the residuals in both tails; records with fewer than four models are left out.

    Raises:
        InvalidArgument: If the shape of ``which`` differs.

    References:
        Thompson (1935), Annals of Mathematical Statistics 6(4): law of a standardized residual.

    Example:
        >>> draws = np.random.default_rng(0).standard_normal((32, 2000))
        >>> which = np.ones((32, 2000), dtype=bool)
        >>> found = normality_diagnostics(ReferenceConfidences(draws, which), which)
        >>> found.residuals, found.heavy_tails
        (64000, False)
    """
    confidences = references.confidences
    if which.shape != confidences.shape:
        raise InvalidArgument("which", f"shape {which.shape}", f"of shape {confidences.shape}")
    count = which.sum(axis=0)
    means = np.where(which, confidences, 0.0).sum(axis=0) / np.maximum(count, 1)
    deviation = np.where(which, confidences - means, 0.0)
    scale = np.sqrt(np.square(deviation).sum(axis=0) / np.maximum(count - 1, 1))
    used = which & ((count >= MIN_MODELS) & (scale > 0))
    if not (total := int(used.sum())):
        return NormalityDiagnostics(0, 0.0, 0.0)
    limit = scale * _residual_quantile(np.maximum(count, MIN_MODELS))
    below, above = (used & (sign * deviation > limit) for sign in (-1, 1))
    return NormalityDiagnostics(total, float(below.sum() / total), float(above.sum() / total))


def _residual_quantile(count: FloatArray) -> FloatArray:
    """Return the residual that normal samples of this size exceed with probability ``TAIL``."""
    square = betaincinv(0.5, count / 2 - 1, 1 - 2 * TAIL)
    return np.asarray((count - 1) * np.sqrt(square / count))
