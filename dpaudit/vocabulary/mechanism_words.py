"""Mechanisms as phrases, for reports, notebooks and messages."""

from __future__ import annotations

from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    BandedMatrixFactorization,
    BinnedMatrixFactorization,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    DistributedDiscreteGaussian,
    ElementaryMechanism,
    Exponential,
    FixedThresholdSparseVector,
    Gaussian,
    GivenPair,
    Guarantee,
    IntegerVectorNoise,
    Laplace,
    Mechanism,
    MonotoneSparseVector,
    NegativeBinomialTrials,
    NumericSparseVector,
    PoissonSampled,
    PoissonTrials,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    Selected,
    Shuffled,
    Skellam,
    SparseVector,
    SparseVectorMechanism,
    TreeAggregation,
    TrialCount,
    TruncatedPoisson,
    VectorDiscreteGaussian,
)
from dpaudit.vocabulary.pairs import DominatingPair, MixtureOfGaussians


def mechanism_in_words(mechanism: Mechanism) -> str:
    """Describe a mechanism as a phrase.

    Args:
        mechanism: The mechanism, with all that it composes.

    Returns:
        A phrase such as "100 times a Gaussian (noise multiplier 2) on Poisson samples (rate
        0.01)".
    """
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
        case RandomAllocation(inner, steps, selected):
            return (
                f"a pass of {steps} times {mechanism_in_words(inner)}, "
                f"each record in {'one' if selected == 1 else selected} of them at random"
            )
        case _ if isinstance(mechanism, SparseVectorMechanism):
            return _sparse_vector_in_words(mechanism)
        case TreeAggregation(inner, steps):
            return f"prefix sums of {steps} batches by a tree of {mechanism_in_words(inner)}"
        case Shuffled(inner, participants):
            return f"the shuffled reports of {participants} through {mechanism_in_words(inner)}"
        case BandedMatrixFactorization(inner, steps, bands, rate):
            return (
                f"{steps} steps of {bands} bands of {mechanism_in_words(inner)} "
                f"(sampling rate {rate:g})"
            )
        case BinnedMatrixFactorization(inner, steps, bands, bins):
            return (
                f"{steps} steps of {bands} bands of {mechanism_in_words(inner)}, "
                f"each record in one of {bins} bins at random"
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
            return (
                f"on Poisson samples (rate {rate:g} of {size} records) truncated to {largest} "
                "records"
            )
        case SampledWithoutReplacement(_, batch, size):
            return f"on {batch} of {size} records drawn without replacement"


def _elementary_in_words(mechanism: ElementaryMechanism) -> str:
    match mechanism:
        case Gaussian(noise_multiplier):
            return f"a Gaussian (noise multiplier {noise_multiplier:g})"
        case Laplace(scale, sensitivity):
            return f"Laplace noise (scale {scale:g}, sensitivity {sensitivity:g})"
        case DiscreteGaussian(scale, sensitivity):
            return f"a discrete Gaussian (scale {scale:g}, sensitivity {sensitivity})"
        case DiscreteLaplace(scale, sensitivity):
            return f"discrete Laplace noise (scale {scale:g}, sensitivity {sensitivity})"
        case VectorDiscreteGaussian(scale):
            return f"a vector discrete Gaussian (scale {scale:g}, {_norms_in_words(mechanism)})"
        case DistributedDiscreteGaussian(scale, shares):
            return (
                f"the sum of {shares} shares of discrete Gaussian noise (scale {scale:g} each, "
                f"{_norms_in_words(mechanism)})"
            )
        case Skellam(variance):
            return f"Skellam noise (variance {variance:g}, {_norms_in_words(mechanism)})"
        case RandomizedResponse(truth_probability, categories):
            return (
                f"randomized response (truth with probability {truth_probability:g}, "
                f"{categories} categories)"
            )
        case Exponential() | PureDP() | ApproximateDP() | ZCDP():
            return _guarantee_in_words(mechanism)
        case MixtureOfGaussians() | DominatingPair():
            return _pair_in_words(mechanism)


def _guarantee_in_words(mechanism: Guarantee) -> str:
    match mechanism:
        case Exponential(epsilon):
            return f"the exponential mechanism (epsilon {epsilon:g})"
        case PureDP(epsilon):
            return f"a mechanism that is {epsilon:g}-DP"
        case ApproximateDP(epsilon, delta):
            return f"a mechanism that is ({epsilon:g}, {delta:g})-DP"
        case ZCDP(rho):
            return f"a mechanism that is {rho:g}-zCDP"


def _pair_in_words(mechanism: GivenPair) -> str:
    match mechanism:
        case MixtureOfGaussians(deviation, shifts, _, opposite):
            other = f", against a mixture of {len(opposite)}" if opposite else ""
            return (
                f"a mixture of {len(shifts)} Gaussians (standard deviation {deviation:g}, "
                f"sensitivities up to {max(shifts):g}{other})"
            )
        case DominatingPair(upper, _, source):
            return f"a mechanism with a dominating pair ({len(upper.p)} outcomes, by {source})"


def _norms_in_words(mechanism: IntegerVectorNoise) -> str:
    return (
        f"L2 sensitivity {mechanism.l2_sensitivity:g}, L1 sensitivity "
        f"{mechanism.l1_sensitivity:g}, {mechanism.dimension} coordinates"
    )


def _sparse_vector_in_words(mechanism: SparseVectorMechanism) -> str:
    match mechanism:
        case NumericSparseVector(comparison, scale):
            return (
                f"{_sparse_vector_in_words(comparison)} and the values above it (Laplace noise of "
                f"scale {scale:g})"
            )
        case SparseVector():
            kind = "a sparse vector technique"
        case MonotoneSparseVector():
            kind = "a sparse vector technique on monotone queries"
        case FixedThresholdSparseVector():
            kind = "a sparse vector technique with one threshold noise"
    return (
        f"{kind} (threshold scale {mechanism.threshold_scale:g}, query scale "
        f"{mechanism.query_scale:g}, {mechanism.answers} answers, sensitivity "
        f"{mechanism.sensitivity:g})"
    )


def _trials_in_words(trials: TrialCount) -> str:
    match trials:
        case PoissonTrials(mean):
            return f"a Poisson number (mean {mean:g})"
        case NegativeBinomialTrials(shape, success):
            return f"a negative binomial number (shape {shape:g}, success {success:g})"


def refusal_in_words(error: Exception) -> str:
    """Describe an error for people, with the mechanism that an accountant refuses as a phrase.

    Args:
        error: Any error.

    Returns:
        Its message; of a refused mechanism with the phrase in place of Python's notation.
    """
    if isinstance(error, UnsupportedMechanism) and isinstance(error.mechanism, Mechanism):
        return f"{mechanism_in_words(error.mechanism)}: {error.why}"
    return str(error)
