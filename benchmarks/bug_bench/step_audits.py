"""Audits of one step: the conformance tests, and a certified lower bound from repeated steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faults import DELTA, NOISE_MULTIPLIER, Measured
from numpy.typing import NDArray

from dpaudit.accountants import Adjacency, Gaussian, PoissonSampled, Repeated, pld
from dpaudit.attacks import conformance
from dpaudit.attacks.bounds import ConfidenceBand, LowerBound, from_scores
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.verdict import Outcome

Array = NDArray[np.float64]
PILOT, RUNS, CONFIDENCE = 40, 400, 0.95
EFFORT = conformance.Effort(
    noise_samples=20_000, sampler_steps=120, longest_run=60, replays=1, search_steps=500
)
CLIP_NORM = 1.0
LARGE = 1e300


@dataclass(frozen=True)
class Neighbors:
    """How the updates of one step are drawn on two neighboring data sets.

    Attributes:
        without: Returns an update of the smaller data set, from a seed.
        with_record: Returns an update of the other one, from a seed.
    """

    without: Callable[[int], Array]
    with_record: Callable[[int], Array]


def claim_of_one_step(
    update_scale: float,
    sampling_rate: float = 1.0,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> StepClaim:
    """Return the claim that every audit of one step tests."""
    return StepClaim(
        noise_multiplier=NOISE_MULTIPLIER, clip_norm=CLIP_NORM, sampling_rate=sampling_rate,
        steps=1, update_scale=update_scale, adjacency=adjacency,
    )  # fmt: skip


def claimed_epsilon(claim: StepClaim, delta: float = DELTA) -> float:
    """Return the epsilon of a claim's steps, rounded up."""
    release: Any = Gaussian(claim.noise_multiplier)
    if claim.sampling_rate < 1:
        release = PoissonSampled(release, claim.sampling_rate)
    profile = pld.profile(Repeated(release, claim.steps), adjacency=claim.adjacency)
    return profile.epsilon(delta=delta).upper


def audit_step(
    make_trainer: Any,
    claim: StepClaim,
    records: Sequence[Any],
    neighbors: Neighbors,
    *,
    probes: Sequence[Any] | None = None,
) -> Measured:
    """Test a trainer's steps, and bound epsilon from below by repeated single steps.

    Args:
        make_trainer: Makes the trainer that the pinned package builds.
        claim: The claim of its user.
        records: Ordinary records.
        neighbors: How single steps on neighboring data sets are drawn.
        probes: Records to replay; None for those that the tests derive.

    Returns:
        The verdict with the failed findings, and the certified bound.
    """
    result = conformance.check(make_trainer, claim, records=records, probes=probes, effort=EFFORT)
    bound = bound_of(neighbors)
    failed = [one for one in result.findings if one.outcome is Outcome.FAIL]
    return Measured(
        claimed=claimed_epsilon(claim),
        delta=DELTA,
        verdict=result.verdict.value,
        failed=tuple(f"{one.check}, {one.name}: {one.why}" for one in failed),
        lower=bound.epsilon,
        kind=bound.kind.value,
    )


def bound_of(neighbors: Neighbors, runs: int = RUNS) -> LowerBound:
    """Return a certified bound from fresh runs, scored by a rule that pilot runs determined."""
    rule = _rule_of(_drawn(neighbors.without, 0, PILOT), _drawn(neighbors.with_record, 1, PILOT))
    members = rule(_drawn(neighbors.with_record, 2, runs))
    nonmembers = rule(_drawn(neighbors.without, 3, runs))
    return from_scores(
        members=members, nonmembers=nonmembers, thresholds=ConfidenceBand(), delta=DELTA,
        confidence=CONFIDENCE,
    )  # fmt: skip


def _drawn(draw: Callable[[int], Array], purpose: int, count: int) -> Array:
    seeds = np.random.SeedSequence([purpose, 11]).generate_state(count)
    return np.stack([draw(int(seed)) for seed in seeds])


def _rule_of(without: Array, with_record: Array) -> Callable[[Array], Array]:
    """Return the log-likelihood ratio of two normal laws that are fitted to pilot runs.

    Each law has a mean per coordinate and one deviation. NaN is a score of its own, as high or
    as low as the pilot runs say.
    """
    sign = 1.0 if _broken(with_record).mean() >= _broken(without).mean() else -1.0
    laws = [_fitted(rows) for rows in (without, with_record)]

    def rule(rows: Array) -> Array:
        lows, highs = (_log_density(rows, *law) for law in laws)
        return np.where(_broken(rows), sign * LARGE, highs - lows)

    return rule


def _broken(rows: Array) -> NDArray[np.bool_]:
    return np.asarray(~np.isfinite(rows).all(axis=1))


def _fitted(rows: Array) -> tuple[Array, float]:
    kept = rows[~_broken(rows)]
    if len(kept) < 2:
        return np.zeros(rows.shape[1]), 1.0
    deviation = float(kept.std(axis=0, ddof=1).mean())
    return kept.mean(axis=0), max(deviation, 1e-12)


def _log_density(rows: Array, mean: Array, deviation: float) -> Array:
    finite = np.where(np.isfinite(rows), rows, 0.0)
    far: Array = np.square(np.clip((finite - mean) / deviation, -1e100, 1e100)).sum(axis=1) / 2
    return -far - rows.shape[1] * math.log(deviation)
