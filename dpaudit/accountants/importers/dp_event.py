"""Convert the events of dp_accounting to mechanisms.

dp_accounting defines the noise of Gaussian and Laplace events in units of C, the bound on the
norm of one record's value. Replacing a record therefore moves a sum by up to 2 C. Its PLD
accountant follows this definition under REPLACE_ONE. Its RDP accountant divides the same noise
by the distance that a replacement moves the sum, and so reports less. A Gaussian event with
noise multiplier 1 costs 10.997 by PLD and 5.22 by RDP, at delta 1e-6. An event does not record
which convention a run used. ``noise_set_for`` selects it; the default is the definition.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    UnsupportedMechanism,
    require_positive,
    value_in_words,
)
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    ElementaryMechanism,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    NegativeBinomialTrials,
    PoissonSampled,
    PoissonTrials,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    Selected,
    TreeAggregation,
    TrialCount,
    TruncatedPoisson,
)
from dpaudit.vocabulary.pairs import MixtureOfGaussians
from dpaudit.vocabulary.privacy_terms import Adjacency, require_adjacency

# Validate numbers and events of other libraries and convert them to plain Python values.

LARGEST_COUNT = 2**53
"""Largest count: a double represents every integer up to it exactly."""


def read_number(name: str, value: Any) -> float:
    """Convert a number of any library to a float.

    Args:
        name: The field, for the error message.
        value: Any real number, such as a numpy scalar; no bool.

    Returns:
        The value as a double; NaN and infinities pass.

    Raises:
        InvalidArgument: If it is no real number, or exceeds the range of a double.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidArgument(name, abbreviated(value), "a number")
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidArgument(name, abbreviated(value), "in the range of a double") from error


def read_integer(name: str, value: Any) -> int:
    """Convert an integer of any library to an int.

    Args:
        name: The field, for the error message.
        value: Any integer, such as a numpy scalar; no bool and no float.

    Returns:
        The value, of modulus at most 2^53.

    Raises:
        InvalidArgument: If it is no integer, or its modulus is above 2^53.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidArgument(name, abbreviated(value), "a whole number")
    if not abs(int(value)) <= LARGEST_COUNT:
        raise InvalidArgument(name, abbreviated(value), f"at most {LARGEST_COUNT}")
    return int(value)


class VerbatimText(str):
    """Text whose ``repr`` is the text itself, so that a message shows it without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def abbreviated(value: object) -> VerbatimText:
    """Return a short ``repr`` of any value for an error message, however long the value is."""
    plain = type(value).__repr__ is not object.__repr__ and not isinstance(value, type)
    return VerbatimText(reprlib.repr(value) if plain else value_in_words(value))


# Forms of a dp_accounting event: attrs object, named tuple, or JSON of either.

EventFields = Mapping[str, Any] | Sequence[Any]
"""Fields by name, or as a sequence in the order of the class."""


def unpack_event(event: Any) -> tuple[str, EventFields]:
    """Split a dp_accounting event into the name of its class and its fields.

    Args:
        event: A DpEvent (an attrs object), its named tuple, or the parsed JSON of that.

    Returns:
        The class name, and the fields by name or in the order of the class.

    Raises:
        InvalidArgument: If the event has none of these forms.
    """
    name, given = _name_and_fields(event)
    if isinstance(name, bytes):
        name = name.decode(errors="replace")
    if not isinstance(name, str):
        raise InvalidArgument(
            "event", abbreviated(event), "a DpEvent, its named tuple, or the JSON of that"
        )
    return name, given


