"""Bugs are planted in the accountants: the golden values and the laws notice every one."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from decimal import Decimal

import numpy as np
import pytest

from dpaudit.accountants import gdp, naive, pld, rdp
from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld import enclosure
from dpaudit.accountants.pld.closed_form import BinaryResponses
from dpaudit.accountants.pld.contour import contour_integral, planning, solver
from dpaudit.accountants.pld.contour.integrand import SmoothingKernel
from dpaudit.accountants.pld.contour.solver import DeltaEvaluator
from dpaudit.accountants.pld.enclosure import lattice_composition, lattice_distribution
from dpaudit.accountants.pld.laws import loss_distribution
from dpaudit.accountants.pld.laws.loss_query import LossQuery
from dpaudit.accountants.rdp import sampled_releases
from dpaudit.vocabulary.errors import AccountingError, DpauditError
from dpaudit.vocabulary.mechanism import Gaussian, Laplace, RandomizedResponse, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants import forced_contours, oracles
from tests.accountants.golden import holds, of_ledger, one_way, values

# In the package, the name profile is the function.
pld_profile = importlib.import_module("dpaudit.accountants.pld")
compose = importlib.import_module("dpaudit.accountants.pld.laws.loss_query")
enclosure_profile = importlib.import_module("dpaudit.accountants.pld.enclosure")

Plant = Callable[[pytest.MonkeyPatch], None]

SAMPLED = [
    value
    for value in values("sampled_gaussian", "at_delta")
    if value["name"] in ("A", "F", "mixed") or value["ledger"] == [[3e-6, 7.0, 1]]
]
LAPLACE = [
    value
    for value in values("laplace", "at_delta")
    if value["scale"] == 2.0 and value["times"] in (2, 5)
]


def golden_epsilons_hold() -> bool:
    return all(
        holds(one_way(answers, direction), value["epsilon"][direction])
        for value in SAMPLED
        for answers in [
            pld.profile(of_ledger(value["ledger"])).explain_epsilon(delta=value["at_delta"])
        ]
        for direction in ("remove", "add")
    )


def golden_laplace_holds() -> bool:
    return all(
        holds(
            pld.profile(Repeated(Laplace(value["scale"]), value["times"])).epsilon(
                delta=value["at_delta"]
            ),
            value["epsilon"],
        )
        for value in LAPLACE
    )


# Sampling rate, noise multiplier, direction, epsilon: rare and large losses, and common ones.
ONE_STEPS = [
    (0.01, 1.0, "remove", 2.7),
    (1e-6, 0.3, "remove", 9.0),
    (0.3, 3.0, "remove", 0.17),
    (0.9, 2.0, "add", 0.7),
    (0.01, 1.0, "add", 0.003),
]


def encloses(found: DeltaEvaluator | None, epsilon: float, truth: float) -> bool:
    """Allow for what the closed form in double precision may be wrong by."""
    if found is None:
        return False
    return found.lower(epsilon) <= truth * (1 + 1e-10) + 1e-17 and truth * (
        1 - 1e-10
    ) - 1e-17 <= found.upper(epsilon)


def one_step_by_smoothing_holds_the_closed_form() -> bool:
    return all(
        encloses(
            forced_contours.smoothed(forced_contours.composition_of([(rate, noise, 1)], way), at),
            at,
            truth,
        )
        for rate, noise, way, at in ONE_STEPS
        for truth in [oracles.one_step_delta(at, rate, noise, way)]
    )


def one_step_split_in_two_holds_the_closed_form() -> bool:
    """The cap is above epsilon, so that both parts have a share in delta."""
    return all(
        encloses(
            forced_contours.split(
                forced_contours.composition_of([(rate, noise, 1)], way), at, cap * at
            ),
            at,
            truth,
        )
        for rate, noise, way, at in ONE_STEPS
        for truth in [oracles.one_step_delta(at, rate, noise, way)]
        for cap in (1.1, 1.5)
    )


RARE = [([(1e-5, 0.7, 40)], 1e-9), ([(2e-4, 0.5, 8), (1e-5, 0.9, 100)], 1e-12)]


def rare_losses_overlap_with_the_enclosure() -> bool:
    return all(
        answer.lower <= other.upper and other.lower <= answer.upper
        for ledger, delta in RARE
        for answer in [pld.profile(of_ledger(ledger)).epsilon(delta=delta)]
        for other in [enclosure.profile(of_ledger(ledger)).epsilon(delta=delta)]
    )


def epsilon_and_delta_are_inverse() -> bool:
    profile = pld.profile(of_ledger([(0.01, 1.0, 1000)]))
    epsilon = profile.epsilon(delta=1e-5)
    least, most = profile.delta(epsilon=epsilon.upper), profile.delta(epsilon=epsilon.lower)
    return least.lower <= 1e-5 <= most.upper


def chernoff_lies_above_one_step() -> bool:
    """At every order in the table, the order where it is sharp among them."""
    return all(
        bool((ledger_table.log_chernoff(at) >= math.log(truth) - 1e-10).all())
        for rate, noise, way, at in ONE_STEPS
        for truth in [oracles.one_step_delta(at, rate, noise, way)]
        for _, ledger_table, _ in [
            forced_contours.saddle(
                planning.WholeMeasure(forced_contours.composition_of([(rate, noise, 1)], way)), at
            )
        ]
    )


WIDTHS = (0.005, 0.2)  # a coarse grid needs its safety margins more


def enclosures_hold() -> bool:
    return all(
        holds(profile.epsilon(delta=value["at_delta"]), max(value["epsilon"].values(), key=Decimal))
        for value in SAMPLED
        for width in WIDTHS
        for profile in [enclosure.profile(of_ledger(value["ledger"]), relative_width=width)]
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
        holds(gdp.epsilon_of_mu(value["at_delta"], mu=value["mu"]), value["epsilon"])
        for value in values("gaussian", "at_delta")
    )


def renyi_lies_above_the_truth() -> bool:
    rdp.cached_release_divergence.cache_clear()
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
    truth = gdp.epsilon_of_mu(1e-6, mu=math.sqrt(2)).lower
    profile = naive.profile(mechanism)
    return profile.basic(delta=1e-6).upper >= truth <= profile.advanced(delta=1e-6).upper


def notices(check: Callable[[], bool]) -> bool:
    """A bug is noticed when a check fails, or when the code itself refuses to answer."""
    try:
        return not check()
    except DpauditError:
        return True


OF_THE_CONTOUR = [
    epsilon_and_delta_are_inverse,
    golden_laplace_holds,
    rare_losses_overlap_with_the_enclosure,
    one_step_by_smoothing_holds_the_closed_form,
    one_step_split_in_two_holds_the_closed_form,
    chernoff_lies_above_one_step,
    golden_epsilons_hold,
]
CHECKS = [
    *OF_THE_CONTOUR,
    enclosures_hold,
    responses_hold,
    gaussians_hold,
    renyi_lies_above_the_truth,
    naive_lies_above_the_truth,
]


@pytest.mark.parametrize("check", CHECKS)
def test_without_a_planted_bug_every_check_passes(check):
    assert check()


def wide_panels(monkeypatch, scales: float = 5.0, losses_wide: float = 1.8, radians: float = 40.0):
    monkeypatch.setattr(loss_distribution, "WIDTH_IN_SCALES", scales)
    monkeypatch.setattr(loss_distribution, "WIDTH_IN_LOSSES", losses_wide)
    monkeypatch.setattr(loss_distribution, "WIDTH_IN_RADIANS", radians)


def wide_panels_without_their_error(monkeypatch):
    wide_panels(monkeypatch, 30.0, 12.0, 80.0)
    monkeypatch.setattr(
        loss_distribution.SampledDensity,
        "log_errors",
        lambda self, edges, orders, reach: np.full((len(orders), len(edges) - 1), -700.0),
    )


def what_hardly_counts_is_left_out(monkeypatch):
    """Panels with a hundredth of the density's peak, as if they held nothing."""
    monkeypatch.setattr(loss_distribution, "LOG_NEGLIGIBLE", -4.0)
    honest = loss_distribution._density_points
    monkeypatch.setattr(
        loss_distribution, "_density_points", lambda *args: (*honest(*args)[:2], -math.inf)
    )


