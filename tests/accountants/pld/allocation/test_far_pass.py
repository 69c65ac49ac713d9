"""A pass with losses of hundreds of nats, against simulated losses of the pass itself."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from dpaudit.accountants import gdp, pld
from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.allocation import far_pass
from dpaudit.accountants.pld.laws.loss_query import BoundSide, LossQuery
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.mechanism import Gaussian, Mechanism, RandomAllocation, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency

SAMPLES = 30_000
WRONG_ONCE_IN = 1e9  # simulations whose band misses the true delta

# Noise multiplier, sums of a pass, sums per record, passes.
SETTINGS = [(0.025, 20, 1, 1), (0.02, 200, 1, 1), (0.03, 10, 2, 1), (0.025, 30, 1, 4)]


def passes(noise: float, steps: int, selected: int, times: int) -> Mechanism:
    return Repeated(RandomAllocation(Gaussian(noise), steps, selected), times)


def simulated_losses(noise: float, steps: int, selected: int, times: int) -> NDArray[np.float64]:
    """Draw losses of a removed record: log of the mean ratio over all sets of sums."""
    rng, m, total = np.random.default_rng(), 1 / noise, np.zeros(SAMPLES)
    sets = np.array(list(combinations(range(steps), selected)))
    for start in range(0, SAMPLES, 2000):
        part = slice(start, start + 2000)
        for _ in range(times):
            y = rng.standard_normal((len(total[part]), steps))
            y[:, :selected] += m
            logs = (m * y - m * m / 2)[:, sets].sum(axis=2)
            total[part] += np.logaddexp.reduce(logs, axis=1) - math.log(len(sets))
    return total


def is_below_simulated(setting: tuple[float, int, int, int]) -> bool:
    """Return whether lower ends of delta are below what simulations allow (Hoeffding)."""
    losses = simulated_losses(*setting)
    band = math.sqrt(math.log(WRONG_ONCE_IN) / (2 * SAMPLES))
    counts = count_releases(passes(*setting))
    query = LossQuery(counts, Adjacency.ADD_OR_REMOVE_ONE, Direction.REMOVED, BoundSide.BELOW)
    composition = query.composition(0.3)
    ((law, times),) = composition.distributions
    for share in (0.1, 0.5, 0.9):
        epsilon = float(np.quantile(losses, share))
        delta = float(np.maximum(0.0, -np.expm1(np.minimum(0.0, epsilon - losses))).mean())
        if composed_delta(law.atom_losses, law.atom_masses, times, epsilon) > delta + band:
            return False
    return True


def composed_delta(
    losses: NDArray[np.float64], masses: NDArray[np.float64], times: int, epsilon: float
) -> float:
    """Return delta of composed atoms, each moved to the next of a grid below: a lower bound."""
    width = float(np.diff(losses).max())
    index = np.floor((losses - losses[0]) / width).astype(np.int64)
    one = np.bincount(index, masses)
    total = one
    for _ in range(times - 1):
        total = np.convolve(total, one)
    at = times * losses[0] + width * np.arange(len(total))
    return float(total @ np.maximum(0.0, -np.expm1(np.minimum(0.0, epsilon - at))))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_law_is_below_simulated_passes(
    setting: tuple[float, int, int, int],
) -> None:
    assert is_below_simulated(setting)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_law_without_the_number_of_choices_is_noticed(
    setting: tuple[float, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far_pass, "log_choices", lambda steps, selected: 0.0)
    assert not is_below_simulated(setting)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("delta", [0.5, 0.01, 1e-8])
def test_epsilon_is_known_up_to_the_number_of_choices(
    setting: tuple[float, int, int, int], delta: float
) -> None:
    noise, steps, selected, times = setting
    found = pld.profile(passes(*setting)).epsilon(delta=delta)
    whole = gdp.epsilon_of_mu(delta, mu=math.sqrt(times * selected) / noise)
    less = times * math.log(math.comb(steps, selected))
    assert whole.upper - less - 2e-3 * whole.upper < found.lower < whole.upper - 0.9 * less
    assert found.lower < found.upper <= whole.upper * (1 + 1e-9)


def test_the_number_of_choices_is_rounded_up() -> None:
    for steps, selected in ((7, 1), (100_000, 1), (10, 2), (1000, 500), (10**6, 3)):
        exact = math.log(math.comb(steps, selected))
        assert exact <= far_pass.log_choices(steps, selected) < exact * (1 + 1e-6)


@pytest.mark.parametrize("noise", [1e-3, 1e-8, 1e-100])
def test_noise_near_zero_is_answered_without_a_table_of_its_losses(noise: float) -> None:
    """At 1e-8, a table of the losses of one pass would take 72 PiB."""
    found = pld.profile(passes(noise, 20, 1, 1)).epsilon(delta=1e-9)
    assert found.lower <= found.upper
    assert found.upper >= 0.49 / noise**2