def is_list(value: Any) -> bool:
    """Return whether ``value`` is a sequence other than text or bytes."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _name_and_fields(event: Any) -> tuple[Any, EventFields]:
    """Return the raw class name, None where there is none, and the fields."""
    attributes = getattr(type(event), "__attrs_attrs__", None)
    if attributes is not None:
        fields = {one.name: getattr(event, one.name) for one in attributes}
        return type(event).__name__, fields
    if isinstance(event, tuple) and hasattr(event, "_asdict"):
        event = event._asdict()
    if isinstance(event, Mapping):
        fields = {key: value for key, value in event.items() if key != "module_name"}
        return fields.pop("class_name", None), fields
    if is_list(event) and len(event) >= 2:
        return event[1], event[2:]
    return None, ()


# Number of trials of private selection. dp_accounting records its mean; here the success
# probability e^-x is needed. With shape s, E[K] = s (e^x - 1)/(1 - e^(-s x)), which grows in x.

LARGEST_LOG_INVERSE = 690.0
"""Largest x: neither e^-x nor a term of the mean overflows or underflows."""

MEAN_ROUNDING = 1e-12
"""Upper bound on the relative error of a mean computed in doubles."""


def trials_from_mean(*, shape: float, mean: float) -> TrialCount | None:
    """Return the distribution of the number of trials for a given mean.

    At the same shape a larger mean costs more, so the mean is rounded up.

    Args:
        shape: Shape of the truncated negative binomial distribution, above -1; infinite for a
            Poisson number of trials.
        mean: Expected number of trials, at least 1; above 0 for a Poisson number.

    Returns:
        The distribution whose mean is at least ``mean``; None where it is exactly one trial.

    Raises:
        InvalidArgument: If the shape or the mean is out of range.

    References:
        Papernot & Steinke (2022), arXiv:2110.03620, Definition 1.
    """
    if shape == math.inf:
        return PoissonTrials(mean)
    if not shape > -1:
        raise InvalidArgument("shape", shape, "above -1, or infinite for Poisson trials")
    if not (
        1 <= mean < math.inf
        and mean <= _mean_trials(shape, LARGEST_LOG_INVERSE) / (1 + 2 * MEAN_ROUNDING)
    ):
        raise InvalidArgument("mean", mean, f"at least 1 and not too large for shape {shape:g}")
    if mean == 1:
        return None
    low, high = 0.0, LARGEST_LOG_INVERSE
    for _ in range(200):  # more halvings than a double has digits
        middle = (low + high) / 2
        if _mean_trials(shape, middle) >= mean * (1 + MEAN_ROUNDING):
            high = middle
        else:
            low = middle
    return NegativeBinomialTrials(shape, math.exp(-high))


def _mean_trials(shape: float, x: float) -> float:
    """Return E[K] for success probability e^-x: shape (e^x - 1)/(1 - e^(-shape x))."""
    if x == 0:
        return 1.0
    # The limit for shape 0 is x. For a tiny shape it is exact, and its products underflow.
    below = x if abs(shape) < 1e-200 else -math.expm1(-shape * x) / shape
    return math.expm1(x) / below


LARGEST_DEPTH = 64
REQUIRED = object()

Fields = Mapping[str, Any]


def from_dp_event(
    event: Any,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    noise_set_for: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Mechanism:
    """Convert a dp_accounting event, such as an accountant's ``ledger``, to a mechanism.

    Args:
        event: A DpEvent, its named tuple, or the parsed JSON of that.
        adjacency: The adjacency for which epsilon will be computed; zero-out is
            dp_accounting's REPLACE_SPECIAL. The sensitivity of Laplace noise doubles under
            replace-one.
        noise_set_for: REPLACE_ONE reads noise multipliers relative to the distance that a
            replacement moves the sum, as dp_accounting's RDP does under REPLACE_ONE.

    Returns:
        A mechanism with at most the noise of the event: conversions round toward less noise.

    Raises:
        InvalidArgument: If this is no event, a field is out of range, or nothing is released.
        UnsupportedMechanism: If an event has no counterpart here; the message names it.

    Example:
        >>> from dpaudit.accountants import from_dp_event
        >>> event = {"class_name": "LaplaceDpEvent", "noise_multiplier": 2.0}
        >>> from_dp_event(event)
        Laplace(scale=2.0, sensitivity=1.0)
    """
    require_adjacency("adjacency", adjacency)
    require_adjacency("noise_set_for", noise_set_for)
    if noise_set_for is Adjacency.REPLACE_ONE and adjacency is not noise_set_for:
        raise InvalidArgument(
            "noise_set_for",
            VerbatimText(noise_set_for.value),
            f"add-or-remove-one where the adjacency is {adjacency.value}",
        )
    released = _EventReader(adjacency, noise_set_for).read(event, 0)
    if released is None:
        raise InvalidArgument("event", abbreviated(event), "an event that releases something")
    return released


@dataclass(frozen=True)
class _EventReader:
    """Converts one event and the events inside it; None stands for an event without a release."""

    adjacency: Adjacency
    noise_set_for: Adjacency

    def read(self, event: Any, depth: int) -> Mechanism | None:
        """Convert one event; ``depth`` counts the events around it."""
        # The limit keeps a crafted event from exhausting the interpreter's stack.
        if depth > LARGEST_DEPTH:
            raise InvalidArgument(
                "event", abbreviated(event), f"nested at most {LARGEST_DEPTH} deep"
            )
        name, given = unpack_event(event)
        inside = _EventContent(self, name, _given_fields(name, given), depth)
        return EVENT_TYPES[name].build(inside)

    @property
    def sensitivity_factor(self) -> int:
        """Return the L2 distance of two neighbors' sums, in norms of one record."""
        doubled = self.adjacency is Adjacency.REPLACE_ONE
        return 2 if doubled and self.noise_set_for is not Adjacency.REPLACE_ONE else 1