def short_period(monkeypatch):
    """Aliases as large as delta itself, by Chernoff."""
    monkeypatch.setattr(planning, "PLAIN_ALIASES", 1.0)
    monkeypatch.setattr(planning, "SMOOTH_ALIASES", 1.0)


def short_period_and_no_aliases(monkeypatch):
    short_period(monkeypatch)
    monkeypatch.setattr(contour_integral.ContourIntegral, "_aliases", lambda self, epsilon: 0.0)


def few_frequencies(monkeypatch):
    monkeypatch.setattr(planning, "LOG_DECAYED", 6.0)
    monkeypatch.setattr(planning, "DEVIATIONS", 2.0)


def nothing_beyond_the_last_frequency(monkeypatch):
    few_frequencies(monkeypatch)
    monkeypatch.setattr(planning, "_truncation_bound", lambda composition, found, affordable: 0.0)


def blunt_kernel(monkeypatch):
    """A transform that is still large where it is cut."""
    monkeypatch.setattr(forced_contours, "BETA", 1.0)
    monkeypatch.setattr(solver, "KERNEL_BETA", 1.0)
    monkeypatch.setattr(solver, "MAX_KERNEL_SLACK", 0.0)


def nothing_beyond_the_kernel(monkeypatch):
    blunt_kernel(monkeypatch)
    monkeypatch.setattr(SmoothingKernel, "beyond", lambda self, order, last: 0.0)
    monkeypatch.setattr(SmoothingKernel, "density_beyond", lambda self, order: 0.0)


