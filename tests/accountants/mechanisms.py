"""Random mechanisms for the laws, of moderate size, and every method put to them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from dpaudit.accountants.registry import sampling_accountants
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
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
questions = gaussian_questions | sampled_questions | response_questions


def every_method(question: Question, delta: float) -> dict[str, Bound]:
    """Return what each method of each accountant says of epsilon."""
    mechanism, adjacency = question
    return {
        f"{accountant.name}, {method}": bound
        for accountant in sampling_accountants()
        for method, bound in accountant.bounds(mechanism, delta, adjacency).items()
    }
