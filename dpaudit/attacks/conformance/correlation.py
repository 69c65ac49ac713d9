"""Independence of the noise between steps, coordinates, runs and ranks.

Noise that is used twice cancels in a difference of two releases. Each test correlates pairs of
numbers that are independent normals of mean 0 under the claim. No number is in two pairs of one
test, so the distribution of the correlation is exact, for any scale of the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.noise_only_runs import NoiseOnlyRuns
from dpaudit.attacks.conformance.statistical_tests import (
    LEVEL_PER_FINDING,
    Array,
    Effort,
    correlation_p_values,
    detectable_correlation,
    failed_finding,
    inconclusive_finding,
    statistical_finding,
)
from dpaudit.attacks.conformance.trainer_protocol import MakeTrainer, derive_seeds, noisy_sum
from dpaudit.vocabulary.conformance import ConformanceFinding, StepClaim
from dpaudit.vocabulary.verdict import Outcome

CHECK = "correlation"
SEED_IGNORED = "the noise is the same for every seed that make_trainer gets"
SEED_REMEDY = (
    "seed every generator of the trainer from it. If the seed is fixed in production, two runs "
    "have the same noise, and their difference has none"
)
SAME_NOISE = 0.999  # correlation of two steps that have the same noise, but for rounding
RESUME_SEEDS = 2
RESUME_SAMPLES, RESUME_STEPS, MOST_RESUMES = 500, 20, 16
RANK_ROW_TOLERANCE = (
    1e-4  # relative: rows of ranks that differ by less are the same, but for rounding
)


@dataclass(frozen=True)
class Correlations:
    """Correlations of several sets of pairs.

    Attributes:
        correlations: Correlations about mean 0, shape ``(tests,)``.
        counts: Number of pairs of each, shape ``(tests,)``.
        names: What each correlation is between, for the report.
    """

    correlations: Array
    counts: NDArray[np.int64]
    names: Sequence[str]


def check_correlation(noise_runs: NoiseOnlyRuns, claim: StepClaim) -> list[ConformanceFinding]:
    """Test noise for correlation between steps, runs and coordinates.

    Args:
        noise_runs: Steps without records, over the claimed standard deviation.
        claim: The claim; its number of steps is reported.

    Returns:
        A finding for each kind of pair; a single INCONCLUSIVE one if no step is known to be
        without records, or if the noise is not finite.
    """
    if not noise_runs.mode.known or not noise_runs.empty.any() or not noise_runs.finite:
        why = (
            "no step is known to be without records, and the gradient of a record would correlate "
            "the steps: accept an empty data set or step(include=[]), or report the records of "
            "each step in the attribute sampled"
        )
        return [inconclusive_finding(CHECK, "lags", f"noise {noise_runs.mode.description}", why)]
    found = []
    if noise_runs.noise.shape[1] > 1:
        found.append(
            correlation_finding("lags", _lags_text(noise_runs, claim), _between_lags(noise_runs))
        )
        found.append(correlation_finding("steps", "every two steps", _between_steps(noise_runs)))
    return [
        *found,
        _runs_finding(noise_runs),
        correlation_finding(
            "coordinates", "coordinates and groups", _between_coordinates(noise_runs)
        ),
    ]


def repeated_noise(noise_runs: NoiseOnlyRuns) -> list[ConformanceFinding]:
    """Test whether two steps have the same noise, whatever the scale of each step is.

    Args:
        noise_runs: Steps without records, in any unit.

    Returns:
        A FAIL finding if two steps have the same noise, otherwise none.
    """
    usable = noise_runs.mode.known and noise_runs.finite and noise_runs.noise.shape[1] > 1
    if not usable:
        return []
    pairs = _between_steps(noise_runs)
    found = correlation_finding("steps", "every two steps", pairs)
    same = bool((np.abs(pairs.correlations) >= SAME_NOISE).any())
    return [found] if same and found.outcome is Outcome.FAIL else []


def _runs_finding(noise_runs: NoiseOnlyRuns) -> ConformanceFinding:
    """Test runs under different seeds; INCONCLUSIVE if these may never reach the trainer."""
    between = "runs under different seeds"
    tested = f"correlation between {between}"
    if noise_runs.seed_is_ignored and noise_runs.seed_is_passed:
        return failed_finding(
            CHECK, "runs", tested, "runs whose seeds differ have the same noise: noise is reused"
        )
    if noise_runs.seed_is_ignored:
        return inconclusive_finding(CHECK, "runs", tested, f"{SEED_IGNORED}: {SEED_REMEDY}")
    return correlation_finding("runs", between, _between_runs(noise_runs))


def check_rank_noise(noise_runs: NoiseOnlyRuns, replicas: bool) -> list[ConformanceFinding]:
    """Test the noise of the ranks: independent shares, or equal replicas.

    Args:
        noise_runs: Steps without records, with the rows of each rank.
        replicas: Whether each rank computes the whole step, with the noise of all ranks. Then
            the rows must be equal; otherwise the ranks' shares must be independent.

    Returns:
        A finding; none if the trainer reports no ranks, or if all replicas are equal.
    """
    if noise_runs.ranks is None:
        return []
    ranks = noise_runs.ranks[noise_runs.empty]
    if replicas:
        apart = np.abs(ranks - ranks[:, :1]).max(axis=(0, 2))
        others = [
            str(r) for r in np.flatnonzero(apart > RANK_ROW_TOLERANCE * (1 + np.abs(ranks).max()))
        ]
        tested = "the steps of all ranks, without records"
        if others:
            why = f"the step of rank {', '.join(others)} differs from that of rank 0"
            return [failed_finding(CHECK, "ranks", tested, why + _noiseless_ranks_text(ranks))]
        return []
    names, found = [], []
    for one, other in combinations(range(ranks.shape[1]), 2):
        found.append(_correlation(ranks[:, one], ranks[:, other]))
        names.append(f"rank {one} and rank {other}")
    counts = np.full(len(found), ranks[:, 0].size)
    return [
        correlation_finding(
            "ranks", "the noise of every two ranks", Correlations(np.array(found), counts, names)
        )
    ]


def check_resume(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    noise_runs: NoiseOnlyRuns,
    effort: Effort,
    seed: int,
) -> list[ConformanceFinding]:
    """Test whether a resumed trainer reuses the noise of the steps before the resume.

    Args:
        make_trainer: Makes a trainer that may have the method ``resumed``.
        claim: The claim; its number of steps limits the runs.
        noise_runs: How the trainer is run without records, and its dimension.
        effort: The longest run.
        seed: Seed of the audit.

    Returns:
        One finding; none if the trainer has no method ``resumed``, or cannot be run on an empty
        data set.
    """
    if not noise_runs.mode.known or noise_runs.mode.records:
        return []
    runs = int(np.clip(-(-RESUME_SAMPLES // noise_runs.dimension), 1, MOST_RESUMES))
    half = max(1, min(claim.steps, effort.longest_run, RESUME_STEPS) // 2)
    before, after = [], []
    for one in derive_seeds(seed, RESUME_SEEDS, runs):
        trainer = make_trainer((), one)
        if not hasattr(trainer, "resumed"):
            return []
        before.append([noisy_sum(trainer.step(), claim) for _ in range(half)])
        resumed = trainer.resumed()
        after.append([noisy_sum(resumed.step(), claim) for _ in range(half)])
    first, second = (
        np.array(rows).transpose(1, 0, 2).reshape(half, -1) for rows in (before, after)
    )
    matrix = correlation_matrix(first, second)
    names = [
        f"step {s} before a resume and step {half + t} after it"
        for s in range(half)
        for t in range(half)
    ]
    counts = np.full(matrix.size, first.shape[1])
    found = Correlations(matrix.ravel(), counts, names)
    return [
        correlation_finding("resume", "every step before a resume and every step after it", found)
    ]


def correlation_finding(name: str, between: str, pairs: Correlations) -> ConformanceFinding:
    """Report the correlation of the smallest p-value, times the number of tests (Bonferroni).

    Args:
        name: Name of the test.
        between: What the correlations are between, for the report.
        pairs: The correlations.

    Returns:
        The finding; INCONCLUSIVE if there is no correlation.
    """
    tests = len(pairs.correlations)
    if tests == 0:
        return inconclusive_finding(
            CHECK,
            name,
            f"correlation between {between}",
            "there are no two such numbers: test more steps, or a model with more parameters",
        )
    p_values = correlation_p_values(pairs.correlations, pairs.counts)
    worst = int(p_values.argmin())
    least = detectable_correlation(float(np.median(pairs.counts)), LEVEL_PER_FINDING / tests)
    observed = f"a correlation of {pairs.correlations[worst]:.3g} between {pairs.names[worst]}"
    return statistical_finding(
        check=CHECK,
        name=name,
        tested=f"correlation between {between}: {tests} exact tests",
        p_value=min(1.0, tests * float(p_values[worst])),
        observed=f"the smallest p-value is that of {observed}",
        violation=f"noise is reused, or depends on other noise: {observed}",
        power=f"a correlation of {least:.3g} is detectable at about 95% power",
        detectable=least,
    )


def _correlation(one: Array, other: Array) -> float:
    """Return the correlation about mean 0; 0 if one side is all zeros."""
    norms = float(np.sqrt(np.square(one).sum() * np.square(other).sum()))
    return float((one * other).sum()) / norms if norms > 0 else 0.0


def correlation_matrix(one: Array, other: Array) -> Array:
    """Compute the correlation about mean 0 of each row of ``one`` with each row of ``other``.

    Args:
        one: Rows, shape ``(m, d)``.
        other: Rows, shape ``(n, d)``.

    Returns:
        The correlations, shape ``(m, n)``; 0 where a row is all zeros.
    """
    unit = [
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
        for rows in (one, other)
    ]
    return np.asarray(unit[0] @ unit[1].T)


def _lags_text(noise_runs: NoiseOnlyRuns, claim: StepClaim) -> str:
    steps = noise_runs.noise.shape[1]
    rest = f" (of {claim.steps} claimed)" if steps < claim.steps else ""
    return f"steps at every lag up to {steps // 2}, on runs of {steps} steps{rest}"


def _between_lags(noise_runs: NoiseOnlyRuns) -> Correlations:
    """Return two correlations per lag: of blocks 0 and 1, 2 and 3, ..., and of 1 and 2, ...

    Within one set a step is in one pair only, so the pairs are independent. Together the two sets
    contain all pairs at that lag.
    """
    found = [
        (_correlation_of_steps(noise_runs, firsts, firsts + lag), f"steps {lag} apart")
        for lag in range(1, noise_runs.noise.shape[1] // 2 + 1)
        for firsts in disjoint_pairs(noise_runs.noise.shape[1], lag)
    ]
    return _join_correlations(found)


def disjoint_pairs(length: int, lag: int) -> Iterator[NDArray[np.int64]]:
    """Split all pairs of positions at one lag into two sets of disjoint pairs.

    Args:
        length: Number of positions.
        lag: Distance of the two positions of a pair.

    Yields:
        The smaller positions of the pairs of one set. A position is in at most one pair of a set.
    """
    places = np.arange(length - lag)
    for parity in (0, 1):
        chosen = places[places // lag % 2 == parity]
        if len(chosen):
            yield chosen


def _correlation_of_steps(
    noise_runs: NoiseOnlyRuns, firsts: NDArray[np.int64], seconds: NDArray[np.int64]
) -> tuple[float, int]:
    both = noise_runs.empty[:, firsts] & noise_runs.empty[:, seconds]
    one, other = noise_runs.noise[:, firsts][both], noise_runs.noise[:, seconds][both]
    return _correlation(one, other), one.size


def _join_correlations(found: list[tuple[tuple[float, int], str]]) -> Correlations:
    return Correlations(
        np.array([correlation for (correlation, _), _ in found]),
        np.array([count for (_, count), _ in found], dtype=np.int64),
        [name for _, name in found],
    )


def _between_steps(noise_runs: NoiseOnlyRuns) -> Correlations:
    """Return the correlation of every two steps: it detects one step that reuses noise."""
    steps = noise_runs.noise.shape[1]
    runs = noise_runs.empty.astype(np.float64)
    rows = noise_runs.noise.transpose(1, 0, 2).reshape(steps, -1)
    squares = np.square(noise_runs.noise).sum(axis=2)
    # Only runs in which both steps are empty count. The noise of other steps is set to zero, so it
    # adds nothing to the products; the norms must leave such runs out in the same way.
    norms = np.sqrt((squares.T @ runs) * (runs.T @ squares))
    matrix = rows @ rows.T / np.maximum(norms, 1e-300)
    one, other = np.triu_indices(steps, 1)
    counts = (runs.T @ runs)[one, other].astype(np.int64) * noise_runs.noise.shape[2]
    names = [f"step {s} and step {t}" for s, t in zip(one, other, strict=True)]
    return Correlations(matrix[one, other], counts, names)


def _between_runs(noise_runs: NoiseOnlyRuns) -> Correlations:
    found = []
    for one, other in pairwise(range(len(noise_runs.noise))):
        both = noise_runs.empty[one] & noise_runs.empty[other]
        pair = noise_runs.noise[one][both], noise_runs.noise[other][both]
        name = f"run {one} and run {other}, whose seeds differ"
        found.append(((_correlation(*pair), pair[0].size), name))
    return _join_correlations(found)


def _between_coordinates(noise_runs: NoiseOnlyRuns) -> Correlations:
    """Return the correlations of neighboring coordinates, and of every two groups."""
    rows = noise_runs.noise[noise_runs.empty]
    found = [
        (_correlation_of_columns(rows, firsts, firsts + 1), "neighboring coordinates")
        for firsts in disjoint_pairs(rows.shape[1], 1)
    ]
    for one, other in combinations(noise_runs.groups, 2):
        a, b = noise_runs.groups[one], noise_runs.groups[other]
        both = min(len(a), len(b))
        found.append((_correlation_of_columns(rows, a[:both], b[:both]), f"{one} and {other}"))
    return _join_correlations(found)


def _correlation_of_columns(
    rows: Array, firsts: NDArray[np.int64], seconds: NDArray[np.int64]
) -> tuple[float, int]:
    one, other = rows[:, firsts], rows[:, seconds]
    return _correlation(one, other), one.size


def _noiseless_ranks_text(ranks: Array) -> str:
    noiseless = [str(r) for r in range(ranks.shape[1]) if not ranks[:, r].any()]
    return f"; rank {', '.join(noiseless)} adds no noise" if noiseless else ""


# Classification of the rows in ``rank_updates``: replicas of the update, shares of it, or neither.
#
# The rows decide how the ranks' noise is tested: shares must have independent noise, replicas must
# be
# equal.

RANK_UPDATES_REQUIREMENT = (
    "a row must be its rank's share of the update: its clipped sum plus its noise, times the "
    "step's factor, in the units of what step() returns; or the whole update as that rank "
    "computed it"
)


class RankRowsKind(Enum):
    """How the ranks' rows relate to the update."""

    REPLICAS = "each row is the whole update"
    SHARES = "the sum or the mean of the rows is the update"
    DIVERGED = "one row is the update, and another is not"
    UNCLEAR = "neither a row nor the sum of the rows is the update"


