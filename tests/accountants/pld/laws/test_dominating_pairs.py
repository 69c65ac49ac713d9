"""Dominating pairs: closed forms of one release, and sums over all outputs of a few."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from dpaudit.accountants import gdp, pld
from dpaudit.accountants.numerics import CertifiedInterval
from dpaudit.vocabulary.mechanism import (
    ApproximateDP,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from tests.accountants import oracles
from tests.accountants.golden import one_way

ADD, REPLACE = Adjacency.ADD_OR_REMOVE_ONE, Adjacency.REPLACE_ONE
EPSILONS = (0.0, 0.05, 0.4, 1.3, 3.0)

Output = tuple[float, float]  # its probability under P, and under Q


def holds(answer: Bound | CertifiedInterval, truth: float, error: float = 1e-11) -> bool:
    slack = error * truth + 1e-15
    return answer.lower <= truth + slack and truth - slack <= answer.upper


def is_narrow(answer: Bound | CertifiedInterval) -> bool:
    return answer.upper - answer.lower <= max(1e-3 * answer.upper, 1e-13)


def hockey_stick(epsilon: float, *releases: list[Output]) -> float:
    """Return delta of independent releases: the sum over every string of outputs."""
    total = 0.0
    for outputs in itertools.product(*releases):
        p = math.prod(output[0] for output in outputs)
        q = math.prod(output[1] for output in outputs)
        total += max(0.0, p - math.exp(epsilon) * q)
    return total


def sampled(outputs: list[Output], rate: float, direction: str) -> list[Output]:
    """Return the same on Poisson samples, for the record removed or added."""
    mixed = [((1 - rate) * q + rate * p, q) for p, q in outputs]
    return mixed if direction == "remove" else [(q, p) for p, q in mixed]


def response(truth: float, categories: int) -> list[Output]:
    other = (1 - truth) / (categories - 1)
    return [(truth, other), (other, truth)] + [(other, other)] * (categories - 2)


def discrete_laplace(scale: float, sensitivity: int) -> list[Output]:
    x = np.arange(-int(45 * scale) - 1, int(45 * scale) + sensitivity + 2)
    p, q = (np.exp(-np.abs(x - centre) / scale) for centre in (sensitivity, 0))
    return list(zip((p / p.sum()).tolist(), (q / q.sum()).tolist(), strict=True))


def discrete_gaussian(scale: float, sensitivity: int) -> list[Output]:
    x = np.arange(-int(13 * scale) - 2, int(13 * scale) + sensitivity + 3, dtype=float)
    p, q = (np.exp(-((x - centre) ** 2) / (2 * scale**2)) for centre in (sensitivity, 0))
    return list(zip((p / p.sum()).tolist(), (q / q.sum()).tolist(), strict=True))


def pure(epsilon: float) -> list[Output]:
    truth = 1 / (1 + math.exp(-epsilon))
    return [(truth, 1 - truth), (1 - truth, truth)]


def approximate(epsilon: float, delta: float) -> list[Output]:
    """Kairouz, Oh & Viswanath 2015: as pure DP, plus outputs that identify the data set."""
    inside = [((1 - delta) * p, (1 - delta) * q) for p, q in pure(epsilon)]
    return [(delta, 0.0), (0.0, delta), *inside]


OUTPUTS: list[tuple[Mechanism, Adjacency, list[Output]]] = [
    (RandomizedResponse(0.7, 2), REPLACE, response(0.7, 2)),
    (RandomizedResponse(0.5, 3), REPLACE, response(0.5, 3)),
    (RandomizedResponse(0.9, 7), REPLACE, response(0.9, 7)),
    (DiscreteLaplace(1.5, 1), ADD, discrete_laplace(1.5, 1)),
    (DiscreteLaplace(2.0, 3), ADD, discrete_laplace(2.0, 3)),
    (DiscreteGaussian(0.5, 1), ADD, discrete_gaussian(0.5, 1)),
    (DiscreteGaussian(1.2, 2), ADD, discrete_gaussian(1.2, 2)),
    (DiscreteGaussian(2.5, 1), ADD, discrete_gaussian(2.5, 1)),
    (PureDP(0.8), ADD, pure(0.8)),
    (ApproximateDP(0.8, 1e-4), ADD, approximate(0.8, 1e-4)),
    (ApproximateDP(0.0, 0.01), ADD, approximate(0.0, 0.01)),
]


@pytest.mark.parametrize(("mechanism", "adjacency", "outputs"), OUTPUTS, ids=repr)
def test_one_release_holds_the_sum_over_its_outputs(mechanism, adjacency, outputs):
    profile = pld.profile(mechanism, adjacency=adjacency)
    for epsilon in EPSILONS:
        answer = profile.delta(epsilon=epsilon)
        assert holds(answer, hockey_stick(epsilon, outputs))
        assert is_narrow(answer)


@pytest.mark.parametrize(("mechanism", "adjacency", "outputs"), OUTPUTS, ids=repr)
def test_two_releases_hold_the_sum_over_their_outputs(mechanism, adjacency, outputs):
    profile = pld.profile(Repeated(mechanism, 2), adjacency=adjacency)
    for epsilon in EPSILONS:
        answer = profile.delta(epsilon=epsilon)
        assert holds(answer, hockey_stick(epsilon, outputs, outputs))
        assert is_narrow(answer)


FEW = [
    (RandomizedResponse(0.5, 3), REPLACE, response(0.5, 3), 7),
    (PureDP(0.3), ADD, pure(0.3), 12),
    (ApproximateDP(0.3, 1e-5), ADD, approximate(0.3, 1e-5), 5),
    (ApproximateDP(1.0, 0.1), ADD, approximate(1.0, 0.1), 5),
]


@pytest.mark.parametrize(("mechanism", "adjacency", "outputs", "times"), FEW, ids=repr)
def test_a_few_releases_hold_the_sum_over_every_string(mechanism, adjacency, outputs, times):
    profile = pld.profile(Repeated(mechanism, times), adjacency=adjacency)
    for epsilon in (0.0, 0.7, 2.0):
        answer = profile.delta(epsilon=epsilon)
        assert holds(answer, hockey_stick(epsilon, *[outputs] * times))
        assert is_narrow(answer)


SAMPLED = [(mechanism, outputs) for mechanism, adjacency, outputs in OUTPUTS if adjacency is ADD]


@pytest.mark.parametrize("direction", ["remove", "add"])
@pytest.mark.parametrize("rate", [1e-4, 0.05, 0.6])
@pytest.mark.parametrize(("mechanism", "outputs"), SAMPLED, ids=repr)
def test_one_poisson_sample_holds_the_sum_over_its_outputs(mechanism, outputs, rate, direction):
    profile = pld.profile(PoissonSampled(mechanism, rate))
    for epsilon in (0.0, 0.3 * rate, 0.4):
        answer = one_way(profile.explain_delta(epsilon=epsilon), direction)
        assert holds(answer, hockey_stick(epsilon, sampled(outputs, rate, direction)))
        assert is_narrow(answer)


@pytest.mark.parametrize("direction", ["remove", "add"])
@pytest.mark.parametrize(
    ("mechanism", "outputs"),
    [(DiscreteGaussian(1.2, 2), discrete_gaussian(1.2, 2)), (PureDP(0.8), pure(0.8))],
    ids=repr,
)
def test_two_different_samples_hold_the_sum_over_their_outputs(mechanism, outputs, direction):
    parts = (PoissonSampled(mechanism, 0.1), PoissonSampled(DiscreteLaplace(1.5), 0.4))
    pairs = [
        sampled(outputs, 0.1, direction),
        sampled(discrete_laplace(1.5, 1), 0.4, direction),
    ]
    profile = pld.profile(Composed(parts))
    for epsilon in (0.0, 0.1, 0.4):
        answer = one_way(profile.explain_delta(epsilon=epsilon), direction)
        assert holds(answer, hockey_stick(epsilon, *pairs))
        assert is_narrow(answer)


def test_more_noise_of_a_discrete_gaussian_may_raise_delta():
    """At epsilon 2 and scales near 0.5: delta need not fall with noise on integers."""
    deltas = [pld.profile(DiscreteGaussian(s)).delta(epsilon=2.0) for s in (0.45, 0.5, 0.55)]
    truths = [hockey_stick(2.0, discrete_gaussian(s, 1)) for s in (0.45, 0.5, 0.55)]
    assert all(holds(delta, truth) for delta, truth in zip(deltas, truths, strict=True))
    assert any(b.lower > a.upper for a, b in itertools.pairwise(deltas))


def laplace_delta(epsilon: float, scale: float) -> float:
    return max(0.0, -math.expm1((epsilon - 1 / scale) / 2))


@pytest.mark.parametrize("scale", [0.5, 1.0, 10.0, 200.0])
def test_one_laplace_release_holds_the_closed_form(scale):
    for share in (0.0, 0.3, 0.99, 1.0, 1.5):
        answer = pld.profile(Laplace(scale)).delta(epsilon=share / scale)
        assert holds(answer, laplace_delta(share / scale, scale))


# By convolution, to 20 digits.
LAPLACE = [
    (0.5, 1, 1.2, 0.32967995396436071414),
    (0.5, 2, 2.2, 0.41047399337613125346),
    (10.0, 2, 0.11, 0.022492574825655341474),
]


@pytest.mark.parametrize(("scale", "times", "epsilon", "truth"), LAPLACE)
def test_one_and_two_laplace_releases_hold_literature_values(scale, times, epsilon, truth):
    answer = pld.profile(Repeated(Laplace(scale), times)).delta(epsilon=epsilon)
    assert holds(answer, truth, 1e-14)
    assert is_narrow(answer)


def over_laplace(delta: Callable[[float], float], epsilon: float, scale: float) -> float:
    """Return the mean of delta(epsilon - loss) over one Laplace release's loss."""
    s = 1 / scale
    x, w = np.polynomial.legendre.leggauss(60)
    edges = np.linspace(-s, s, 201)
    half = np.diff(edges)[:, None] / 2
    loss = edges[:-1, None] + half * (1 + x)
    density = half * w * np.exp((loss - s) / 2) / 4  # under P
    inside = sum(
        m * delta(epsilon - at) for m, at in zip(density.ravel(), loss.ravel(), strict=True)
    )
    return inside + 0.5 * delta(epsilon - s) + 0.5 * math.exp(-s) * delta(epsilon + s)


