"""Pairs of shuffled reports: one that dominates them, and one that some neighbors attain.

From above (equation 4 of docs/mathematics/shuffling.md): C ~ Bin(n - 1, 2 r) clones are fair
coins. Of the C + 1 coins with the report itself, x are heads. With u = x/(C + 1), B(x) the fair
binomial mass and a = e^-epsilon,

    Q = 2 B(x) (a u + 1 - u)/(1 + a),   P = 2 B(x) (u + a (1 - u))/(1 + a).

Fewer clones are worse, so a range of C is replaced by its least value.

From below (equation 6): all others have one value, and the reports of another one are counted.
With M = Bin(n, r) and p, r the probabilities of this report with and without its value,

    Q = M(x),   P = M(x) (p x/(n r) + (1 - p)(n - x)/(n (1 - r))).

Atoms are spread to two points of a grid with their masses under P and Q kept, from above, or
merged, from below (equations 7 and 8). ``RELATIVE_ERROR`` bounds the error of every mass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from dpaudit.accountants.pld.laws.dominating_pairs import DominatingPair
from dpaudit.accountants.shuffling import Clones, clones_of
from dpaudit.vocabulary.errors import Unresolvable
from dpaudit.vocabulary.mechanism import PureDP, RandomizedResponse, Shuffled

Array = NDArray[np.float64]

RELATIVE_ERROR = 1e-10
"""Bound on the relative error of a mass of P or Q, up to ``LARGEST_COUNT`` participants."""

LARGEST_COUNT = 10**9  # of participants; more of them hide a report at least as well
LARGEST_LOCAL_LOSS = 600.0  # in nats; its exponential and squares of masses are doubles
GRID_POINTS = 2001
BLOCK_WIDTH = 2e-4  # of the number of clones that one value replaces, relative
TAIL_POWERS = 20  # decimal exponents of truncated tails are multiples of it: few tables
LEAST_LOG_TAIL = -700.0
SMALL_COUNT = 16


def shuffled_pair_above(mechanism: Shuffled, tail: float) -> DominatingPair:
    """Return a pair that dominates shuffled reports where one value is replaced.

    Args:
        mechanism: The shuffled reports.
        tail: Mass of P that may be left out.

    Returns:
        The pair; its masses err by ``RELATIVE_ERROR`` at most.
    """
    return _pair_above(mechanism, _log_tail(tail))


def shuffled_pair_below(mechanism: Shuffled, tail: float) -> DominatingPair:
    """Return a pair that some neighbors attain, for some local mechanism with the guarantee.

    Args:
        mechanism: The shuffled reports.
        tail: Mass of P that may be left out.

    Returns:
        The pair; its masses err by ``RELATIVE_ERROR`` at most.
    """
    return _pair_below(mechanism, _log_tail(tail))


def _log_tail(tail: float) -> float:
    """Return the logarithm of a tail, rounded down to one of a few values."""
    power = -TAIL_POWERS * math.ceil(-math.log10(tail) / TAIL_POWERS + 1e-9)
    return max(LEAST_LOG_TAIL, power * math.log(10))


@lru_cache(maxsize=64)
def _pair_above(mechanism: Shuffled, log_tail: float) -> DominatingPair:
    clones, count = clones_of(mechanism), min(mechanism.participants, LARGEST_COUNT)
    if not clones.loss < LARGEST_LOCAL_LOSS:  # masses under Q would underflow
        raise Unresolvable(
            f"shuffled reports of a local epsilon of {clones.loss:g} cannot be certified, only "
            f"below {LARGEST_LOCAL_LOSS:g}: use more local noise"
        )
    parts = [
        (losses, masses * share)
        for coins, share in _coins(count - 1, clones, log_tail)
        for losses, masses in [_coin_atoms(coins, clones.loss, log_tail)]
    ]
    losses = np.concatenate([part[0] for part in parts])
    masses = np.concatenate([part[1] for part in parts]) * clones.weight
    losses, masses = _spread(losses, masses)
    if clones.weight < 1:  # the report shows itself, and not which of both values it is of
        losses, masses = np.append(losses, 0.0), np.append(masses, 1 - clones.weight)
    # Two tails of the number of clones, and two of the heads, of which P has twice the mass.
    return DominatingPair((), losses, masses, truncated_mass=8 * math.exp(log_tail))


def _coins(others: int, clones: Clones, log_tail: float) -> Iterator[tuple[int, float]]:
    """Yield numbers of coins, the report's own among them, with the probability of each."""
    low, high = _window(others, 2 * clones.rate, log_tail)
    counts = np.arange(low, high + 1, dtype=np.float64)
    masses = np.exp(_log_binomial(others, 2 * clones.rate, counts))
    start = low
    while start <= high:
        width = max(1, int(BLOCK_WIDTH * start))
        # More clones than ``high`` have no mass here: their tail is truncated.
        yield start + 1, float(masses[start - low : start - low + width].sum())
        start += width


def _coin_atoms(coins: int, loss: float, log_tail: float) -> tuple[Array, Array]:
    """Return the losses and Q-masses of fair coins of which one carries the report."""
    low, high = _window(coins, 0.5, log_tail)
    x = np.arange(low, high + 1, dtype=np.float64)
    away, share, rest = math.exp(-loss), x / coins, (coins - x) / coins
    below = away * share + rest
    # log of (u + a (1 - u))/(a u + 1 - u), odd about u = 1/2: for u > 1/2 nothing cancels.
    rare = np.minimum(x, coins - x) / coins
    least = away * (1 - rare) + rare
    sizes = np.log1p(-math.expm1(-loss) * (np.abs(2 * x - coins) / coins) / least)
    losses = np.sign(2 * x - coins) * sizes
    masses = 2 * np.exp(_log_binomial(coins, 0.5, x)) * below / (1 + away)
    # At the ends the loss is that of one report, to the last digit.
    return np.clip(losses, -loss, loss), masses


