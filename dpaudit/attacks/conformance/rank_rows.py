"""What the rows that ranks report are to the update: copies of it, shares of it, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from dpaudit.attacks.conformance.correlation import SAME
from dpaudit.attacks.conformance.trainers import Array
from dpaudit.vocabulary.conformance import StepClaim

NEEDED = (
    "a row must be what its rank adds to the update: its clipped sum plus its noise, times the "
    "step's factor, in the units of what step() returns; or the whole update as that rank made it"
)


class Kind(Enum):
    """What rows are to the update."""

    REPLICAS = "each row is the whole update"
    SHARES = "the rows add up to the update, or to as many times that as there are ranks"
    TORN = "one row is the update, and another is not"
    UNCLEAR = "no row is the update, and neither is their sum"


@dataclass(frozen=True)
class Rows:
    """Rows of one step.

    Attributes:
        kind: What they are to the update.
        why: In words, what is wrong with them; empty: nothing.
        factor: By which their sum must be multiplied to be the update; None: by no number.
    """

    kind: Kind
    why: str = ""
    factor: float | None = None

    @classmethod
    def of(cls, update: Array, rows: Array, claim: StepClaim) -> Rows:
        """Return what ``rows``, shape ``(ranks, d)``, are to the noisy sum of the update.

        Rows that are torn are in the right units: one of them is the update itself.
        """
        rows = np.asarray(rows, dtype=np.float64) / claim.update_scale
        slack = SAME * (1 + np.abs(rows).max())
        apart = np.abs(rows - update).max(axis=1)
        if (apart <= slack).all():
            return cls(Kind.REPLICAS)
        whole = rows.sum(axis=0)
        if min(np.abs(whole - update).max(), np.abs(whole / len(rows) - update).max()) <= slack:
            return cls(Kind.SHARES)
        if (apart <= slack).any():
            return cls(Kind.TORN, _torn(rows, apart > slack))
        return cls(Kind.UNCLEAR, factor=_factor(update, whole))


def why_unclear(rows: Sequence[Rows]) -> str:
    """Return why rows say nothing of the ranks' noise, with what to do; empty: they do."""
    unclear = [one for one in rows if one.kind is Kind.UNCLEAR]
    if not unclear:
        return ""
    factors = [one.factor for one in unclear]
    why = f"rank_updates do not add up to the update; {NEEDED}"
    first = factors[0]
    if first is not None and all(
        one is not None and abs(one - first) <= SAME * abs(first) for one in factors
    ):
        return f"{why}. Their sum is the update times {1 / first:.4g}: multiply them by {first:.4g}"
    return why


def _torn(rows: Array, others: Array) -> str:
    named = ", ".join(str(r) for r in np.flatnonzero(others))
    noise = [float(np.sqrt(np.square(row).mean())) for row in rows]
    weak = int(np.argmin(noise))
    return (
        f"rank {named} does not take the step of the update, and the ranks' rows do not add up "
        f"to it; rank {weak} has the least noise, {noise[weak] / max(noise):.2g} of the most"
    )


def _factor(update: Array, whole: Array) -> float | None:
    """Return the number whose product with the rows' sum is the update; None: there is none."""
    square = float(whole @ whole)
    if not 0 < square < np.inf:
        return None
    factor = float(update @ whole) / square
    left = float(np.abs(factor * whole - update).max())
    return factor if factor != 0 and left <= SAME * float(np.abs(update).max()) else None
