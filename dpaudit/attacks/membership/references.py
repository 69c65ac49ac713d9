"""What reference models say of records that they did, and did not, train on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.scores import Array
from dpaudit.vocabulary.errors import InvalidArgument


@dataclass(frozen=True)
class References:
    """Logit-scaled confidences of reference models, and what each of them trained on.

    Attributes:
        confidences: Shape ``(models, records)``, finite.
        member: Shape ``(models, records)``: whether the model trained on the record.
    """

    confidences: Array
    member: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.confidences.ndim != 2 or 0 in self.confidences.shape:
            given = f"confidences of shape {self.confidences.shape}"
            raise InvalidArgument("references", given, "of shape (models, records), none of them 0")
        if self.member.shape != self.confidences.shape or self.member.dtype != np.bool_:
            given = f"{self.member.dtype} of shape {self.member.shape}"
            raise InvalidArgument("member", given, f"booleans of shape {self.confidences.shape}")
        if not np.isfinite(self.confidences).all():
            raise InvalidArgument("references", "NaN or infinity", "finite confidences")

    def __len__(self) -> int:
        return len(self.confidences)

    def first(self, models: int) -> References:
        """Return the first ``models`` of these."""
        return References(self.confidences[:models], self.member[:models])

    def require_records(self, confidences: Array) -> None:
        """Refuse a target's confidences that are not of these very records."""
        if confidences.shape != self.confidences.shape[1:]:
            records = self.confidences.shape[1]
            raise InvalidArgument(
                "confidences", f"shape {confidences.shape}", f"one for each of {records} records"
            )


@dataclass(frozen=True)
class Sides:
    """Mean over the models that trained on each record, and over those that did not.

    Attributes:
        inside: Shape ``(records,)``; guessed where no model trained on the record.
        outside: The same for models that did not train on it.
        count_inside: How many models trained on each record.
        count_outside: How many did not.
    """

    inside: Array
    outside: Array
    count_inside: NDArray[np.int64]
    count_outside: NDArray[np.int64]


def sides(values: Array, member: NDArray[np.bool_]) -> Sides:
    """Return the means of ``values``, both shaped ``(models, records)``, on either side.

    With few models a record may lack a side. Then it is guessed as the other side, moved by
    the mean difference that all records show.
    """
    inside, count_inside = _mean(values, member)
    outside, count_outside = _mean(values, ~member)
    gap = _gap(inside, outside)
    return Sides(
        np.where(count_inside > 0, inside, outside + gap),
        np.where(count_outside > 0, outside, inside - gap),
        count_inside,
        count_outside,
    )


def require_inside(found: Sides) -> None:
    """Refuse references of which none trained on any record."""
    if not found.count_inside.any():
        allowed = "models that trained on some of the records: or use an offline attack"
        raise InvalidArgument("references", "models that trained on none", allowed)


def require_outside(found: Sides) -> None:
    """Refuse references that all trained on every record."""
    if not found.count_outside.any():
        allowed = "models that did not train on some of the records"
        raise InvalidArgument("references", "models that trained on all", allowed)


def _mean(values: Array, which: NDArray[np.bool_]) -> tuple[Array, NDArray[np.int64]]:
    count = which.sum(axis=0)
    total = np.where(which, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), count


def _gap(inside: Array, outside: Array) -> float:
    """Return how far members lie above non-members; NaN where one side has nobody at all."""
    both = np.isfinite(inside) & np.isfinite(outside)
    if both.any():
        return float((inside[both] - outside[both]).mean())
    known_inside, known_outside = inside[np.isfinite(inside)], outside[np.isfinite(outside)]
    if min(len(known_inside), len(known_outside)) == 0:
        return float("nan")
    return float(known_inside.mean() - known_outside.mean())