def mirrored(delta: Callable[[float], float]) -> Callable[[float], float]:
    """Continue a symmetric pair's delta below epsilon 0: H_g = 1 - g + g H_(1/g)."""
    return lambda e: delta(e) if e >= 0 else -math.expm1(e) + math.exp(e) * delta(-e)


def gaussian_delta(mu: float) -> Callable[[float], float]:
    return mirrored(lambda e: gdp.delta_of_mu(e, mu=mu).upper)


@pytest.mark.parametrize("scale", [0.7, 5.0])
@pytest.mark.parametrize("mu", [0.05, 0.6])
def test_laplace_and_gaussian_noise_hold_the_mean_over_the_laplace_loss(scale, mu):
    profile = pld.profile(Composed((Laplace(scale), Gaussian(1 / mu))))
    for epsilon in (0.1, 0.6 / scale, 1.2 / scale):
        answer = profile.delta(epsilon=epsilon)
        assert holds(answer, over_laplace(gaussian_delta(mu), epsilon, scale), 1e-9)
        assert is_narrow(answer)


@pytest.mark.parametrize("epsilon_0", [0.1, 1.0, 4.0])
def test_one_exponential_choice_holds_its_closed_form(epsilon_0):
    """(1 - e^((t - e)/2))^2 / (1 - e^-e): Dong, Durfee & Rogers 2020, Lemma 3.4."""
    for share in (0.0, 0.2, 0.9, 1.0):
        t = share * epsilon_0
        truth = math.expm1((t - epsilon_0) / 2) ** 2 / -math.expm1(-epsilon_0)
        answer = pld.profile(Exponential(epsilon_0)).delta(epsilon=t)
        assert holds(answer, truth)


