"""Read golden values, and hold intervals against all of their digits."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from dpaudit.accountants.numerics import CertifiedInterval
from dpaudit.vocabulary.mechanism import Composed, Gaussian, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Bound

FOLDER = Path(__file__).parent.parent / "golden"


def values(name: str, *keys: str) -> list[dict[str, Any]]:
    """Return the golden values of ``name``.json that have all of ``keys``."""
    everything = json.loads((FOLDER / f"{name}.json").read_text())["values"]
    return [value for value in everything if all(key in value for key in keys)]


def holds(bound: Bound | CertifiedInterval, truth: str | Decimal) -> bool:
    """Compare with all 20 digits of the truth, not with the double next to it."""
    return Decimal(bound.lower) <= Decimal(truth) <= Decimal(bound.upper)


def relative_width(bound: Bound | CertifiedInterval) -> float:
    return (bound.upper - bound.lower) / bound.upper if bound.upper else 0.0


def one_way(answers: tuple[CertifiedInterval, ...], direction: str) -> CertifiedInterval:
    """Return what holds where a record was removed or added: "remove" or "add"."""
    named = {"remove": "removed", "add": "added"}[direction]
    return next(answer for answer in answers if answer.direction in {"", named})


def of_ledger(ledger: list[tuple[float, float, int]]) -> Composed:
    """Return the mechanism of [[sampling rate, noise multiplier, steps], ..]."""
    return Composed(
        tuple(
            Repeated(PoissonSampled(Gaussian(noise), rate), times) for rate, noise, times in ledger
        )
    )