def large_tails_cut(monkeypatch):
    monkeypatch.setattr(compose, "TAIL_SHARE", 0.1)


def large_tails_cut_and_forgotten(monkeypatch):
    large_tails_cut(monkeypatch)
    honest = LossQuery.composition
    monkeypatch.setattr(
        LossQuery,
        "composition",
        lambda self, delta: dataclasses.replace(honest(self, delta), truncated_mass=0.0),
    )


def only_the_direction_that_removes(monkeypatch):
    """And says so of both."""
    honest = LossQuery.composition
    monkeypatch.setattr(
        LossQuery,
        "composition",
        lambda self, delta: honest(dataclasses.replace(self, direction=Direction.REMOVED), delta),
    )


def every_release_once(monkeypatch):
    honest = pld_profile.count_releases
    monkeypatch.setattr(pld_profile, "count_releases", lambda m: dict.fromkeys(honest(m), 1))


def one_step_forgotten(monkeypatch):
    honest = pld_profile.count_releases

    def fewer(mechanism):
        return {release: max(1, times - 1) for release, times in honest(mechanism).items()}

    monkeypatch.setattr(pld_profile, "count_releases", fewer)


def one_step_too_many(monkeypatch):
    honest = pld_profile.count_releases

    def more(mechanism):
        return {release: times + 1 for release, times in honest(mechanism).items()}

    monkeypatch.setattr(pld_profile, "count_releases", more)


def a_rate_diluted(monkeypatch):
    """Takes one batch in a million for one that the record never joins."""
    honest = compose.poisson_loss_distribution
    monkeypatch.setattr(
        compose,
        "poisson_loss_distribution",
        lambda pair, rate, *rest: honest(pair, rate * (1 - 1e-6), *rest),
    )


