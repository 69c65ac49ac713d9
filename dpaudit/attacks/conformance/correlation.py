"""Is the noise of every step, coordinate, run and rank its own?

Noise that is used twice cancels in a difference. Every test here is of pairs of numbers that
are independent normals under the claim, each number in one pair alone: then the correlation
has an exact law, whatever the scale of the noise is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.effort import EACH, Effort
from dpaudit.attacks.conformance.quiet import Quiet
from dpaudit.attacks.conformance.tails import (
    Array,
    correlation_p_values,
    detectable_correlation,
)
from dpaudit.attacks.conformance.trainers import MakeTrainer, noisy_sum, seeds
from dpaudit.attacks.conformance.words import statistical, undecided, violated
from dpaudit.vocabulary.conformance import Finding, StepClaim

CHECK = "correlation"
RESUME_SEEDS = 2
RESUME_SAMPLES, RESUME_STEPS, MOST_RESUMES = 500, 20, 16
SAME = 1e-4  # relative: rows of ranks that differ by less are the same, but for rounding


@dataclass(frozen=True)
class Pairs:
    """Correlations of some sets of pairs.

    Attributes:
        correlations: Shape ``(tests,)``.
        counts: How many pairs each is of.
        names: What each is between, in words.
    """

    correlations: Array
    counts: NDArray[np.int64]
    names: Sequence[str]


def check_correlation(quiet: Quiet, claim: StepClaim) -> list[Finding]:
    """Return whether any two draws of noise depend on each other."""
    if not quiet.way.known or not quiet.empty.any() or not quiet.finite:
        why = "the trainer was not seen without a record, and a record moves every step alike"
        return [undecided(CHECK, "lags", f"noise {quiet.way.how}", why)]
    found = []
    if quiet.noise.shape[1] > 1:
        found.append(_finding("lags", _lags_in_words(quiet, claim), _between_lags(quiet)))
        found.append(_finding("steps", "each two steps", _between_steps(quiet)))
    return [
        *found,
        _finding("runs", "runs under different seeds", _between_runs(quiet)),
        _finding("coordinates", "coordinates and groups", _between_coordinates(quiet)),
    ]


def check_ranks(quiet: Quiet, replicas: bool) -> list[Finding]:
    """Return whether the ranks' shares of the noise are independent.

    Args:
        quiet: Noise with that of each rank.
        replicas: Whether every rank makes the whole step, with the noise of all: then what
            they make must be the same, and nothing must be independent.
    """
    if quiet.ranks is None:
        return []
    ranks = quiet.ranks[quiet.empty]
    if replicas:
        apart = np.abs(ranks - ranks[:, :1]).max(axis=(0, 2))
        others = [str(r) for r in np.flatnonzero(apart > SAME * (1 + np.abs(ranks).max()))]
        tested = "the steps of all ranks, without records"
        if others:
            why = f"rank {', '.join(others)} does not take the step that rank 0 takes"
            return [violated(CHECK, "ranks", tested, why + _silent(ranks))]
        return []
    names, found = [], []
    for one, other in combinations(range(ranks.shape[1]), 2):
        found.append(_correlation(ranks[:, one], ranks[:, other]))
        names.append(f"rank {one} and rank {other}")
    counts = np.full(len(found), ranks[:, 0].size)
    return [_finding("ranks", "the noise of each two ranks", Pairs(np.array(found), counts, names))]


def check_resume(
    make_trainer: MakeTrainer, claim: StepClaim, quiet: Quiet, effort: Effort, seed: int
) -> list[Finding]:
    """Return whether noise is used again after a resume; nothing where none is offered."""
    if not quiet.way.known or quiet.way.records:
        return []
    runs = int(np.clip(-(-RESUME_SAMPLES // quiet.dimension), 1, MOST_RESUMES))
    half = max(1, min(claim.steps, effort.longest_run, RESUME_STEPS) // 2)
    before, after = [], []
    for one in seeds(seed, RESUME_SEEDS, runs):
        trainer = make_trainer((), one)
        if not hasattr(trainer, "resumed"):
            return []
        before.append([noisy_sum(trainer.step(), claim) for _ in range(half)])
        resumed = trainer.resumed()
        after.append([noisy_sum(resumed.step(), claim) for _ in range(half)])
    first, second = (
        np.array(rows).transpose(1, 0, 2).reshape(half, -1) for rows in (before, after)
    )
    matrix = _matrix(first, second)
    names = [
        f"step {s} before a resume and step {half + t} after it"
        for s in range(half)
        for t in range(half)
    ]
    counts = np.full(matrix.size, first.shape[1])
    found = Pairs(matrix.ravel(), counts, names)
    return [_finding("resume", "each step before a resume and each one after it", found)]


def _finding(name: str, between: str, pairs: Pairs) -> Finding:
    tests = len(pairs.correlations)
    if tests == 0:
        return undecided(CHECK, name, f"correlation between {between}", "nothing to compare")
    p_values = correlation_p_values(pairs.correlations, pairs.counts)
    worst = int(p_values.argmin())
    least = detectable_correlation(float(np.median(pairs.counts)), EACH / tests)
    seen = f"{pairs.correlations[worst]:.3g} between {pairs.names[worst]}"
    return statistical(
        check=CHECK,
        name=name,
        tested=f"correlation between {between}: {tests} exact tests",
        p_value=min(1.0, tests * float(p_values[worst])),
        seen=f"the least likely of all is {seen}",
        wrong=f"the same noise is used again, or depends on noise before: correlation {seen}",
        power=f"a correlation of {least:.3g} would be seen about 95 times in 100",
        detectable=least,
    )


def _correlation(one: Array, other: Array) -> float:
    """Return the correlation of numbers of mean 0; without any spread there is none: 0."""
    norms = float(np.sqrt(np.square(one).sum() * np.square(other).sum()))
    return float((one * other).sum()) / norms if norms > 0 else 0.0


def _matrix(one: Array, other: Array) -> Array:
    """Return the correlation of each row of one with each of the other."""
    unit = [
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        for rows in (one, other)
    ]
    return np.asarray(unit[0] @ unit[1].T)


def _lags_in_words(quiet: Quiet, claim: StepClaim) -> str:
    steps = quiet.noise.shape[1]
    rest = f" (of {claim.steps} claimed)" if steps < claim.steps else ""
    return f"steps at each lag up to {steps // 2}, on runs of {steps} steps{rest}"


def _between_lags(quiet: Quiet) -> Pairs:
    """Return two correlations a lag: of blocks 0 and 1, 2 and 3, ..., and of 1 and 2, ...

    A step is in one pair of each alone, so the pairs are independent; together the two have
    all pairs at that lag.
    """
    found = [
        (_of_steps(quiet, firsts, firsts + lag), f"steps {lag} apart")
        for lag in range(1, quiet.noise.shape[1] // 2 + 1)
        for firsts in disjoint_pairs(quiet.noise.shape[1], lag)
    ]
    return _together(found)


def disjoint_pairs(length: int, lag: int) -> Iterator[NDArray[np.int64]]:
    """Yield twice the first places of pairs ``lag`` apart, no place in two pairs of one set."""
    places = np.arange(length - lag)
    for parity in (0, 1):
        chosen = places[places // lag % 2 == parity]
        if len(chosen):
            yield chosen


def _of_steps(
    quiet: Quiet, firsts: NDArray[np.int64], seconds: NDArray[np.int64]
) -> tuple[float, int]:
    both = quiet.empty[:, firsts] & quiet.empty[:, seconds]
    one, other = quiet.noise[:, firsts][both], quiet.noise[:, seconds][both]
    return _correlation(one, other), one.size


def _together(found: list[tuple[tuple[float, int], str]]) -> Pairs:
    return Pairs(
        np.array([correlation for (correlation, _), _ in found]),
        np.array([count for (_, count), _ in found], dtype=np.int64),
        [name for _, name in found],
    )


def _between_steps(quiet: Quiet) -> Pairs:
    """Return the correlation of each two steps: a single step's noise used again is seen."""
    steps = quiet.noise.shape[1]
    runs = quiet.empty.astype(np.float64)
    rows = quiet.noise.transpose(1, 0, 2).reshape(steps, -1)
    squares = np.square(quiet.noise).sum(axis=2)
    # Of two steps, only the runs count in which both are empty; elsewhere noise is zero.
    norms = np.sqrt((squares.T @ runs) * (runs.T @ squares))
    matrix = rows @ rows.T / np.maximum(norms, 1e-300)
    one, other = np.triu_indices(steps, 1)
    counts = (runs.T @ runs)[one, other].astype(np.int64) * quiet.noise.shape[2]
    names = [f"step {s} and step {t}" for s, t in zip(one, other, strict=True)]
    return Pairs(matrix[one, other], counts, names)


