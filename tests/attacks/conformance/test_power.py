"""A power that is printed is had; and false alarms are as rare as is said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpaudit.attacks import conformance
from dpaudit.attacks.conformance import tails
from dpaudit.attacks.conformance.effort import EACH, LEVEL, STATISTICAL_FINDINGS
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.plain import CLAIM, LITTLE, Plain, records, scaled

REPETITIONS = 2000
# 95 in 100, within what chance does to so many repetitions once in 10,000 times.
ABOUT = 3.9 * math.sqrt(0.95 * 0.05 / REPETITIONS)


def test_the_shares_of_all_findings_are_no_more_than_the_level() -> None:
    result = conformance.check(Plain, CLAIM, records=records(), effort=LITTLE)
    shares = [finding.level for finding in result.findings if finding.level is not None]
    assert len(shares) <= STATISTICAL_FINDINGS
    assert STATISTICAL_FINDINGS * EACH <= LEVEL * (1 + 1e-12) == result.level * (1 + 1e-12)


@pytest.mark.parametrize("samples", [100, 3_000, 57_000])
def test_noise_that_is_as_much_too_low_as_is_printed_is_seen_95_times_in_100(samples: int) -> None:
    rng = np.random.default_rng(samples)
    factor = 1 - tails.detectable_scale(samples, EACH)
    sums = factor**2 * rng.chisquare(samples, REPETITIONS)
    seen = (tails.scale_p_values(sums, np.full(REPETITIONS, samples)) <= EACH).mean()
    assert seen == pytest.approx(0.95, abs=ABOUT)


@pytest.mark.parametrize("pairs", [200, 20_000])
def test_a_correlation_that_is_printed_is_seen_about_95_times_in_100(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    true = tails.detectable_correlation(pairs, EACH)
    found = np.empty(REPETITIONS)
    for i in range(REPETITIONS):
        one, other = rng.normal(size=(2, pairs))
        other = true * one + math.sqrt(1 - true**2) * other
        found[i] = one @ other / math.sqrt((one @ one) * (other @ other))
    seen = (tails.correlation_p_values(found, pairs) <= EACH).mean()
    assert seen == pytest.approx(0.95, abs=ABOUT + 0.01)  # Fisher's z is an approximation


@pytest.mark.parametrize(("trials", "rate"), [(60, 0.25), (5_000, 0.05)])
def test_a_rate_that_is_printed_is_seen_95_times_in_100(trials: int, rate: float) -> None:
    rng = np.random.default_rng(trials)
    counts = rng.binomial(trials, tails.detectable_rate(trials, rate, EACH), REPETITIONS)
    seen = (tails.binomial_p_values(counts, trials, rate) <= EACH).mean()
    assert seen == pytest.approx(0.95, abs=ABOUT)


@given(st.integers(2, 400), st.floats(1e-4, 0.3), st.integers(0, 2**32))
@settings(max_examples=30)
def test_p_values_are_no_smaller_than_they_may_be(n: int, level: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    repetitions = 400
    one, other = rng.normal(size=(2, repetitions, n))
    correlations = (one * other).sum(axis=1) / np.sqrt(
        (one**2).sum(axis=1) * (other**2).sum(axis=1)
    )
    for p_values in (
        tails.scale_p_values((one**2).sum(axis=1), np.full(repetitions, n)),
        tails.correlation_p_values(correlations, n),
        tails.binomial_p_values(rng.binomial(n, 0.2, repetitions), n, 0.2),
        np.array([tails.uniform_p_value(row)[1] for row in stats.norm.cdf(one)]),
    ):
        refuted = int((p_values <= level).sum())
        assert stats.binom.sf(refuted - 1, repetitions, level) > 1e-7


def test_records_that_cannot_be_left_out_do_not_raise_the_alarm_on_honest_noise() -> None:
    """The upper tail allows for as much as the records may add: the noncentral chi-square."""
    rng = np.random.default_rng(4)
    steps, dimension, noise = 50, 5, 0.5
    rows = rng.normal(size=(1000, steps, dimension))
    rows[:, :, 0] += 1 / noise  # the clip norm, in standard deviations
    sums = np.square(rows).sum(axis=(1, 2))
    samples = np.full(len(sums), steps * dimension)
    assert (tails.scale_p_values(sums, samples) <= 0.01).mean() > 0.5
    assert (tails.scale_p_values(sums, samples, steps / noise**2) <= 0.01).mean() < 0.02


def audited(factor: float, seed: int) -> conformance.ConformanceResult:
    return conformance.check(scaled(factor), CLAIM, records=records(), effort=LITTLE, seed=seed)


@pytest.mark.slow
def test_an_audit_sees_noise_that_is_as_low_as_it_says_95_times_in_100() -> None:
    """From a trainer to a verdict, with just that much noise missing as the audit prints."""
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
    assert verdicts.count(Outcome.VIOLATED) <= 1
