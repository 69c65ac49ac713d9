"""Ledgers of TensorFlow Privacy: samples of Gaussian sums, in any of their forms."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from fractions import Fraction

import pytest

from dpaudit.accountants import from_tensorflow_privacy
from dpaudit.accountants.importers.tensorflow_privacy import is_tensorflow_ledger
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Composed, Gaussian, PoissonSampled, Repeated

SampleEntry = namedtuple("SampleEntry", ["population_size", "selection_probability", "queries"])
Query = namedtuple("Query", ["l2_norm_bound", "noise_stddev"])


def test_equal_samples_are_repeated_and_others_composed() -> None:
    ledger = [
        SampleEntry(60_000, 0.01, [Query(2.0, 3.0)]),
        SampleEntry(60_000, 0.01, [Query(2.0, 3.0)]),
        SampleEntry(60_000, 1.0, [Query(1.0, 5.0)]),
    ]
    found = from_tensorflow_privacy(ledger)
    assert found == Composed(
        (Repeated(PoissonSampled(Gaussian(1.5), 0.01), 2), Repeated(Gaussian(5.0), 1))
    )
    assert from_tensorflow_privacy(json.loads(json.dumps(ledger))) == found
    named = [one._asdict() | {"queries": [q._asdict() for q in one.queries]} for one in ledger]
    assert from_tensorflow_privacy(named) == found
    assert is_tensorflow_ledger(ledger)
    assert is_tensorflow_ledger(named)


def test_queries_on_one_sample_add_their_precisions_and_never_gain_noise() -> None:
    ledger = [[100, 0.5, [[1.0, 2.0], [3.0, 10.0], [0.1, 0.7]]]]
    found = from_tensorflow_privacy(ledger)
    merged = found.mechanism.mechanism.noise_multiplier
    precision = sum(
        (Fraction(b) / Fraction(s)) ** 2 for b, s in ((1.0, 2.0), (3.0, 10.0), (0.1, 0.7))
    )
    assert Fraction(merged) ** 2 * precision <= 1
    assert merged == pytest.approx(1 / math.sqrt(precision), rel=1e-15)


@pytest.mark.parametrize(
    "ledger",
    [
        [],
        "ledger",
        [[60_000, 0.01, []]],
        [[60_000, 1.7, [[1.0, 1.0]]]],
        [[60_000, 0.01, [[0.0, 1.0]]]],
        [[60_000, 0.01, [[1.0, math.nan]]]],
        [[60_000, 0.01, [[1.0]]]],
        [[60_000.5, 0.01, [[1.0, 1.0]]]],
        [[60_000, "0.01", [[1.0, 1.0]]]],
        [[60_000, True, [[1.0, 1.0]]]],
        [{"population_size": 1, "selection_probability": 0.1}],
    ],
    ids=repr,
)
def test_what_is_no_ledger_is_refused_by_its_place(ledger: object) -> None:
    with pytest.raises(InvalidArgument, match="ledger"):
        from_tensorflow_privacy(ledger)
