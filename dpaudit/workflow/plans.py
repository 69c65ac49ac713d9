"""What training settings will cost, before anything is trained. No torch."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

import dpaudit
from dpaudit.accountants import calibrate, pld
from dpaudit.accountants.answers import epsilon_by
from dpaudit.accountants.schedules import coin_sampling, training_mechanism
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism
from dpaudit.vocabulary.settings import PrivacySettings

MILESTONES = 20


def planned_mechanism(privacy: PrivacySettings, steps: int | None = None) -> Mechanism:
    """Return what ``steps`` steps (all, by default) under ``privacy`` will have released."""
    training = training_mechanism(
        sampling=coin_sampling(privacy.sampling_rate),
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=privacy.noise_multiplier,
        steps=privacy.steps if steps is None else steps,
    )
    parts: tuple[Mechanism, ...] = (training,)
    if privacy.expected_batch_size is None:
        parts = (*parts, Gaussian(privacy.count_noise_multiplier))
    return Composed(parts)


def upper_epsilon(privacy: PrivacySettings, steps: int | None = None) -> float:
    """Return an upper bound of epsilon after ``steps`` steps."""
    mechanism = planned_mechanism(privacy, steps)
    return pld.profile(mechanism).epsilon(delta=privacy.delta).upper


def calibrated(privacy: PrivacySettings, target_epsilon: float) -> PrivacySettings:
    """Return ``privacy`` with the least noise that keeps epsilon at most ``target_epsilon``."""

    def with_noise(noise: float) -> PrivacySettings:
        return msgspec.structs.replace(privacy, noise_multiplier=noise)

    found = calibrate.noise_multiplier(
        lambda noise: planned_mechanism(with_noise(noise)),
        target_epsilon=target_epsilon,
        delta=privacy.delta,
    )
    return with_noise(found.value)


def spent_so_far(privacy: PrivacySettings) -> Callable[[int], float]:
    """Return a function of the steps done that bounds epsilon so far, for a progress bar.

    Exact accounting at every step would cost more than the steps: epsilon is computed at
    a few milestones, and between two of them the later one's is an upper bound.
    """
    every = max(1, privacy.steps // MILESTONES)
    known: dict[int, float] = {}

    def spent(done: int) -> float:
        milestone = min(privacy.steps, -(-done // every) * every)
        if milestone not in known:
            known[milestone] = upper_epsilon(privacy, milestone)
        return known[milestone]

    return spent


def planned_claim(privacy: PrivacySettings, delta: float, accountant: str) -> Claim:
    """Return the claim that a run under ``privacy`` will make, of no ledger yet."""
    mechanism = planned_mechanism(privacy)
    sampling = coin_sampling(privacy.sampling_rate)
    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    return Claim(
        epsilon=epsilon_by(accountant, mechanism, delta, adjacency, sampling).epsilon,
        delta=delta,
        accountant=accountant,
        adjacency=adjacency,
        sampling=sampling,
        randomness=Randomness.SECURE if privacy.seed is None else Randomness.SEEDED,
        releases=privacy.steps,
        ledger_head="",
        dpaudit_version=dpaudit.__version__,
        leaves_out=privacy.leaves_out,
    )