def _spread(losses: Array, masses: Array) -> tuple[Array, Array]:
    """Spread atoms to the two nearest points of a symmetric grid, with P and Q masses kept."""
    largest = float(np.abs(losses).max())
    if len(losses) <= GRID_POINTS or largest == 0:
        return losses, masses
    step = 2 * largest / (GRID_POINTS - 1)
    grid = (np.arange(GRID_POINTS) - GRID_POINTS // 2) * step
    cell = np.clip(np.floor(losses / step).astype(np.int64) + GRID_POINTS // 2, 0, GRID_POINTS - 2)
    share = np.clip(np.expm1(losses - grid[cell]) / math.expm1(step), 0.0, 1.0)
    spread = _sums(cell, masses * (1 - share)) + _sums(cell + 1, masses * share)
    return np.asarray(grid, dtype=np.float64), spread


def _sums(cell: NDArray[np.int64], masses: Array) -> Array:
    """Return the sum of masses in every cell of the grid."""
    return np.asarray(np.bincount(cell, masses, GRID_POINTS), dtype=np.float64)


@lru_cache(maxsize=64)
def _pair_below(mechanism: Shuffled, log_tail: float) -> DominatingPair:
    n = mechanism.participants
    if n > LARGEST_COUNT:  # fewer participants would give no lower bound
        return DominatingPair((), np.zeros(1), np.ones(1))
    truth, other = _report_probabilities(mechanism.mechanism)
    low, high = _window(n, other, log_tail)
    cells = max(1, -(-(high - low + 1) // GRID_POINTS))
    x = np.arange(low, high + 1, dtype=np.float64)
    masses = np.exp(_log_binomial(n, other, x))
    ratios = truth * (x / (n * other)) + (1 - truth) * ((n - x) / (n * (1 - other)))
    cell = np.arange(len(x)) // cells
    kept, moved = _sums(cell, masses), _sums(cell, masses * ratios)
    positive = (kept > 0) & (moved > 0)
    losses = np.log(moved[positive] / kept[positive])
    return DominatingPair((), losses, kept[positive], truncated_mass=2 * math.exp(log_tail))


def _report_probabilities(local: PureDP | RandomizedResponse) -> tuple[float, float]:
    """Return the probabilities of one report with its value and with another one."""
    match local:
        case PureDP(epsilon):  # randomized response between two values has this guarantee
            away = math.exp(-epsilon)
            return 1 / (1 + away), max(1e-300, away / (1 + away))
        case RandomizedResponse(truth, categories):
            return truth, (1 - truth) / (categories - 1)


def _window(count: int, rate: float, log_tail: float) -> tuple[int, int]:
    """Return a range outside of which a binomial has a mass of e^log_tail at most on either side.

    By Hoeffding's and Bernstein's inequalities: the distance from the mean is at most
    sqrt(count L/2), and at most L/3 + sqrt(L^2/9 + 2 v L), with variance v and L = -log_tail.
    """
    mean, depth = count * rate, -log_tail
    bernstein = depth / 3 + math.sqrt(depth * depth / 9 + 2 * mean * (1 - rate) * depth)
    reach = min(math.sqrt(count * depth / 2), bernstein) * (1 + 1e-9) + 1
    return max(0, math.floor(mean - reach)), min(count, math.ceil(mean + reach))


def _deviation(x: Array, mean: float) -> Array:
    """Return x log(x/mean) + mean - x, without cancellation near the mean."""
    d = (x - mean) / mean if mean > 0 else np.zeros_like(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.where(x > 0, (1 + d) * np.log1p(np.maximum(d, -1)) - d, 1.0)
    # h(d) = sum over k >= 2 of (-d)^k/(k (k - 1)); 18 terms are exact for |d| < 0.1.
    k = np.arange(19, 1, -1)
    series = np.polyval(np.append((-1.0) ** k / (k * (k - 1)), [0.0, 0.0]), np.clip(d, -0.1, 0.1))
    return np.asarray(mean * np.where(np.abs(d) < 0.1, series, plain))


def _log_binomial(count: int, rate: float, k: Array) -> Array:
    """Return log Bin(count, rate)(k), by the saddle point formula of Loader (2000)."""
    if count == 0:
        return np.zeros_like(k)
    exponent = _deviation(k, count * rate) + _deviation(count - k, count * (1 - rate))
    inside = np.maximum(k, 0.5) * np.maximum(count - k, 0.5) / count
    logs = -0.5 * np.log(2 * math.pi * inside) - exponent
    logs += _stirling_error(np.array([float(count)]))[0]
    logs -= _stirling_error(k) + _stirling_error(count - k)
    ends = np.where(k == 0, count * math.log1p(-rate), count * math.log(rate))
    return np.asarray(np.where((k == 0) | (k == count), ends, logs))


def _stirling_error(z: Array) -> Array:
    """Return log z! - (z + 1/2) log z + z - log(2 pi)/2, for z > 0; 0 for z = 0."""
    small = np.clip(z, 1.0, SMALL_COUNT)
    direct = (
        gammaln(small + 1) - (small + 0.5) * np.log(small) + small - 0.5 * math.log(2 * math.pi)
    )
    w = 1 / np.maximum(z, SMALL_COUNT) ** 2
    series = (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w * (1 / 1680 - w / 1188)))) / np.maximum(
        z, SMALL_COUNT
    )
    return np.asarray(np.where(z <= 0, 0.0, np.where(z < SMALL_COUNT, direct, series)))
