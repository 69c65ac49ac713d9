"""At the edge of what floating point can say: the interval holds, or an error says why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
from scipy.special import ndtr

from dpaudit.accountants import gdp, naive, pld, rdp
from dpaudit.accountants.pld import enclosure
from dpaudit.accountants.registry import sampling_accountants
from dpaudit.vocabulary.errors import DpauditError
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants.golden import holds

ADD_OR_REMOVE, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE


@pytest.mark.parametrize("size", [0.0, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("mu", [1e-6, 1e-10, 1e-13, 1e-17])
def test_tiny_gaussians_hold_the_first_term_of_their_series(mu, size):
    """delta(size mu) = mu (phi(size) - size Phi(-size)) (1 + O(mu (1 + size)^2))."""
    density = math.exp(-size * size / 2) / math.sqrt(2 * math.pi)
    # Phi(-x) = phi(x) (1/x - 1/x^3 + ..): the difference cancels for large x.
    if size < 5:
        first_term = mu * (density - size * float(ndtr(-size)))
    else:
        first_term = mu * density * (1 / size**2 - 3 / size**4 + 15 / size**6 - 105 / size**8)
    answer = gdp.delta_of_mu(size * mu, mu=mu)
    slack = mu * (1 + size) ** 2 + (1e-12 if size < 5 else 1e-4)
    assert answer.lower <= first_term * (1 + slack)
    assert first_term * (1 - slack) <= answer.upper


def exact_response_epsilon(truth: float, delta: float) -> Decimal:
    """Return log((p - delta) / (1 - p)), one answer's epsilon at a delta below 2 p - 1."""
    with localcontext() as context:
        context.prec = 60
        return ((Decimal(truth) - Decimal(delta)) / (1 - Decimal(truth))).ln()


# Next to guessing, log p - log(1 - p) loses its digits.
NEARLY_GUESSING = [0.5000013699324394, 0.5000035895076523, 0.500001, 0.50001, 0.501]


@pytest.mark.parametrize("truth", NEARLY_GUESSING)
def test_an_answer_next_to_guessing_holds_its_closed_form(truth):
    answer = pld.profile(RandomizedResponse(truth), adjacency=REPLACE).epsilon(delta=1e-30)
    assert holds(answer, exact_response_epsilon(truth, 1e-30))


@pytest.mark.parametrize("truth", NEARLY_GUESSING)
def test_naive_and_renyi_lie_above_an_answer_next_to_guessing(truth):
    exact = exact_response_epsilon(truth, 1e-30)
    for profile in (naive.profile, rdp.profile):
        answer = profile(RandomizedResponse(truth), adjacency=REPLACE).epsilon(delta=1e-30)
        assert Decimal(answer.upper) >= exact


LEGAL = [
    pytest.param(RandomizedResponse(0.25, 4), REPLACE, id="guessing among four"),
    pytest.param(
        Composed((RandomizedResponse(0.5), Gaussian(2.0))), REPLACE, id="guessing and a Gaussian"
    ),
    pytest.param(RandomizedResponse(1 - 2**-53, 3), REPLACE, id="nearly certain answers"),
    pytest.param(PoissonSampled(Gaussian(0.05), 0.01), ADD_OR_REMOVE, id="noise 0.05"),
    pytest.param(PoissonSampled(Gaussian(1.0), 5e-324), ADD_OR_REMOVE, id="rate 5e-324"),
    pytest.param(PoissonSampled(Gaussian(1.0), 1 - 2**-53), ADD_OR_REMOVE, id="rate nearly 1"),
    pytest.param(PoissonSampled(Gaussian(1e6), 0.1), ADD_OR_REMOVE, id="noise 1e6"),
    pytest.param(Gaussian(1e-100), ADD_OR_REMOVE, id="noise 1e-100"),
    pytest.param(Gaussian(1e200), ADD_OR_REMOVE, id="noise 1e200"),
    pytest.param(Gaussian(1e-200), ADD_OR_REMOVE, id="noise 1e-200"),
    pytest.param(
        Repeated(PoissonSampled(Gaussian(1.0), 0.01), 10**12), ADD_OR_REMOVE, id="certain loss"
    ),
    pytest.param(Repeated(Gaussian(1.0), 10**18), ADD_OR_REMOVE, id="steps 1e18"),
    pytest.param(
        Repeated(PoissonSampled(Gaussian(1.0), 1e-9), 10**12), ADD_OR_REMOVE, id="steps 1e12"
    ),
]


ORDINARY = [
    pytest.param(Gaussian(1.0), id="Gaussian"),
    pytest.param(Repeated(PoissonSampled(Gaussian(1.0), 0.1), 10), id="sampled"),
]


def answers_or_says_why(question: Callable[[], dict[str, Bound]]) -> bool:
    """A Bound is finite and ordered by itself; any other error is a crash."""
    try:
        return all(isinstance(bound, Bound) for bound in question().values())
    except DpauditError:
        return True


@pytest.mark.parametrize("accountant", sampling_accountants(), ids=lambda one: one.name)
@pytest.mark.parametrize(("mechanism", "adjacency"), LEGAL)
def test_a_legal_mechanism_gets_an_interval_or_a_named_error(mechanism, adjacency, accountant):
    assert answers_or_says_why(lambda: accountant.bounds(mechanism, 1e-5, adjacency))


@pytest.mark.parametrize("accountant", sampling_accountants(), ids=lambda one: one.name)
@pytest.mark.parametrize("delta", [5e-324, 1e-300, 1 - 1e-12])
@pytest.mark.parametrize("mechanism", ORDINARY)
def test_a_legal_delta_gets_an_interval_or_a_named_error(mechanism, delta, accountant):
    assert answers_or_says_why(lambda: accountant.bounds(mechanism, delta, ADD_OR_REMOVE))


@pytest.mark.parametrize("epsilon", [0.0, 5e-324, 1e-9, 710.0, 1e6, 1e300])
@pytest.mark.parametrize("mechanism", ORDINARY)
def test_a_legal_epsilon_gets_an_interval_or_a_named_error(mechanism, epsilon):
    assert answers_or_says_why(lambda: {"delta": pld.profile(mechanism).delta(epsilon=epsilon)})


@pytest.mark.parametrize("width", [1.0, 10.0])
def test_a_coarse_width_gets_an_interval_or_a_named_error(width):
    profile = enclosure.profile(ORDINARY[1].values[0], relative_width=width)
    assert answers_or_says_why(lambda: {"epsilon": profile.epsilon(delta=1e-5)})
