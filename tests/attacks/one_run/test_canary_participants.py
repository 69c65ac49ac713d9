"""Canary participants: sound on an honest server, and a refutation of a server without noise."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest

from dpaudit.attacks import bounds
from dpaudit.attacks.one_run import (
    ClaimedMechanism,
    ClaimedSteps,
    audit_canary_participants,
    audit_interfering_participants,
    canary_directions,
)
from dpaudit.trainer.federated.aggregation import ParticipantClipping
from dpaudit.trainer.federated.conformance_servers import AggregationServerFactory
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Bound

CANARIES, WIDTH, ROUNDS, CLIP_NORM, NOISE, DELTA = 100, 120, 4, 0.5, 2.0, 1e-5


def claim() -> ClaimedMechanism:
    """Return ROUNDS full rounds of noise multiplier NOISE: Gaussian, mu = sqrt(ROUNDS) / NOISE."""
    mu = sqrt(ROUNDS) / NOISE

    def epsilon(factor: float) -> Bound:
        bound = bounds.gaussian_epsilon(mu=mu / factor, delta=DELTA).epsilon
        return Bound(bound, bound)

    family = bounds.MechanismFamily(
        epsilon=epsilon,
        total_variation=lambda factor: erf(mu / factor / sqrt(8)),
        tradeoff=lambda factor: bounds.gaussian_tradeoff(mu / factor),
    )
    steps = ClaimedSteps(np.ones(ROUNDS), np.full(ROUNDS, NOISE))
    return ClaimedMechanism(steps, epsilon(1.0).upper, DELTA, family)


def run(noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the noisy sums of our server with canaries alone, their directions and coins."""
    directions = canary_directions(CANARIES, WIDTH, seed=1)
    included = np.random.default_rng(2).random(CANARIES) < 0.5
    settings = ParticipantClipping(CLIP_NORM, noise, 1.0, CANARIES)
    factory = AggregationServerFactory(settings, {"w": np.zeros(WIDTH)})
    server = factory(seed=3)
    updates = {
        int(one): {"w": (100 * CLIP_NORM * directions[one]).astype(np.float32)}
        for one in np.flatnonzero(included)
    }
    averages = [server.aggregate(updates, range(CANARIES))["w"] for _ in range(ROUNDS)]
    return np.array(averages, dtype=float) * settings.denominator, directions, included


def bound_of(noise: float) -> dict[BoundKind, float]:
    found = audit_canary_participants(
        *run(noise), claim(), clip_norm=CLIP_NORM, confidence=0.95, seed=4
    )
    return {
        kind: max(o.epsilon_lower for o in found if o.kind is kind)
        for kind in {o.kind for o in found}
    }


def test_honest_server_is_not_refuted() -> None:
    assert max(bound_of(NOISE).values()) <= claim().epsilon


def test_server_with_a_tenth_of_the_noise_is_refuted() -> None:
    found = bound_of(NOISE / 10)
    assert found[BoundKind.CONDITIONAL] > claim().epsilon
    assert found[BoundKind.CERTIFIED] > 2.5


def test_bounds_beside_other_participants_need_no_independence() -> None:
    found = audit_interfering_participants(
        *run(NOISE), claim(), clip_norm=CLIP_NORM, confidence=0.95, seed=4
    )
    assert [one.kind for one in found] == [BoundKind.CERTIFIED, BoundKind.CONDITIONAL]


def test_every_bound_states_its_power() -> None:
    found = audit_canary_participants(
        *run(NOISE), claim(), clip_norm=CLIP_NORM, confidence=0.95, seed=4
    )
    assert all(one.assumes for one in found)
    assert any(one.detectable_epsilon is not None for one in found)


def test_directions_that_are_not_orthonormal_are_refused() -> None:
    sums, directions, included = run(NOISE)
    with pytest.raises(InvalidArgument, match="directions"):
        audit_canary_participants(
            sums, 2 * directions, included, claim(), clip_norm=CLIP_NORM, confidence=0.95, seed=4
        )


def test_sums_of_another_width_are_refused() -> None:
    sums, directions, included = run(NOISE)
    with pytest.raises(InvalidArgument, match="noisy_sums"):
        audit_canary_participants(
            sums[:, 1:], directions, included, claim(), clip_norm=CLIP_NORM, confidence=0.95, seed=4
        )


def test_more_canaries_than_coordinates_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="canaries"):
        canary_directions(5, 4, seed=0)
