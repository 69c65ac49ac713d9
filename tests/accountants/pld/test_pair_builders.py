"""Pairs from masses, densities and curves: both ends against closed forms, and planted errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from scipy.stats import laplace, norm

from dpaudit.accountants import gdp, naive, pld, rdp, zcdp
from dpaudit.vocabulary.errors import InvalidArgument, Unresolvable, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PoissonTrials,
    PureDP,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    Selected,
)
from dpaudit.vocabulary.pairs import DominatingPair, MixtureOfGaussians, PairMasses, PairSource
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

SHIFT = 0.2
NOISE = Gaussian(1 / SHIFT)
EDGES = np.linspace(-8, 9, 1500)


def gaussian_deltas(epsilons: np.ndarray) -> np.ndarray:
    return np.array([gdp.delta_of_mu(float(one), mu=SHIFT).upper for one in epsilons])


def gaussian_betas(alphas: np.ndarray) -> np.ndarray:
    return np.asarray(norm.cdf(norm.isf(alphas) - SHIFT))


POINTS = np.linspace(0, 3, 1201)
ALPHAS = np.append(np.geomspace(1e-20, 0.5, 1500), 1 - np.geomspace(1e-9, 0.499, 500)[::-1])
BUILT: dict[str, Callable[[], DominatingPair]] = {
    "densities": lambda: pld.from_densities(norm(SHIFT), norm(0), edges=EDGES),
    "falling": lambda: pld.from_densities(norm(0), norm(SHIFT), edges=EDGES),
    "trade-off": lambda: pld.from_tradeoff(gaussian_betas, alphas=ALPHAS),
    "profile": lambda: pld.from_privacy_profile(gaussian_deltas, epsilons=POINTS),
}


def epsilon(mechanism: Mechanism, delta: float = 1e-5) -> Bound:
    return pld.profile(mechanism).epsilon(delta=delta)


@pytest.mark.parametrize("rate", [1.0, 0.05])
@pytest.mark.parametrize("times", [1, 25, 400])
@pytest.mark.parametrize("name", BUILT)
def test_each_builder_encloses_gaussians_within_a_permille(
    name: str, times: int, rate: float
) -> None:
    pair = BUILT[name]()
    inner, true = (one if rate == 1 else PoissonSampled(one, rate) for one in (pair, NOISE))
    found, truth = epsilon(Repeated(inner, times)), epsilon(Repeated(true, times))
    assert found.lower <= truth.upper
    assert truth.lower <= found.upper
    assert found.upper - found.lower <= 3e-3 * found.upper


@pytest.mark.parametrize("name", BUILT)
def test_a_perturbed_pair_is_told_apart(name: str) -> None:
    """Planted errors: one percent less shift puts the truth outside of every interval."""
    truth = epsilon(Repeated(Gaussian(0.99 / SHIFT), 25))
    found = epsilon(Repeated(BUILT[name](), 25))
    assert found.upper < truth.lower


def test_laplace_noise_from_its_densities() -> None:
    # The largest losses are reached on half-lines: edges at both kinks resolve them.
    pair = pld.from_densities(laplace(1), laplace(0), edges=np.linspace(-20, 21, 4101))
    found, truth = epsilon(Repeated(pair, 20)), epsilon(Repeated(Laplace(1.0), 20))
    assert found.lower <= truth.upper
    assert truth.lower <= found.upper <= truth.upper * 1.001
    for delta in (1e-2, 1e-8):
        one, exact = epsilon(pair, delta), epsilon(Laplace(1.0), delta)
        assert one.lower <= exact.upper
        assert exact.lower <= one.upper


@pytest.mark.parametrize("rate", [1.0, 0.1])
@pytest.mark.parametrize("times", [1, 10])
def test_masses_of_randomized_response_are_pure_epsilon(times: int, rate: float) -> None:
    loss = math.log(3)
    pair = pld.from_pmfs({"yes": 0.75, "no": 0.25}, {"no": 0.75, "yes": 0.25})
    inner, true = (one if rate == 1 else PoissonSampled(one, rate) for one in (pair, PureDP(loss)))
    found, truth = epsilon(Repeated(inner, times)), epsilon(Repeated(true, times))
    assert found.lower <= truth.upper * (1 + 1e-12)
    assert truth.lower * (1 - 1e-12) <= found.upper
    assert found.upper - found.lower <= 1e-3 * found.upper


def test_a_pair_without_symmetry_is_evaluated_in_both_directions() -> None:
    p, q = np.array([0.5, 0.4, 0.1]), np.array([0.7, 0.25, 0.05])
    found = pld.profile(pld.from_pmfs(p, q)).delta(epsilon=0.1)
    removed = float(np.maximum(p - math.exp(0.1) * q, 0).sum())
    added = float(np.maximum(q - math.exp(0.1) * p, 0).sum())
    assert removed != pytest.approx(added, rel=1e-3)
    truth = max(removed, added)
    assert found.lower <= truth <= found.upper
    assert found.upper - found.lower <= 1e-12


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_outcomes_of_one_data_set_alone_have_an_infinite_loss(rate: float) -> None:
    """Each direction has its own: 0.02 of P alone, 0.03 of Q alone."""
    pair = pld.from_pmfs([0.98, 0.02, 0.0], [0.97, 0.0, 0.03])
    mechanism = pair if rate == 1 else PoissonSampled(pair, rate)
    least = 0.03 if rate == 1 else 0.01  # a sample that rests may give what Q alone gives
    with pytest.raises(Unresolvable, match="loss is infinite"):
        epsilon(Repeated(mechanism, 2), 1.8 * least)
    assert epsilon(Repeated(mechanism, 2), 2.2 * least).upper < 1.0
    found = pld.profile(mechanism).delta(epsilon=5.0)
    assert found.lower <= least <= found.upper * (1 + 1e-12)


def test_a_pair_composes_with_other_mechanisms() -> None:
    pair = BUILT["profile"]()
    found = epsilon(Composed((pair, Gaussian(2.0), Repeated(PoissonSampled(pair, 0.1), 5))))
    truth = epsilon(Composed((NOISE, Gaussian(2.0), Repeated(PoissonSampled(NOISE, 0.1), 5))))
    assert found.lower <= truth.upper
    assert truth.lower <= found.upper <= truth.upper * (1 + 1e-3)


def test_masses_that_leave_nothing_cost_nothing() -> None:
    same = pld.from_pmfs([0.5, 0.5], [0.5, 0.5])
    assert epsilon(Repeated(same, 100)).upper <= 1e-9
    assert pld.profile(Repeated(same, 100)).delta(epsilon=0.0).upper <= 1e-12


def test_pure_epsilon_of_a_pair_is_its_largest_loss_in_either_direction() -> None:
    found = pld.profile(Repeated(pld.from_pmfs([0.5, 0.5], [0.8, 0.2]), 3))
    assert found.epsilon(delta=0).lower <= 3 * math.log(0.5 / 0.2) <= found.epsilon(delta=0).upper
    assert found.epsilon(delta=0).upper == pytest.approx(3 * math.log(2.5), abs=1e-9)
    assert found.delta(epsilon=3 * math.log(2.5) + 1e-9).upper == 0.0
    with pytest.raises(InvalidArgument, match="no bound of the privacy loss"):
        pld.profile(pld.from_pmfs([0.5, 0.5, 0.0], [0.5, 0.4, 0.1])).epsilon(delta=0)


def test_losses_below_zero_need_no_epsilon() -> None:
    """With the record, an outcome is only more likely; one outcome has vanished."""
    pair = pld.from_pmfs([1.0, 0.0], [0.9, 0.1])
    found = pld.profile(Repeated(pair, 3))
    assert found.delta(epsilon=0.0).upper == pytest.approx(1 - 0.9**3, rel=1e-6)
    assert found.delta(epsilon=0.5).lower == pytest.approx(1 - 0.9**3, rel=1e-9)
    assert found.epsilon(delta=0.28).upper == 0.0


@pytest.mark.parametrize("made", [*BUILT.values(), lambda: pld.from_pmfs([0.3, 0.7], [0.7, 0.3])])
def test_pairs_survive_json(made: Callable[[], DominatingPair]) -> None:
    pair = made()
    again = msgspec.json.decode(msgspec.json.encode(Repeated(pair, 3)), type=Mechanism)
    assert again == Repeated(pair, 3)
    assert hash(again) == hash(Repeated(pair, 3))
    assert len(repr(pair)) < 500


@pytest.mark.parametrize(
    ("accuracy", "cells"), [(1e-9, 30000), (3e-9, 3000), (1e-8, 3000), (2e-8, 30000)]
)
def test_cells_of_unknown_masses_keep_both_ends(accuracy: float, cells: int) -> None:
    """Narrow cells at a coarse accuracy: most of the mass is in cells that cannot be used."""
    pair = pld.from_densities(norm(1), norm(0), edges=np.linspace(-9, 10, cells), accuracy=accuracy)
    error = 1 + 3 * pair.mass_error
    for at in (0.0, 0.2, 1.0, 3.0, 5.0):
        truth = gdp.delta_of_mu(at, mu=1.0)
        below, above = pair.lower.delta(math.exp(at)), pair.upper.delta(math.exp(at))
        assert below <= truth.upper * error
        assert above >= truth.lower / error
    found = pld.profile(pair).delta(epsilon=1.0)
    assert found.lower <= gdp.delta_of_mu(1.0, mu=1.0).upper
    assert found.upper >= gdp.delta_of_mu(1.0, mu=1.0).lower


def test_narrow_cells_join_without_loss_of_their_mass() -> None:
    """Both cells in the middle hold a billionth; what is left out has no loss of its own."""
    edges = np.concatenate([np.arange(-9.0, -4), np.linspace(-1e-9, 1e-9, 3), np.arange(5.0, 10)])
    pair = pld.from_densities(norm(0.1), norm(0), edges=edges, accuracy=1e-6 / 5)
    truth = gdp.delta_of_mu(0.0, mu=0.1)
    found = pld.profile(pair).delta(epsilon=0.0)
    assert 0.99 * truth.lower <= found.lower <= truth.upper <= found.upper


@pytest.mark.parametrize(
    "mechanism",
    [
        pld.from_pmfs([1.0, 0.0], [0.0, 1.0]),
        Repeated(pld.from_pmfs([1.0, 0.0], [0.0, 1.0]), 3),
        Composed((pld.from_pmfs([1.0, 0.0], [0.0, 1.0]), Gaussian(1.0))),
    ],
)
def test_outputs_that_tell_the_data_sets_apart_have_delta_1(mechanism: Mechanism) -> None:
    found = pld.profile(mechanism).delta(epsilon=1.0)
    assert found.upper == 1.0
    assert found.lower == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(Unresolvable, match="no epsilon is enough"):
        epsilon(mechanism)


def test_outcomes_without_mass_do_not_hide_a_larger_lower_pair() -> None:
    upper = PairMasses((0.5, 0.0, 0.5, 0.0), (0.4, 0.0, 0.6, 0.0))
    lower = PairMasses((0.9, 0.1, 0.0, 0.0), (0.1, 0.9, 0.0, 0.0))
    assert not lower.is_below(upper)
    assert upper.is_below(lower)
    with pytest.raises(InvalidArgument, match="lower"):
        DominatingPair(upper=upper, lower=lower, source=PairSource.ATOMS)


@pytest.mark.parametrize("loss", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(
    "points", [np.linspace(0, 10, 500), np.array([0.0, 0.05, 0.1, 1.0, 2.0, 3.0, 4.0])]
)
def test_a_profile_without_mass_at_ratio_1_is_accepted(loss: float, points: np.ndarray) -> None:
    """Randomized response: rounded up, its profile needs more mass than there is."""

    def true(at: np.ndarray) -> np.ndarray:
        return np.maximum(0.0, (math.exp(loss) - np.exp(at)) / (1 + math.exp(loss)))

    pair = pld.from_privacy_profile(true, epsilons=np.union1d(points, [loss]))
    for at in np.linspace(0, 4, 41):
        assert pair.upper.delta(math.exp(at)) * (1 + pair.mass_error) >= float(true(at))
        assert pair.lower.delta(math.exp(at)) <= float(true(at)) * (1 + 1e-12) + 1e-13
    found = pld.profile(Repeated(pair, 5)).epsilon(delta=1e-3)
    truth = epsilon(Repeated(PureDP(loss), 5), 1e-3)
    assert found.lower <= truth.upper
    assert truth.lower <= found.upper <= truth.upper * 1.01


@pytest.mark.parametrize(("noise", "last"), [(0.05, 100.0), (0.2, 100.0), (0.2, 300.0), (0.1, 250)])
def test_a_profile_that_rounds_to_1_or_to_0_is_accepted(noise: float, last: float) -> None:
    """Hardly any noise: delta is 1 up to rounding at small epsilons, and underflows at large."""

    def true(at: np.ndarray) -> np.ndarray:
        return np.array([gdp.delta_of_mu(float(one), mu=1 / noise).upper for one in at])

    pair = pld.from_privacy_profile(true, epsilons=np.linspace(0, last, 1501))
    for at in (0.0, 0.3, 10.0, 30.1, 80.0, 99.0):
        found = pld.profile(pair).delta(epsilon=at)
        truth = gdp.delta_of_mu(at, mu=1 / noise)
        assert found.lower <= truth.upper
        assert truth.lower <= found.upper <= truth.upper * 1.02


@pytest.mark.parametrize("value", [0.5, 1.0 - 2**-50, 1.0])
def test_a_constant_profile_is_an_infinite_loss(value: float) -> None:
    pair = pld.from_privacy_profile(lambda at: np.full_like(at, value))
    found = pld.profile(Repeated(pair, 2)).delta(epsilon=3.0)
    assert found.lower <= 1 - (1 - value) ** 2 <= found.upper <= 1
    assert found.lower >= (1 - (1 - value) ** 2) * (1 - 1e-5)
    with pytest.raises(Unresolvable, match="loss is infinite"):
        pld.profile(pair).epsilon(delta=0.1)


@pytest.mark.parametrize("delta", [1e-6, 1e-14, 1e-25])
def test_tiny_deltas_of_a_rounded_profile_are_resolved(delta: float) -> None:
    """The error of a rounded profile is relative: it is no mass with an infinite loss."""

    def true(at: np.ndarray) -> np.ndarray:
        return np.maximum(0.0, math.e - np.exp(at)) / (1 + math.e)

    pair = pld.from_privacy_profile(true, epsilons=np.linspace(0, 1, 101))
    found, truth = epsilon(Repeated(pair, 40), delta), epsilon(Repeated(PureDP(1.0), 40), delta)
    assert found.lower <= truth.upper
    assert truth.lower <= found.upper <= truth.upper * 1.001


def test_a_lower_pair_above_the_upper_one_is_refused() -> None:
    far, near = PairMasses((0.8, 0.2), (0.2, 0.8)), PairMasses((0.6, 0.4), (0.4, 0.6))
    assert near.is_below(far)
    assert not far.is_below(near)
    crossing = PairMasses((0.02, 0.98, 0.0), (0.0, 0.98, 0.02))
    assert not crossing.is_below(near)
    with pytest.raises(InvalidArgument, match="lower"):
        DominatingPair(upper=near, lower=far, source=PairSource.ATOMS)
    with pytest.raises(InvalidArgument, match="lower"):
        DominatingPair(upper=near, lower=crossing, source=PairSource.ATOMS)
    DominatingPair(upper=far, lower=near, source=PairSource.ATOMS)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: pld.from_pmfs([0.5, 0.4], [0.5, 0.5]), "p must be of sum 1"),
        (lambda: pld.from_pmfs([0.5, 0.5], [1.5, -0.5]), "q"),
        (lambda: pld.from_pmfs([0.5, 0.5], [1.0]), "q"),
        (lambda: pld.from_pmfs([math.nan, 0.5], [0.5, 0.5]), "p"),
        (lambda: pld.from_pmfs({"a": 1.0}, [1.0]), "q must be a mapping"),
        (lambda: pld.from_pmfs(["0.5", 0.5], [0.5, 0.5]), "p must be a list of numbers"),
        (lambda: pld.from_tradeoff(lambda a: 1 - a * a), "beta"),
        (lambda: pld.from_tradeoff(lambda a: 0.5 + 0 * a), "beta"),
        (lambda: pld.from_tradeoff(lambda a: np.minimum(1 - a, (0.5 - a) ** 2)), "beta"),
        (lambda: pld.from_tradeoff(gaussian_betas, alphas=[0.5, 0.1, 0.2]), "alphas"),
        (lambda: pld.from_privacy_profile(lambda e: 0.5 - 0.01 * e * e), "delta"),
        (lambda: pld.from_privacy_profile(lambda e: np.where(e < 1, 0.2, 0.1)), "delta"),
        (lambda: pld.from_privacy_profile(lambda e: 0.1 + 0.01 * e), "delta"),
        (lambda: pld.from_privacy_profile(gaussian_deltas, epsilons=[1.0, 2.0, 3.0]), "epsilons"),
        (lambda: pld.from_densities(norm(1), norm(0), edges=[0.0, 0.0, 1.0]), "edges"),
        (lambda: pld.from_densities(norm(0, 2), norm(0), edges=EDGES), "p and q"),
        (lambda: pld.from_densities(norm(1), norm(0), edges=EDGES, accuracy=1e-2), "edges"),
        (lambda: MixtureOfGaussians(1.0, [0.0], [1.0]), "sensitivities"),
        (lambda: MixtureOfGaussians(1.0, [1.0], [0.5]), "probabilities"),
        (lambda: MixtureOfGaussians(1.0, [1.0, -1.0], [0.5, 0.5]), "sensitivities"),
        (lambda: MixtureOfGaussians(1.0, [1.0], [1.0], [1.0]), "opposite_probabilities"),
        (lambda: MixtureOfGaussians(0.0, [1.0], [1.0]), "standard_deviation"),
        (lambda: MixtureOfGaussians(1.0, "11", [1.0]), "sensitivities"),
        (lambda: MixtureOfGaussians(1.0, [True], [1.0]), "sensitivities"),
    ],
)
def test_what_is_no_pair_is_refused_by_name(build: Callable[[], object], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        build()


COIN = pld.from_pmfs([0.75, 0.25], [0.25, 0.75])
USER = MixtureOfGaussians(1.0, [0.0, 1.0, 2.0], [0.98, 0.01, 0.01])


@pytest.mark.parametrize("accountant", [naive, rdp, zcdp, gdp])
@pytest.mark.parametrize("mechanism", [COIN, USER, PoissonSampled(COIN, 0.1), Repeated(USER, 3)])
def test_other_accountants_refuse_pairs_and_name_pld(accountant, mechanism) -> None:
    with pytest.raises(UnsupportedMechanism, match="use pld"):
        accountant.profile(mechanism)


@pytest.mark.parametrize(
    ("mechanism", "adjacency"),
    [
        (USER, Adjacency.REPLACE_ONE),
        (PoissonSampled(COIN, 0.1), Adjacency.REPLACE_ONE),
        (SampledWithoutReplacement(COIN, 1, 10), Adjacency.REPLACE_ONE),
        (SampledWithoutReplacement(USER, 1, 10), Adjacency.REPLACE_ONE),
        (
            PoissonSampled(MixtureOfGaussians(1.0, [1.0], [1.0], [1.0], [1.0]), 0.5),
            Adjacency.ADD_OR_REMOVE_ONE,
        ),
    ],
)
def test_pairs_without_an_analysis_are_refused(mechanism: Mechanism, adjacency: Adjacency) -> None:
    with pytest.raises(UnsupportedMechanism, match="use "):
        pld.profile(mechanism, adjacency=adjacency)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_a_mixture_of_one_shift_is_replaced_by_its_own_law(rate: float) -> None:
    shifts, weights = ([0.0, 1.0], [1 - rate, rate]) if rate < 1 else ([1.0], [1.0])
    alone = MixtureOfGaussians(1.0, shifts, weights)
    opposed = MixtureOfGaussians(1.0, shifts, weights, shifts, weights)
    first, second = (
        pld.profile(one, adjacency=Adjacency.REPLACE_ONE).delta(epsilon=1.0)
        for one in (alone, opposed)
    )
    assert first.lower <= second.upper
    assert second.lower <= first.upper
    assert first.upper == pytest.approx(second.upper, rel=1e-3)


def test_selection_among_runs_of_a_pair_is_refused() -> None:
    with pytest.raises(UnsupportedMechanism, match="private selection"):
        rdp.profile(Selected(COIN, PoissonTrials(3.0)))


def test_a_pair_for_replaced_records_holds_there() -> None:
    found = pld.profile(Repeated(COIN, 5), adjacency=Adjacency.REPLACE_ONE).epsilon(delta=1e-3)
    truth = pld.profile(
        Repeated(RandomizedResponse(0.75), 5), adjacency=Adjacency.REPLACE_ONE
    ).epsilon(delta=1e-3)
    assert found.lower <= truth.upper * (1 + 1e-12)
    assert truth.lower * (1 - 1e-12) <= found.upper <= truth.upper * (1 + 1e-3)
