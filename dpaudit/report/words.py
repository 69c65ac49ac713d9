"""Mechanisms and claims in plain words."""

from __future__ import annotations

import dpaudit
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    BandedMatrixFactorization,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Elementary,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    NegativeBinomialTrials,
    PoissonSampled,
    PoissonTrials,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    Selected,
    TreeAggregation,
    Trials,
    TruncatedPoisson,
)
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.unit import Released, Unit


def mechanism_in_words(mechanism: Mechanism) -> str:
    """Return a phrase such as "100 times a Gaussian (noise multiplier 2) on Poisson samples"."""
    match mechanism:
        case Repeated(inner, times):
            phrase = mechanism_in_words(inner)
            return phrase if times == 1 else f"{times} times {phrase}"
        case Composed(mechanisms):
            return ", and ".join(mechanism_in_words(part) for part in mechanisms)
        case Selected(inner, trials):
            return f"the best of {_trials_in_words(trials)} of [{mechanism_in_words(inner)}]"
        case PoissonSampled() | TruncatedPoisson() | SampledWithoutReplacement():
            return f"{mechanism_in_words(mechanism.mechanism)} {_sampling_in_words(mechanism)}"
        case RandomAllocation(inner, steps):
            return (
                f"a pass of {steps} times {mechanism_in_words(inner)}, "
                "each record in one of them at random"
            )
        case TreeAggregation(inner, steps):
            return f"prefix sums of {steps} batches by a tree of {mechanism_in_words(inner)}"
        case BandedMatrixFactorization(inner, steps, bands, rate):
            return (
                f"{steps} steps of {bands} bands of {mechanism_in_words(inner)} "
                f"(sampling rate {rate:g})"
            )
        case _:
            return _elementary_in_words(mechanism)


def _sampling_in_words(
    mechanism: PoissonSampled | TruncatedPoisson | SampledWithoutReplacement,
) -> str:
    match mechanism:
        case PoissonSampled(_, rate):
            return f"on Poisson samples (rate {rate:g})"
        case TruncatedPoisson(_, rate, size, largest):
            return f"on Poisson samples (rate {rate:g} of {size} records) cut to {largest} records"
        case SampledWithoutReplacement(_, batch, size):
            return f"on {batch} of {size} records drawn without replacement"


def _elementary_in_words(mechanism: Elementary) -> str:
    match mechanism:
        case Gaussian(noise_multiplier):
            return f"a Gaussian (noise multiplier {noise_multiplier:g})"
        case Laplace(scale, sensitivity):
            return f"Laplace noise (scale {scale:g}, sensitivity {sensitivity:g})"
        case DiscreteGaussian(scale, sensitivity):
            return f"a discrete Gaussian (scale {scale:g}, sensitivity {sensitivity})"
        case DiscreteLaplace(scale, sensitivity):
            return f"discrete Laplace noise (scale {scale:g}, sensitivity {sensitivity})"
        case RandomizedResponse(truth_probability, categories):
            return (
                f"randomized response (truth with probability {truth_probability:g}, "
                f"{categories} categories)"
            )
        case Exponential(epsilon):
            return f"the exponential mechanism (epsilon {epsilon:g})"
        case PureDP(epsilon):
            return f"something {epsilon:g}-DP"
        case ApproximateDP(epsilon, delta):
            return f"something ({epsilon:g}, {delta:g})-DP"
        case ZCDP(rho):
            return f"something {rho:g}-zCDP"


def _trials_in_words(trials: Trials) -> str:
    match trials:
        case PoissonTrials(mean):
            return f"a Poisson number (mean {mean:g})"
        case NegativeBinomialTrials(shape, success):
            return f"a negative binomial number (shape {shape:g}, success {success:g})"


NOT_COVERED = (
    "It does not cover what else was released about the same records, choices that were made "
    "by looking at them (hyper-parameters, features, when to stop), nor anything that differs "
    "from what is written above."
)


def guarantee_in_words(mechanism: Mechanism, answer: EpsilonAnswer) -> str:
    """Return what an answer promises, and what it does not."""
    neighbours = {
        Adjacency.ADD_OR_REMOVE_ONE: "one {unit} more or less",
        Adjacency.REPLACE_ONE: "one {unit} replaced by another",
        Adjacency.ZERO_OUT: "one {unit} replaced by one that contributes nothing",
    }[answer.adjacency].format(unit=answer.unit.value)
    sampled = f", batches drawn by {answer.sampling.value} sampling" if answer.sampling else ""
    return (
        f"In words: whoever sees all that is released by {mechanism_in_words(mechanism)}"
        f"{sampled}, can tell two data sets that differ by {neighbours} apart no better than "
        f"epsilon {round_up(answer.epsilon.upper)} and delta {answer.delta:g} allow "
        f"({answer.accountant} accountant, dpaudit {dpaudit.__version__}). {NOT_COVERED}"
    )


UNITS = {Unit.RECORD: "one record", Unit.USER: "one user with all of their records"}
RELEASED = {
    Released.EVERY_STEP: "every step may be published",
    Released.FINAL_MODEL: "the final model alone may be published",
}


def claim_in_words(claim: Claim) -> str:
    """Return the claim as one sentence, without which its numbers mean nothing."""
    return (
        f"At delta {claim.delta:g}, epsilon is at most {round_up(claim.epsilon.upper)} for "
        f"{UNITS[claim.unit]} ({claim.adjacency.value}, {claim.accountant} accountant, "
        f"{claim.sampling.value} sampling, {claim.randomness.value} randomness, "
        f"{claim.releases} releases; {RELEASED[claim.released]})."
    )


def spent_in_words(epsilon: float) -> str:
    """Return what a progress bar says of the budget."""
    return f"epsilon at most {round_up(epsilon)}"


def against_claim_in_words(bound: AuditResult, claimed_epsilon: float) -> str:
    """Return what one lower bound says of a claim."""
    if not bound.epsilon_lower <= claimed_epsilon:
        return (
            f"the claimed epsilon of {claimed_epsilon:g} is contradicted: it is at least "
            f"{round_down(bound.epsilon_lower)} ({bound.kind.value})"
        )
    return f"the claimed epsilon of {claimed_epsilon:g} is not contradicted; this is no proof"


def refuted_in_words(
    step: int, noise_factor: float, epsilon: float, delta: float, confidence: float
) -> str:
    """Return why a run was stopped."""
    return (
        f"stopped after step {step}: the canaries show less than {round_up(noise_factor)} of the "
        f"claimed noise (conditional, confidence {confidence:g} at every step at once); by its "
        f"last step, epsilon would be at least {round_down(epsilon)} at delta {delta:g}"
    )
