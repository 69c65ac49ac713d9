"""Execution plans of JAX Privacy: their bands, groups and neighbors."""

from __future__ import annotations

import math

import pytest

from dpaudit.accountants import from_dp_event, from_jax_privacy
from dpaudit.accountants.importers.jax_privacy import is_jax_privacy_plan
from dpaudit.vocabulary.errors import InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Gaussian,
    Repeated,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency

PLAN = {
    "iterations": 1000,
    "strategy": [1.0, 0.5, 0.25],
    "epsilon": None,
    "delta": None,
    "noise_multiplier": 1.5,
    "sampling_prob": 0.4,
    "l2_clip_norm": 1.0,
    "partition_type": "EQUAL_SPLIT",
}


def test_bands_are_those_of_the_strategy() -> None:
    expected = BandedMatrixFactorization(Gaussian(1.5), 1000, 3, 0.4)
    assert from_jax_privacy(PLAN) == (expected, Adjacency.ZERO_OUT)
    assert from_jax_privacy(PLAN | {"num_bands": 3})[0] == expected
    assert is_jax_privacy_plan(PLAN)


@pytest.mark.parametrize(
    ("field", "value", "adjacency"),
    [
        ("partition_type", "PartitionType.INDEPENDENT", Adjacency.ADD_OR_REMOVE_ONE),
        ("partition_type", 2, Adjacency.ZERO_OUT),
        (
            "neighboring_relation",
            "NeighboringRelation.ADD_OR_REMOVE_ONE",
            Adjacency.ADD_OR_REMOVE_ONE,
        ),
        ("neighboring_relation", 3, Adjacency.ZERO_OUT),
        ("neighboring_relation", "REPLACE_ONE", Adjacency.REPLACE_ONE),
    ],
)
def test_neighbors_are_those_of_the_plan(field: str, value: object, adjacency: Adjacency) -> None:
    plan = {key: one for key, one in PLAN.items() if key != "partition_type"} | {field: value}
    assert from_jax_privacy(plan)[1] is adjacency


def test_truncated_batches_of_one_band_are_read() -> None:
    plan = PLAN | {"strategy": [1.0], "truncated_batch_size": 600, "num_examples": 1200}
    expected = Repeated(TruncatedPoisson(Gaussian(1.5), 0.4, 1200, 600), 1000)
    assert from_jax_privacy(plan)[0] == expected
    with pytest.raises(UnsupportedMechanism, match="one band"):
        from_jax_privacy(plan | {"strategy": [1.0, 0.5]})
    with pytest.raises(InvalidArgument, match="num_examples"):
        from_jax_privacy(plan | {"num_examples": None})


def test_the_event_of_a_plan_takes_the_place_of_its_fields() -> None:
    event = ["dp_accounting.dp_event", "GaussianDpEvent", 2.0]
    assert from_jax_privacy({"dp_event": event}) == (Gaussian(2.0), None)
    found = from_jax_privacy({"dp_event": event, "neighboring_relation": "REPLACE_SPECIAL"})
    assert found == (Gaussian(2.0), Adjacency.ZERO_OUT)


def test_an_event_of_a_plan_is_read_for_the_adjacency_that_is_priced() -> None:
    event = {"class_name": "LaplaceDpEvent", "noise_multiplier": 2.0}
    replaced = Adjacency.REPLACE_ONE
    expected = from_dp_event(event, adjacency=replaced)
    assert expected != from_dp_event(event)
    assert from_jax_privacy({"dp_event": event}, adjacency=replaced) == (expected, replaced)
    stated = {"dp_event": event, "neighboring_relation": "REPLACE_ONE"}
    assert from_jax_privacy(stated) == (expected, replaced)
    with pytest.raises(InvalidArgument, match="replace-one, the neighboring_relation"):
        from_jax_privacy(stated, adjacency=Adjacency.ADD_OR_REMOVE_ONE)


@pytest.mark.parametrize("adjacency", [Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE])
def test_groups_of_equal_size_hold_under_zero_out_alone(adjacency: Adjacency) -> None:
    unstated = {key: one for key, one in PLAN.items() if key != "partition_type"}
    for plan in (PLAN, unstated):
        assert from_jax_privacy(plan, adjacency=Adjacency.ZERO_OUT)[1] is Adjacency.ZERO_OUT
        with pytest.raises(InvalidArgument, match="zero-out for groups of equal size"):
            from_jax_privacy(plan, adjacency=adjacency)
    with pytest.raises(InvalidArgument, match="zero-out for groups of equal size"):
        from_jax_privacy(PLAN | {"neighboring_relation": adjacency.name})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"noise_multiplier": None}, "noise_multiplier must be the number that was used"),
        ({"noise_multiplier": "1.5"}, "noise_multiplier"),
        ({"noise_multiplier": math.nan}, "noise_multiplier"),
        ({"iterations": 10.5}, "iterations"),
        ({"iterations": True}, "iterations"),
        ({"sampling_prob": 1.5}, "sampling_rate"),
        ({"num_bands": 2}, "num_bands"),
        ({"strategy": "S"}, "strategy"),
        ({"strategy": [[1.0, 0.0], [0.5, 1.0]]}, "not a matrix"),
        ({"partition_type": "SPLIT"}, "INDEPENDENT, EQUAL_SPLIT"),
        ({"noise_multiplyer": 1.0}, "did you mean noise_multiplier"),
    ],
)
def test_what_is_no_plan_is_refused_by_its_field(change: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        from_jax_privacy(PLAN | change)