def a_logarithm_inaccurate_near_1(monkeypatch):
    """numpy's own, of complex arguments: it caused real misses."""
    monkeypatch.setattr(contour_integral, "_log1p", np.log1p)


def a_tenth_of_what_smoothing_adds(monkeypatch):
    honest = SmoothingKernel.excess.fget
    monkeypatch.setattr(SmoothingKernel, "excess", property(lambda self: 0.1 * honest(self)))


def smoothed_to_the_left(monkeypatch):
    """Weights that do not keep the mean of e^epsilon: what is smoothed lies below delta."""
    honest = SmoothingKernel.transform
    monkeypatch.setattr(SmoothingKernel, "transform", lambda self, z: honest(self, z - 2))


def smoothed_for_the_lower_end(monkeypatch):
    """What is smoothed lies above delta, and is given out for the lower end."""
    honest = contour_integral.ContourIntegral.lower

    def above(self, epsilon):
        return honest(self, epsilon) if self.kernel is None else self.estimate(epsilon)

    monkeypatch.setattr(contour_integral.ContourIntegral, "lower", above)


def large_losses_dropped_and_forgotten(monkeypatch):
    """Part B of the split."""
    monkeypatch.setattr(planning.JumpMeasure, "transform", _nothing(planning.JumpMeasure.transform))


def _nothing(honest):
    def transform(self, *args):
        found = honest(self, *args)
        return dataclasses.replace(found, values=0 * found.values, errors=0 * found.errors)

    return transform


def a_search_that_stops_early(monkeypatch):
    """One secant step, and its end is what is looked around from."""

    def one_step(falling, target, start, slope, ceiling, precision):
        return start + math.log(falling(start) / target) / slope, slope

    monkeypatch.setattr(solver, "_root", one_step)


def a_search_that_stops_early_and_is_believed(monkeypatch):
    a_search_that_stops_early(monkeypatch)
    monkeypatch.setattr(
        solver,
        "_certified_argument",
        lambda ratio, start, slope, side, precision: start * (1 + side * 1e-9),
    )


def a_mean_forgotten(monkeypatch):
    """The losses' rounding: their mean is taken for a little more than it is."""
    honest = contour_integral.tilted_transform

    def shifted(*args):
        found = honest(*args)
        return dataclasses.replace(found, mean=found.mean * (1 + 1e-7))

    monkeypatch.setattr(planning, "tilted_transform", shifted)


PLANTED_IN_THE_CONTOUR = [
    wide_panels_without_their_error,
    what_hardly_counts_is_left_out,
    short_period_and_no_aliases,
    nothing_beyond_the_last_frequency,
    nothing_beyond_the_kernel,
    large_tails_cut_and_forgotten,
    only_the_direction_that_removes,
    every_release_once,
    one_step_forgotten,
    one_step_too_many,
    a_rate_diluted,
    a_logarithm_inaccurate_near_1,
    a_tenth_of_what_smoothing_adds,
    smoothed_to_the_left,
    smoothed_for_the_lower_end,
    large_losses_dropped_and_forgotten,
    a_search_that_stops_early_and_is_believed,
    a_mean_forgotten,
]


@pytest.mark.parametrize("plant", PLANTED_IN_THE_CONTOUR)
def test_a_bug_in_the_contour_is_noticed(monkeypatch, plant: Plant):
    plant(monkeypatch)
    assert any(notices(check) for check in OF_THE_CONTOUR)


# What is only too coarse makes answers wider, as long as its error is counted.
COARSE = [
    (wide_panels, golden_laplace_holds),
    (wide_panels, one_step_by_smoothing_holds_the_closed_form),
    (wide_panels, chernoff_lies_above_one_step),
    (short_period, golden_laplace_holds),
    (short_period, one_step_split_in_two_holds_the_closed_form),
    (few_frequencies, golden_epsilons_hold),
    (blunt_kernel, golden_laplace_holds),
    (blunt_kernel, one_step_by_smoothing_holds_the_closed_form),
    (large_tails_cut, epsilon_and_delta_are_inverse),
    (large_tails_cut, one_step_by_smoothing_holds_the_closed_form),
    (a_search_that_stops_early, golden_epsilons_hold),
    (a_search_that_stops_early, rare_losses_overlap_with_the_enclosure),
]


