"""Quadrature, decay and kernel over arrays, against long double and against each other."""

from __future__ import annotations

import numpy as np
import pytest

from dpaudit.accountants.pld.many_plans import decay
from dpaudit.accountants.pld.many_plans.sampled_normals import (
    NodeGrid,
    SampledNormals,
    characteristic_rows,
    choose_steps,
)

# (shift, rate, order, reach): few and many jumps, little and much noise, flat and steep tilts.
CORNERS = np.array(
    [
        (1.0, 0.01, 6.7, 80.0), (2.5, 1e-5, 2.4, 100.0), (0.2, 0.25, 12.0, 40.0),
        (1.4, 0.5, 1.0, 5.0), (0.05, 1e-3, 900.0, 4e4), (0.7, 0.9, 20.0, 90.0),
    ]
)  # fmt: skip
SIGNS = (1.0, -1.0)


def grid_of(sign: float, coarser: float = 1.0) -> tuple[NodeGrid, np.ndarray, np.ndarray]:
    """Return nodes of all corners at their reach, with a step that is this much too large."""
    shift, rate, order, reach = CORNERS.T
    rows = SampledNormals(shift, rate, np.full(len(shift), sign))
    step, strip = choose_steps(rows, order, reach)
    low, high = rows.interval(order)
    count = int(np.ceil(((high - low) / (coarser * step)).max())) + 1
    return NodeGrid.of(rows, coarser * step, strip, high, count), order, reach


def reference(sign: float, place: int, frequencies: np.ndarray) -> tuple[np.ndarray, float]:
    """Return phi about the mean 0 and the log moment, by a fine trapezoid rule in long double."""
    shift, rate, order, _ = (np.longdouble(value) for value in CORNERS[place])
    exponent = order + 1 if sign > 0 else -order
    low, high = -14 - order * shift, 14 + (order + 1) * shift
    step = np.longdouble(1) / 500
    x = np.arange(low, high, step, dtype=np.longdouble)
    ratio = np.log1p(rate * np.expm1(shift * x - shift * shift / 2))
    logs = exponent * ratio - x * x / 2
    peak = logs.max()
    masses = np.exp(logs - peak)
    phi = [(masses * np.exp(1j * np.longdouble(y) * sign * ratio)).sum() for y in frequencies]
    total = masses.sum()
    moment = peak + np.log(total * step / np.sqrt(2 * np.longdouble(np.pi)))
    return np.array(phi) / total, float(moment)


@pytest.mark.parametrize("coarser", [1.0, 1.6, 2.4])
@pytest.mark.parametrize("sign", SIGNS)
def test_the_error_bound_holds_and_is_needed(sign: float, coarser: float) -> None:
    """At the chosen step errors are tiny; at larger ones they are not, and the bound says so."""
    grid, order, reach = grid_of(sign, coarser)
    tilted = grid.tilted(order, reach)
    largest = 0.0
    for place in range(len(CORNERS)):
        y = np.array([0.0, 0.3, 0.7, 1.0]) * reach[place]
        truth, moment = reference(sign, place, y)
        phases = np.exp(1j * np.outer(y, tilted.losses[place] + tilted.mean[place]))
        error = float(np.abs(phases @ tilted.masses[place] - truth).max())
        assert error <= tilted.error[place]
        assert abs(tilted.log_moment[place] - moment) <= tilted.error[place]
        largest = max(largest, error)
    if coarser == 1:
        assert (tilted.error < 1e-9).all()
    if coarser > 2:
        assert largest > 1e-9  # the bound at the chosen step would be wrong here


@pytest.mark.parametrize("sign", SIGNS)
def test_layers_bound_every_frequency_from_each_on(sign: float) -> None:
    grid, order, reach = grid_of(sign)
    tilted = grid.tilted(order, reach)
    masses, lengths = decay.layers(grid, tilted, order)
    y = reach[:, None] * np.geomspace(1e-3, 1, 40)
    bound = decay.log_modulus_beyond(masses, lengths, y)
    assert (np.diff(bound, axis=1) <= 1e-12).all()
    for place in range(len(CORNERS)):
        modulus = np.abs(
            np.exp(1j * np.outer(y[place], tilted.losses[place])) @ tilted.masses[place]
        )
        assert (modulus <= np.exp(bound[place]) + tilted.error[place]).all()
    # More than half of the mass is in the layers, and the bound falls.
    assert (masses.sum(axis=1) > 0.5).all()
    assert (bound[:, -1] < -1e-7).all()
    assert (bound[[0, 2, 3, 4, 5], -1] < -0.05).all()


def test_rows_of_characteristic_functions_are_sums_of_phases() -> None:
    rng = np.random.default_rng(3)
    losses, masses = rng.normal(size=(3, 40)), rng.random((3, 40))
    spacing = np.array([0.01, 0.2, 1.5])
    found = characteristic_rows(losses, masses, spacing, 37)
    for row in range(3):
        phases = np.exp(1j * np.outer(spacing[row] * np.arange(37), losses[row]))
        assert np.abs(found[row] - phases @ masses[row]).max() < 1e-12
