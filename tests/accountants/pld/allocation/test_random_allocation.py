"""Random allocation by pld: published intervals, both directions, mixtures, and planted errors."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from dpaudit.accountants import pld, rdp, risk
from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.allocation import allocated_distribution, cell_widths
from dpaudit.accountants.pld.allocation.allocated_distribution import (
    allocated_loss_distribution,
    pass_law,
)
from dpaudit.accountants.pld.laws.loss_query import BoundSide, LossQuery
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.errors import AccountingError
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

# Noise multiplier, steps, passes: interval of epsilon at delta 1e-5, by a computation of its own
# (lattices in the convex order, products without transforms); an FFT agreed with each.
KNOWN = {
    (1.0, 100, 1): (0.620921, 0.620978),
    (1.0, 1000, 1): (0.138842, 0.138855),
    (0.8, 100, 20): (4.03320, 4.03359),
    (0.6, 500, 5): (2.75275, 2.75297),
    (5.0, 10, 10): (0.733029, 0.733098),
    (1.0, 10, 1): (2.188789, 2.188970),
}


def passes(noise: float, steps: int, times: int = 1) -> Mechanism:
    return Repeated(RandomAllocation(Gaussian(noise), steps), times)


@pytest.fixture(autouse=True)
def _no_laws_of_other_tests() -> None:
    allocated_distribution._pass_law.cache_clear()


@pytest.mark.parametrize("setting", KNOWN, ids=str)
def test_epsilon_agrees_with_known_intervals(setting: tuple[float, int, int]) -> None:
    lower, upper = KNOWN[setting]
    found = pld.profile(passes(*setting)).epsilon(delta=1e-5)
    assert found.lower <= upper
    assert lower <= found.upper
    assert found.upper - found.lower <= 1e-3 * found.upper


@pytest.mark.slow
@pytest.mark.parametrize("setting", KNOWN, ids=str)
def test_narrow_intervals_lie_inside_known_ones(
    setting: tuple[float, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lower, upper = KNOWN[setting]
    monkeypatch.setattr(cell_widths, "EPSILON_WIDTH", 1e-4)
    monkeypatch.setattr(cell_widths, "SMOOTHING_WIDTH", 0.0)
    found = pld.profile(passes(*setting)).epsilon(delta=1e-5)
    slack = 4e-4 * upper if setting[2] > 1 else 0.2 * (upper - lower)  # smoothing widens both ends
    assert lower - slack <= found.lower <= found.upper <= upper + slack


CORNERS = [
    (0.5, 2, 1000, 1e-12),
    (0.5, 2, 1, 1e-12),
    (10.0, 100_000, 1, 1e-3),
    (10.0, 1000, 1000, 1e-6),
    (3.0, 2, 100, 1e-3),
]


@pytest.mark.parametrize("setting", CORNERS, ids=str)
def test_corners_of_the_domain_are_answered_narrowly(
    setting: tuple[float, int, int, float],
) -> None:
    noise, steps, times, delta = setting
    profile = pld.profile(passes(noise, steps, times))
    found = profile.epsilon(delta=delta)
    assert found.upper - found.lower <= max(1e-3 * found.upper, 1e-6)
    whole = pld.profile(Repeated(Gaussian(noise), times)).epsilon(delta=delta)
    alone = pld.profile(Repeated(PoissonSampled(Gaussian(noise), 1 / steps), times))
    assert alone.epsilon(delta=delta).lower <= found.upper
    assert found.lower <= whole.upper


def test_a_pass_costs_less_than_poisson_steps_where_few_steps_matter() -> None:
    poisson = pld.profile(Repeated(PoissonSampled(Gaussian(1.0), 0.01), 100)).epsilon(delta=1e-5)
    assert pld.profile(passes(1.0, 100)).epsilon(delta=1e-5).upper < 0.9 * poisson.lower


def test_more_steps_in_a_pass_never_cost_more() -> None:
    """The mean of more independent ratios is lower in the convex order."""
    found = [pld.profile(passes(1.0, steps)).epsilon(delta=1e-6) for steps in (2, 3, 7)]
    for before, after in pairwise(found):
        assert after.lower <= before.upper
        assert after.upper < before.lower  # and here strictly less


@pytest.mark.parametrize("setting", [(1.0, 100, 1), (0.8, 30, 4)], ids=str)
def test_delta_at_epsilon_is_delta(setting: tuple[float, int, int]) -> None:
    profile = pld.profile(passes(*setting))
    epsilon = profile.epsilon(delta=1e-5)
    back = profile.delta(epsilon=epsilon.upper)
    assert back.lower <= 1e-5
    assert back.upper <= 1.02e-5
    forth = profile.delta(epsilon=epsilon.lower)
    assert forth.lower >= 0.98e-5
    assert forth.upper * (1 + 1e-9) >= 1e-5


def test_both_directions_are_explained() -> None:
    answers = pld.profile(passes(1.0, 10)).explain_epsilon(delta=1e-5)
    removed, added = answers
    assert (removed.direction, added.direction) == ("removed", "added")
    assert added.upper < removed.lower
    for answer in answers:
        assert answer.upper - answer.lower <= 1e-3 * answer.upper


def test_rates_of_attacks_use_the_same_law() -> None:
    profile = pld.profile(passes(1.0, 10))
    (rate,) = risk.tradeoff(profile, [0.01], most_evaluations=12).tpr
    unsampled = risk.tpr_at_fpr(pld.profile(Gaussian(1.0)), fpr=0.01)
    assert 0.01 < rate.lower <= rate.upper < unsampled.lower
    assert rate.upper - rate.lower < 0.1 * rate.upper
    advantage = risk.advantage(profile)
    assert advantage.upper - advantage.lower <= 0.02 * advantage.upper


def test_zeroing_out_a_record_costs_as_much_as_removing_it() -> None:
    mechanism = passes(1.0, 20)
    zeroed = pld.profile(mechanism, adjacency=Adjacency.ZERO_OUT).epsilon(delta=1e-5)
    assert zeroed == pld.profile(mechanism).epsilon(delta=1e-5)


def test_replacing_a_record_costs_at_least_as_much_as_zeroing_it_out() -> None:
    replaced = pld.profile(passes(2.0, 20), adjacency=Adjacency.REPLACE_ONE).epsilon(delta=1e-5)
    zeroed = pld.profile(passes(2.0, 20), adjacency=Adjacency.ZERO_OUT).epsilon(delta=1e-5)
    whole = pld.profile(Gaussian(2.0), adjacency=Adjacency.REPLACE_ONE).epsilon(delta=1e-5)
    assert 0.98 * zeroed.lower <= replaced.lower
    assert replaced.upper <= whole.upper * (1 + 1e-6)


MIXED: Mechanism = Composed(
    (
        Repeated(RandomAllocation(Gaussian(1.0), 50), 3),
        RandomAllocation(Gaussian(2.0), 7),
        Repeated(PoissonSampled(Gaussian(1.0), 0.02), 40),
        Laplace(10.0),
        Gaussian(8.0),
    )
)


def test_a_mixed_ledger_is_narrow_and_costs_more_than_its_parts() -> None:
    whole = pld.profile(MIXED).epsilon(delta=1e-6)
    assert whole.upper - whole.lower <= 1e-3 * whole.upper
    part = pld.profile(passes(1.0, 50, 3)).epsilon(delta=1e-6)
    assert part.upper < whole.lower
    other = rdp.profile(Composed(MIXED.mechanisms[:1] + MIXED.mechanisms[2:])).epsilon(delta=1e-6)
    assert part.lower < other.upper


def test_far_from_private_passes_fall_back_to_the_whole_noise() -> None:
    found = pld.profile(passes(0.02, 5)).epsilon(delta=1e-5)
    whole = pld.profile(Gaussian(0.02)).epsilon(delta=1e-5)
    assert 0 < found.lower <= found.upper <= whole.upper * (1 + 1e-9)
    assert found.upper - found.lower <= 0.02 * found.upper


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("steps", [2, 7, 500])
def test_atoms_hold_all_mass_but_the_stated_tails(direction: Direction, steps: int) -> None:
    for tail in (1e-12, 1e-39):
        above, below = (
            allocated_loss_distribution(1.0, steps, direction, above=side, fineness=0.1, tail=tail)
            for side in (True, False)
        )
        law = pass_law(1.0, steps, above=True, fineness=0.1, tail=tail)
        rounding = math.exp(2 * (law.mass_error + law.move_error)) * (1 + 1e-11)
        assert above.truncated_mass <= tail
        assert above.infinite_mass == below.infinite_mass == below.truncated_mass == 0
        assert 1 - 1e-12 <= above.atom_masses.sum() + above.truncated_mass <= rounding
        assert (1 - tail * 1e6) / rounding - 1e-12 <= below.atom_masses.sum() <= 1 + 1e-12
        assert (np.diff(above.atom_losses) > 0).all()
        assert (np.diff(below.atom_losses) > 0).all()


def test_compositions_truncate_little() -> None:
    counts = count_releases(passes(1.0, 7, 100))
    for direction in Direction:
        for side in BoundSide:
            query = LossQuery(counts, Adjacency.ADD_OR_REMOVE_ONE, direction, side)
            for delta in (1e-3, 1e-30):
                assert query.composition(delta).truncated_mass <= 1e-8 * delta


def answers_are_right() -> bool:
    """Return whether some answers agree with known intervals."""
    allocated_distribution._pass_law.cache_clear()
    try:
        for setting in ((1.0, 100, 1), (5.0, 10, 10)):
            lower, upper = KNOWN[setting]
            found = pld.profile(passes(*setting)).epsilon(delta=1e-5)
            if not (found.lower <= upper and lower <= found.upper):
                return False
            if not found.upper - found.lower <= 2e-3 * found.upper:
                return False
    except AccountingError:  # two certified intervals that exclude each other
        return False
    finally:
        allocated_distribution._pass_law.cache_clear()
    return True


def test_answers_without_a_planted_error_are_right() -> None:
    assert answers_are_right()


def test_a_step_too_few_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = allocated_distribution.mean_of_copies
    monkeypatch.setattr(
        allocated_distribution,
        "mean_of_copies",
        lambda law, copies, settings: real(law, max(1, copies - 1), settings),
    )
    assert not answers_are_right()


def test_laws_from_the_wrong_side_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = allocated_distribution.JoinSettings
    monkeypatch.setattr(
        allocated_distribution,
        "JoinSettings",
        lambda above, fineness, turn, tail: real(not above, fineness, turn, tail),
    )
    assert not answers_are_right()


def test_masses_under_the_wrong_neighbor_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = allocated_distribution.pass_law

    def exchanged(*args, **settings):
        law = real(*args, **settings)
        return replace(law, q_masses=law.p_masses, p_masses=law.q_masses)

    monkeypatch.setattr(allocated_distribution, "pass_law", exchanged)
    assert not answers_are_right()


def test_one_interval_for_each_of_both_sides() -> None:
    bounds = [pld.profile(passes(1.0, 10)).epsilon(delta=10.0**-k) for k in (3, 6, 9, 12)]
    assert all(isinstance(bound, Bound) and bound.lower > 0 for bound in bounds)
    assert all(a.upper < b.lower for a, b in pairwise(bounds))
