"""The bound from pairs of models holds at every stopping time, and needs ranks alone."""

from importlib import import_module

import numpy as np
import pytest

from dpaudit.attacks.bounds import PairTest, ranks_of_pairs, sequential_pairs
from dpaudit.attacks.bounds.gaussian_dp import mu_of_epsilon
from dpaudit.attacks.bounds.pair_betting import EPSILON_GRID
from dpaudit.vocabulary.errors import InvalidArgument

sequential_module = import_module("dpaudit.attacks.bounds.pair_betting")


def gaussian_pairs(epsilon: float, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mu = mu_of_epsilon(epsilon, 1e-5)
    return rng.normal(mu, 1, pairs), rng.normal(0, 1, pairs)


def randomized_response(epsilon: float, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    right = 1 / (1 + np.exp(-epsilon))
    return (rng.random(pairs) < right) * 1.0, (rng.random(pairs) > right) * 1.0


def test_equal_laws_give_no_bound_and_separated_ones_do() -> None:
    rng = np.random.default_rng(1)
    same = sequential_pairs(
        members=rng.normal(size=100), nonmembers=rng.normal(size=100), delta=0.0, confidence=0.95
    )
    assert same.epsilon == 0
    far = sequential_pairs(
        members=np.ones(100), nonmembers=np.zeros(100), delta=1e-5, confidence=0.95
    )
    # Clopper-Pearson at a threshold that is known beforehand gives at most ln(n / ln(2/alpha)).
    assert 2.5 < far.epsilon <= np.log(100 / np.log(2 / 0.05)) + 0.3


def test_the_bound_is_the_same_from_ranks() -> None:
    members, nonmembers = gaussian_pairs(6.0, 80, 0)
    ranks = ranks_of_pairs(members, nonmembers)
    found = [
        sequential_pairs(members=one, nonmembers=other, delta=1e-5, confidence=0.9).epsilon
        for one, other in (
            (members, nonmembers),
            (np.array(ranks.members, float), np.array(ranks.nonmembers, float)),
        )
    ]
    assert found[0] == found[1] > 0


def test_the_bound_never_falls_while_pairs_arrive() -> None:
    members, nonmembers = gaussian_pairs(8.0, 60, 3)
    test, seen = PairTest(1e-5, 0.95), []
    for member, nonmember in zip(members, nonmembers, strict=True):
        test.update(member, nonmember)
        seen.append(test.epsilon)
    assert seen == sorted(seen)
    assert seen[-1] in EPSILON_GRID


def test_scores_must_be_finite_pairs() -> None:
    with pytest.raises(InvalidArgument, match="finite"):
        PairTest(0.0, 0.95).update(np.nan, 0.0)
    with pytest.raises(InvalidArgument, match="pairs"):
        sequential_pairs(members=np.ones(2), nonmembers=np.ones(3), delta=0.0, confidence=0.95)


@pytest.mark.parametrize("draw", [gaussian_pairs, randomized_response])
def test_a_true_epsilon_is_rarely_exceeded(draw) -> None:
    delta = 1e-5 if draw is gaussian_pairs else 0.0
    found = [
        sequential_pairs(
            members=(pairs := draw(1.0, 60, seed))[0],
            nonmembers=pairs[1],
            delta=delta,
            confidence=0.8,
        ).epsilon
        for seed in range(20)
    ]
    # At a level of 20%, 12 or more of 20 fail with probability 1e-4 under independent seeds; the
    # seeds are fixed.
    assert sum(epsilon > 1.0 for epsilon in found) < 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "epsilon"),
    [(gaussian_pairs, 1.0), (gaussian_pairs, 4.0), (randomized_response, 1.0)],
)
def test_false_bounds_stay_within_the_level_at_any_stopping_time(
    draw, epsilon, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each epsilon of the grid is tested by itself. A bound is false only if the true epsilon is
    # rejected, so a grid that begins with it shows the error rate, at a fraction of the time.
    grid = np.array([epsilon, epsilon + 1])
    monkeypatch.setattr(sequential_module, "EPSILON_GRID", grid)
    monkeypatch.setattr(sequential_module, "LIKELIHOOD_RATIOS", np.exp(grid))
    sequential_module._log_factors.cache_clear()
    delta = 1e-5 if draw is gaussian_pairs else 0.0
    repetitions, level = 2000, 0.05
    # A rejection is never taken back, so the last state shows whether there was one at any time.
    false = sum(
        sequential_pairs(
            members=(pairs := draw(epsilon, 150, seed))[0],
            nonmembers=pairs[1],
            delta=delta,
            confidence=1 - level,
        ).epsilon
        >= epsilon
        for seed in range(repetitions)
    )
    sequential_module._log_factors.cache_clear()
    error = np.sqrt(level * (1 - level) / repetitions)
    print(f"{draw.__name__} at epsilon {epsilon}: {false} of {repetitions} are false")
    assert false / repetitions <= level + 3 * error