@dataclass(frozen=True)
class _EventContent:
    """The fields of one event, with methods that validate and convert them."""

    reader: _EventReader
    name: str
    fields: Fields
    depth: int

    def number(self, field: str) -> float:
        """Return a field as a float."""
        return read_number(f"{field} of {self.name}", self.fields[field])

    def integer(self, field: str) -> int:
        """Return a field as an int."""
        return read_integer(f"{field} of {self.name}", self.fields[field])

    def numbers(self, field: str) -> tuple[float, ...]:
        """Return a field as a tuple of floats."""
        found = self.fields[field]
        if hasattr(found, "tolist"):  # an array
            found = found.tolist()
        if not is_list(found):
            raise InvalidArgument(
                f"{field} of {self.name}", abbreviated(found), "a list of numbers"
            )
        return tuple(read_number(f"{field} of {self.name}", one) for one in found)

    def event(self, field: str = "event") -> Mechanism | None:
        """Return the mechanism of an inner event; None if it releases nothing."""
        return self.reader.read(self.fields[field], self.depth + 1)

    def events(self, field: str) -> list[Mechanism]:
        """Return the mechanisms of a list of inner events, without those that release nothing."""
        found = self.fields[field]
        if not is_list(found):
            raise InvalidArgument(f"{field} of {self.name}", abbreviated(found), "a list of events")
        read = [self.reader.read(event, self.depth + 1) for event in found]
        return [mechanism for mechanism in read if mechanism is not None]

    def gaussian(self) -> Gaussian:
        """Return Gaussian noise by the field ``noise_multiplier``."""
        return Gaussian(self.number("noise_multiplier"), self.reader.noise_set_for)

    def refuse(self, why: str) -> UnsupportedMechanism:
        """Return an error that names the event class."""
        return UnsupportedMechanism(VerbatimText(self.name), why)


# One function per event class, in the order of the table below.


def _nothing(inside: _EventContent) -> None:
    """Return None: a NoOpDpEvent releases nothing."""


def _self_composed(inside: _EventContent) -> Mechanism | None:
    repeated, count = inside.event(), inside.integer("count")
    if repeated is None or count == 0:
        return None
    read_integer("the number of releases", count * sum(count_releases(repeated).values()))
    return Repeated(repeated, count)


def _composed(inside: _EventContent) -> Mechanism | None:
    parts = inside.events("events")
    return Composed(tuple(parts)) if parts else None


def _gaussian(inside: _EventContent) -> Mechanism:
    return inside.gaussian()


def _laplace(inside: _EventContent) -> Mechanism:
    return Laplace(inside.number("noise_multiplier"), float(inside.reader.sensitivity_factor))


def _discrete_laplace(inside: _EventContent) -> Mechanism:
    parameter = inside.number("noise_parameter")
    require_positive(f"noise_parameter of {inside.name}", parameter)
    scale = 1 / parameter
    if scale < math.inf and Fraction(scale) * Fraction(parameter) > 1:
        scale = math.nextafter(scale, 0)  # never more noise than the event has
    sensitivity = inside.reader.sensitivity_factor * inside.integer("sensitivity")
    return DiscreteLaplace(scale, sensitivity)


def _discrete_gaussian(inside: _EventContent) -> Mechanism:
    sensitivity = inside.number("sensitivity")
    if inside.fields["dimension"] != 1 or not sensitivity.is_integer():
        raise inside.refuse(
            "only a single number (dimension=1) of integer sensitivity is supported"
        )
    return DiscreteGaussian(inside.number("sigma"), read_integer("sensitivity", int(sensitivity)))


def _randomized_response(inside: _EventContent) -> Mechanism | None:
    lie, buckets = inside.number("noise_parameter"), inside.integer("num_buckets")
    if not 0 < lie <= 1:
        raise InvalidArgument(f"noise_parameter of {inside.name}", lie, "above 0 and at most 1")
    if buckets == 1:
        return None  # the answer is constant
    # P[true answer] = 1 - lie + lie/buckets, from exact arithmetic and rounded up: never more
    # private than the event.
    exact = 1 - Fraction(lie) * (1 - Fraction(1, max(buckets, 1)))
    truth = float(exact)
    return RandomizedResponse(truth if truth >= exact else math.nextafter(truth, 1), buckets)


