"""Chernoff's bound from certified cumulants is never below the exact value, at any order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpaudit.accountants.pld.laws.composition import (
    cumulants_around,
    jump_cumulants_around,
    log_chernoff_factor,
)
from tests.accountants import forced_contours, oracles
from tests.accountants.golden import values

ORACLE = 1e-10  # of the closed form in double precision


@pytest.mark.parametrize("order", [1e-3, 0.4, 1.0, 30.0, 1e6])
def test_the_peak_is_the_largest_value_of_its_function(order):
    at = math.log1p(1 / order)  # where the derivative of e^(-c u) (1 - e^-u) is 0
    u = np.append(at * np.geomspace(1e-3, 1e3, 4001), at)
    logs = -order * u + np.log(-np.expm1(-u))
    assert float(log_chernoff_factor(np.array(order))) == pytest.approx(
        float(logs.max()), abs=1e-12
    )
    assert logs.argmax() in (2000, 4001)


STEPS = [(0.01, 1.0), (1e-6, 0.3), (0.3, 3.0), (0.9, 2.0), (1e-3, 50.0)]


@pytest.mark.parametrize("direction", ["remove", "add"])
@pytest.mark.parametrize(("rate", "noise"), STEPS)
def test_every_order_bounds_one_step_from_above(rate, noise, direction):
    composition = forced_contours.composition_of([(rate, noise, 1)], direction)
    for share in (1e-3, 0.05, 0.4):
        epsilon = share * composition.largest
        truth = oracles.one_step_delta(epsilon, rate, noise, direction)
        for order in (0.1 / composition.largest, 3 / composition.largest, 60 / composition.largest):
            table = cumulants_around(composition, order)
            assert (table.log_chernoff(epsilon) >= math.log(truth) - ORACLE).all()


@pytest.mark.parametrize("direction", ["remove", "add"])
@pytest.mark.parametrize(
    "value", values("sampled_gaussian", "at_epsilon"), ids=lambda value: value["name"]
)
def test_the_best_order_bounds_compositions_from_above_and_is_near(value, direction):
    composition = forced_contours.composition_of(value["ledger"], direction)
    log_truth = math.log(float(value["delta"][direction]))
    _, table, _ = forced_contours.saddle(
        forced_contours.WholeMeasure(composition), value["at_epsilon"]
    )
    least = float(table.log_chernoff(value["at_epsilon"]).min())
    assert log_truth <= least
    if value["name"] != "rare":  # there, the losses have two modes
        assert least <= log_truth + 6


@pytest.mark.parametrize("direction", ["remove", "add"])
@pytest.mark.parametrize(("rate", "noise"), STEPS)
@pytest.mark.parametrize("share", [0.01, 0.3])
def test_jumps_of_one_step_are_the_upper_part(rate, noise, direction, share):
    composition = forced_contours.composition_of([(rate, noise, 1)], direction)
    below, above = composition.split(share * composition.largest)
    for order in (0.5 / composition.largest, 20 / composition.largest):
        table = jump_cumulants_around(below, above, order)
        least, most = above.distributions[0][0].log_moments(table.orders)
        assert (table.upper >= least).all()
        if order < 1 / composition.largest:  # where panels are fine enough for a sharp bound
            assert (table.upper <= most + 1e-6).all()


@pytest.mark.parametrize("times", [2, 40, 5000])
def test_jumps_of_many_steps_are_the_whole_minus_the_lower_part(times):
    composition = forced_contours.composition_of([(0.01, 1.0, times)])
    below, above = composition.split(0.5)
    table = jump_cumulants_around(below, above, 3.0)
    (whole, _), (low, _) = composition.distributions[0], below.distributions[0]
    k_whole = times * whole.log_moments(table.orders)[0]
    k_below = times * low.log_moments(table.orders)[1]
    truth = k_whole + np.log(-np.expm1(np.minimum(k_below - k_whole, -1e-300)))
    clear = k_whole - k_below > 1e-6  # elsewhere the difference is rounding
    assert clear.any()
    assert (table.upper >= truth - 1e-9)[clear].all()
    assert (table.upper <= truth + 1e-5)[clear].all()


def test_a_gaussian_has_its_own_cumulants():
    composition = forced_contours.composition_of([(1.0, 2.0, 9)])
    table = cumulants_around(composition, 3.0)
    exact = 9 / 4 / 2 * table.orders * (table.orders + 1)
    assert (table.upper >= exact).all()
    assert table.upper == pytest.approx(exact, rel=1e-14)
