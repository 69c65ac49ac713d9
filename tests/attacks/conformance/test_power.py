"""The stated power is attained, and false alarms are at most as frequent as stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpaudit.attacks import conformance
from dpaudit.attacks.conformance import statistical_tests
from dpaudit.attacks.conformance.statistical_tests import (
    LEVEL,
    LEVEL_PER_FINDING,
    STATISTICAL_FINDINGS,
)
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.reference_trainer import CLAIM, LITTLE, Plain, records, scaled

REPETITIONS = 2000
# 95 in 100, within what chance does to so many repetitions once in 10,000 times.
ABOUT = 3.9 * math.sqrt(0.95 * 0.05 / REPETITIONS)


def test_the_shares_of_all_findings_are_no_more_than_the_level() -> None:
    result = conformance.check(Plain, CLAIM, records=records(), effort=LITTLE)
    shares = [finding.level for finding in result.findings if finding.level is not None]
    assert len(shares) <= STATISTICAL_FINDINGS
    assert (
        STATISTICAL_FINDINGS * LEVEL_PER_FINDING
        <= LEVEL * (1 + 1e-12)
        == result.level * (1 + 1e-12)
    )


@pytest.mark.parametrize("samples", [100, 3_000, 57_000])
def test_detectable_scale_has_95_percent_power(samples: int) -> None:
    rng = np.random.default_rng(samples)
    factor = 1 - statistical_tests.detectable_scale(samples, LEVEL_PER_FINDING)
    sums = factor**2 * rng.chisquare(samples, REPETITIONS)
    seen = (
        statistical_tests.variance_p_values(sums, np.full(REPETITIONS, samples))
        <= LEVEL_PER_FINDING
    ).mean()
    assert seen == pytest.approx(0.95, abs=ABOUT)


@pytest.mark.parametrize("pairs", [200, 20_000])
def test_detectable_correlation_has_about_95_percent_power(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    true = statistical_tests.detectable_correlation(pairs, LEVEL_PER_FINDING)
    found = np.empty(REPETITIONS)
    for i in range(REPETITIONS):
        one, other = rng.normal(size=(2, pairs))
        other = true * one + math.sqrt(1 - true**2) * other
        found[i] = one @ other / math.sqrt((one @ one) * (other @ other))
    seen = (statistical_tests.correlation_p_values(found, pairs) <= LEVEL_PER_FINDING).mean()
    assert seen == pytest.approx(0.95, abs=ABOUT + 0.01)  # Fisher's z is an approximation


@pytest.mark.parametrize(("trials", "rate"), [(60, 0.25), (5_000, 0.05)])
def test_detectable_rate_has_95_percent_power(trials: int, rate: float) -> None:
    rng = np.random.default_rng(trials)
    counts = rng.binomial(
        trials, statistical_tests.detectable_rate(trials, rate, LEVEL_PER_FINDING), REPETITIONS
    )
    seen = (statistical_tests.binomial_p_values(counts, trials, rate) <= LEVEL_PER_FINDING).mean()
    assert seen == pytest.approx(0.95, abs=ABOUT)


@given(st.integers(2, 400), st.floats(1e-4, 0.3), st.integers(0, 2**32))
@settings(max_examples=30)
def test_p_values_are_valid(n: int, level: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    repetitions = 400
    one, other = rng.normal(size=(2, repetitions, n))
    correlations = (one * other).sum(axis=1) / np.sqrt(
        (one**2).sum(axis=1) * (other**2).sum(axis=1)
    )
    for p_values in (
        statistical_tests.variance_p_values((one**2).sum(axis=1), np.full(repetitions, n)),
        statistical_tests.correlation_p_values(correlations, n),
        statistical_tests.binomial_p_values(rng.binomial(n, 0.2, repetitions), n, 0.2),
        np.array([statistical_tests.uniform_p_value(row)[1] for row in stats.norm.cdf(one)]),
    ):
        refuted = int((p_values <= level).sum())
        assert stats.binom.sf(refuted - 1, repetitions, level) > 1e-7


def test_unavoidable_records_cause_no_false_alarm() -> None:
    """The upper tail is noncentral chi-square, which allows for what records may add."""
    rng = np.random.default_rng(4)
    steps, dimension, noise = 50, 5, 0.5
    rows = rng.normal(size=(1000, steps, dimension))
    rows[:, :, 0] += 1 / noise  # the clip norm, in standard deviations
    sums = np.square(rows).sum(axis=(1, 2))
    samples = np.full(len(sums), steps * dimension)
    assert (statistical_tests.variance_p_values(sums, samples) <= 0.01).mean() > 0.5
    assert (
        statistical_tests.variance_p_values(sums, samples, steps / noise**2) <= 0.01
    ).mean() < 0.02


def audited(factor: float, seed: int) -> conformance.ConformanceResult:
    return conformance.check(scaled(factor), CLAIM, records=records(), effort=LITTLE, seed=seed)


@pytest.mark.slow
def test_audit_detects_low_noise_at_the_stated_power() -> None:
    """A whole audit, with the noise reduced by the amount that the audit states as detectable."""
    (scale,) = [f for f in audited(1.0, 0).findings if f.name == "scale"]
    assert scale.detectable is not None
    audits = 200
    seen = sum(
        any(f.name == "scale" for f in audited(1 - scale.detectable, seed).violations)
        for seed in range(audits)
    )
    assert stats.binomtest(seen, audits, 0.95).pvalue > 1e-3


@pytest.mark.slow
def test_at_most_one_false_alarm_in_a_thousand_clean_audits() -> None:
    verdicts = [audited(1.0, seed).verdict for seed in range(1000)]
    assert verdicts.count(Outcome.INCONCLUSIVE) == 0
    assert verdicts.count(Outcome.FAIL) <= 1
