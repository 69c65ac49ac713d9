"""Opacus histories: every form of them reads alike, and what is wrong is named by its place."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from dpaudit.accountants import (
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    Repeated,
    from_opacus,
)
from dpaudit.vocabulary.errors import InvalidArgument

HISTORY = [(1.0, 0.01, 1000), (2.0, 0.02, 5)]
MEANT = Composed(
    (
        Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000),
        Repeated(PoissonSampled(Gaussian(2.0), 0.02), 5),
    )
)


@pytest.mark.parametrize(
    "form",
    [
        HISTORY,
        json.loads(json.dumps(HISTORY)),
        {"history": HISTORY, "mechanism": "rdp"},
        SimpleNamespace(history=HISTORY),
        [(np.float64(noise), np.float64(rate), np.int64(steps)) for noise, rate, steps in HISTORY],
    ],
)
def test_every_form_of_a_history_is_the_same_mechanism(form: object) -> None:
    assert from_opacus(form) == MEANT


def test_one_entry_needs_no_composition() -> None:
    assert from_opacus(HISTORY[:1]) == Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000)


def test_numbers_become_plain_ones() -> None:
    mechanism: Mechanism = from_opacus([(np.float32(1.5), 0.5, np.int32(3))])
    assert isinstance(mechanism, Repeated)
    assert type(mechanism.times) is int
    assert isinstance(mechanism.mechanism, PoissonSampled)
    assert mechanism.mechanism.mechanism == Gaussian(1.5)


@pytest.mark.parametrize(
    "history",
    [None, 3, "history", [], {}, {"mechanism": "rdp"}, {"history": []}, {"history": {}}, object()],
)
def test_what_is_no_history_is_refused(history: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^history must be a list of at least one entry"):
        from_opacus(history)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ((1.0, 0.01), "in this order"),
        ((1.0, 0.01, 5, 1), "in this order"),
        ("abc", "in this order"),
        (7, "in this order"),
        ((-3.0, 0.01, 5), "noise_multiplier"),
        ((0.0, 0.01, 5), "noise_multiplier"),
        ((math.nan, 0.01, 5), "noise_multiplier"),
        ((10**400, 0.01, 5), "noise_multiplier"),
        (("1", 0.01, 5), "noise_multiplier"),
        ((True, 0.01, 5), "noise_multiplier"),
        ((1.0, 1.7, 5), "sampling_rate"),
        ((1.0, None, 5), "sampling_rate"),
        ((1.0, 0.01, 0), "times"),
        ((1.0, 0.01, 2.5), "steps"),
        ((1.0, 0.01, 10**30), "steps"),
    ],
)
def test_wrong_entry_is_named_by_its_position(entry: object, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named) as caught:
        from_opacus([HISTORY[0], entry])
    assert str(caught.value).startswith("history[1] must be ")
    assert "\n" not in str(caught.value)
