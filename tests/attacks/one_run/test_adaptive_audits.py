"""Revealed coins remove the interference of canaries in one run."""

import numpy as np
import pytest

from dpaudit.attacks.one_run import (
    InterferingSum,
    adaptive_guesses,
    audit_interfering_sums,
    simultaneous_guesses,
)
from dpaudit.attacks.one_run.recomputation import greatest_epsilon, recompute_bound
from dpaudit.vocabulary.errors import InvalidArgument


def noisy_sum(canaries: int, dimension: int, noise: float, seed: int) -> InterferingSum:
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(canaries, dimension))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    included = rng.random(canaries) < 0.5
    released = included @ directions + noise * rng.standard_normal(dimension)
    return InterferingSum(directions @ released, directions @ directions.T, included)


def test_revealed_coins_make_more_guesses_right_where_canaries_interfere() -> None:
    crowded = [noisy_sum(200, 100, 0.1, seed) for seed in range(5)]
    right = {
        guess.__name__: np.mean([(guess(one) == one.included).mean() for one in crowded])
        for guess in (simultaneous_guesses, adaptive_guesses)
    }
    assert right["adaptive_guesses"] > right["simultaneous_guesses"] + 0.05


def test_canaries_that_do_not_interfere_are_guessed_alike() -> None:
    rng = np.random.default_rng(0)
    included = rng.random(50) < 0.5
    observed = InterferingSum(included + rng.normal(size=50), np.eye(50), included)
    assert observed.interference == 0
    assert (adaptive_guesses(observed) == simultaneous_guesses(observed)).all()


def test_a_coin_is_not_read_before_its_guess() -> None:
    observed = noisy_sum(30, 20, 0.3, 1)
    for number in range(30):
        flipped = observed.included.copy()
        flipped[number:] ^= True
        other = InterferingSum(observed.correlations, observed.products, flipped)
        assert (
            adaptive_guesses(other)[: number + 1] == adaptive_guesses(observed)[: number + 1]
        ).all()


def test_the_bound_follows_from_its_counts() -> None:
    result = audit_interfering_sums(noisy_sum(200, 400, 0.1, 2), delta=1e-5, confidence=0.95)
    again = recompute_bound(result, lambda: None)
    assert again is not None
    assert again.epsilon == result.epsilon_lower > 0
    assert greatest_epsilon(result) == result.greatest_epsilon


def test_shapes_must_fit() -> None:
    with pytest.raises(InvalidArgument, match="canaries"):
        InterferingSum(np.zeros(3), np.eye(2), np.zeros(2, dtype=bool))