@pytest.mark.parametrize("times", [1, 2, 30, 1000])
@pytest.mark.parametrize("epsilon_0", [0.1, 1.0])
def test_exponential_choices_cost_at_most_pure_ones(times, epsilon_0):
    for delta in (1e-3, 1e-9):
        choice, anything = (
            pld.profile(Repeated(part, times)).epsilon(delta=delta)
            for part in (Exponential(epsilon_0), PureDP(epsilon_0))
        )
        assert choice.lower <= anything.upper
        assert choice.upper <= anything.upper * (1 + 1e-3) + 1e-6


def test_two_exponential_choices_cost_at_most_the_mean_over_the_first():
    """The upper bound is the envelope's; no mechanism attains the envelope twice."""
    epsilon_0 = 1.5

    def one(t: float) -> float:
        if t >= epsilon_0:
            return 0.0
        return math.expm1((t - epsilon_0) / 2) ** 2 / -math.expm1(-epsilon_0)

    # Under P the loss has the density e^((t - e)/2) / (2 (1 - e^-e)).
    x, w = np.polynomial.legendre.leggauss(60)
    edges = np.linspace(-epsilon_0, epsilon_0, 401)
    half = np.diff(edges)[:, None] / 2
    loss = (edges[:-1, None] + half * (1 + x)).ravel()
    mass = (half * w).ravel() * np.exp((loss - epsilon_0) / 2) / (-2 * math.expm1(-epsilon_0))
    assert mass.sum() == pytest.approx(1, abs=1e-12)
    for epsilon in (0.1, 0.9, 2.0):
        truth = sum(m * mirrored(one)(epsilon - at) for m, at in zip(mass, loss, strict=True))
        profile = pld.profile(Repeated(Exponential(epsilon_0), 2))
        answer = profile.delta(epsilon=epsilon)
        least = min(truth, profile.others.delta(epsilon))
        assert least <= answer.upper * (1 + 1e-8)
        assert answer.upper <= least * (1 + 1e-3)
        assert answer.lower < least