@dataclass(frozen=True)
class RankRows:
    """The classification of the rows of one step.

    Attributes:
        kind: How the rows relate to the update.
        why: What is wrong with rows that diverged, for the report; otherwise empty.
        factor: For unclear rows, the number that turns their sum into the update; None if there is
            none.
    """

    kind: RankRowsKind
    why: str = ""
    factor: float | None = None

    @classmethod
    def of(cls, update: Array, rows: Array, claim: StepClaim) -> RankRows:
        """Classify the rows of one step, up to ``RANK_ROW_TOLERANCE``.

        Args:
            update: The noisy sum of the step, shape ``(d,)``.
            rows: The ranks' rows as reported, shape ``(ranks, d)``.
            claim: The claim, whose ``update_scale`` is divided out of the rows.

        Returns:
            The classification. Rows count as diverged only if one of them is the update, which
            shows that their unit is right.
        """
        rows = np.asarray(rows, dtype=np.float64) / claim.scale
        slack = RANK_ROW_TOLERANCE * (1 + np.abs(rows).max())
        apart = np.abs(rows - update).max(axis=1)
        if (apart <= slack).all():
            return cls(RankRowsKind.REPLICAS)
        whole = rows.sum(axis=0)
        if min(np.abs(whole - update).max(), np.abs(whole / len(rows) - update).max()) <= slack:
            return cls(RankRowsKind.SHARES)
        if (apart <= slack).any():
            return cls(RankRowsKind.DIVERGED, _diverged_ranks_text(rows, apart > slack))
        return cls(RankRowsKind.UNCLEAR, factor=_unit_factor(update, whole))


