"""States of Flower's privacy accountants: what they cost, and what is wrong is named."""

from __future__ import annotations

import copy
import json
import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from dpaudit.accountants import (
    Composed,
    Gaussian,
    PoissonSampled,
    Repeated,
    SampledWithoutReplacement,
    from_flower,
    pld,
)
from dpaudit.accountants.importers.flower import read_flower_state
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency


def entry(noise: float = 2.0, sample: int = 4, count: int = 3, population: int = 10) -> Any:
    event = {"noise_multiplier": noise, "sample_size": sample, "population_size": population}
    return {"event": event, "count": count}


def state(method: str = "no-amplification", relation: str = "add-or-remove-one") -> dict[str, Any]:
    return {
        "schema_version": 1,
        "backend": "rdp",
        "config": {
            "target_delta": 1e-5,
            "population_size": 10,
            "neighboring_relation": relation,
            "sampling_method": method,
            "max_epsilon": None,
        },
        "orders": [1.5, 2.0, 64.0],
        "compositions": [entry()],
    }


def test_a_state_of_flowers_own_accountant_costs_what_its_releases_cost() -> None:
    mechanism = from_flower(json.loads(json.dumps(state())))
    assert mechanism == Repeated(Gaussian(2.0), 3)
    found = pld.profile(mechanism, adjacency=Adjacency.ZERO_OUT).epsilon(delta=1e-5)
    assert found.upper == pytest.approx(3.7086349, abs=5e-8)


def test_a_state_of_our_accountant_has_no_orders() -> None:
    own = state() | {"backend": "dpaudit-pld"}
    del own["orders"]
    assert from_flower(own) == from_flower(state())
    assert from_flower(SimpleNamespace(state_dict=lambda: own)) == from_flower(own)


def test_different_releases_are_composed_in_order() -> None:
    given = state()
    given["compositions"].append(entry(noise=1.0, sample=10, count=1))
    assert from_flower(given) == Composed((Repeated(Gaussian(2.0), 3), Repeated(Gaussian(1.0), 1)))


@pytest.mark.parametrize(
    ("method", "relation", "adjacency", "sampling"),
    [
        ("no-amplification", "add-or-remove-one", Adjacency.ZERO_OUT, Sampling.FULL_BATCH),
        ("poisson", "add-or-remove-one", Adjacency.ADD_OR_REMOVE_ONE, Sampling.POISSON),
        ("without-replacement", "replace-one", Adjacency.REPLACE_ONE, Sampling.FIXED_SIZE),
    ],
)
def test_each_sampling_method_has_its_adjacency(
    method: str, relation: str, adjacency: Adjacency, sampling: Sampling
) -> None:
    model = read_flower_state(state(method, relation)).config.model
    assert (model.adjacency, model.sampling) == (adjacency, sampling)


def test_a_fixed_sample_is_accounted_for_with_twice_the_clip_norm() -> None:
    mechanism = from_flower(state("without-replacement", "replace-one"))
    assert mechanism == Repeated(SampledWithoutReplacement(Gaussian(2.0), 4, 10), 3)


@pytest.mark.parametrize(("sample", "population"), [(4, 10), (1, 3), (2, 3), (7, 11), (49, 51)])
def test_a_poisson_rate_is_never_below_the_exact_one(sample: int, population: int) -> None:
    given = state("poisson")
    given["config"]["population_size"] = population
    given["compositions"] = [entry(sample=sample, population=population)]
    mechanism = from_flower(given)
    assert isinstance(mechanism, Repeated)
    assert isinstance(mechanism.mechanism, PoissonSampled)
    rate, exact = mechanism.mechanism.sampling_rate, Fraction(sample, population)
    assert exact <= Fraction(rate)
    assert rate == pytest.approx(float(exact), rel=1e-15)


def test_a_poisson_sample_of_everyone_is_no_sample() -> None:
    given = state("poisson")
    given["compositions"] = [entry(sample=10)]
    assert from_flower(given) == Repeated(Gaussian(2.0), 3)


