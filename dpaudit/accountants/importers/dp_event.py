"""The events of dp_accounting, as mechanisms.

By the definition of dp_accounting's Gaussian and Laplace events, noise is measured in norms
of one record's value: C bounds that norm, and so replacing a record moves a sum by up to
2 C. Its PLD accountant holds to that under REPLACE_ONE. Its RDP accountant divides the same
noise by how far replacing moves the sum, and so claims less: a Gaussian event of 1 costs
10.997 by the one and 5.22 by the other, at delta 1e-6. Which of them a run meant is not
written down; ``noise_set_for`` says it, and is the definition unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from dpaudit.accountants.importers.event_forms import Given, is_list, unpack
from dpaudit.accountants.importers.trials import trials_of_mean
from dpaudit.accountants.importers.values import Shown, number, shown, whole
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    UnsupportedMechanism,
    require_positive,
)
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Elementary,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    Selected,
    TreeAggregation,
    TruncatedPoisson,
)

DEEPEST = 64
REQUIRED = object()

Fields = Mapping[str, Any]


def from_dp_event(
    event: Any,
    *,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    noise_set_for: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Mechanism:
    """Return what a dp_accounting event, such as an accountant's ``ledger``, releases.

    Args:
        event: A DpEvent, its named tuple, or what the JSON of that reads as.
        adjacency: Under which the answer will be asked; zero-out is dp_accounting's
            REPLACE_SPECIAL. A Laplace mechanism moves twice as far where records are replaced.
        noise_set_for: REPLACE_ONE reads noise multipliers as noise over how far replacing a
            record moves the sum, as dp_accounting's RDP does under REPLACE_ONE.

    Raises:
        InvalidArgument: this is no event, a field is out of range, or nothing is released.
        UnsupportedMechanism: an event has no counterpart here; it is named.
    """
    if noise_set_for is Adjacency.REPLACE_ONE and adjacency is not noise_set_for:
        raise InvalidArgument(
            "noise_set_for",
            Shown(noise_set_for.value),
            f"add-or-remove-one where the question is asked under {adjacency.value}",
        )
    released = _Reader(adjacency, noise_set_for).read(event, 0)
    if released is None:
        raise InvalidArgument("event", shown(event), "one that releases something")
    return released


@dataclass(frozen=True)
class _Reader:
    """Reads one event, and the events in it; None is an event that releases nothing."""

    adjacency: Adjacency
    noise_set_for: Adjacency

    def read(self, event: Any, depth: int) -> Mechanism | None:
        if depth > DEEPEST:
            raise InvalidArgument("event", shown(event), f"nested at most {DEEPEST} deep")
        name, given = unpack(event)
        inside = _Inside(self, name, _given_fields(name, given), depth)
        return KINDS[name].build(inside)

    @property
    def moves(self) -> int:
        """How many norms of a record one neighbour's sum lies from the other's."""
        doubled = self.adjacency is Adjacency.REPLACE_ONE
        return 2 if doubled and self.noise_set_for is not Adjacency.REPLACE_ONE else 1


@dataclass(frozen=True)
class _Inside:
    """The fields of one event, and how to read the events in them."""

    reader: _Reader
    name: str
    fields: Fields
    depth: int

    def number(self, field: str) -> float:
        return number(f"{field} of {self.name}", self.fields[field])

    def whole(self, field: str) -> int:
        return whole(f"{field} of {self.name}", self.fields[field])

    def event(self, field: str = "event") -> Mechanism | None:
        return self.reader.read(self.fields[field], self.depth + 1)

    def events(self, field: str) -> list[Mechanism]:
        found = self.fields[field]
        if not is_list(found):
            raise InvalidArgument(f"{field} of {self.name}", shown(found), "a list of events")
        read = [self.reader.read(event, self.depth + 1) for event in found]
        return [mechanism for mechanism in read if mechanism is not None]

    def gaussian(self) -> Gaussian:
        return Gaussian(self.number("noise_multiplier"), self.reader.noise_set_for)

    def refuse(self, why: str) -> UnsupportedMechanism:
        return UnsupportedMechanism(Shown(self.name), why)


# One function an event, in the order of the table below.


def _nothing(inside: _Inside) -> None:
    """Releases nothing."""


def _self_composed(inside: _Inside) -> Mechanism | None:
    repeated, count = inside.event(), inside.whole("count")
    if repeated is None or count == 0:
        return None
    whole("the number of releases", count * sum(count_releases(repeated).values()))
    return Repeated(repeated, count)


def _composed(inside: _Inside) -> Mechanism | None:
    parts = inside.events("events")
    return Composed(tuple(parts)) if parts else None


def _gaussian(inside: _Inside) -> Mechanism:
    return inside.gaussian()


def _laplace(inside: _Inside) -> Mechanism:
    return Laplace(inside.number("noise_multiplier"), float(inside.reader.moves))


def _discrete_laplace(inside: _Inside) -> Mechanism:
    parameter = inside.number("noise_parameter")
    require_positive(f"noise_parameter of {inside.name}", parameter)
    scale = 1 / parameter
    if scale < math.inf and Fraction(scale) * Fraction(parameter) > 1:
        scale = math.nextafter(scale, 0)  # never more noise than there was
    return DiscreteLaplace(scale, inside.reader.moves * inside.whole("sensitivity"))


def _discrete_gaussian(inside: _Inside) -> Mechanism:
    sensitivity = inside.number("sensitivity")
    if inside.fields["dimension"] != 1 or not sensitivity.is_integer():
        raise inside.refuse(
            "only a single number (dimension=1) of whole sensitivity is priced here"
        )
    return DiscreteGaussian(inside.number("sigma"), whole("sensitivity", int(sensitivity)))


def _randomized_response(inside: _Inside) -> Mechanism | None:
    lie, buckets = inside.number("noise_parameter"), inside.whole("num_buckets")
    if not 0 < lie <= 1:
        raise InvalidArgument(f"noise_parameter of {inside.name}", lie, "above 0 and at most 1")
    if buckets == 1:
        return None  # the one answer that there is
    # The truth is told on purpose or drawn by chance: never less truth than there was.
    exact = 1 - Fraction(lie) * (1 - Fraction(1, max(buckets, 1)))
    truth = float(exact)
    return RandomizedResponse(truth if truth >= exact else math.nextafter(truth, 1), buckets)


def _pure_or_approximate(inside: _Inside) -> Mechanism | None:
    epsilon, delta = inside.number("epsilon"), inside.number("delta")
    if delta == 0:
        return None if epsilon == 0 else PureDP(epsilon)
    return ApproximateDP(epsilon, delta)


def _zcdp(inside: _Inside) -> Mechanism | None:
    rho, xi = inside.number("rho"), inside.number("xi")
    if xi != 0:
        raise inside.refuse("(xi, rho)-zCDP is priced here for xi = 0 alone")
    return None if rho == 0 else ZCDP(rho)


def _exponential(inside: _Inside) -> Mechanism:
    return Exponential(inside.number("epsilon"))


def _pure(inside: _Inside) -> Mechanism:
    return PureDP(inside.number("epsilon"))


def _poisson_sampled(inside: _Inside) -> Mechanism | None:
    release, rate = _on_a_sample(inside), inside.number("sampling_probability")
    return None if release is None or rate == 0 else PoissonSampled(release, rate)


def _sampled_without_replacement(inside: _Inside) -> Mechanism | None:
    release = _on_a_sample(inside)
    if release is None:
        return None
    return SampledWithoutReplacement(
        release, inside.whole("sample_size"), inside.whole("source_dataset_size")
    )


def _truncated_poisson(inside: _Inside) -> Mechanism:
    return TruncatedPoisson(
        inside.gaussian(),
        inside.number("sampling_probability"),
        inside.whole("dataset_size"),
        inside.whole("truncated_batch_size"),
    )


def _tree(inside: _Inside) -> Mechanism:
    counts = inside.fields["step_counts"]
    if not is_list(counts):
        counts = [counts]
    steps = [whole(f"step_counts of {inside.name}", count) for count in counts]
    # A record is in one of the trees at most: the largest one costs the most.
    return TreeAggregation(inside.gaussian(), max(steps, default=0))


def _selected(inside: _Inside) -> Mechanism | None:
    tried = inside.event()
    shape, mean = inside.number("shape"), inside.number("mean")
    trials = trials_of_mean(shape=shape, mean=mean)
    return tried if tried is None or trials is None else Selected(tried, trials)


def _refused(why: str) -> Callable[[_Inside], Mechanism | None]:
    def refuse(inside: _Inside) -> Mechanism | None:
        raise inside.refuse(why)

    return refuse


@dataclass(frozen=True)
class _Kind:
    """An event class: its fields in order, with their defaults, and how to build it."""

    build: Callable[[_Inside], Mechanism | None]
    fields: Mapping[str, Any]


def _kind(build: Callable[[_Inside], Mechanism | None], *required: str, **optional: Any) -> _Kind:
    return _Kind(build, {**dict.fromkeys(required, REQUIRED), **optional})


# Fields as in dp_accounting 0.6 and its repository's head.
KINDS: Mapping[str, _Kind] = {
    "NoOpDpEvent": _kind(_nothing),
    "SelfComposedDpEvent": _kind(_self_composed, "event", "count"),
    "ComposedDpEvent": _kind(_composed, "events"),
    "GaussianDpEvent": _kind(_gaussian, "noise_multiplier"),
    "LaplaceDpEvent": _kind(_laplace, "noise_multiplier"),
    "DiscreteLaplaceDpEvent": _kind(_discrete_laplace, "noise_parameter", "sensitivity"),
    "DiscreteGaussianDpEvent": _kind(_discrete_gaussian, "sigma", sensitivity=1.0, dimension=None),
    "RandomizedResponseDpEvent": _kind(_randomized_response, "noise_parameter", "num_buckets"),
    "EpsilonDeltaDpEvent": _kind(_pure_or_approximate, "epsilon", "delta"),
    "ZCDpEvent": _kind(_zcdp, "rho", xi=0.0),
    "ExponentialMechanismDpEvent": _kind(_exponential, "epsilon"),
    "PermuteAndFlipDpEvent": _kind(_pure, "epsilon"),
    "PoissonSampledDpEvent": _kind(_poisson_sampled, "sampling_probability", "event"),
    "SampledWithoutReplacementDpEvent": _kind(
        _sampled_without_replacement, "source_dataset_size", "sample_size", "event"
    ),
    "TruncatedSubsampledGaussianDpEvent": _kind(
        _truncated_poisson,
        "dataset_size",
        "sampling_probability",
        "truncated_batch_size",
        "noise_multiplier",
    ),
    "SingleEpochTreeAggregationDpEvent": _kind(_tree, "noise_multiplier", "step_counts"),
    "RepeatAndSelectDpEvent": _kind(_selected, "event", "mean", "shape"),
    "NonPrivateDpEvent": _kind(_refused("it hides nothing: no epsilon is finite")),
    "UnsupportedDpEvent": _kind(_refused("it does not say what was released")),
    "SampledWithReplacementDpEvent": _kind(
        _refused("no accountant here prices sampling with replacement"),
        "source_dataset_size",
        "sample_size",
        "event",
    ),
    "MixtureOfGaussiansDpEvent": _kind(
        _refused("no accountant here prices mixtures of Gaussians"),
        "standard_deviation",
        "sensitivities",
        "sampling_probs",
    ),
}


def _on_a_sample(inside: _Inside) -> Elementary | None:
    """Return the one release that is made on a sample.

    Several Gaussians on the same sample are one, whose precision is the sum of theirs:
    together they are one vector, which a record moves by the root of the sum of squares of
    its moves, each in units of its noise.
    """
    inner = inside.event()
    if inner is None or isinstance(inner, Elementary):
        return inner
    releases = count_releases(inner)
    noises = {
        release.noise_multiplier: times
        for release, times in releases.items()
        if isinstance(release, Gaussian)
    }
    if len(noises) != len(releases):
        raise inside.refuse(f"no accountant here prices samples of {shown(inner)}")
    precision = sum(times / Fraction(noise) ** 2 for noise, times in noises.items())
    least = min(noises)
    merged = least / math.sqrt(Fraction(least) ** 2 * precision)
    while Fraction(merged) ** 2 * precision > 1:  # never more noise than there was
        merged = math.nextafter(merged, 0)
    return Gaussian(merged, inside.reader.noise_set_for)


def _given_fields(name: str, given: Given) -> Fields:
    """Return all fields of an event, defaults included; refuse one too many or too few."""
    if name not in KINDS:
        raise UnsupportedMechanism(Shown(name), "this event is not known here")
    fields = KINDS[name].fields
    if not isinstance(given, Mapping):  # in order
        names = [*fields, *map(str, range(len(fields), len(given)))]
        given = dict(zip(names, given, strict=False))
    required = {field for field, default in fields.items() if default is REQUIRED}
    if not required <= set(given) <= set(fields):
        raise InvalidArgument(
            f"the fields of {name}", shown(list(given)), ", ".join(fields) or "none"
        )
    return {**fields, **given}
