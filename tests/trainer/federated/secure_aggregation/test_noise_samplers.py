"""Samplers of noise shares: exact distributions, whatever the floats decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chisquare, poisson, skellam

from dpaudit.trainer.federated.secure_aggregation import discrete_gaussian
from dpaudit.trainer.federated.secure_aggregation import skellam as skellam_module
from dpaudit.trainer.federated.secure_aggregation.discrete_gaussian import discrete_gaussians
from dpaudit.trainer.federated.secure_aggregation.skellam import poissons, skellams
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument
from tests.trainer.federated.secure_aggregation.protocol_parts import LEAST_P_VALUE

STREAM = Keystream.seeded(16)
ONE, OTHER = Purpose.NOISE_SHARE, Purpose.NOISE_SHARE_SUBTRAHEND
DRAWS = 1_000_000


def gaussian_masses(scale: float, reach: int) -> NDArray[np.float64]:
    """Return the mass of the discrete Gaussian at -reach..reach."""
    weights = np.exp(-((np.arange(-reach, reach + 1) / scale) ** 2) / 2)
    return np.asarray(weights / weights.sum())


def p_value(draws: NDArray[np.int64], masses: NDArray[np.float64], reach: int) -> float:
    """Return the chi-square p-value, with cells of few expected draws joined at both ends."""
    counts = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)
    expected = masses * len(draws)
    inner = np.flatnonzero(expected >= 20)
    low, high = inner[0], inner[-1]
    joined = [
        np.concatenate([[part[: low + 1].sum()], part[low + 1 : high], [part[high:].sum()]])
        for part in (counts, expected)
    ]
    return float(chisquare(joined[0], joined[1] * joined[0].sum() / joined[1].sum()).pvalue)


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.0, 3.3, 40.0])
def test_discrete_gaussian_has_its_distribution(scale: float) -> None:
    draws = discrete_gaussians(STREAM, ONE, 1, scale, DRAWS)
    reach = math.ceil(12 * scale) + 2
    assert p_value(draws, gaussian_masses(scale, reach), reach) > LEAST_P_VALUE


@pytest.mark.parametrize("scale", [0.4, 5.0, 1e6, 2.0**40])
def test_discrete_gaussian_has_mean_and_variance(scale: float) -> None:
    """Five standard errors: a false alarm has a chance below 1e-6 per statistic."""
    draws = discrete_gaussians(STREAM, ONE, 2, scale, DRAWS)
    masses = gaussian_masses(scale, 40) if scale < 3 else None
    variance = scale**2 if masses is None else float(masses @ np.arange(-40, 41) ** 2)
    fourth = 3 * scale**4 if masses is None else float(masses @ np.arange(-40.0, 41) ** 4)
    assert abs(draws.mean()) < 5 * math.sqrt(variance / DRAWS)
    spread = math.sqrt((fourth - variance**2) / DRAWS)
    assert abs((draws.astype(np.float64) ** 2).mean() - variance) < 5 * spread


@pytest.mark.parametrize("variance", [0.3, 1.0, 30.0, 5000.0])
def test_skellam_has_its_distribution(variance: float) -> None:
    draws = skellams(STREAM, ONE, OTHER, 3, variance, DRAWS)
    reach = math.ceil(12 * math.sqrt(variance)) + 12
    masses = skellam.pmf(np.arange(-reach, reach + 1), variance / 2, variance / 2)
    assert p_value(draws, masses, reach) > LEAST_P_VALUE


@pytest.mark.parametrize("variance", [0.3, 1e6, 2.0**28])
def test_skellam_has_mean_and_variance(variance: float) -> None:
    draws = skellams(STREAM, ONE, OTHER, 4, variance, DRAWS).astype(np.float64)
    assert abs(draws.mean()) < 5 * math.sqrt(variance / DRAWS)
    spread = math.sqrt((2 * variance**2 + variance) / DRAWS)
    assert abs((draws**2).mean() - variance) < 5 * spread


def test_exact_comparisons_give_the_draws_that_floats_give(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a margin of 1/4, exact arithmetic decides every second candidate or more."""
    expected = [discrete_gaussians(STREAM, ONE, 5, scale, 40) for scale in (0.7, 9.5)]
    monkeypatch.setattr(discrete_gaussian, "CANDIDATES", 2**8)
    by_floats = [discrete_gaussians(STREAM, ONE, 5, scale, 100) for scale in (0.7, 9.5)]
    monkeypatch.setattr(discrete_gaussian, "MARGIN", 0.25)
    monkeypatch.setattr(discrete_gaussian, "RARE_WORD", 2**63)
    exact = [discrete_gaussians(STREAM, ONE, 5, scale, 100) for scale in (0.7, 9.5)]
    np.testing.assert_array_equal(exact, by_floats)
    assert [len(one) for one in expected] == [40, 40]


@pytest.mark.parametrize("mean", [0.4, 6.0, 300.0])
def test_exact_poisson_sums_give_the_draws_of_the_table(
    mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_table = poissons(STREAM, ONE, 6, mean, 100)
    monkeypatch.setattr(skellam_module, "MARGIN", 2.0)
    np.testing.assert_array_equal(poissons(STREAM, ONE, 6, mean, 100), by_table)


def test_rare_words_are_decided_by_further_bits() -> None:
    """A word of zeros stands for every number below 2^-64."""
    chunk = discrete_gaussian._Chunk(np.zeros(3, np.uint64), STREAM, ONE, 0, 0)
    assert chunk._geometric()[0] >= 44
    values, undecided = skellam_module._by_table(np.array([0, 2**64 - 1], dtype=np.uint64), 1e4)
    assert undecided.all()
    assert len(values) == 2


def test_first_draws_do_not_depend_on_the_number_of_draws() -> None:
    for draw in (
        lambda count: discrete_gaussians(STREAM, ONE, 7, 12.0, count),
        lambda count: skellams(STREAM, ONE, OTHER, 7, 12.0, count),
    ):
        np.testing.assert_array_equal(draw(50_000)[:100], draw(100))


def test_draws_of_two_rounds_and_two_seeds_differ() -> None:
    def draw(seed: int, step: int) -> bytes:
        return discrete_gaussians(Keystream.seeded(seed), ONE, step, 1e6, 10).tobytes()

    assert len({draw(0, 0), draw(0, 1), draw(1, 0)}) == 3


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 2.0**41])
def test_an_invalid_scale_is_refused(scale: float) -> None:
    with pytest.raises(InvalidArgument, match="scale"):
        discrete_gaussians(STREAM, ONE, 0, scale, 1)


@pytest.mark.parametrize("variance", [0.0, math.nan, math.inf, 2.0**33])
def test_an_invalid_variance_is_refused(variance: float) -> None:
    with pytest.raises(InvalidArgument, match="variance"):
        skellams(STREAM, ONE, OTHER, 0, variance, 1)


def test_no_draws_are_an_empty_array() -> None:
    assert discrete_gaussians(STREAM, ONE, 0, 1.0, 0).shape == (0,)
    assert skellams(STREAM, ONE, OTHER, 0, 1.0, 0).shape == (0,)


def test_poisson_quantiles_match_those_of_scipy() -> None:
    words = STREAM.words(ONE, 8, 1000)
    uniforms = words * 2.0**-64
    np.testing.assert_array_equal(poissons(STREAM, ONE, 8, 37.5, 1000), poisson.ppf(uniforms, 37.5))
