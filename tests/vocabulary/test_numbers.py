"""Numbers of other libraries as fields of mechanisms."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest

from dpaudit.accountants import (
    calibrate,
    gdp,
    group_privacy,
    naive,
    pld,
    rdp,
    risk,
    schedules,
    zcdp,
)
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    DiscreteGaussian,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
)

STEP = PoissonSampled(Gaussian(1.0), 0.25)


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (Repeated(STEP, np.int64(100)), Repeated(STEP, 100)),
        (Repeated(STEP, np.uint8(3)), Repeated(STEP, 3)),
        (Gaussian(np.float32(0.5)), Gaussian(0.5)),
        (Gaussian(np.float64(1.1)), Gaussian(1.1)),
        (Gaussian(np.int64(2)), Gaussian(2)),
        (Laplace(Fraction(1, 4)), Laplace(0.25)),
        (DiscreteGaussian(np.float64(2.0), np.int32(3)), DiscreteGaussian(2.0, 3)),
        (PoissonSampled(Gaussian(1.0), np.float64(0.25)), STEP),
    ],
)
def test_numbers_of_other_libraries_are_stored_as_those_of_python(
    given: Mechanism, same: Mechanism
) -> None:
    assert given == same
    assert hash(given) == hash(same)
    assert msgspec.json.encode(given) == msgspec.json.encode(same)


@pytest.mark.parametrize("value", ["1", True, np.bool_(True), None, [1.0], 1j, np.array([1.0])])
@pytest.mark.parametrize(
    "make",
    [
        Gaussian,
        Laplace,
        RandomizedResponse,
        DiscreteGaussian,
        lambda value: Repeated(STEP, value),
        lambda value: PoissonSampled(Gaussian(1.0), value),
        lambda value: DiscreteGaussian(1.0, value),
        lambda value: ApproximateDP(value, 1e-5),
        lambda value: ApproximateDP(1.0, value),
    ],
)
def test_what_is_no_number_is_refused(make: type, value: object) -> None:
    with pytest.raises(InvalidArgument):
        make(value)


def test_a_fraction_of_a_step_is_no_number_of_steps() -> None:
    with pytest.raises(InvalidArgument, match="whole number"):
        Repeated(STEP, np.float64(100.0))


def test_counts_of_numpy_are_accepted_as_arguments() -> None:
    found = schedules.training_mechanism(
        sampling=Sampling.POISSON, sampling_rate=0.25, noise_multiplier=1.0, steps=np.int64(7)
    )
    assert found == Repeated(STEP, 7)
    few = group_privacy.group_epsilon(Gaussian(4.0), size=np.int64(2), delta=1e-5)
    assert few == group_privacy.group_epsilon(Gaussian(4.0), size=2, delta=1e-5)


@pytest.mark.parametrize("wrong", ["1", True, None, [1.0]], ids=repr)
def test_numbers_of_every_accountant_refuse_text_and_booleans(wrong: Any) -> None:
    own = Gaussian(1.0)
    calls = [
        *(lambda a=a: a.profile(own).delta(epsilon=wrong) for a in (gdp, pld, rdp, zcdp)),
        *(lambda a=a: a.profile(own).epsilon(delta=wrong) for a in (gdp, naive, pld, rdp, zcdp)),
        lambda: risk.tpr_at_fpr(pld.profile(own), fpr=wrong),
        lambda: risk.accuracy(pld.profile(own), prior=wrong),
        lambda: risk.tradeoff(pld.profile(own), [0.1], most_evaluations=wrong),
        lambda: group_privacy.group_delta(own, size=2, epsilon=wrong),
        lambda: group_privacy.group_epsilon(own, size=wrong, delta=1e-5),
        lambda: naive.compose_basic([(wrong, 0.0, 1)], delta=1e-5),
        lambda: naive.compose_basic([(0.1, wrong, 1)], delta=1e-5),
        lambda: calibrate.noise_multiplier(Gaussian, target_epsilon=wrong, delta=1e-5),
        lambda: calibrate.noise_multiplier(
            Gaussian, target_epsilon=1.0, delta=1e-5, bracket=(wrong, 2.0)
        ),
        lambda: calibrate.noise_multiplier(
            Gaussian, target_epsilon=1.0, delta=1e-5, resolution=wrong
        ),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument):
            call()


def test_counts_of_numpy_are_accepted_by_functions() -> None:
    count = np.int64(2)
    assert group_privacy.group_epsilon(Gaussian(2.0), size=count, delta=1e-5) == (
        group_privacy.group_epsilon(Gaussian(2.0), size=2, delta=1e-5)
    )
    assert naive.compose_basic([(0.1, 0.0, count)], delta=1e-5) == (
        naive.compose_basic([(0.1, 0.0, 2)], delta=1e-5)
    )
    curve = risk.tradeoff(pld.profile(Gaussian(1.0)), [np.float32(0.5)], most_evaluations=count)
    assert type(curve.fpr[0]) is float
