"""Noisy sums: the decoded noise has the accounted distribution, and wrap-around is bounded."""

from __future__ import annotations

import math
from functools import reduce

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare
from scipy.stats import skellam as skellam_law

from dpaudit.trainer.federated.secure_aggregation.encoding import UpdateEncoding
from dpaudit.trainer.federated.secure_aggregation.messages import Phase
from dpaudit.trainer.federated.secure_aggregation.noise_shares import (
    GaussianShare,
    NoiseShare,
    SkellamShare,
    wrap_around_probability,
)
from dpaudit.trainer.federated.secure_aggregation.noisy_sum import NoisySum
from dpaudit.trainer.federated.secure_aggregation.protocol import SecureAggregation
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import NOISE_SHARES, SecureAggregationSettings
from dpaudit.vocabulary.ledger import UPDATE_SUM_AND_COUNT
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    Composed,
    DistributedDiscreteGaussian,
    Mechanism,
    Skellam,
)
from tests.trainer.federated.secure_aggregation.protocol_parts import LEAST_P_VALUE, SESSION

MANY = 1_000_000
TOLERANCE = 0.01
"""Seven standard errors of a variance over a million coordinates."""


def streams(count: int, seeds: tuple[int, ...] | None = None) -> dict[int, Keystream]:
    numbers = seeds or tuple(range(count))
    return {number: Keystream.seeded(50 + seed) for number, seed in enumerate(numbers)}


def decoded_noise(release: NoisySum, noise_streams: dict[int, Keystream]) -> NDArray[np.int64]:
    """Return the noise of a whole round: the unmasked sum of updates that are zero.

    As many participants are lost as may be, in the last phase before their input.
    """
    count, threshold = release.participants, release.threat_model.threshold
    together = SecureAggregation(release.parameters(SESSION), streams(count))
    zeros = np.zeros(release.dimension)
    inputs = {
        number: release.contribution(zeros, stream, 0) for number, stream in noise_streams.items()
    }
    return together.aggregate(
        0, inputs, lambda phase, number: phase is Phase.MASKED_INPUT and number >= threshold
    ).total


def accounted_variance(mechanism: Mechanism) -> float:
    """Return the variance of the noise that a mechanism of the ledger describes."""
    if isinstance(mechanism, Skellam):
        return mechanism.variance
    assert isinstance(mechanism, DistributedDiscreteGaussian)
    points = np.arange(-200.0, 201)
    weights = np.exp(-((points / mechanism.scale) ** 2) / 2)
    return mechanism.shares * float(points**2 @ weights / weights.sum())


def accounted_masses(mechanism: Mechanism, reach: int) -> NDArray[np.float64]:
    """Return the distribution of that noise on -reach..reach."""
    points = np.arange(-reach, reach + 1)
    if isinstance(mechanism, Skellam):
        return np.asarray(skellam_law.pmf(points, mechanism.variance / 2, mechanism.variance / 2))
    assert isinstance(mechanism, DistributedDiscreteGaussian)
    weights = np.exp(-((points / mechanism.scale) ** 2) / 2)
    one = weights / weights.sum()
    return reduce(lambda sum_, share: np.convolve(sum_, share, "same"), [one] * mechanism.shares)


def p_value(noise: NDArray[np.int64], mechanism: Mechanism) -> float:
    reach = 100
    masses = accounted_masses(mechanism, reach)
    counts = np.bincount(noise + reach, minlength=2 * reach + 1)
    kept = masses * len(noise) >= 20
    joined = [np.append(part[kept], part[~kept].sum()) for part in (counts, masses * len(noise))]
    return float(chisquare(joined[0], joined[1] * joined[0].sum() / joined[1].sum()).pvalue)


def small_noise(noise: str, *, dropouts: int = 1, colluders: int = 0) -> NoisySum:
    """Return a sum whose noise has about three steps per share."""
    settings = SecureAggregationSettings(
        dropouts=dropouts, colluders=colluders, noise=noise, modulus_bits=24, clip_levels=6
    )
    return NoisySum(settings, 4, MANY, clip_norm=1.0, noise_multiplier=1.0)


@pytest.mark.parametrize("noise", NOISE_SHARES)
def test_decoded_noise_is_the_accounted_one(noise: str) -> None:
    """With as many dropouts as allowed, and no colluder, the noise is exactly the accounted."""
    release = small_noise(noise)
    mechanism = release.releases[0][1]
    found = decoded_noise(release, streams(4))
    assert found.var() == pytest.approx(accounted_variance(mechanism), rel=TOLERANCE)
    assert p_value(found, mechanism) > LEAST_P_VALUE


