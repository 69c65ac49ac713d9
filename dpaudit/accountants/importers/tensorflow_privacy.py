"""Convert the ledger of TensorFlow Privacy to a mechanism.

``PrivacyLedger.get_formatted_ledger()`` returns one ``SampleEntry`` per sample: a population size,
a selection probability and queries. A query is a Gaussian sum with an L2 norm bound and a standard
deviation of the noise. Queries on one sample release one vector, so their precisions add up, as
``compute_rdp_from_ledger`` of the library does. The ledger does not record how samples were
drawn. The library accounts for Poisson sampling under add-or-remove-one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from dpaudit.accountants.importers.dp_event import (
    abbreviated,
    is_list,
    read_integer,
    read_number,
)
from dpaudit.accountants.schedules import poisson_step
from dpaudit.vocabulary.errors import InvalidArgument, require_positive
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, Repeated

SAMPLE_FIELDS = ("population_size", "selection_probability", "queries")
QUERY_FIELDS = ("l2_norm_bound", "noise_stddev")
LEDGER_FORMAT = (
    "a list of samples, each a population size, a selection probability and queries of an L2 norm "
    "bound and a standard deviation of the noise"
)


def from_tensorflow_privacy(ledger: Any) -> Mechanism:
    """Convert the formatted ledger of TensorFlow Privacy to a mechanism.

    The result assumes Poisson sampling, as the library does; the ledger cannot confirm it.

    Args:
        ledger: What ``get_formatted_ledger()`` returns, or the parsed JSON of that: lists in the
            order of the fields, or mappings with their names.

    Returns:
        The composed samples; equal ones in a row are one ``Repeated``.

    Raises:
        InvalidArgument: If this is no such ledger, it is empty, or an entry is out of range.

    Example:
        >>> from dpaudit.accountants import from_tensorflow_privacy
        >>> mechanism = from_tensorflow_privacy([[60_000, 0.01, [[1.0, 1.1]]]] * 500)
        >>> mechanism.times, mechanism.mechanism.sampling_rate
        (500, 0.01)
    """
    if not is_list(ledger) or not ledger:
        raise InvalidArgument("ledger", abbreviated(ledger), LEDGER_FORMAT)
    samples = [_sample(position, entry) for position, entry in enumerate(ledger)]
    parts = [Repeated(step, len([*group])) for step, group in itertools.groupby(samples)]
    return parts[0] if len(parts) == 1 else Composed(tuple(parts))


def is_tensorflow_ledger(document: Any) -> bool:
    """Return whether parsed JSON has the form of a formatted ledger.

    Args:
        document: The parsed content of a file.

    Returns:
        True for a list whose entries hold queries in third place, or under their name.
    """
    if not is_list(document) or not document:
        return False
    entry = document[0]
    if isinstance(entry, Mapping):
        return set(SAMPLE_FIELDS) <= set(entry)
    return is_list(entry) and len(entry) == len(SAMPLE_FIELDS) and is_list(entry[2])


def _sample(position: int, entry: Any) -> Mechanism:
    """Convert one sample; its position goes into the error message."""
    name = f"ledger[{position}]"
    try:
        population, rate, queries = _fields(entry, SAMPLE_FIELDS)
        if read_integer("population_size", population) < 0:
            raise InvalidArgument("population_size", population, "at least 0")
        if not is_list(queries) or not queries:
            raise InvalidArgument("queries", abbreviated(queries), "at least one query")
        noise = [_noise_multiplier(query) for query in queries]
        return poisson_step(Gaussian(_merged(noise)), read_number("selection_probability", rate))
    except InvalidArgument as error:
        raise InvalidArgument(name, abbreviated(entry), f"{LEDGER_FORMAT} ({error})") from error


def _fields(entry: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the fields of an entry by name, or in their order."""
    if isinstance(entry, Mapping) and set(entry) == set(names):
        return tuple(entry[name] for name in names)
    if is_list(entry) and len(entry) == len(names):
        return tuple(entry)
    raise InvalidArgument("entry", abbreviated(entry), ", ".join(names))


def _noise_multiplier(query: Any) -> Fraction:
    """Return the noise of one query over its norm bound, exactly."""
    bound, deviation = (
        read_number(name, value)
        for name, value in zip(QUERY_FIELDS, _fields(query, QUERY_FIELDS), strict=True)
    )
    require_positive("l2_norm_bound", bound)
    require_positive("noise_stddev", deviation)
    return Fraction(deviation) / Fraction(bound)


def _merged(noise: list[Fraction]) -> float:
    """Return one noise multiplier whose precision is the sum of theirs, rounded down."""
    precision = sum(1 / multiplier**2 for multiplier in noise)
    merged = math.sqrt(1 / float(precision)) if len(noise) > 1 else float(noise[0])
    while merged > 0 and Fraction(merged) ** 2 * precision > 1:
        merged = math.nextafter(merged, 0)
    return merged