@pytest.mark.parametrize(("plant", "check"), COARSE)
def test_a_coarse_contour_is_wider_and_never_wrong(
    monkeypatch, plant: Plant, check: Callable[[], bool]
):
    plant(monkeypatch)
    assert check()


@pytest.mark.slow
@pytest.mark.parametrize("plant", dict.fromkeys(plant for plant, _ in COARSE))
@pytest.mark.parametrize("check", OF_THE_CONTOUR)
def test_no_coarse_contour_is_ever_wrong(monkeypatch, plant: Plant, check: Callable[[], bool]):
    plant(monkeypatch)
    assert check()


def split_sends_mass_down(monkeypatch):
    def low(law, spacing, tail):
        cells = lattice_distribution.discretise(law, spacing, tail)
        return dataclasses.replace(cells, first=cells.first - 1)

    monkeypatch.setattr(lattice_composition, "discretise", low)


def a_hundredth_of_each_split_goes_down(monkeypatch):
    monkeypatch.setattr(lattice_distribution, "SPLIT_MARGIN", -0.01)


def no_error_of_transform_wrap_and_cut(monkeypatch):
    none = functools.cached_property(lambda self: 0.0)
    none.__set_name__(lattice_composition.LatticeComposition, "_error")
    monkeypatch.setattr(lattice_composition.LatticeComposition, "_error", none)


def a_window_too_small_and_no_wrap_error(monkeypatch):
    monkeypatch.setattr(lattice_composition, "LOG_WRAP", math.log(0.5))
    monkeypatch.setattr(lattice_composition, "_wrapped_mass", lambda *args: 0.0)


def no_hoeffding_shift(monkeypatch):
    honest = lattice_composition.LatticeComposition.delta_lower

    def unshifted(self, epsilon, eta):
        return honest(dataclasses.replace(self, lift=0.0, steps=0), epsilon, eta)

    monkeypatch.setattr(lattice_composition.LatticeComposition, "delta_lower", unshifted)


def tails_dropped_and_forgotten(monkeypatch):
    """Leaves out losses as likely as delta itself, and says nothing was lost."""

    def forgetful(law, spacing, tail):
        return dataclasses.replace(
            lattice_distribution.discretise(law, spacing, 1e4 * tail), lost=0.0
        )

    monkeypatch.setattr(lattice_composition, "discretise", forgetful)


def one_step_of_the_grid_forgotten(monkeypatch):
    honest = enclosure_profile.count_releases

    def fewer(mechanism):
        return {release: max(1, times - 1) for release, times in honest(mechanism).items()}

    monkeypatch.setattr(enclosure_profile, "count_releases", fewer)


def steps_of_the_grid_too_many(monkeypatch):
    honest = enclosure_profile.count_releases

    def more(mechanism):
        return {release: times + 10 for release, times in honest(mechanism).items()}

    monkeypatch.setattr(enclosure_profile, "count_releases", more)


def only_the_direction_that_adds(monkeypatch):
    monkeypatch.setattr(
        enclosure_profile.GridProfile, "_directions", lambda self: (Direction.ADDED,)
    )


def sampling_taken_for_certain(monkeypatch):
    """Prices the noise of one in ten batches less."""
    honest = enclosure_profile.cell_distribution

    def diluted(release, adjacency, direction):
        law = honest(release, adjacency, direction)
        return dataclasses.replace(law, rate=0.9 * law.rate)

    monkeypatch.setattr(enclosure_profile, "cell_distribution", diluted)


