"""Mechanisms and claims in plain words."""

from __future__ import annotations

from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
)
from dpaudit.vocabulary.rounding import round_up


def mechanism_in_words(mechanism: Mechanism) -> str:
    """Return a phrase such as "100 times a Gaussian (noise multiplier 2) on Poisson samples"."""
    match mechanism:
        case Gaussian(noise_multiplier):
            return f"a Gaussian (noise multiplier {noise_multiplier:g})"
        case RandomizedResponse(truth_probability, categories):
            return (
                f"randomized response (truth with probability {truth_probability:g}, "
                f"{categories} categories)"
            )
        case PoissonSampled(inner, sampling_rate):
            return f"{mechanism_in_words(inner)} on Poisson samples (rate {sampling_rate:g})"
        case Repeated(inner, times):
            phrase = mechanism_in_words(inner)
            return phrase if times == 1 else f"{times} times {phrase}"
        case Composed(mechanisms):
            return ", and ".join(mechanism_in_words(part) for part in mechanisms)
        case _:
            return repr(mechanism)


def claim_in_words(claim: Claim) -> str:
    """Return the claim as one sentence, without which its numbers mean nothing."""
    return (
        f"At delta {claim.delta:g}, epsilon is at most {round_up(claim.epsilon.upper)} "
        f"({claim.accountant} accountant, {claim.adjacency.value}, {claim.sampling.value} "
        f"sampling, {claim.randomness.value} randomness, {claim.releases} releases)."
    )


def spent_in_words(epsilon: float) -> str:
    """Return what a progress bar says of the budget."""
    return f"epsilon at most {round_up(epsilon)}"