def _pure_or_approximate(inside: _EventContent) -> Mechanism | None:
    epsilon, delta = inside.number("epsilon"), inside.number("delta")
    if delta == 0:
        return None if epsilon == 0 else PureDP(epsilon)
    return ApproximateDP(epsilon, delta)


def _zcdp(inside: _EventContent) -> Mechanism | None:
    rho, xi = inside.number("rho"), inside.number("xi")
    if xi != 0:
        raise inside.refuse("(xi, rho)-zCDP is supported for xi = 0 only")
    return None if rho == 0 else ZCDP(rho)


def _exponential(inside: _EventContent) -> Mechanism:
    return Exponential(inside.number("epsilon"))


def _pure(inside: _EventContent) -> Mechanism:
    return PureDP(inside.number("epsilon"))


def _poisson_sampled(inside: _EventContent) -> Mechanism | None:
    release, rate = _sampled_release(inside), inside.number("sampling_probability")
    return None if release is None or rate == 0 else PoissonSampled(release, rate)


def _sampled_without_replacement(inside: _EventContent) -> Mechanism | None:
    release = _sampled_release(inside)
    if release is None:
        return None
    return SampledWithoutReplacement(
        release, inside.integer("sample_size"), inside.integer("source_dataset_size")
    )


def _truncated_poisson(inside: _EventContent) -> Mechanism:
    return TruncatedPoisson(
        inside.gaussian(),
        inside.number("sampling_probability"),
        inside.integer("dataset_size"),
        inside.integer("truncated_batch_size"),
    )


def _tree(inside: _EventContent) -> Mechanism:
    counts = inside.fields["step_counts"]
    if not is_list(counts):
        counts = [counts]
    steps = [read_integer(f"step_counts of {inside.name}", count) for count in counts]
    # A record is in at most one of the trees, and the largest tree costs the most.
    return TreeAggregation(inside.gaussian(), max(steps, default=0))


def _random_allocation(inside: _EventContent) -> Mechanism | None:
    release, steps = _sampled_release(inside), inside.integer("num_steps")
    selected = inside.integer("num_selected")
    if not 1 <= selected <= steps:
        raise InvalidArgument(f"num_selected of {inside.name}", selected, f"from 1 to {steps}")
    if release is None:
        return None
    if not isinstance(release, Gaussian):
        raise inside.refuse(f"no accountant supports random allocation of {abbreviated(release)}")
    if selected == steps:  # every record joins every step
        return Repeated(release, steps)
    if selected > 1:
        raise inside.refuse("records in one of the steps are supported: num_selected must be 1")
    return RandomAllocation(release, steps)


def _selected(inside: _EventContent) -> Mechanism | None:
    candidate = inside.event()
    shape, mean = inside.number("shape"), inside.number("mean")
    trials = trials_from_mean(shape=shape, mean=mean)
    return candidate if candidate is None or trials is None else Selected(candidate, trials)


def _mixture_of_gaussians(inside: _EventContent) -> Mechanism | None:
    """Return a mixture without shifts of probability 0; None if nothing is added."""
    shifts, chances = inside.numbers("sensitivities"), inside.numbers("sampling_probs")
    if inside.reader.adjacency is Adjacency.REPLACE_ONE:
        raise inside.refuse("a mixture of Gaussians is defined for add-or-remove-one and zero-out")
    if len(shifts) != len(chances):
        wanted = f"{len(shifts)} numbers, one per sensitivity"
        raise InvalidArgument(f"sampling_probs of {inside.name}", abbreviated(chances), wanted)
    kept = [pair for pair in zip(shifts, chances, strict=True) if pair[1] != 0]
    if not any(shift != 0 for shift, _ in kept):
        return None
    return MixtureOfGaussians(
        inside.number("standard_deviation"),
        tuple(shift for shift, _ in kept),
        tuple(chance for _, chance in kept),
    )


def _unsupported(why: str) -> Callable[[_EventContent], Mechanism | None]:
    def refuse(inside: _EventContent) -> Mechanism | None:
        raise inside.refuse(why)

    return refuse


@dataclass(frozen=True)
class _EventType:
    """An event class: the function that converts it, and its fields in order with defaults."""

    build: Callable[[_EventContent], Mechanism | None]
    fields: Mapping[str, Any]


def _event_type(
    build: Callable[[_EventContent], Mechanism | None], *required: str, **optional: Any
) -> _EventType:
    return _EventType(build, {**dict.fromkeys(required, REQUIRED), **optional})


