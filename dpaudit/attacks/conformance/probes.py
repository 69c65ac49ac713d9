"""Records that try to move the noisy sum by more than the clip norm.

They are made from records that the user gave, so that any model takes them: the features
scaled, zeroed or made NaN, the label another record's. What cannot be scaled, as tokens
cannot, is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpaudit.attacks.conformance.record_space import is_real
from dpaudit.attacks.conformance.trainers import Record

HUGE, LARGE = 1e4, 30.0
ORDINARY = "ordinary"


@dataclass(frozen=True)
class Probe:
    """A record, and what is special about it."""

    name: str
    record: Record


def make_probes(records: Sequence[Record], given: Sequence[Record] | None) -> list[Probe]:
    """Return the ordinary probe first, then those that were given, or else the hard ones."""
    x, y = records[-1]
    ordinary = Probe(ORDINARY, (x, y))
    if given is not None:
        return [ordinary, *(Probe(f"given, number {i}", one) for i, one in enumerate(given))]
    other = _other_label(records)
    probes = [ordinary, Probe("repeated", records[0])]
    if not is_real(x):
        probes.append(Probe("other label", (x, other)))
    else:
        probes += [
            Probe("huge features", (x * HUGE, other)),
            Probe("huge features of the other sign", (x * -HUGE, other)),
            Probe("large features", (x * LARGE, other)),
            Probe("zero features", (x * 0.0, other)),
            Probe("NaN features", (x * float("nan"), y)),
        ]
    if is_real(y):
        probes.append(Probe("huge label", (x, y * HUGE + HUGE)))
    return probes


def _other_label(records: Sequence[Record]) -> Any:
    """Return a label that the last record has not, if there is one: its loss is high."""
    own = np.asarray(records[-1][1])
    others = (y for _, y in records if not np.array_equal(np.asarray(y), own))
    return next(others, records[-1][1])