@pytest.mark.parametrize("noise", NOISE_SHARES)
def test_honest_survivors_alone_add_the_accounted_noise(noise: str) -> None:
    """What a colluder knows is subtracted: its own share."""
    release = small_noise(noise, colluders=1)
    mechanism = release.releases[0][1]
    noise_streams = streams(4)
    known = release.share.draw(noise_streams[0], 0, MANY)
    found = decoded_noise(release, noise_streams) - known
    assert found.var() == pytest.approx(accounted_variance(mechanism), rel=TOLERANCE)
    assert p_value(found, mechanism) > LEAST_P_VALUE


@pytest.mark.parametrize("noise", NOISE_SHARES)
def test_planted_equal_noise_seeds_are_detected(noise: str) -> None:
    """Two participants with one noise seed: the variance is 5/3 of the accounted one."""
    release = small_noise(noise)
    mechanism = release.releases[0][1]
    found = decoded_noise(release, streams(4, (0, 0, 1, 2)))
    assert found.var() > (1 + 50 * TOLERANCE) * accounted_variance(mechanism)
    assert p_value(found, mechanism) < LEAST_P_VALUE


@pytest.mark.parametrize("noise", NOISE_SHARES)
def test_planted_noise_of_a_lost_participant_is_detected(noise: str) -> None:
    """A share for four survivors where three may be left: a quarter of the noise is missing."""
    release = small_noise(noise)
    planted = small_noise(noise, dropouts=0)
    too_small = {
        number: planted.share.draw(stream, 0, MANY) for number, stream in streams(4).items()
    }
    found = sum(too_small[number] for number in range(3))
    accounted = accounted_variance(release.releases[0][1])
    assert found.var() < (1 - 20 * TOLERANCE) * accounted


@pytest.mark.parametrize("noise", NOISE_SHARES)
def test_the_accounted_variance_is_that_of_the_settings(noise: str) -> None:
    settings = SecureAggregationSettings(dropouts=3, colluders=2, noise=noise, clip_levels=100)
    release = NoisySum(settings, 10, 5, clip_norm=0.5, noise_multiplier=0.7)
    assert release.threat_model.honest_shares == 5
    assert release.deviation == 0.35
    mechanism = release.releases[0][1]
    if isinstance(mechanism, Skellam):
        assert mechanism.variance <= 70.0**2
        assert mechanism.variance == pytest.approx(70.0**2, rel=1e-12)
    else:
        assert isinstance(mechanism, DistributedDiscreteGaussian)
        assert mechanism.shares == 5
        assert mechanism.scale == pytest.approx(70.0 / math.sqrt(5), rel=1e-12)
    assert mechanism.l2_sensitivity == release.encoding.l2_sensitivity > 100
    assert mechanism.dimension == 5


# Wrap-around.


def exact_tail(masses: NDArray[np.float64], shares: int, reach: int) -> float:
    """Return P(|S| >= reach) for a sum of shares, by convolution."""
    total = reduce(np.convolve, [masses] * shares)
    middle = len(total) // 2
    return float(2 * total[middle + reach :].sum())


@pytest.mark.parametrize("reach", [5, 12, 30])
@pytest.mark.parametrize("shares", [1, 3])
def test_the_tail_bound_exceeds_the_exact_tail(shares: int, reach: int) -> None:
    points = np.arange(-300, 301)
    weights = np.exp(-((points / 4.0) ** 2) / 2)
    gaussian, poisson = GaussianShare(4.0, 1), SkellamShare(4.0, 1)
    laws: list[tuple[NoiseShare, NDArray[np.float64]]] = [
        (gaussian, weights / weights.sum()),
        (poisson, np.asarray(skellam_law.pmf(points, 8.0, 8.0))),
    ]
    for share, masses in laws:
        exact, bound = (
            exact_tail(masses, shares, reach),
            2 * math.exp(share.log_tail(shares, reach)),
        )
        assert exact <= bound
        # Chernoff's bound is loose by a factor of about the reach in deviations.
        assert bound <= exact * 10 * (1 + reach / 4)


def test_wrap_around_is_the_union_over_coordinates() -> None:
    encoding = UpdateEncoding(1.0, 10, 1000)
    share = GaussianShare(50.0, 1)
    # The sum leaves [-512, 512) if the noise of 4 reaches 512 - 4 * 11 = 468.
    found = wrap_around_probability(share, encoding, modulus_bits=10, participants=4)
    expected = 2 * 1000 * math.exp(-(468**2) / (2 * 4 * 50**2))
    assert expected < found < expected * (1 + 1e-6)


def test_a_probability_too_small_for_a_double_is_rounded_up() -> None:
    encoding = UpdateEncoding(1.0, 10, 1000)
    found = wrap_around_probability(
        GaussianShare(1.0, 1), encoding, modulus_bits=32, participants=4
    )
    assert found == 1e-300