# Fields as in dp_accounting 0.6 and its repository's head.
EVENT_TYPES: Mapping[str, _EventType] = {
    "NoOpDpEvent": _event_type(_nothing),
    "SelfComposedDpEvent": _event_type(_self_composed, "event", "count"),
    "ComposedDpEvent": _event_type(_composed, "events"),
    "GaussianDpEvent": _event_type(_gaussian, "noise_multiplier"),
    "LaplaceDpEvent": _event_type(_laplace, "noise_multiplier"),
    "DiscreteLaplaceDpEvent": _event_type(_discrete_laplace, "noise_parameter", "sensitivity"),
    "DiscreteGaussianDpEvent": _event_type(
        _discrete_gaussian, "sigma", sensitivity=1.0, dimension=None
    ),
    "RandomizedResponseDpEvent": _event_type(
        _randomized_response, "noise_parameter", "num_buckets"
    ),
    "EpsilonDeltaDpEvent": _event_type(_pure_or_approximate, "epsilon", "delta"),
    "ZCDpEvent": _event_type(_zcdp, "rho", xi=0.0),
    "ExponentialMechanismDpEvent": _event_type(_exponential, "epsilon"),
    "PermuteAndFlipDpEvent": _event_type(_pure, "epsilon"),
    "PoissonSampledDpEvent": _event_type(_poisson_sampled, "sampling_probability", "event"),
    "SampledWithoutReplacementDpEvent": _event_type(
        _sampled_without_replacement, "source_dataset_size", "sample_size", "event"
    ),
    "TruncatedSubsampledGaussianDpEvent": _event_type(
        _truncated_poisson,
        "dataset_size",
        "sampling_probability",
        "truncated_batch_size",
        "noise_multiplier",
    ),
    "SingleEpochTreeAggregationDpEvent": _event_type(_tree, "noise_multiplier", "step_counts"),
    "RandomAllocationDpEvent": _event_type(
        _random_allocation, "event", "num_selected", "num_steps"
    ),
    "RepeatAndSelectDpEvent": _event_type(_selected, "event", "mean", "shape"),
    "NonPrivateDpEvent": _event_type(_unsupported("it is not private: epsilon is infinite")),
    "UnsupportedDpEvent": _event_type(_unsupported("it does not describe what was released")),
    "SampledWithReplacementDpEvent": _event_type(
        _unsupported("no accountant supports sampling with replacement"),
        "source_dataset_size",
        "sample_size",
        "event",
    ),
    "MixtureOfGaussiansDpEvent": _event_type(
        _mixture_of_gaussians,
        "standard_deviation",
        "sensitivities",
        "sampling_probs",
    ),
}


def _sampled_release(inside: _EventContent) -> ElementaryMechanism | None:
    """Return the one release that is made on a sample.

    Several Gaussians on the same sample are one Gaussian, whose precision is the sum of theirs.
    Together they release one vector. Measured in units of its noise, a record moves that vector
    by the root of the sum of squares of its moves.
    """
    inner = inside.event()
    if inner is None or isinstance(inner, ElementaryMechanism):
        return inner
    releases = count_releases(inner)
    noises = {
        release.noise_multiplier: times
        for release, times in releases.items()
        if isinstance(release, Gaussian)
    }
    if len(noises) != len(releases):
        raise inside.refuse(f"no accountant supports samples of {abbreviated(inner)}")
    # merged = 1/sqrt(sum times/noise^2), with the precision in exact arithmetic.
    precision = sum(times / Fraction(noise) ** 2 for noise, times in noises.items())
    least = min(noises)
    merged = least / math.sqrt(Fraction(least) ** 2 * precision)
    while Fraction(merged) ** 2 * precision > 1:  # never more noise than the event has
        merged = math.nextafter(merged, 0)
    return Gaussian(merged, inside.reader.noise_set_for)


def _given_fields(name: str, given: EventFields) -> Fields:
    """Return all fields of an event with defaults; raise if one is missing or unknown."""
    if name not in EVENT_TYPES:
        raise UnsupportedMechanism(VerbatimText(name), "this event class is not supported")
    fields = EVENT_TYPES[name].fields
    if not isinstance(given, Mapping):  # a sequence: values in the order of the class
        names = [*fields, *map(str, range(len(fields), len(given)))]
        given = dict(zip(names, given, strict=False))
    required = {field for field, default in fields.items() if default is REQUIRED}
    if not required <= set(given) <= set(fields):
        raise InvalidArgument(
            f"the fields of {name}", abbreviated(list(given)), ", ".join(fields) or "none"
        )
    return {**fields, **given}
