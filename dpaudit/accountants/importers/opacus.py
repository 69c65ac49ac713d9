"""Convert the history of an Opacus accountant to a mechanism.

Opacus records (noise multiplier, sampling rate, steps) per entry, in that order. All of its
accountants treat an entry as Gaussian sums over Poisson samples under add-or-remove-one. The
history does not record how batches were drawn. A run with ``poisson_sampling=False`` is not
covered by Opacus's epsilon, nor by one computed from its history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpaudit.accountants.importers.dp_event import (
    abbreviated,
    is_list,
    read_integer,
    read_number,
)
from dpaudit.accountants.schedules import poisson_step
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, Repeated

ENTRY_FORMAT = "a noise multiplier, a sampling rate and a number of steps, in this order"


def from_opacus(history: Any) -> Mechanism:
    """Convert the history of an Opacus accountant to a mechanism.

    The result assumes Poisson sampling, as Opacus does; the history cannot confirm it.

    Args:
        history: ``accountant.history``, ``accountant.state_dict()``, the accountant itself,
            or the parsed JSON of one of the first two.

    Returns:
        One ``Repeated`` release for one entry, else the ``Composed`` entries in order.

    Raises:
        InvalidArgument: If this is no such history, it is empty, or an entry is out of range.

    Example:
        >>> from dpaudit.accountants import from_opacus
        >>> mechanism = from_opacus([(1.1, 0.01, 500)])  # noise multiplier, rate, steps
        >>> mechanism.times, mechanism.mechanism.sampling_rate
        (500, 0.01)
    """
    recorded = _entries(history)
    if not is_list(recorded) or not recorded:
        raise InvalidArgument(
            "history",
            abbreviated(history),
            f"a list of at least one entry: {ENTRY_FORMAT}; or a state_dict",
        )
    steps = [_steps(position, entry) for position, entry in enumerate(recorded)]
    return steps[0] if len(steps) == 1 else Composed(tuple(steps))


def _entries(history: Any) -> Any:
    """Return the list of entries from a state dictionary, an accountant or a plain list."""
    if isinstance(history, Mapping):
        return history.get("history")
    return getattr(history, "history", history)


def _steps(position: int, entry: Any) -> Mechanism:
    """Convert one entry; its position goes into the error message."""
    name = f"history[{position}]"
    if not is_list(entry) or len(entry) != 3:
        raise InvalidArgument(name, abbreviated(entry), ENTRY_FORMAT)
    try:
        sampled = poisson_step(
            Gaussian(read_number("noise_multiplier", entry[0])),
            read_number("sampling_rate", entry[1]),
        )
        return Repeated(sampled, read_integer("steps", entry[2]))
    except InvalidArgument as error:
        raise InvalidArgument(name, abbreviated(entry), f"{ENTRY_FORMAT} ({error})") from error