def test_a_modulus_that_updates_alone_exceed_is_refused() -> None:
    settings = SecureAggregationSettings(modulus_bits=16)
    with pytest.raises(InvalidArgument, match="modulus_bits must be at least 19"):
        NoisySum(settings, 3, 10, clip_norm=1.0, noise_multiplier=1.0)


def test_a_modulus_that_the_noise_exceeds_is_refused() -> None:
    settings = SecureAggregationSettings(modulus_bits=19)
    with pytest.raises(InvalidArgument, match="modulus"):
        NoisySum(settings, 3, 10, clip_norm=1.0, noise_multiplier=10.0)


@pytest.mark.parametrize("noise", NOISE_SHARES)
def test_sums_wrap_around_less_often_than_stated(noise: str) -> None:
    settings = SecureAggregationSettings(noise=noise, modulus_bits=8, clip_levels=10)
    release = NoisySum(settings, 4, 1, clip_norm=1.0, noise_multiplier=2.5)
    stated = release.wrap_around_probability
    assert 1e-4 < stated < 0.5
    shares = [release.share.draw(stream, 0, MANY) for stream in streams(4).values()]
    outside = np.abs(sum(shares) + 4 * release.encoding.largest_entry) >= 2**7
    assert outside.mean() < stated


@pytest.mark.parametrize("noise", NOISE_SHARES)
def test_releases_are_mechanisms_with_a_round_trip(noise: str) -> None:
    settings = SecureAggregationSettings(dropouts=1, noise=noise)
    release = NoisySum(settings, 4, 100, clip_norm=1.0, noise_multiplier=1.0)
    mechanism = release.released_mechanism
    assert msgspec.json.decode(msgspec.json.encode(mechanism), type=Composed) == mechanism
    assert mechanism.mechanisms[1] == ApproximateDP(0.0, release.wrap_around_probability)


@pytest.mark.parametrize(("dropouts", "colluders"), [(4, 0), (0, 4), (2, 2), (1, 3)])
def test_settings_without_an_honest_survivor_are_refused(dropouts: int, colluders: int) -> None:
    settings = SecureAggregationSettings(dropouts=dropouts, colluders=colluders)
    with pytest.raises(InvalidArgument, match=r"dropouts|colluders"):
        NoisySum(settings, 4, 10, clip_norm=1.0, noise_multiplier=1.0)


@pytest.mark.parametrize("noise", NOISE_SHARES)
def test_a_count_has_the_noise_and_the_cost_of_its_settings(noise: str) -> None:
    """1/z^2 = 1/z_sum^2 + 1/(2 sigma_b)^2, up to rounding (Andrew et al. 2021, Theorem 1)."""
    settings = SecureAggregationSettings(dropouts=2, colluders=1, noise=noise, clip_levels=2**14)
    release = NoisySum(settings, 8, 100, 1.0, 3.0, count_noise=4.0)
    steps, deviation = release.count_steps, 3.0 * 2**14
    assert deviation / (2 * steps) <= 4.0 < deviation / (2 * (steps - 1))
    (name, mechanism), _ = release.releases
    assert name == UPDATE_SUM_AND_COUNT
    assert isinstance(mechanism, DistributedDiscreteGaussian | Skellam)
    assert mechanism.dimension == 101
    whole = 1 / math.sqrt(1 / 3.0**2 + 1 / 8.0**2)
    # The limit of the rounded norm exceeds L^2 by at most d/4 + L + sqrt(d)/2.
    assert deviation / mechanism.l2_sensitivity == pytest.approx(whole, rel=1e-4)
    assert deviation / mechanism.l2_sensitivity <= whole


def test_a_count_has_noise_of_its_own_in_every_round() -> None:
    settings = SecureAggregationSettings(dropouts=1)
    release = NoisySum(settings, 4, 3, 1.0, 2.0, count_noise=5.0)
    rounds = 200
    counts = []
    for number in range(rounds):
        inputs = [release.contribution(np.zeros(3), one, number) for one in streams(4).values()]
        counts.append(release.decode_count(np.sum(inputs, axis=0)))
    # All four are within the clip norm: 4/2. Four shares, of which three have the variance.
    error = math.sqrt(4 / 3) * 5.0 / math.sqrt(rounds)
    assert abs(np.mean(np.array(counts) - 2.0)) < 6 * error
    # A chi-square of 199 degrees; six standard errors of sqrt(2 / rounds) are exceeded in 2e-7.
    assert np.var(counts) == pytest.approx(4 / 3 * 25, rel=6 * math.sqrt(2 / rounds))


def test_a_count_that_may_wrap_around_is_refused() -> None:
    settings = SecureAggregationSettings(modulus_bits=20, clip_levels=2**12)
    NoisySum(settings, 8, 100, 1.0, 1.0, count_noise=1.0)
    with pytest.raises(InvalidArgument, match="modulus_bits"):
        NoisySum(settings, 8, 100, 1.0, 1.0, count_noise=0.01)
