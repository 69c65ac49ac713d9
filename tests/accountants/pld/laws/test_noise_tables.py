"""Tables of Skellam noise and of sums of discrete Gaussians, against multi-precision sums."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import skellam

from dpaudit.accountants.pld.laws import noise_tables
from dpaudit.accountants.pld.laws.noise_tables import noise_reach, noise_table
from dpaudit.vocabulary.errors import Unresolvable
from dpaudit.vocabulary.mechanism import DistributedDiscreteGaussian, Skellam

few = settings(max_examples=25, deadline=None, derandomize=True)


def one_skellam(variance: float) -> Skellam:
    return Skellam(variance, 1.0, 1.0, 1)


def one_sum(scale: float, shares: int) -> DistributedDiscreteGaussian:
    return DistributedDiscreteGaussian(scale, shares, 1.0, 1.0, 1)


def exact_sum_ratios(scale: float, shares: int, reach: int) -> list[float]:
    """Return log p(k)/p(0) of a sum, k = 0..reach, in 60 digits."""
    with mpmath.workdps(60):
        width = reach + 30
        one = [
            mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * mpmath.mpf(scale) ** 2))
            for x in range(-width, width + 1)
        ]
        total = one
        for _ in range(shares - 1):
            total = [
                mpmath.fsum(
                    total[i] * one[j - i + width]
                    for i in range(len(total))
                    if 0 <= j - i + width < len(one)
                )
                for j in range(len(total))
            ]
        return [float(mpmath.log(total[width + k] / total[width])) for k in range(reach + 1)]


@pytest.mark.parametrize("variance", [1e-3, 0.3, 2.0, 77.7, 1e4])
def test_skellam_masses_agree_with_bessel_functions(variance):
    table = noise_table(one_skellam(variance), 1)
    for k in np.unique(np.geomspace(1, len(table.log_masses) - 1, 12).astype(int)):
        with mpmath.workdps(40):
            one, zero = (mpmath.besseli(n, variance, maxterms=10**6) for n in (int(k), 0))
            truth = mpmath.log(one / zero)
            apart = mpmath.mpf(table.log_masses[k]) - mpmath.mpf(table.log_masses[0]) - truth
        assert abs(float(apart)) <= 2 * table.log_error
    assert table.log_error < 1e-8


@pytest.mark.parametrize(("scale", "shares"), [(0.6, 2), (1.0, 3), (1.3, 4)])
def test_summed_masses_agree_with_a_multi_precision_convolution(scale, shares):
    reach = int(5 * scale * shares**0.5)
    table = noise_table(one_sum(scale, shares), 1)
    for k, truth in enumerate(exact_sum_ratios(scale, shares, reach)):
        assert abs(table.log_masses[k] - table.log_masses[0] - truth) <= 2 * table.log_error


@few
@given(st.floats(1e-3, 1e5), st.integers(1, 30))
def test_tables_are_log_concave_distributions(variance, shift):
    table = noise_table(one_skellam(variance), shift)
    masses = np.exp(table.log_masses)
    assert masses[0] + 2 * masses[1:].sum() == pytest.approx(1, abs=1e-12)
    assert (np.diff(table.log_masses, n=2) <= 4 * table.log_error).all()
    assert (np.diff(table.log_masses) < 0).all()


@few
@given(st.floats(1e-2, 1e5), st.floats(1e-12, 0.1))
def test_little_noise_exceeds_its_reach(variance, tail):
    reach = noise_reach(one_skellam(variance), tail)
    assert 2 * skellam.sf(reach, variance / 2, variance / 2) <= tail * (1 + 1e-6)


def test_a_table_that_is_too_long_is_refused():
    with pytest.raises(Unresolvable, match="use the accountant rdp"):
        noise_table(one_skellam(1e12), 1)
    with pytest.raises(Unresolvable, match="underflows"):
        noise_table(one_sum(0.1, 2), 1)


def test_a_planted_coarse_start_of_the_recurrence_is_detected(monkeypatch):
    """The recurrence that starts at the table's end has an error, and says so."""
    monkeypatch.setattr(noise_tables, "BESSEL_MARGIN", 0)
    with pytest.raises(Unresolvable, match="double precision"):
        noise_tables._skellam_table(1e4, 300)
