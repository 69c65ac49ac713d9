"""The bound for guesses that may use earlier coins."""

import numpy as np
import pytest

from dpaudit.attacks.bounds import adaptive_one_run, adaptive_p_value, one_run


def test_the_p_value_rises_with_epsilon_and_falls_with_right_guesses() -> None:
    values = [
        adaptive_p_value(epsilon=e, canaries=500, guesses=100, correct=80, delta=1e-4)
        for e in np.linspace(0, 3, 20)
    ]
    assert values == sorted(values)
    assert adaptive_p_value(
        epsilon=1.0, canaries=500, guesses=100, correct=90, delta=1e-4
    ) <= adaptive_p_value(epsilon=1.0, canaries=500, guesses=100, correct=80, delta=1e-4)


def test_without_delta_it_is_the_bound_of_one_run() -> None:
    counts = {"canaries": 300, "guesses": 100, "correct": 85, "delta": 0.0, "confidence": 0.95}
    assert adaptive_one_run(**counts).epsilon == pytest.approx(one_run(**counts).epsilon, abs=1e-9)


def test_too_few_right_guesses_give_no_bound() -> None:
    bound = adaptive_one_run(canaries=50, guesses=50, correct=25, delta=1e-5, confidence=0.95)
    assert bound.epsilon == 0


def adaptive_guesses_of_a_noisy_sum(epsilon: float, seed: int) -> tuple[int, int]:
    """Return guesses and right ones: a sum of all coins with Laplace noise, coins revealed."""
    rng = np.random.default_rng(seed)
    coins = rng.random(40) < 0.5
    noisy = coins.sum() + rng.laplace(scale=1 / epsilon)
    # Only the last coin can be told from the others: its rest is known then.
    guess = noisy - coins[:-1].sum() > 0.5
    return 1, int(guess == coins[-1])


@pytest.mark.parametrize("repetitions", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_false_bounds_stay_within_the_level(repetitions) -> None:
    level, false = 0.05, 0
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        # 40 groups, each a pure 1-DP noisy sum of 5 coins, guessed one after the other.
        coins = rng.random((40, 5)) < 0.5
        noisy = coins.sum(axis=1) + rng.laplace(scale=1.0, size=40)
        known = np.cumsum(coins, axis=1) - coins
        left = 4 - np.arange(5)
        guesses = noisy[:, None] - known - left / 2 > 0.5
        right = int((guesses == coins).sum())
        bound = adaptive_one_run(
            canaries=200, guesses=200, correct=right, delta=0.0, confidence=1 - level
        )
        false += bound.epsilon > 1.0
    error = np.sqrt(level * (1 - level) / repetitions)
    assert false / repetitions <= level + 3 * error


def test_revealed_coins_help_where_effects_interfere() -> None:
    right = sum(adaptive_guesses_of_a_noisy_sum(4.0, seed)[1] for seed in range(200))
    # 1 - exp(-2)/2 = 93% with the other coins known; about half without them.
    assert right > 170
