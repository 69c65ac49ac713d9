"""Are the numbers that a mechanism takes to be public the same on neighbouring data sets?

A sampling rate or a divisor that is derived from the number of records changes with one record.
Under add-or-remove-one adjacency that is no constant of the mechanism: the whole noisy sum is
multiplied by another number, or all records join with another probability. Under replace-one
adjacency the number of records is public.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, islice

from dpaudit.attacks.conformance.trainers import (
    MakeTrainer,
    Record,
    constants_of,
    dataset_size_of,
    seeds,
)
from dpaudit.attacks.conformance.words import violated
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.conformance import Finding, StepClaim
from dpaudit.vocabulary.verdict import Outcome

CHECK, NAME = "replay", "public constants"
RATE = "the sampling rate"
CONSTANT_SEEDS = 60


def check_constants(
    make_trainer: MakeTrainer, claim: StepClaim, records: Sequence[Record], seed: int
) -> list[Finding]:
    """Return whether ``constants`` differ between neighbours; nothing where none are named."""
    size = dataset_size_of(make_trainer) or len(records)
    (one,) = seeds(seed, CONSTANT_SEEDS, 1)
    sizes = [size] if claim.adjacency is Adjacency.REPLACE_ONE else [size - 1, size, size + 1]
    found = {
        count: constants_of(make_trainer(tuple(islice(cycle(records), count)), one))
        for count in sizes
    }
    own = found[size]
    if not any(found.values()):
        return []
    tested = f"{', '.join(own) or 'constants'} for {_listed(sizes)} records"
    wrong = [*_moved(found), *_not_claimed(own, claim)]
    if wrong:
        return [violated(CHECK, NAME, tested, "; ".join(wrong))]
    return [
        Finding(
            check=CHECK,
            name=NAME,
            outcome=Outcome.HOLDS,
            tested=tested,
            why=", ".join(f"{name} is {value:g}" for name, value in own.items()),
            power="exact for these numbers of records; it shows what the trainer names, no more",
        )
    ]


def _moved(found: dict[int, dict[str, float]]) -> list[str]:
    names = dict.fromkeys(name for values in found.values() for name in values)
    moved = []
    for name in names:
        values = [values.get(name, math.nan) for values in found.values()]
        if not all(value == values[0] for value in values):
            what = ", ".join(f"{value:g}" for value in values)
            moved.append(
                f"{name} is {what} for {_listed(list(found))} records: it depends on the data set, "
                "so neighbours differ by more than one record's clipped gradient"
            )
    return moved


def _not_claimed(own: dict[str, float], claim: StepClaim) -> list[str]:
    rate = own.get(RATE)
    if rate is None or math.isclose(rate, claim.sampling_rate, rel_tol=1e-9):
        return []
    return [f"{RATE} is {rate:g}; claimed is {claim.sampling_rate:g}"]


def _listed(sizes: list[int]) -> str:
    return ", ".join(str(size) for size in sizes)