MISSING = object()


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a state with another value at a path of keys and positions; MISSING removes it."""
    given = copy.deepcopy(state())
    *way, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    inside: Any = given
    for key in way:
        inside = inside[key]
    if value is MISSING:
        del inside[last]
    else:
        inside[last] = value
    return given


@pytest.mark.parametrize("given", [None, 3, "state", [], [state()], object(), {}, {"history": []}])
def test_what_is_no_state_is_refused(given: object) -> None:
    with pytest.raises(InvalidArgument, match="state_dict"):
        from_flower(given)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("schema_version", 2, "schema_version"),
        ("schema_version", "1", "schema_version"),
        ("schema_version", True, "schema_version"),
        ("backend", "pld", "backend"),
        ("backend", "dpaudit-pld", "orders"),
        ("backend", MISSING, "backend"),
        ("orders", MISSING, "orders"),
        ("orders", [], "orders"),
        ("orders", [1.0], "orders"),
        ("orders", [2.0, math.nan], "orders"),
        ("orders", ["2"], "orders"),
        ("config", MISSING, "config"),
        ("config", [], "config"),
        ("config/target_delta", math.nan, "target_delta"),
        ("config/target_delta", 0, "target_delta"),
        ("config/target_delta", 1.0, "target_delta"),
        ("config/target_delta", True, "target_delta"),
        ("config/population_size", 10.5, "population_size"),
        ("config/population_size", 0, "population_size"),
        ("config/population_size", 11, "population_size"),
        ("config/neighboring_relation", "replace-one", "neighboring_relation"),
        ("config/neighboring_relation", MISSING, "neighboring_relation"),
        ("config/sampling_method", "uniform", "sampling_method"),
        ("config/sampling_method", "without-replacement", "neighboring_relation"),
        ("config/max_epsilon", -1.0, "max_epsilon"),
        ("config/max_epsilon", math.inf, "max_epsilon"),
        ("config/noise", 1.0, "noise"),
        ("compositions", MISSING, "compositions"),
        ("compositions", {}, "compositions"),
        ("compositions", [], "compositions"),
        ("compositions/0", 3, r"compositions\[0\]"),
        ("compositions/0/count", 0, r"compositions\[0\]"),
        ("compositions/0/count", -3, r"compositions\[0\]"),
        ("compositions/0/count", 1.5, r"compositions\[0\]"),
        ("compositions/0/count", True, r"compositions\[0\]"),
        ("compositions/0/count", 2**53 + 1, r"compositions\[0\]"),
        ("compositions/0/event", MISSING, "event"),
        ("compositions/0/event/noise_multiplier", 0, "noise_multiplier"),
        ("compositions/0/event/noise_multiplier", math.nan, "noise_multiplier"),
        ("compositions/0/event/noise_multiplier", math.inf, "noise_multiplier"),
        ("compositions/0/event/noise_multiplier", "2", "noise_multiplier"),
        ("compositions/0/event/sample_size", 11, "population_size"),
        ("compositions/0/event/sample_size", 0, "sample_size"),
        ("compositions/0/event/population_size", 9, "population_size"),
        ("compositions/0/event/clip_norm", 1.0, "clip_norm"),
    ],
)
def test_a_malformed_field_is_refused_by_name(path: str, value: object, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        from_flower(changed(path, value))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (object(), "got an object of the class object"),
        (dict, "got the class dict"),
        (changed("config/target_delta", "1e-5"), "a number as config.target_delta, not text"),
        (changed("config/noise", 1.0), "the unknown key config.noise; allowed here: target_delta"),
        (changed("compositions/0", 3), "a table as compositions[0], not a whole number"),
    ],
)
def test_errors_name_keys_and_no_internals(given: object, words: str) -> None:
    with pytest.raises(InvalidArgument) as found:
        from_flower(given)
    assert words in str(found.value)
    for internal in ("0x", "<class", "Flower accountant`", "FlowerState", "`$"):
        assert internal not in str(found.value)
