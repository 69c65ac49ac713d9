"""Banded matrices under balls in bins: the bracket against sampled likelihood ratios."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from dpaudit.accountants import naive, pld, rdp
from dpaudit.accountants.releases import binned_from_above, binned_from_below
from dpaudit.vocabulary.errors import InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    BinnedMatrixFactorization,
    Gaussian,
    RandomAllocation,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency

SAMPLES = 60_000


def columns(steps: int, bands: int) -> np.ndarray:
    """Return the banded Toeplitz matrix of (1 - x)^(-1/2), with columns of norm at most 1."""
    series = [1.0]
    for k in range(1, bands):
        series.append(series[-1] * (2 * k - 1) / (2 * k))
    column = np.array(series) / math.hypot(*series)
    matrix = np.zeros((steps, steps))
    for t in range(steps):
        part = column[: steps - t]
        matrix[t : t + len(part), t] = part
    return matrix


def sampled_delta(
    epsilon: float, noise: float, steps: int, bands: int, bins: int
) -> tuple[float, float]:
    """Estimate the removed delta from samples of the pair, with its standard error."""
    draw = np.random.default_rng(11)
    matrix = columns(steps, bands)
    means = np.array([matrix[:, i::bins].sum(axis=1) for i in range(bins)])
    mine = draw.integers(bins, size=SAMPLES)
    output = means[mine] + noise * draw.standard_normal((SAMPLES, steps))
    exponents = (output @ means.T - 0.5 * (means**2).sum(axis=1)) / noise**2
    losses = np.log(np.exp(exponents).mean(axis=1))
    values = np.maximum(0.0, -np.expm1(epsilon - losses))
    return float(values.mean()), float(values.std() / math.sqrt(SAMPLES))


@pytest.mark.parametrize(
    ("noise", "steps", "bands", "bins"), [(1.0, 24, 3, 6), (2.0, 40, 4, 8), (1.5, 30, 2, 10)]
)
def test_a_sampled_delta_lies_inside(noise: float, steps: int, bands: int, bins: int) -> None:
    mechanism = BinnedMatrixFactorization(Gaussian(noise), steps, bands, bins)
    for epsilon in (0.5, 2.0):
        found = pld.profile(mechanism).delta(epsilon=epsilon)
        truth, error = sampled_delta(epsilon, noise, steps, bands, bins)
        assert found.lower <= truth + 5 * error
        assert truth - 5 * error <= found.upper


def test_one_band_is_one_pass_with_less_noise() -> None:
    binned = pld.profile(BinnedMatrixFactorization(Gaussian(2.0), 200, 1, 50)).epsilon(delta=1e-5)
    alone = pld.profile(RandomAllocation(Gaussian(1.0), 50)).epsilon(delta=1e-5)
    assert binned.lower <= alone.upper
    assert alone.lower <= binned.upper
    assert binned.upper - binned.lower <= 2e-3 * binned.upper


def test_both_sides_of_the_bracket() -> None:
    release = BinnedMatrixFactorization(Gaussian(2.0), 403, 4, 100)
    above, below = binned_from_above(release), binned_from_below(release)
    assert (above.steps, below.steps) == (25, 100)
    assert 2 / math.sqrt(5) * (1 - 1e-11) < above.mechanism.noise_multiplier < 2 / math.sqrt(5)
    assert 1.0 < below.mechanism.noise_multiplier < 1 + 1e-11
    assert binned_from_below(BinnedMatrixFactorization(Gaussian(2.0), 102, 4, 100)) is None
    assert binned_from_above(BinnedMatrixFactorization(Gaussian(2.0), 8, 5, 8)) == Gaussian(2.0)


def test_other_accountants_give_upper_bounds() -> None:
    mechanism = BinnedMatrixFactorization(Gaussian(2.0), 400, 4, 100)
    found = pld.profile(mechanism).epsilon(delta=1e-6)
    assert found.lower > 0
    for accountant in (naive, rdp):
        assert found.upper <= accountant.profile(mechanism).epsilon(delta=1e-6).upper * (1 + 1e-6)


def test_overlapping_columns_are_refused_with_a_reference() -> None:
    with pytest.raises(InvalidArgument, match=r"arXiv:2410\.06266"):
        BinnedMatrixFactorization(Gaussian(1.0), 100, 8, 7)


def test_noise_for_replaced_records_is_refused_where_records_are_removed() -> None:
    noise = Gaussian(1.0, set_for=Adjacency.REPLACE_ONE)
    with pytest.raises(UnsupportedMechanism, match="replace-one"):
        pld.profile(BinnedMatrixFactorization(noise, 100, 2, 10))


def test_json_round_trip() -> None:
    mechanism = Repeated(BinnedMatrixFactorization(Gaussian(1.0), 100, 2, 10), 2)
    assert msgspec.json.decode(msgspec.json.encode(mechanism), type=Repeated) == mechanism