def why_unclear(rows: Sequence[RankRows]) -> str:
    """Explain why the rows do not allow a test of the ranks' noise.

    Args:
        rows: The classified rows of all steps.

    Returns:
        The reason and the remedy; empty if no rows are unclear.
    """
    unclear = [one for one in rows if one.kind is RankRowsKind.UNCLEAR]
    if not unclear:
        return ""
    factors = [one.factor for one in unclear]
    why = f"the sum of rank_updates is not the update; {RANK_UPDATES_REQUIREMENT}"
    first = factors[0]
    if first is not None and all(
        one is not None and abs(one - first) <= RANK_ROW_TOLERANCE * abs(first) for one in factors
    ):
        return f"{why}. Their sum is the update times {1 / first:.4g}: multiply them by {first:.4g}"
    return why


def _diverged_ranks_text(rows: Array, others: Array) -> str:
    named = ", ".join(str(r) for r in np.flatnonzero(others))
    noise = [float(np.sqrt(np.square(row).mean())) for row in rows]
    weak = int(np.argmin(noise))
    return (
        f"the row of rank {named} is not the update, and neither is the sum of the rows; rank "
        f"{weak} has the least noise, {noise[weak] / max(noise):.2g} of the largest"
    )


def _unit_factor(update: Array, whole: Array) -> float | None:
    """Return the factor from the sum of the rows to the update; None if there is none."""
    square = float(whole @ whole)
    if not 0 < square < np.inf:
        return None
    factor = float(update @ whole) / square
    left = float(np.abs(factor * whole - update).max())
    return (
        factor if factor != 0 and left <= RANK_ROW_TOLERANCE * float(np.abs(update).max()) else None
    )