def _between_runs(quiet: Quiet) -> Pairs:
    found = []
    for one, other in pairwise(range(len(quiet.noise))):
        both = quiet.empty[one] & quiet.empty[other]
        pair = quiet.noise[one][both], quiet.noise[other][both]
        name = f"run {one} and run {other}, whose seeds differ"
        found.append(((_correlation(*pair), pair[0].size), name))
    return _together(found)


def _between_coordinates(quiet: Quiet) -> Pairs:
    """Return the correlations of neighbouring coordinates, and of each two groups."""
    rows = quiet.noise[quiet.empty]
    found = [
        (_of_columns(rows, firsts, firsts + 1), "neighbouring coordinates")
        for firsts in disjoint_pairs(rows.shape[1], 1)
    ]
    for one, other in combinations(quiet.groups, 2):
        a, b = quiet.groups[one], quiet.groups[other]
        both = min(len(a), len(b))
        found.append((_of_columns(rows, a[:both], b[:both]), f"{one} and {other}"))
    return _together(found)


def _of_columns(
    rows: Array, firsts: NDArray[np.int64], seconds: NDArray[np.int64]
) -> tuple[float, int]:
    one, other = rows[:, firsts], rows[:, seconds]
    return _correlation(one, other), one.size


def _silent(ranks: Array) -> str:
    silent = [str(r) for r in range(ranks.shape[1]) if not ranks[:, r].any()]
    return f"; rank {', '.join(silent)} adds no noise" if silent else ""
