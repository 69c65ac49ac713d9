"""Evidence that grows with the steps: it rarely convicts the innocent, however long one looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, logit

from dpaudit.attacks.sequential_audit import NULL_FACTORS, SequentialTest, largest_payoff_means
from dpaudit.vocabulary.errors import InvalidArgument

RATE, NOISE = 0.1, 1.76


def steps_until_refuted(
    rng: np.random.Generator, factor: float, canaries: int, most: int, confidence: float = 0.95
) -> int | None:
    watch = SequentialTest(confidence)
    for step in range(1, most + 1):
        joined = rng.random(canaries) < RATE
        shown = joined + factor * NOISE * rng.standard_normal(canaries)
        watch.update(shown, joined, sampling_rate=RATE, noise_multiplier=NOISE)
        if watch.refutes_claim:
            return step
    return None


def test_a_true_claim_is_rarely_refuted_though_one_looks_after_every_step() -> None:
    rng = np.random.default_rng(1)
    refuted = [steps_until_refuted(rng, 1.0, 30, 40) is not None for _ in range(60)]
    assert np.mean(refuted) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


@pytest.mark.slow
def test_a_true_claim_is_refuted_at_most_at_the_nominal_rate_at_length() -> None:
    rng = np.random.default_rng(2)
    refuted = [steps_until_refuted(rng, 1.0, 40, 100) is not None for _ in range(600)]
    assert np.mean(refuted) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize(("factor", "most"), [(0.8, 120), (0.5, 15), (0.2, 4)])
def test_less_noise_stops_the_run_early(factor: float, most: int) -> None:
    rng = np.random.default_rng(3)
    assert steps_until_refuted(rng, factor, 100, most) is not None


def test_more_noise_than_claimed_refutes_no_claim() -> None:
    assert steps_until_refuted(np.random.default_rng(4), 1.5, 100, 60) is None


def test_what_is_refuted_is_more_noise_than_there_is() -> None:
    rng, watch, factor = np.random.default_rng(5), SequentialTest(0.95), 0.5
    for _ in range(60):
        joined = rng.random(100) < RATE
        shown = joined + factor * NOISE * rng.standard_normal(100)
        watch.update(shown, joined, sampling_rate=RATE, noise_multiplier=NOISE)
    found = watch.refuted_noise_factor
    assert found is not None
    assert factor < found < 0.75


@pytest.mark.parametrize("number", [0, 30, 48, 77])
def test_the_largest_mean_is_the_mutual_information_by_simulation(number: int) -> None:
    rng, size = np.random.default_rng(6), 400_000
    noise = float(NULL_FACTORS[number]) * NOISE
    joined = rng.random(size) < RATE
    x = joined + noise * rng.standard_normal(size)
    posterior = expit(logit(RATE) + (2 * x - 1) / (2 * noise**2))
    pays = np.where(joined, np.log(posterior / RATE), np.log((1 - posterior) / (1 - RATE)))
    truth = largest_payoff_means(RATE, NOISE)[number]
    assert abs(pays.mean() - truth) <= 5 * pays.std() / math.sqrt(size) + 1e-6


def test_more_noise_never_raises_the_largest_mean() -> None:
    assert (np.diff(largest_payoff_means(RATE, NOISE)) <= 1e-12).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(InvalidArgument, match="finite"):
        SequentialTest(0.9).update(
            np.array([bad]), np.array([True]), sampling_rate=0.1, noise_multiplier=1.0
        )


def test_where_every_record_joins_there_is_no_coin_to_bet_on() -> None:
    with pytest.raises(InvalidArgument, match="sampling_rate"):
        SequentialTest(0.9).update(
            np.zeros(1), np.array([True]), sampling_rate=1.0, noise_multiplier=1.0
        )