PLANTED_IN_THE_GRID = [
    split_sends_mass_down,
    a_hundredth_of_each_split_goes_down,
    no_error_of_transform_wrap_and_cut,
    a_window_too_small_and_no_wrap_error,
    no_hoeffding_shift,
    tails_dropped_and_forgotten,
    one_step_of_the_grid_forgotten,
    steps_of_the_grid_too_many,
    only_the_direction_that_adds,
    sampling_taken_for_certain,
]


@pytest.mark.parametrize("plant", PLANTED_IN_THE_GRID)
def test_a_bug_in_the_grid_is_noticed(monkeypatch, plant: Plant):
    plant(monkeypatch)
    assert notices(enclosures_hold)


@pytest.mark.parametrize("log_wrap", [math.log(0.5), math.log(1e-3)])
def test_a_window_too_small_is_wider_and_never_wrong(monkeypatch, log_wrap):
    monkeypatch.setattr(lattice_composition, "LOG_WRAP", log_wrap)
    assert enclosures_hold()


A = [(0.01, 1.0, 1000)]


def test_two_ends_that_contradict_each_other_are_an_error_and_no_answer(monkeypatch):
    """A lower end above the upper one proves a bug: no fallback may cover it up."""
    monkeypatch.setattr(
        lattice_composition.LatticeComposition, "delta_lower", lambda self, epsilon, eta: 1.0
    )
    with pytest.raises(AccountingError):
        enclosure.profile(of_ledger(A)).delta(epsilon=1.8)


def test_two_certified_intervals_that_do_not_meet_are_an_error_and_no_answer(monkeypatch):
    monkeypatch.setattr(contour_integral.ContourIntegral, "lower", lambda self, epsilon: 1.0)
    with pytest.raises(AccountingError):
        pld.profile(of_ledger(A)).delta(epsilon=1.8)


def responses_counted_once(monkeypatch):
    honest = BinaryResponses.__init__
    monkeypatch.setattr(
        BinaryResponses, "__init__", lambda self, loss, times: honest(self, loss, 1)
    )


def one_response_forgotten(monkeypatch):
    honest = BinaryResponses.__init__
    monkeypatch.setattr(
        BinaryResponses, "__init__", lambda self, loss, times: honest(self, loss, max(1, times - 1))
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

    monkeypatch.setattr(gdp, "log_delta_of_mu", tail)


def gaussian_by_half_the_shift(monkeypatch):
    honest = gdp.log_delta_of_mu
    monkeypatch.setattr(
        gdp, "log_delta_of_mu", lambda epsilon, *, mu: honest(epsilon, mu=mu * (1 - 1e-8))
    )


@pytest.mark.parametrize("plant", [gaussian_by_the_normal_tail_alone, gaussian_by_half_the_shift])
def test_a_bug_in_the_closed_form_is_noticed(monkeypatch, plant: Plant):
    plant(monkeypatch)
    assert notices(gaussians_hold)


def renyi_of_one_step(monkeypatch):
    honest = rdp.count_releases
    monkeypatch.setattr(rdp, "count_releases", lambda m: dict.fromkeys(honest(m), 1))


def renyi_without_the_price_of_delta(monkeypatch):
    monkeypatch.setattr(rdp, "rdp_to_epsilon", lambda order, divergence, delta: divergence)


def renyi_of_half_the_rate(monkeypatch):
    honest = sampled_releases.add_remove_gaussian
    monkeypatch.setattr(
        sampled_releases, "add_remove_gaussian", lambda q, *rest: honest(q / 2, *rest)
    )


@pytest.mark.parametrize(
    "plant", [renyi_of_one_step, renyi_without_the_price_of_delta, renyi_of_half_the_rate]
)
def test_a_bug_in_renyi_is_noticed(monkeypatch, plant: Plant):
    plant(monkeypatch)
    assert notices(renyi_lies_above_the_truth)
    monkeypatch.undo()
    rdp.cached_release_divergence.cache_clear()


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
