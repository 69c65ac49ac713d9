"""Mechanisms of federated releases: JSON, refusals by name, and words."""

from __future__ import annotations

import math
import re

import msgspec
import pytest
from hypothesis import given

from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import (
    DistributedDiscreteGaussian,
    FixedThresholdSparseVector,
    Mechanism,
    MonotoneSparseVector,
    NumericSparseVector,
    PoissonSampled,
    Release,
    Skellam,
    SparseVector,
    VectorDiscreteGaussian,
)
from dpaudit.vocabulary.mechanism_words import mechanism_in_words
from tests.accountants.mechanisms import (
    compositions,
    in_passing,
    integer_noise,
    sampled_integer_noise,
    sparse_vectors,
)

NORMS = {"l1_sensitivity": 9.0, "l2_sensitivity": 3.0, "dimension": 100}
EXAMPLES = {
    VectorDiscreteGaussian(scale=2.0, **NORMS): "a vector discrete Gaussian (scale 2, ",
    DistributedDiscreteGaussian(scale=2.0, shares=7, **NORMS): "the sum of 7 shares of discrete",
    Skellam(variance=4.0, **NORMS): "Skellam noise (variance 4, L2 sensitivity 3, L1 sensitivity 9",
    SparseVector(1.0, 2.0, 3): "a sparse vector technique (threshold scale 1, query scale 2, 3 ",
    MonotoneSparseVector(1.0, 2.0, 3): "a sparse vector technique on monotone queries (",
    FixedThresholdSparseVector(1.0, 2.0, 3): "a sparse vector technique with one threshold",
    NumericSparseVector(SparseVector(1.0, 2.0, 3), 4.0): "a sparse vector technique (",
    PoissonSampled(Skellam(variance=4.0, **NORMS), 0.1): "Skellam noise (variance 4, ",
}


@pytest.mark.parametrize(("mechanism", "words"), EXAMPLES.items(), ids=lambda one: str(one)[:24])
def test_a_mechanism_is_described_and_keeps_its_values_in_json(mechanism, words):
    assert mechanism_in_words(mechanism).startswith(words)
    text = msgspec.json.encode(mechanism)
    assert msgspec.json.decode(text, type=Mechanism) == mechanism
    assert msgspec.json.decode(text, type=Release) == mechanism


@in_passing
@given(compositions(integer_noise | sampled_integer_noise | sparse_vectors))
def test_every_mechanism_keeps_its_values_in_json(mechanism):
    assert msgspec.json.decode(msgspec.json.encode(mechanism), type=Mechanism) == mechanism


def test_the_json_of_a_mechanism_is_stable():
    assert msgspec.json.encode(Skellam(variance=4.0, **NORMS)) == (
        b'{"kind":"skellam","variance":4.0,"l1_sensitivity":9.0,"l2_sensitivity":3.0,'
        b'"dimension":100}'
    )
    assert msgspec.json.encode(NumericSparseVector(MonotoneSparseVector(1.0, 2.0, 3), 4.0)) == (
        b'{"kind":"numeric-sparse-vector","comparison":{"kind":"monotone-sparse-vector",'
        b'"threshold_scale":1.0,"query_scale":2.0,"answers":3,"sensitivity":1.0},'
        b'"value_scale":4.0}'
    )


@pytest.mark.parametrize("field", ["l1_sensitivity", "l2_sensitivity"])
@pytest.mark.parametrize("value", [0.0, 0.99, -1.0, 1e101, math.nan, math.inf])
def test_a_norm_that_no_integer_vector_has_is_refused_by_name(field, value):
    norms = {**NORMS, field: value}
    for build in (
        lambda: VectorDiscreteGaussian(scale=1.0, **norms),
        lambda: DistributedDiscreteGaussian(scale=1.0, shares=2, **norms),
        lambda: Skellam(variance=1.0, **norms),
    ):
        with pytest.raises(InvalidArgument, match=f"{field} .* got {re.escape(repr(value))}"):
            build()


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-101, 1e101, math.nan, math.inf])
def test_noise_out_of_range_is_refused_by_name(value):
    for name, build in (
        ("scale", lambda: VectorDiscreteGaussian(scale=value, **NORMS)),
        ("scale", lambda: DistributedDiscreteGaussian(scale=value, shares=2, **NORMS)),
        ("variance", lambda: Skellam(variance=value, **NORMS)),
    ):
        with pytest.raises(InvalidArgument, match=f"{name} .* got {re.escape(repr(value))}"):
            build()


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_counts_that_are_no_counts_are_refused_by_name(value):
    with pytest.raises(InvalidArgument, match="shares"):
        DistributedDiscreteGaussian(scale=1.0, shares=value, **NORMS)
    for kind in (VectorDiscreteGaussian, Skellam):
        with pytest.raises(InvalidArgument, match="dimension"):
            kind(1.0, 3.0, 9.0, value)
