"""One mapping from sampling, rate, noise and steps to what is accounted for."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.accountants import pld
from dpaudit.accountants.importers import from_opacus
from dpaudit.accountants.releases import count_releases
from dpaudit.accountants.schedules import (
    coin_sampling,
    poisson_step,
    recorded_release,
    training_mechanism,
)
from dpaudit.vocabulary.errors import InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    Repeated,
    SampledWithoutReplacement,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.settings import PrivacySettings
from dpaudit.workflow.run_claims import planned_claim, planned_mechanism

NOISE = Gaussian(1.5)
rates = st.one_of(st.floats(1e-6, 1), st.just(1.0))
noises = st.floats(0.1, 100)
steps = st.integers(1, 10**6)


@given(rates, noises, steps)
def test_every_description_of_a_training_is_the_same_mechanism(
    rate: float, noise: float, times: int
) -> None:
    mechanism = training_mechanism(
        sampling=coin_sampling(rate), sampling_rate=rate, noise_multiplier=noise, steps=times
    )
    privacy = PrivacySettings(rate, noise, 1.0, times, 1e-5, expected_batch_size=10.0)
    step = Repeated(poisson_step(Gaussian(noise), rate), times)
    assert from_opacus([(noise, rate, times)]) == mechanism == step
    assert planned_mechanism(privacy) == Composed((mechanism,))
    assert count_releases(mechanism) == {
        Gaussian(noise) if rate == 1 else PoissonSampled(Gaussian(noise), rate): times
    }


def test_full_batches_have_one_name() -> None:
    assert coin_sampling(1.0) is Sampling.FULL_BATCH
    assert coin_sampling(math.nextafter(1.0, 0.0)) is Sampling.POISSON
    assert poisson_step(NOISE, 1.0) == NOISE
    privacy = PrivacySettings(1.0, 1.5, 1.0, 3, 1e-5, expected_batch_size=10.0)
    assert planned_claim(privacy, 1e-5, "pld").sampling is Sampling.FULL_BATCH
    assert planned_claim(privacy, 1e-5, "pld").epsilon == pld.profile(Repeated(NOISE, 3)).epsilon(
        delta=1e-5
    )


@pytest.mark.parametrize(
    ("sampling", "numbers", "release"),
    [
        (Sampling.POISSON, {"sampling_rate": 0.1}, PoissonSampled(NOISE, 0.1)),
        (Sampling.FULL_BATCH, {}, NOISE),
        (
            Sampling.TRUNCATED_POISSON,
            {"sampling_rate": 0.1, "dataset_size": 90, "largest_batch": 20},
            TruncatedPoisson(NOISE, 0.1, 90, 20),
        ),
        (
            Sampling.FIXED_SIZE,
            {"batch_size": 5, "dataset_size": 90},
            SampledWithoutReplacement(NOISE, 5, 90),
        ),
        (Sampling.BALLS_IN_BINS, {"steps": 7}, RandomAllocation(NOISE, 7)),
        (
            Sampling.CYCLIC_POISSON,
            {"steps": 9, "bands": 3, "sampling_rate": 0.5},
            BandedMatrixFactorization(NOISE, 9, 3, 0.5),
        ),
        (Sampling.SHUFFLED, {}, NOISE),
    ],
)
def test_each_sampling_has_its_release(
    sampling: Sampling, numbers: dict[str, float], release: Mechanism
) -> None:
    assert recorded_release(sampling, NOISE, **numbers) == release  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling.TRUNCATED_POISSON,
        Sampling.FIXED_SIZE,
        Sampling.BALLS_IN_BINS,
        Sampling.CYCLIC_POISSON,
    ],
)
def test_missing_number_is_refused(sampling: Sampling) -> None:
    with pytest.raises(InvalidArgument):
        recorded_release(sampling, NOISE)


@given(st.floats(1e-4, 1), st.integers(1, 10**5))
def test_shuffled_passes_cost_one_release_each(rate: float, times: int) -> None:
    found = training_mechanism(
        sampling=Sampling.SHUFFLED, sampling_rate=rate, noise_multiplier=1.5, steps=times,
        adjacency=Adjacency.REPLACE_ONE,
    )  # fmt: skip
    assert isinstance(found, Repeated)
    assert found.mechanism == NOISE
    assert found.times >= times * rate - 1e-6


@pytest.mark.parametrize(
    ("batch", "records", "passes"),
    [(1, 1000, 9 * 10**12), (256, 60000, 10**14), (7, 10**12, 3000), (2, 3, 7), (1, 1, 10**17)],
)
def test_a_pass_of_huge_counts_that_was_started_counts(
    batch: int, records: int, passes: int
) -> None:
    steps = passes * records // batch
    near = batch / records
    above = near if near >= Fraction(batch, records) else math.nextafter(near, 1.0)
    for given_rate in (near, above):
        for more, expected in ((0, passes), (1, passes + 1)):
            found = training_mechanism(
                sampling=Sampling.SHUFFLED,
                sampling_rate=given_rate,
                noise_multiplier=1.0,
                steps=steps + more,
                adjacency=Adjacency.ZERO_OUT,
            )
            assert isinstance(found, Repeated)
            assert found.times == expected


def test_what_has_no_certified_mechanism_is_refused() -> None:
    given_ = {"sampling_rate": 0.1, "noise_multiplier": 1.5, "steps": 3}
    with pytest.raises(UnsupportedMechanism, match="shuffled batches under add-or-remove-one"):
        training_mechanism(sampling=Sampling.SHUFFLED, **given_)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedMechanism, match="has further parameters"):
        training_mechanism(sampling=Sampling.FIXED_SIZE, **given_)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="1 for full batches"):
        training_mechanism(sampling=Sampling.FULL_BATCH, **given_)  # type: ignore[arg-type]
