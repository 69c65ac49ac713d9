"""Numbers of other libraries as fields of mechanisms."""

from __future__ import annotations

from fractions import Fraction

import msgspec
import numpy as np
import pytest

from dpaudit.accountants import group_privacy, schedules
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