@pytest.mark.parametrize(
    ("mechanism", "epsilon", "delta"),
    [
        (Repeated(PureDP(0.1), 100), 10.0, 0.0),
        (Repeated(Laplace(2.0), 50), 25.0, 0.0),
        (Repeated(Exponential(0.2), 40), 8.0, 0.0),
        (Repeated(ApproximateDP(0.1, 1e-6), 100), 10.0, -math.expm1(100 * math.log1p(-1e-6))),
    ],
)
def test_above_all_finite_losses_delta_is_the_infinite_mass(mechanism, epsilon, delta):
    answer = pld.profile(mechanism).delta(epsilon=epsilon * (1 + 1e-9))
    assert answer.lower <= delta * (1 + 1e-12)
    assert delta * (1 - 1e-12) <= answer.upper <= delta * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("times", [1, 5, 200])
def test_pure_guarantees_are_two_valued_answers(times):
    """The same by the binomial sum, and by a contour with a third, rare value."""
    exact = pld.profile(Repeated(PureDP(0.4), times))
    close = pld.profile(Repeated(ApproximateDP(0.4, 1e-18), times))
    for delta in (1e-2, 1e-6):
        one, other = exact.epsilon(delta=delta), close.epsilon(delta=delta)
        assert one.lower <= other.upper
        assert other.lower <= one.upper * (1 + 1e-9)


@pytest.mark.parametrize(("batch", "size"), [(1, 100_000), (20, 1000), (400, 1000)])
@pytest.mark.parametrize("noise", [0.5, 1.0, 8.0])
def test_one_batch_without_replacement_holds_the_closed_form(batch, size, noise):
    """q H_(1 + (e^epsilon - 1)/q) of the whole data set's pair, whose shift is 2."""
    rate = batch / size
    profile = pld.profile(
        SampledWithoutReplacement(Gaussian(noise), batch, size), adjacency=REPLACE
    )
    for epsilon in (0.0, 0.1 * rate, 0.5, 2.0):
        base = math.log1p(math.expm1(epsilon) / rate)
        truth = rate * oracles.one_step_delta(base, 1.0, noise / 2, "remove")
        assert holds(profile.delta(epsilon=epsilon), truth)


def test_batches_without_replacement_of_laplace_hold_the_closed_form():
    profile = pld.profile(SampledWithoutReplacement(Laplace(1.0), 1, 10), adjacency=REPLACE)
    for epsilon in (0.01, 0.1):
        base = math.log1p(math.expm1(epsilon) / 0.1)
        assert holds(profile.delta(epsilon=epsilon), 0.1 * laplace_delta(base, 1.0))


@pytest.mark.parametrize("times", [2, 5])
def test_batches_without_replacement_of_discrete_noise_hold_the_sum(times):
    """Both neighbors' distributions as a pair: with the record's value, with another, or
    without either; each of the first two counts q times its excess over the third."""
    outputs, rate = pure(0.8), 0.25
    (up_p, up_q), _ = outputs
    high = ((1 - rate) * up_q + rate * up_p, up_q)
    rest = 1 - sum(high)
    pair = [high, high[::-1], (rest, rest)]
    profile = pld.profile(
        Repeated(SampledWithoutReplacement(PureDP(0.8), 1, 4), times), adjacency=REPLACE
    )
    for epsilon in (0.0, 0.1, 0.5):
        answer = profile.delta(epsilon=epsilon)
        assert holds(answer, hockey_stick(epsilon, *[pair] * times))
        assert is_narrow(answer)
