"""The claimed steps at every noise factor, by an accountant, for lower bounds to invert over."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dpaudit.accountants import pld
from dpaudit.accountants.pld.profile import PldProfile
from dpaudit.accountants.schedules import poisson_step
from dpaudit.attacks.bounds import Family, SupportedTradeoff
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, PoissonSampled, Repeated

# Lines under a trade-off curve: with 150, a bound would rise by 0.02, in seven times the time.
SUPPORTS = 20
MOST_EPSILON = 500.0  # of a line; e to more overflows
SMALLEST_DELTA = 1e-5  # below it a line says nothing that a few thousand canaries could see

Step = tuple[float, float]
"""A sampling rate and a noise multiplier."""


def booked_steps(ledger: PrivacyLedger, what: str) -> list[Step]:
    """Return the booked steps of the releases called ``what``; the last booking counts.

    A step that was taken again after a crash is booked twice and was observed once.

    Raises:
        IntegrityError: one of them is no sampled Gaussian.
    """
    steps: dict[int, Step] = {}
    for release in ledger.releases:
        if release.what != what or release.step is None:
            continue
        match release.mechanism:
            case PoissonSampled(Gaussian(noise_multiplier), sampling_rate):
                steps[release.step] = (sampling_rate, noise_multiplier)
            case Gaussian(noise_multiplier):  # a full batch
                steps[release.step] = (1.0, noise_multiplier)
            case _:
                raise IntegrityError(f"step {release.step} books no sampled Gaussian")
    return [steps[number] for number in sorted(steps)]


def family(steps: list[Step], delta: float) -> Family:
    """Return what the steps cost at a factor on all noise.

    Args:
        steps: Each step's sampling rate and noise multiplier.
        delta: The delta at which epsilon is counted.
    """
    times = {step: steps.count(step) for step in dict.fromkeys(steps)}

    @lru_cache
    def profile(noise_factor: float) -> PldProfile:
        return pld.profile(_mechanism(times, noise_factor))

    @lru_cache
    def epsilon(noise_factor: float) -> Bound:
        return profile(noise_factor).epsilon(delta=delta)

    @lru_cache
    def total_variation(noise_factor: float) -> float:
        return profile(noise_factor).delta(epsilon=0.0).upper

    @lru_cache
    def tradeoff(noise_factor: float) -> SupportedTradeoff:
        return _supported(profile(noise_factor))

    return Family(epsilon, total_variation, tradeoff)


def _mechanism(times: dict[Step, int], noise_factor: float) -> Mechanism:
    return Composed(
        tuple(
            Repeated(poisson_step(Gaussian(noise_factor * noise), rate), count)
            for (rate, noise), count in times.items()
        )
    )


def _supported(profile: PldProfile) -> SupportedTradeoff:
    most = min(MOST_EPSILON, profile.epsilon(delta=SMALLEST_DELTA).upper)
    epsilons = np.linspace(0.0, most, SUPPORTS)
    deltas = np.array([profile.delta(epsilon=float(epsilon)).upper for epsilon in epsilons])
    return SupportedTradeoff(epsilons, deltas)
