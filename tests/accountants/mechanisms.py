"""Random mechanisms for the laws, of moderate size, and every method put to them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from dpaudit.accountants.registry import sampling_accountants
from dpaudit.vocabulary.mechanism import (
    Composed,
    DiscreteGaussian,
    DistributedDiscreteGaussian,
    FixedThresholdSparseVector,
    Gaussian,
    Mechanism,
    MonotoneSparseVector,
    NumericSparseVector,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
    Skellam,
    SparseVector,
    VectorDiscreteGaussian,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

# The same few examples each time: a check that flickers is switched off. The slow tests draw
# many, and new ones each time.
in_passing = settings(max_examples=8, deadline=None, derandomize=True)
at_length = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

Question = tuple[Mechanism, Adjacency]


def between_powers(low: float, high: float) -> st.SearchStrategy[float]:
    """Return floats whose magnitude, rather than value, is even between two powers of ten."""
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


deltas = between_powers(-12, -2)
rates = between_powers(-3, 0)
noises = between_powers(-0.3, 1.5)
steps = st.integers(1, 300)

gaussians = st.builds(Gaussian, noises)
sampled = st.builds(PoissonSampled, gaussians, rates)
responses = st.builds(RandomizedResponse, st.floats(0.55, 0.95), st.integers(2, 4))

# Integer vectors: noise from a fraction of the sensitivity to 30 times of it, one coordinate or
# many, and the scale of secure aggregation, where no table of masses is possible.
norms = st.sampled_from([1.0, 2.0, 3.5, 12.0])
dimensions = st.sampled_from([1, 3, 1000])


def _discrete(noise: float, l2: float, dimension: int) -> VectorDiscreteGaussian:
    return VectorDiscreteGaussian(noise * l2, l2, l2 * dimension**0.5, dimension)


def _shared(noise: float, shares: int, l2: float, dimension: int) -> DistributedDiscreteGaussian:
    scale = noise * l2 / shares**0.5
    return DistributedDiscreteGaussian(scale, shares, l2, l2 * dimension**0.5, dimension)


def _skellam(noise: float, l2: float, dimension: int) -> Skellam:
    return Skellam((noise * l2) ** 2, l2 * dimension**0.5, l2, dimension)


wide = noises.map(lambda noise: DiscreteGaussian(noise * 1e6, 10**6))
integer_noise = (
    st.builds(_discrete, noises, norms, dimensions)
    | st.builds(_shared, noises, st.integers(1, 5), norms, dimensions)
    | st.builds(_skellam, noises, norms, dimensions)
    | wide
)
sampled_integer_noise = st.builds(PoissonSampled, integer_noise, rates)
scales = between_powers(0, 2)
answers = st.integers(1, 20)
comparisons = st.one_of(
    st.builds(kind, scales, scales, answers)
    for kind in (SparseVector, MonotoneSparseVector, FixedThresholdSparseVector)
)
sparse_vectors = comparisons | st.builds(NumericSparseVector, comparisons, scales)


def compositions(releases: st.SearchStrategy[Mechanism]) -> st.SearchStrategy[Mechanism]:
    """Return runs of equal releases, alone or one after the other."""
    runs = st.builds(Repeated, releases, steps)
    return runs | st.builds(Composed, st.lists(runs, min_size=1, max_size=3).map(tuple))


def under(mechanisms: st.SearchStrategy[Mechanism], *adjacencies: Adjacency):
    return st.tuples(mechanisms, st.sampled_from(adjacencies))


gaussian_questions = under(compositions(gaussians), *Adjacency)
sampled_questions = under(
    compositions(sampled | gaussians), Adjacency.ADD_OR_REMOVE_ONE, Adjacency.ZERO_OUT
)
response_questions = under(compositions(responses | gaussians), Adjacency.REPLACE_ONE)
integer_questions = under(compositions(integer_noise | gaussians), *Adjacency)
sampled_integer_questions = under(
    compositions(sampled_integer_noise | sampled), Adjacency.ADD_OR_REMOVE_ONE, Adjacency.ZERO_OUT
)
sparse_questions = under(compositions(sparse_vectors | gaussians), *Adjacency)
federated_questions = integer_questions | sampled_integer_questions | sparse_questions
questions = gaussian_questions | sampled_questions | response_questions | federated_questions


def every_method(question: Question, delta: float) -> dict[str, Bound]:
    """Return what each method of each accountant says of epsilon."""
    mechanism, adjacency = question
    return {
        f"{accountant.name}, {method}": bound
        for accountant in sampling_accountants()
        for method, bound in accountant.bounds(mechanism, delta, adjacency).items()
    }
