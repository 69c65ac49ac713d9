"""What no accountant answers, it refuses: the message names what was wrong and its value."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import naive, pld, rdp
from dpaudit.accountants.pld import enclosure
from dpaudit.accountants.registry import sampling_accountants
from dpaudit.vocabulary.errors import AccountingError, InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants.mechanisms import compositions, gaussians, in_passing, responses, sampled

SAMPLED = PoissonSampled(Gaussian(1.0), 0.1)
NOT_POSITIVE = [math.nan, math.inf, -math.inf, 0.0, -3.0]
NOT_INSIDE_UNIT = [math.nan, math.inf, 0.0, 1.0, -0.1, 1.7]
PROFILES = [naive.profile, rdp.profile, pld.profile]

mechanisms = compositions(gaussians | sampled | responses)


@pytest.mark.parametrize("noise", NOT_POSITIVE)
def test_noise_that_is_not_positive_is_refused_by_name(noise):
    with pytest.raises(InvalidArgument, match=f"noise_multiplier .* got {noise!r}"):
        Gaussian(noise)


@pytest.mark.parametrize("rate", [math.nan, math.inf, 0.0, -0.1, 1.7])
def test_a_rate_that_is_no_probability_is_refused_by_name(rate):
    with pytest.raises(InvalidArgument, match=f"sampling_rate .* got {rate!r}"):
        PoissonSampled(Gaussian(1.0), rate)


@pytest.mark.parametrize("truth", [math.nan, math.inf, 0.0, -0.1, 0.49, 1.0, 1.7])
def test_a_truth_worse_than_guessing_or_certain_is_refused_by_name(truth):
    with pytest.raises(InvalidArgument, match=f"truth_probability .* got {truth!r}"):
        RandomizedResponse(truth)


@pytest.mark.parametrize("times", [0, -1, 2.5, math.nan, True])
def test_a_count_that_is_no_count_is_refused_by_name(times):
    with pytest.raises(InvalidArgument, match=f"times .* got {times!r}"):
        Repeated(Gaussian(1.0), times)
    with pytest.raises(InvalidArgument, match=f"categories .* got {times!r}"):
        RandomizedResponse(0.9, times)


def test_empty_composition_is_refused():
    with pytest.raises(InvalidArgument, match="mechanisms"):
        Composed(())


@pytest.mark.parametrize("accountant", sampling_accountants(), ids=lambda one: one.name)
@pytest.mark.parametrize("delta", NOT_INSIDE_UNIT)
@pytest.mark.parametrize("mechanism", [SAMPLED, Gaussian(1.0)])
def test_a_delta_that_is_no_probability_is_refused_by_name(mechanism, delta, accountant):
    with pytest.raises(InvalidArgument, match=f"delta .* got {delta!r}"):
        accountant.bounds(mechanism, delta, Adjacency.ADD_OR_REMOVE_ONE)


@pytest.mark.parametrize("epsilon", [math.nan, math.inf, -math.inf, -1e-9])
@pytest.mark.parametrize("mechanism", [SAMPLED, Gaussian(1.0)])
def test_an_epsilon_below_zero_or_without_end_is_refused_by_name(mechanism, epsilon):
    with pytest.raises(InvalidArgument, match=f"epsilon .* got {epsilon!r}"):
        pld.profile(mechanism).delta(epsilon=epsilon)


@pytest.mark.parametrize("width", NOT_POSITIVE)
def test_a_width_that_is_not_positive_is_refused_by_name(width):
    with pytest.raises(InvalidArgument, match=f"relative_width .* got {width!r}"):
        enclosure.profile(SAMPLED, relative_width=width)


@pytest.mark.parametrize("order", [math.nan, math.inf, 1.0, 0.5, -2.0])
def test_an_order_of_one_or_less_is_refused_by_name(order):
    with pytest.raises(InvalidArgument, match=f"order .* got {order!r}"):
        rdp.divergence(SAMPLED, order=order)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("adjacency", [Adjacency.ADD_OR_REMOVE_ONE, Adjacency.ZERO_OUT])
def test_randomized_response_is_refused_by_name_unless_a_record_is_replaced(profile, adjacency):
    mechanism = Composed((Gaussian(1.0), Repeated(RandomizedResponse(0.75), 3)))
    with pytest.raises(UnsupportedMechanism, match=rf"RandomizedResponse.*{adjacency.value}"):
        profile(mechanism, adjacency=adjacency)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_record_replaced_in_a_poisson_sample_of_unknown_kind_is_refused_by_name(profile):
    """What Laplace noise hides of a record replaced says nothing of one removed."""
    mechanism = Composed((Gaussian(1.0), PoissonSampled(Laplace(1.0), 0.1)))
    with pytest.raises(UnsupportedMechanism, match=r"PoissonSampled.*Laplace"):
        profile(mechanism, adjacency=Adjacency.REPLACE_ONE)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("adjacency", Adjacency)
def test_sampled_randomized_response_is_refused_by_name(profile, adjacency):
    mechanism = PoissonSampled(RandomizedResponse(0.75), 0.1)
    with pytest.raises(UnsupportedMechanism, match="RandomizedResponse"):
        profile(mechanism, adjacency=adjacency)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        (math.nan, 1.0),
        (0.0, math.nan),
        (math.nan, math.nan),
        (2.0, 1.0),
        (0.0, math.inf),
        (-math.inf, 0.0),
    ],
)
def test_a_bound_without_two_finite_ordered_ends_is_refused(lower, upper):
    with pytest.raises(AccountingError):
        Bound(lower, upper)


@in_passing
@given(mechanisms)
def test_a_mechanism_survives_json(mechanism):
    written = msgspec.json.encode(mechanism)
    assert msgspec.json.decode(written, type=Mechanism) == mechanism


@in_passing
@given(mechanisms)
def test_equal_mechanisms_have_equal_hashes(mechanism):
    again = msgspec.json.decode(msgspec.json.encode(mechanism), type=Mechanism)
    assert hash(again) == hash(mechanism)


@in_passing
@given(mechanisms, st.sampled_from(["noise_multiplier", "times", "mechanisms", "anything"]))
def test_a_mechanism_cannot_be_altered(mechanism, field):
    with pytest.raises(AttributeError):
        setattr(mechanism, field, 1)


@pytest.mark.parametrize(
    "written",
    [
        b'{"kind": "gaussian", "noise_multiplier": 1.0, "noise": 2.0}',
        b'{"kind": "poisson-sampled", "sampling_rate": 0.1, "steps": 9,'
        b' "mechanism": {"kind": "gaussian", "noise_multiplier": 1.0}}',
        b'{"kind": "gaussian"}',
        b'{"kind": "gaussian", "noise_multiplier": "1.0"}',
        b'{"kind": "gaussian", "noise_multiplier": -1.0}',
        b'{"kind": "gaussian", "noise_multiplier": null}',
        b'{"kind": "laplace", "noise_multiplier": 1.0}',
        b'{"kind": "poisson-sampled", "sampling_rate": 0.1,'
        b' "mechanism": {"kind": "poisson-sampled", "sampling_rate": 0.1,'
        b' "mechanism": {"kind": "gaussian", "noise_multiplier": 1.0}}}',
        b'{"noise_multiplier": 1.0}',
        b"NaN",
    ],
)
def test_json_that_is_no_mechanism_is_refused(written):
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(written, type=Mechanism)


def test_repetitions_of_repetitions_are_counted_before_they_are_priced():
    mechanism = Gaussian(1.0)
    for _ in range(8):
        mechanism = Repeated(mechanism, 1000)
    with pytest.raises(InvalidArgument, match="all repetitions multiplied"):
        pld.profile(mechanism)
