"""dp_accounting's events: read in every form, with no more noise than they had, or refused."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

from dpaudit.accountants import (
    ZCDP,
    Adjacency,
    ApproximateDP,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    MixtureOfGaussians,
    NegativeBinomialTrials,
    PoissonSampled,
    PoissonTrials,
    PureDP,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    Selected,
    TreeAggregation,
    TruncatedPoisson,
    from_dp_event,
    naive,
)
from dpaudit.accountants.importers.dp_event import EVENT_TYPES
from dpaudit.vocabulary.errors import InvalidArgument, UnsupportedMechanism

EVENTS = json.loads((ROOT / "tests" / "golden" / "dp_events.json").read_text())
MODULE = "dp_accounting.dp_event"
REPLACE = Adjacency.REPLACE_ONE


def event(name: str, *fields: object) -> list[object]:
    return [MODULE, f"{name}DpEvent", *fields]


GAUSSIAN = event("Gaussian", 1.5)

MEANT: list[tuple[list[object], Mechanism]] = [
    (GAUSSIAN, Gaussian(1.5)),
    (event("Laplace", 2.0), Laplace(2.0)),
    (event("DiscreteLaplace", 0.5, 3), DiscreteLaplace(2.0, 3)),
    (event("DiscreteGaussian", 2.0, 3.0, 1), DiscreteGaussian(2.0, 3)),
    (event("RandomizedResponse", 0.5, 2), RandomizedResponse(0.75)),
    (event("RandomizedResponse", 1.0, 4), RandomizedResponse(0.25, 4)),
    (event("EpsilonDelta", 1.0, 0), PureDP(1.0)),
    (event("EpsilonDelta", 1.0, 1e-6), ApproximateDP(1.0, 1e-6)),
    (event("EpsilonDelta", 0, 1e-6), ApproximateDP(0.0, 1e-6)),
    (event("ZC", 0.1), ZCDP(0.1)),
    (event("ZC", 0.1, 0.0), ZCDP(0.1)),
    (event("ExponentialMechanism", 0.3), Exponential(0.3)),
    (event("PermuteAndFlip", 0.3), PureDP(0.3)),
    (event("SelfComposed", GAUSSIAN, 7), Repeated(Gaussian(1.5), 7)),
    (event("Composed", [GAUSSIAN, GAUSSIAN]), Composed((Gaussian(1.5), Gaussian(1.5)))),
    (event("Composed", [event("NoOp"), GAUSSIAN]), Composed((Gaussian(1.5),))),
    (event("PoissonSampled", 0.01, GAUSSIAN), PoissonSampled(Gaussian(1.5), 0.01)),
    (
        event("SampledWithoutReplacement", 1000, 10, GAUSSIAN),
        SampledWithoutReplacement(Gaussian(1.5), batch_size=10, dataset_size=1000),
    ),
    (
        event("TruncatedSubsampledGaussian", 1000, 0.01, 20, 1.5),
        TruncatedPoisson(Gaussian(1.5), 0.01, dataset_size=1000, largest_batch=20),
    ),
    (
        event("MixtureOfGaussians", 1.5, [0.0, 2.0, 3.0, 4.0], [0.9, 0.04, 0.06, 0.0]),
        MixtureOfGaussians(1.5, (0.0, 2.0, 3.0), (0.9, 0.04, 0.06)),
    ),
    (event("SingleEpochTreeAggregation", 1.5, 9), TreeAggregation(Gaussian(1.5), 9)),
    (event("SingleEpochTreeAggregation", 1.5, [4, 9, 2]), TreeAggregation(Gaussian(1.5), 9)),
    (
        event("RepeatAndSelect", GAUSSIAN, 10.0, math.inf),
        Selected(Gaussian(1.5), PoissonTrials(10.0)),
    ),
    (event("RepeatAndSelect", GAUSSIAN, 1.0, 0.5), Gaussian(1.5)),
]


@pytest.mark.parametrize(("written", "meant"), MEANT, ids=lambda value: str(value)[25:60])
def test_an_event_is_the_mechanism_that_it_means(written: object, meant: Mechanism) -> None:
    assert from_dp_event(written) == meant


def test_a_mean_number_of_trials_becomes_its_law() -> None:
    selected = from_dp_event(event("RepeatAndSelect", GAUSSIAN, 10.0, 1.0))
    assert isinstance(selected, Selected)
    assert isinstance(selected.trials, NegativeBinomialTrials)
    assert selected.trials.success == pytest.approx(0.1)
    assert selected.trials.success <= 0.1


# Forms.


def as_named_tuple(written: Any) -> Any:
    """Return what ``to_named_tuple`` would: as dp_accounting does, with its two extra fields."""
    if not isinstance(written, list) or not written or written[0] != MODULE:
        return [as_named_tuple(one) for one in written] if isinstance(written, list) else written
    fields = list(EVENT_TYPES[written[1]].fields)[: len(written) - 2]
    kind = namedtuple("NamedTupleWrapper", ["module_name", "class_name", *fields])
    return kind(*(as_named_tuple(one) for one in written))


def as_object(written: Any) -> Any:
    """Return what looks like an object of the attrs library."""
    if not isinstance(written, list) or not written or written[0] != MODULE:
        return [as_object(one) for one in written] if isinstance(written, list) else written
    values = [as_object(one) for one in written[2:]]
    given = dict(zip(EVENT_TYPES[written[1]].fields, values, strict=False))
    names = tuple(SimpleNamespace(name=name) for name in given)
    return type(written[1], (), {"__attrs_attrs__": names, **given})()


def as_json_objects(written: Any) -> Any:
    if not isinstance(written, list) or not written or written[0] != MODULE:
        return [as_json_objects(one) for one in written] if isinstance(written, list) else written
    values = [as_json_objects(one) for one in written[2:]]
    named = dict(zip(EVENT_TYPES[written[1]].fields, values, strict=False))
    return {"module_name": MODULE, "class_name": written[1], **named}


@pytest.mark.parametrize("form", [as_named_tuple, as_object, as_json_objects])
@pytest.mark.parametrize(("written", "meant"), MEANT, ids=lambda value: str(value)[25:60])
def test_every_form_of_an_event_reads_alike(form: Any, written: object, meant: Mechanism) -> None:
    assert from_dp_event(form(written)) == meant


NOTHING = {"NoOpDpEvent"}
REFUSED = {
    "NonPrivateDpEvent",
    "UnsupportedDpEvent",
    "SampledWithReplacementDpEvent",
}


@pytest.mark.parametrize("written", EVENTS, ids=lambda written: written[1])
def test_what_dp_accounting_writes_is_read_or_refused_by_name(written: list[Any]) -> None:
    name = written[1]
    if name in REFUSED:
        with pytest.raises(UnsupportedMechanism, match=f"^{name}: "):
            from_dp_event(written)
    elif name not in NOTHING:
        from_dp_event(written)


# Neighbors.


def test_replacing_a_record_moves_a_laplace_sum_twice_as_far() -> None:
    assert from_dp_event(event("Laplace", 2.0), adjacency=REPLACE) == Laplace(2.0, sensitivity=2)
    discrete = from_dp_event(event("DiscreteLaplace", 0.5, 3), adjacency=REPLACE)
    assert discrete == DiscreteLaplace(2.0, sensitivity=6)


def test_noise_over_the_move_of_a_replaced_record_is_read_so_where_asked() -> None:
    asked = {"adjacency": REPLACE, "noise_set_for": REPLACE}
    assert from_dp_event(GAUSSIAN, **asked) == Gaussian(1.5, set_for=REPLACE)
    assert from_dp_event(event("Laplace", 2.0), **asked) == Laplace(2.0)
    twice = event("PoissonSampled", 0.5, event("SelfComposed", GAUSSIAN, 4))
    assert from_dp_event(twice, **asked) == PoissonSampled(Gaussian(0.75, set_for=REPLACE), 0.5)


def test_the_two_conventions_of_dp_accounting_are_told_apart() -> None:
    """GaussianDpEvent(1.0), REPLACE_ONE, delta 1e-6: its PLD says 10.997, its RDP 5.22."""
    one = event("Gaussian", 1.0)
    by_definition = from_dp_event(one, adjacency=REPLACE)
    as_rdp_reads = from_dp_event(one, adjacency=REPLACE, noise_set_for=REPLACE)
    # The exact Gaussian's basic composition is the Gaussian mechanism itself.
    larger = naive.profile(by_definition, adjacency=REPLACE).basic(delta=1e-6)
    smaller = naive.profile(as_rdp_reads, adjacency=REPLACE).basic(delta=1e-6)
    assert larger.upper == pytest.approx(10.997, abs=1e-3)
    assert 4.8 < smaller.upper < 5.22


@pytest.mark.parametrize("adjacency", [Adjacency.ADD_OR_REMOVE_ONE, Adjacency.ZERO_OUT])
def test_noise_set_for_replaced_records_answers_no_other_question(adjacency: Adjacency) -> None:
    with pytest.raises(InvalidArgument, match="noise_set_for"):
        from_dp_event(GAUSSIAN, adjacency=adjacency, noise_set_for=REPLACE)


# Rounding: never more noise, never less truth.


@given(st.floats(1e-6, 1), st.integers(2, 50))
def test_the_truth_is_told_at_least_as_often(lie: float, buckets: int) -> None:
    read = from_dp_event(event("RandomizedResponse", lie, buckets))
    assert isinstance(read, RandomizedResponse)
    exact = 1 - Fraction(lie) * (1 - Fraction(1, buckets))
    assert 0 <= Fraction(read.truth_probability) - exact < Fraction(1, 2**52)


@given(st.floats(1e-300, 1e300))
def test_discrete_laplace_noise_is_never_larger(parameter: float) -> None:
    read = from_dp_event(event("DiscreteLaplace", parameter, 1))
    assert isinstance(read, DiscreteLaplace)
    product = Fraction(read.scale) * Fraction(parameter)
    assert 1 - Fraction(1, 2**51) < product <= 1


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 10**6)), min_size=1, max_size=4))
def test_gaussians_on_one_sample_are_one_with_their_precisions_summed(
    parts: list[tuple[float, int]],
) -> None:
    inner = [event("SelfComposed", event("Gaussian", noise), times) for noise, times in parts]
    read = from_dp_event(event("PoissonSampled", 0.1, event("Composed", inner)))
    assert isinstance(read, PoissonSampled)
    assert isinstance(read.mechanism, Gaussian)
    precision = sum(times / Fraction(noise) ** 2 for noise, times in parts)
    product = Fraction(read.mechanism.noise_multiplier) ** 2 * precision
    assert 1 - Fraction(1, 2**50) < product <= 1


# Refusals.


@pytest.mark.parametrize(
    "written",
    [
        event("NoOp"),
        event("SelfComposed", GAUSSIAN, 0),
        event("Composed", []),
        event("Composed", [event("NoOp")]),
        event("PoissonSampled", 0.0, GAUSSIAN),
        event("EpsilonDelta", 0, 0),
        event("ZC", 0.0),
        event("RandomizedResponse", 0.5, 1),
        event("RepeatAndSelect", event("NoOp"), 2.0, 1.0),
        event("MixtureOfGaussians", 1.0, [0.0], [1.0]),
    ],
)
def test_what_releases_nothing_has_no_cost_to_ask_for(written: object) -> None:
    with pytest.raises(InvalidArgument, match="an event that releases something"):
        from_dp_event(written)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (event("NonPrivate"), "NonPrivateDpEvent"),
        (event("Unsupported"), "UnsupportedDpEvent"),
        (event("SampledWithReplacement", 1000, 10, GAUSSIAN), "SampledWithReplacementDpEvent"),
        (event("Teleportation", 1.0), "TeleportationDpEvent"),
        (event("ZC", 0.1, 0.2), "ZCDpEvent"),
        (event("DiscreteGaussian", 2.0), "DiscreteGaussianDpEvent"),
        (event("DiscreteGaussian", 2.0, 1.5, 1), "DiscreteGaussianDpEvent"),
        (event("PoissonSampled", 0.1, event("ZC", 0.1)), None),
        (
            event("PoissonSampled", 0.1, event("PoissonSampled", 0.1, GAUSSIAN)),
            "PoissonSampledDpEvent",
        ),
        (
            event("PoissonSampled", 0.1, event("SelfComposed", event("Laplace", 1.0), 2)),
            "PoissonSampledDpEvent",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(written: object, name: str | None) -> None:
    if name is None:  # the accountants decide
        from_dp_event(written)
        return
    for nested in (written, event("SelfComposed", event("Composed", [GAUSSIAN, written]), 3)):
        with pytest.raises(UnsupportedMechanism, match=f"^{name}: "):
            from_dp_event(nested)


@pytest.mark.parametrize(
    ("written", "named"),
    [
        (event("Gaussian", -3.0), "noise_multiplier must be above 0"),
        (event("Gaussian", 0.0), "noise_multiplier must be above 0"),
        (event("Gaussian", math.nan), "noise_multiplier must be above 0"),
        (event("Gaussian", 10**400), "noise_multiplier of GaussianDpEvent"),
        (event("Gaussian", "1"), "noise_multiplier of GaussianDpEvent must be a number"),
        (event("Gaussian", True), "noise_multiplier of GaussianDpEvent must be a number"),
        (event("Gaussian"), "the fields of GaussianDpEvent must be noise_multiplier"),
        (event("Gaussian", 1.0, 2.0), "the fields of GaussianDpEvent must be noise_multiplier"),
        (event("PoissonSampled", 1.7, GAUSSIAN), "sampling_rate"),
        (event("PoissonSampled", -0.5, GAUSSIAN), "sampling_rate"),
        (event("SelfComposed", GAUSSIAN, -1), "times"),
        (event("SelfComposed", GAUSSIAN, 2.5), "count of SelfComposedDpEvent"),
        (event("SelfComposed", GAUSSIAN, 10**30), "count of SelfComposedDpEvent"),
        (
            event("SelfComposed", event("SelfComposed", GAUSSIAN, 10**9), 10**9),
            "the number of releases",
        ),
        (event("Composed", GAUSSIAN), "event must be"),
        (event("Composed", 3), "events of ComposedDpEvent must be a list"),
        (event("RandomizedResponse", 0.0, 2), "noise_parameter"),
        (event("RandomizedResponse", 0.5, 0), "categories"),
        (event("DiscreteLaplace", 0.0, 1), "noise_parameter"),
        (event("DiscreteLaplace", 1e-320, 1), "scale"),
        (event("SingleEpochTreeAggregation", 1.0, []), "steps"),
        (event("SampledWithoutReplacement", 10, 1000, GAUSSIAN), "dataset_size"),
        (event("RepeatAndSelect", GAUSSIAN, 0.5, 1.0), "mean"),
        (None, "event must be"),
        ([], "event must be"),
        ([MODULE], "event must be"),
        ([MODULE, 3], "event must be"),
        ({}, "event must be"),
        ({"noise_multiplier": 1.0}, "event must be"),
        ({"class_name": "GaussianDpEvent", "noise": 1.0}, "the fields of GaussianDpEvent"),
        ("GaussianDpEvent", "event must be"),
        (1.0, "event must be"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(written: object, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named) as caught:
        from_dp_event(written)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("sensitivities", "chances", "named"),
    [
        ([0.0, 1.0], [1.0], "sampling_probs of MixtureOfGaussiansDpEvent"),
        (1.0, [1.0], "sensitivities of MixtureOfGaussiansDpEvent"),
        ([0.0, "1"], [0.5, 0.5], "sensitivities of MixtureOfGaussiansDpEvent"),
        ([0.0, -1.0], [0.5, 0.5], "sensitivities"),
        ([0.0, 1.0], [0.5, 0.6], "probabilities"),
        ([0.0, 1.0], [math.nan, 0.5], "probabilities"),
    ],
)
def test_a_wrong_mixture_is_named(sensitivities: object, chances: object, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        from_dp_event(event("MixtureOfGaussians", 1.0, sensitivities, chances))


def test_a_mixture_is_refused_for_replaced_records() -> None:
    written = event("MixtureOfGaussians", 1.0, [0.0, 1.0], [0.5, 0.5])
    with pytest.raises(UnsupportedMechanism, match="MixtureOfGaussiansDpEvent"):
        from_dp_event(written, adjacency=REPLACE)


def test_an_event_nested_too_deep_is_refused() -> None:
    deep: list[object] = GAUSSIAN
    for _ in range(10_000):
        deep = event("SelfComposed", deep, 1)
    with pytest.raises(InvalidArgument, match="nested at most"):
        from_dp_event(deep)
