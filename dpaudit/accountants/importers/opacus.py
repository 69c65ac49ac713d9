"""The history of an Opacus accountant, as a mechanism.

Opacus books (noise multiplier, sampling rate, steps), in that order, and prices each entry
as Gaussian sums over Poisson samples under add-or-remove-one, whichever of its accountants
is asked. The history does not say how batches were drawn: with ``poisson_sampling=False``
they were not, and neither its epsilon nor one computed from its history covers such a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpaudit.accountants.importers.event_forms import is_list
from dpaudit.accountants.importers.values import number, shown, whole
from dpaudit.accountants.schedules import poisson_step
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, Repeated

ENTRY = "a noise multiplier, a sampling rate and a number of steps, in this order"


def from_opacus(history: Any) -> Mechanism:
    """Return what an Opacus accountant booked.

    Args:
        history: ``accountant.history``, ``accountant.state_dict()``, the accountant itself,
            or what the JSON of one of the first two reads as.

    Raises:
        InvalidArgument: it is no such history, is empty, or an entry is out of range.
    """
    booked = _entries(history)
    if not is_list(booked) or not booked:
        raise InvalidArgument(
            "history", shown(history), f"a list of at least one entry: {ENTRY}; or a state_dict"
        )
    steps = [_steps(place, entry) for place, entry in enumerate(booked)]
    return steps[0] if len(steps) == 1 else Composed(tuple(steps))


def _entries(history: Any) -> Any:
    if isinstance(history, Mapping):
        return history.get("history")
    return getattr(history, "history", history)


def _steps(place: int, entry: Any) -> Mechanism:
    name = f"history[{place}]"
    if not is_list(entry) or len(entry) != 3:
        raise InvalidArgument(name, shown(entry), ENTRY)
    try:
        sampled = poisson_step(
            Gaussian(number("noise_multiplier", entry[0])), number("sampling_rate", entry[1])
        )
        return Repeated(sampled, whole("steps", entry[2]))
    except InvalidArgument as error:
        raise InvalidArgument(name, shown(entry), f"{ENTRY} ({error})") from error
