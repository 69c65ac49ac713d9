"""Bounds of smoothed contours, and the parts of split contours."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from dpaudit.accountants.pld.contour.contour_integral import tilted_jump_transform, tilted_transform
from tests.accountants import forced_contours, oracles

ORACLE = 1e-10

STEPS = [
    (rate, noise, direction)
    for rate, noise in [(0.01, 1.0), (1e-4, 0.5), (0.3, 3.0), (1e-6, 0.3), (0.9, 2.0)]
    for direction in ("remove", "add")
]


@pytest.mark.parametrize(("rate", "noise", "direction"), STEPS)
@pytest.mark.parametrize("share", [0.004, 0.02, 0.3])
def test_smoothing_one_step_encloses_the_closed_form(rate, noise, direction, share):
    composition = forced_contours.composition_of([(rate, noise, 1)], direction)
    for part in (0.05, 0.3):
        epsilon = part * composition.largest
        found = forced_contours.smoothed(composition, epsilon, share)
        if found is None:
            continue  # more frequencies than allowed
        for near in (epsilon, 0.99 * epsilon, 1.02 * epsilon):  # bounds hold at every epsilon
            truth = oracles.one_step_delta(near, rate, noise, direction)
            assert found.lower(near) <= truth * (1 + ORACLE)
            assert truth * (1 - ORACLE) <= found.upper(near)


def test_smoothing_narrows_with_the_square_of_its_width():
    composition = forced_contours.composition_of([(0.01, 1.0, 1)])
    widths = [
        found.upper(2.0) - found.lower(2.0)
        for share in (1.0, 0.1)
        for found in [forced_contours.smoothed(composition, 2.0, share)]
    ]
    assert widths[0] / widths[1] == pytest.approx(100, rel=0.3)


@pytest.mark.parametrize("entries", [[(0.01, 1.0, 30)], [(1e-4, 0.6, 500), (0.2, 5.0, 9)]])
def test_the_parts_of_a_split_add_up_to_the_whole(entries):
    """As transforms: A^T + ((A + B)^T - A^T) = (A + B)^T, at one order."""
    composition = forced_contours.composition_of(entries)
    below, above = composition.split(0.3)
    order, spacing, count = 2.0, 0.7, 300
    parts = [
        tilted_transform(below, order, spacing, count),
        tilted_jump_transform(below, above, order, spacing, count),
        tilted_transform(composition, order, spacing, count),
    ]
    low, jumps, whole = (
        part.values
        * np.exp(1j * part.frequencies * part.mean + part.log_moment - parts[2].log_moment)
        for part in parts
    )
    error = sum(
        part.errors * math.exp(part.log_moment - parts[2].log_moment) + part.log_moment_error
        for part in parts
    )
    turned = 1e-15 * parts[2].frequencies * (1 + abs(parts[2].mean))
    assert (np.abs(low + jumps - whole) <= error + turned).all()
    assert error.max() < 1e-9


def test_aliases_affect_the_lower_end_only():
    """The sum without its period's aliases is an upper bound: a shorter period raises it."""
    composition = forced_contours.composition_of([(0.01, 1.0, 1000)])
    found = forced_contours.plain_part(composition, 1.8)
    assert found is not None
    order, spacing = found.transform.order, found.transform.spacing
    coarser = tilted_transform(
        composition, order, 6 * spacing, len(found.transform.values) // 6 + 1
    )
    short = replace(found, transform=coarser)
    assert short.lower(1.8) <= found.lower(1.8) <= found.upper(1.8) <= short.upper(1.8)
    assert short.estimate(1.8) > found.estimate(1.8)


def test_a_normal_factor_below_the_least_float_is_zero():
    composition = replace(forced_contours.composition_of([(0.01, 1.0, 1)]), gaussian=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tilted_transform(replace(composition, distributions=()), 1.0, 1e200, 3)
    assert found.values.tolist() == [1, 0, 0]
