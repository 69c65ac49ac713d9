"""What a trainer must offer to be checked, and how it is run.

``make_trainer(records, seed)`` returns an object with ``step()``, which takes one step and
returns the change of all parameters, flat, shape ``(d,)``; or the noisy sum itself, under
an ``update_scale`` of 1. It promises:

- the same records and the same seed give the same run;
- noise depends on the seed and on the number of the step alone;
- whether record i joins depends on the seed, the number of the step and i alone.

What it may offer beside:

- ``step(include=indices)``: take the step on these records, whatever the coins say; for a
  trainer that cannot keep the last promise;
- ``sampled``: the indices of the records in the last step; without it the sampler cannot be
  checked;
- ``rank_updates``: what each rank added to the last update (its clipped sum plus its noise,
  times the step's factor), or the update that each rank made, shape ``(ranks, d)``; rows in
  other units leave the ranks' noise INCONCLUSIVE;
- ``groups``: the coordinates of each parameter, slices by name;
- ``constants``: numbers by name that the mechanism takes to be public (the expected batch
  size, the sampling rate): of neighbouring data sets they must be the same;
- ``resumed()``: the trainer as it goes on after a crash at this point: stopped after the
  last step, restored from a checkpoint of just that moment. Its next step is a new one, and
  needs noise that no step before has had.

``make_trainer`` itself may have ``dataset_size``: how many records the data set of the claim
has. A trainer that derives the step from the number of its records needs that: it is made with
so many records, or with one fewer. It must take ``step(include=indices)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import InvalidArgument, require_count

Array = NDArray[np.float64]
Record = tuple[Any, Any]


class Trainer(Protocol):
    """Takes steps; what else it may have is read by name, as it is optional."""

    def step(self) -> Any:
        """Take one step; return the change of the parameters, shape ``(d,)``."""


MakeTrainer = Callable[[Sequence[Record], int], Any]
"""From records and a seed to a ``Trainer``."""


def takes_include(trainer: Trainer) -> bool:
    """Return whether ``step(include=indices)`` is offered."""
    try:
        return "include" in inspect.signature(trainer.step).parameters
    except (TypeError, ValueError):  # a callable that does not say what it takes
        return False


def dataset_size_of(make_trainer: MakeTrainer) -> int | None:
    """Return how many records a trainer must be made with; None: as many as one likes.

    Raises:
        InvalidArgument: it is no count of at least two.
    """
    size = getattr(make_trainer, "dataset_size", None)
    if size is None:
        return None
    require_count("dataset_size", size, least=2)
    return int(size)


def of_claimed_size(make_trainer: MakeTrainer, records: Sequence[Record]) -> list[Record]:
    """Return as many of the records, again and again, as the claim's data set has."""
    size = dataset_size_of(make_trainer)
    return list(records) if size is None else list(islice(cycle(records), size))


def constants_of(trainer: Trainer) -> dict[str, float]:
    """Return the numbers that a trainer takes to be public, by name; empty: it names none."""
    return {
        name: float(value) for name, value in (getattr(trainer, "constants", None) or {}).items()
    }


def noisy_sum(update: Any, claim: StepClaim) -> Array:
    """Return the noisy sum that a step's return value stands for, shape ``(d,)``, float64.

    Raises:
        InvalidArgument: what ``step()`` returned is not one row of numbers.
    """
    flat = np.asarray(update, dtype=np.float64)
    if flat.ndim != 1 or flat.size == 0:
        raise InvalidArgument(
            "step()", f"an array of shape {flat.shape}", "one that returns a flat array, (d,)"
        )
    return flat / claim.update_scale


def sampled_of(trainer: Trainer) -> NDArray[np.int64] | None:
    """Return the indices of the last step's records, sorted; None: the trainer does not say."""
    sampled = getattr(trainer, "sampled", None)
    return None if sampled is None else np.sort(np.asarray(sampled, dtype=np.int64).ravel())


def groups_of(trainer: Trainer, dimension: int) -> dict[str, slice]:
    """Return the coordinates of each group, by name; one group where the trainer has none.

    Raises:
        InvalidArgument: a group reaches beyond the update.
    """
    named: Mapping[str, slice] = getattr(trainer, "groups", None) or {"all": slice(0, dimension)}
    for name, where in named.items():
        if not 0 <= (where.start or 0) < (where.stop or dimension) <= dimension:
            raise InvalidArgument(f"groups[{name!r}]", where, f"a slice of {dimension} coordinates")
    return dict(named)


def seeds(seed: int, purpose: int, count: int) -> list[int]:
    """Return seeds to hand to the trainer; each purpose has its own."""
    states = np.random.SeedSequence([seed, purpose]).generate_state(count)
    return [int(state) for state in states]
