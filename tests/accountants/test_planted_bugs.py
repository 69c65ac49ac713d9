"""Bugs are planted in the accountants: the golden values and the laws notice every one."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from decimal import Decimal

import pytest

from dpaudit.accountants import gaussian, naive, pld, rdp
from dpaudit.accountants.pld import grid, lattice
from dpaudit.accountants.pld.laws import Direction
from dpaudit.accountants.pld.randomized_response import BinaryResponses
from dpaudit.accountants.renyi import sampling
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import AccountingError, DpauditError
from dpaudit.vocabulary.mechanism import Gaussian, RandomizedResponse, Repeated
from tests.accountants.golden import holds, of_ledger, values

# In the package, the name profile is the function.
pld_profile = importlib.import_module("dpaudit.accountants.pld.profile")

Plant = Callable[[pytest.MonkeyPatch], None]

SAMPLED = [
    value
    for value in values("sampled_gaussian", "at_delta")
    if value["name"] in ("A", "F", "mixed") or value["ledger"] == [[3e-6, 7.0, 1]]
]


WIDTHS = (0.005, 0.2)  # a coarse grid needs its safety margins more


def pld_intervals_hold() -> bool:
    return all(
        holds(profile.epsilon(delta=value["at_delta"]), max(value["epsilon"].values(), key=Decimal))
        for value in SAMPLED
        for width in WIDTHS
        for profile in [pld.profile(of_ledger(value["ledger"]), relative_width=width)]
    )


def responses_hold() -> bool:
    return all(
        holds(
            pld.profile(
                Repeated(RandomizedResponse(value["truth_probability"]), value["times"]),
                adjacency=Adjacency.REPLACE_ONE,
            ).epsilon(delta=value["at_delta"]),
            value["epsilon"],
        )
        for value in values("randomized_response")
    )


def gaussians_hold() -> bool:
    return all(
        holds(gaussian.epsilon(value["at_delta"], mu=value["mu"]), value["epsilon"])
        for value in values("gaussian", "at_delta")
    )


def renyi_lies_above_the_truth() -> bool:
    rdp.release_divergences.cache_clear()
    return all(
        Decimal(bound.upper) >= max(map(Decimal, value["epsilon"].values()))
        for value in SAMPLED
        for profile in [rdp.profile(of_ledger(value["ledger"]))]
        for bound, _ in (
            profile.at_integer_orders(delta=value["at_delta"]),
            profile.at_real_orders(delta=value["at_delta"]),
        )
    )


def naive_lies_above_the_truth() -> bool:
    """Of one Gaussian among others, where naive composition has little room."""
    mechanism = Repeated(Gaussian(1.0), 2)
    truth = gaussian.epsilon(1e-6, mu=math.sqrt(2)).lower
    profile = naive.profile(mechanism)
    return profile.basic(delta=1e-6).upper >= truth <= profile.advanced(delta=1e-6).upper


def notices(check: Callable[[], bool]) -> bool:
    """A bug is noticed when a check fails, or when the code itself refuses to answer."""
    try:
        return not check()
    except DpauditError:
        return True


CHECKS = [
    pld_intervals_hold,
    responses_hold,
    gaussians_hold,
    renyi_lies_above_the_truth,
    naive_lies_above_the_truth,
]


@pytest.mark.parametrize("check", CHECKS)
def test_without_a_planted_bug_every_check_passes(check):
    assert check()


def split_sends_mass_down(monkeypatch):
    def low(law, spacing, tail):
        cells = lattice.discretise(law, spacing, tail)
        return dataclasses.replace(cells, first=cells.first - 1)

    monkeypatch.setattr(grid, "discretise", low)


def a_hundredth_of_each_split_goes_down(monkeypatch):
    monkeypatch.setattr(lattice, "SPLIT_MARGIN", -0.01)


def no_error_of_transform_wrap_and_cut(monkeypatch):
    none = functools.cached_property(lambda self: 0.0)
    none.__set_name__(grid.Composition, "_error")
    monkeypatch.setattr(grid.Composition, "_error", none)


def a_window_too_small_and_no_wrap_error(monkeypatch):
    monkeypatch.setattr(grid, "LOG_WRAP", math.log(0.5))
    monkeypatch.setattr(grid, "_wrapped", lambda *args: 0.0)


def no_hoeffding_shift(monkeypatch):
    honest = grid.Composition.delta_lower

    def unshifted(self, epsilon, eta):
        return honest(dataclasses.replace(self, lift=0.0, steps=0), epsilon, eta)

    monkeypatch.setattr(grid.Composition, "delta_lower", unshifted)


def tails_dropped_and_forgotten(monkeypatch):
    """Leaves out losses as likely as delta itself, and says nothing was lost."""

    def forgetful(law, spacing, tail):
        return dataclasses.replace(lattice.discretise(law, spacing, 1e4 * tail), lost=0.0)

    monkeypatch.setattr(grid, "discretise", forgetful)


def one_step_forgotten(monkeypatch):
    honest = pld_profile.count_releases

    def fewer(mechanism):
        return {release: max(1, times - 1) for release, times in honest(mechanism).items()}

    monkeypatch.setattr(pld_profile, "count_releases", fewer)


def one_step_too_many(monkeypatch):
    honest = pld_profile.count_releases

    def more(mechanism):
        return {release: times + 10 for release, times in honest(mechanism).items()}

    monkeypatch.setattr(pld_profile, "count_releases", more)


def only_the_direction_that_adds(monkeypatch):
    monkeypatch.setattr(pld_profile.PldProfile, "_directions", lambda self: (Direction.ADD,))


def sampling_taken_for_certain(monkeypatch):
    """Prices the noise of one in ten batches less."""
    honest = pld_profile.loss_law

    def diluted(release, adjacency, direction):
        law = honest(release, adjacency, direction)
        return dataclasses.replace(law, rate=0.9 * law.rate)

    monkeypatch.setattr(pld_profile, "loss_law", diluted)


PLANTED_IN_THE_GRID = [
    split_sends_mass_down,
    a_hundredth_of_each_split_goes_down,
    no_error_of_transform_wrap_and_cut,
    a_window_too_small_and_no_wrap_error,
    no_hoeffding_shift,
    tails_dropped_and_forgotten,
    one_step_forgotten,
    one_step_too_many,
    only_the_direction_that_adds,
    sampling_taken_for_certain,
]


@pytest.mark.parametrize("plant", PLANTED_IN_THE_GRID)
def test_a_bug_in_the_grid_is_noticed(monkeypatch, plant: Plant):
    plant(monkeypatch)
    assert notices(pld_intervals_hold)


@pytest.mark.parametrize("log_wrap", [math.log(0.5), math.log(1e-3)])
def test_a_window_too_small_is_wider_and_never_wrong(monkeypatch, log_wrap):
    monkeypatch.setattr(grid, "LOG_WRAP", log_wrap)
    assert pld_intervals_hold()


def test_two_ends_that_contradict_each_other_are_an_error_and_no_answer(monkeypatch):
    """A lower end above the upper one proves a bug: no fallback may cover it up."""
    monkeypatch.setattr(grid.Composition, "delta_lower", lambda self, epsilon, eta: 1.0)
    with pytest.raises(AccountingError):
        pld.profile(of_ledger([(0.01, 1.0, 1000)])).delta(epsilon=1.8)


def responses_counted_once(monkeypatch):
    honest = BinaryResponses.__init__
    monkeypatch.setattr(
        BinaryResponses, "__init__", lambda self, release, times: honest(self, release, 1)
    )


def one_response_forgotten(monkeypatch):
    honest = BinaryResponses.__init__
    monkeypatch.setattr(
        BinaryResponses,
        "__init__",
        lambda self, release, times: honest(self, release, max(1, times - 1)),
    )


@pytest.mark.parametrize("plant", [responses_counted_once, one_response_forgotten])
def test_a_bug_in_the_count_of_responses_is_noticed(monkeypatch, plant: Plant):
    plant(monkeypatch)
    assert notices(responses_hold)


def gaussian_by_the_normal_tail_alone(monkeypatch):
    """The bound of textbooks: delta without its second term is no longer tight."""
    from scipy.special import log_ndtr

    def tail(epsilon: float, *, mu: float) -> tuple[float, float]:
        value = float(log_ndtr(mu / 2 - epsilon / mu))
        return value, value

    monkeypatch.setattr(gaussian, "log_delta", tail)


def gaussian_by_half_the_shift(monkeypatch):
    honest = gaussian.log_delta
    monkeypatch.setattr(
        gaussian, "log_delta", lambda epsilon, *, mu: honest(epsilon, mu=mu * (1 - 1e-8))
    )


@pytest.mark.parametrize("plant", [gaussian_by_the_normal_tail_alone, gaussian_by_half_the_shift])
def test_a_bug_in_the_closed_form_is_noticed(monkeypatch, plant: Plant):
    plant(monkeypatch)
    assert notices(gaussians_hold)


def renyi_of_one_step(monkeypatch):
    honest = rdp.count_releases
    monkeypatch.setattr(rdp, "count_releases", lambda m: dict.fromkeys(honest(m), 1))


def renyi_without_the_price_of_delta(monkeypatch):
    monkeypatch.setattr(rdp, "to_epsilon", lambda order, divergence, delta: divergence)


def renyi_of_half_the_rate(monkeypatch):
    honest = sampling.joining_gaussian
    monkeypatch.setattr(sampling, "joining_gaussian", lambda q, *rest: honest(q / 2, *rest))


@pytest.mark.parametrize(
    "plant", [renyi_of_one_step, renyi_without_the_price_of_delta, renyi_of_half_the_rate]
)
def test_a_bug_in_renyi_is_noticed(monkeypatch, plant: Plant):
    plant(monkeypatch)
    assert notices(renyi_lies_above_the_truth)
    monkeypatch.undo()
    rdp.release_divergences.cache_clear()


def naive_of_one_step(monkeypatch):
    honest = naive.count_releases
    monkeypatch.setattr(naive, "count_releases", lambda m: dict.fromkeys(honest(m), 1))


def naive_with_a_share_of_epsilon_lost(monkeypatch):
    honest = naive.release_epsilon
    monkeypatch.setattr(naive, "release_epsilon", lambda *args: honest(*args) / 2)


@pytest.mark.parametrize("plant", [naive_of_one_step, naive_with_a_share_of_epsilon_lost])
def test_a_bug_in_naive_composition_is_noticed(monkeypatch, plant: Plant):
    plant(monkeypatch)
    assert notices(naive_lies_above_the_truth)
