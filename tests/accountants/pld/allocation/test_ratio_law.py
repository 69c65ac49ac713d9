"""Joins of likelihood ratios: the order against exact arithmetic, rounding, planted errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from dpaudit.accountants import gdp
from dpaudit.accountants.pld.allocation import ratio_law, step_law
from dpaudit.accountants.pld.allocation.ratio_law import (
    JoinSettings,
    RatioGrid,
    RatioLaw,
    mean_of,
    mean_of_copies,
)
from dpaudit.accountants.pld.allocation.step_law import gaussian_step, normal_cells

BELOW = JoinSettings(above=False, fineness=0.1, turn=6.0, tail=1e-30)
ABOVE = JoinSettings(above=True, fineness=0.1, turn=6.0, tail=1e-30)
RATIOS = [0.05, 0.4, 0.8, 0.95, 1.0, 1.02, 1.3, 2.0, 5.0, 30.0]


def exact_law(seed: int, size: int, spread: float) -> RatioLaw:
    """Return random atoms without rounding errors of their own."""
    draw = np.random.default_rng(seed)
    losses = np.sort(draw.normal(0, spread, size))
    q = draw.dirichlet(np.ones(size)) * np.exp(-draw.uniform(0, 25, size))
    return RatioLaw(losses, q, q * np.exp(losses), 0.0, 0.0, 0.0, 0.0)


def exact_atoms(law: RatioLaw) -> list[tuple[Fraction, Fraction]]:
    """Return ratio and Q-mass of the atoms to 60 digits."""
    with mpmath.workdps(60):
        return [
            (Fraction(mpmath.nstr(mpmath.exp(mpmath.mpf(float(z))), 55)), Fraction(float(q)))
            for z, q in zip(law.losses, law.q_masses, strict=True)
        ]


def exact_means(
    left: RatioLaw, right: RatioLaw, counts: tuple[int, int]
) -> list[tuple[Fraction, Fraction]]:
    """Return all pairs of atoms, joined by their weighted mean, in exact arithmetic."""
    a, b = (Fraction(count, sum(counts)) for count in counts)
    return [(a * x + b * y, q * r) for x, q in exact_atoms(left) for y, r in exact_atoms(right)]


def exact_deltas(atoms: list[tuple[Fraction, Fraction]], ratio: float) -> tuple[Fraction, Fraction]:
    k = Fraction(ratio)
    return (
        sum((q * (x - k) for x, q in atoms if x > k), Fraction(0)),
        sum((q * (1 - k * x) for x, q in atoms if k * x < 1), Fraction(0)),
    )


def bounded_deltas(law: RatioLaw, ratio: float, *, above: bool) -> tuple[float, float]:
    """Return the bounds of both deltas by a law, with the rounding errors that it states."""
    sign = 1 if above else -1
    x = np.exp(law.losses + sign * law.move_error)
    y = np.exp(law.losses - sign * law.move_error)
    factor = math.exp(sign * (law.mass_error + 1e-13))
    removed = float(law.q_masses @ np.maximum(x - ratio, 0.0)) * factor
    added = float(law.q_masses @ np.maximum(1 - ratio * y, 0.0)) * factor
    return removed + above * law.lost_p, added + above * law.lost_q


def order_holds(counts: tuple[int, int] = (2, 1), *, same: bool = False) -> bool:
    """Return whether joined laws enclose the exact deltas, closely enough to notice errors."""
    left = exact_law(1, 24, 1.0)
    right = left if same else exact_law(2, 17, 0.6)
    exact = exact_means(left, right, counts)
    low, high = (mean_of(left, right, counts, settings) for settings in (BELOW, ABOVE))
    for ratio in RATIOS:
        bounds = zip(
            bounded_deltas(low, ratio, above=False),
            exact_deltas(exact, ratio),
            bounded_deltas(high, ratio, above=True),
            strict=True,
        )
        for lower, truth, upper in bounds:
            if not Fraction(lower) <= truth <= Fraction(upper):
                return False
    return True


@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (16, 1)])
def test_joined_laws_enclose_exact_deltas(counts: tuple[int, int]) -> None:
    assert order_holds(counts)


def test_a_law_joined_with_itself_encloses_exact_deltas() -> None:
    assert order_holds((1, 1), same=True)


def planted_steps_hold() -> bool:
    """Return whether laws of one step enclose the delta of one Gaussian, also in far tails."""
    low, high = (gaussian_step(0.7, settings) for settings in (BELOW, ABOVE))
    for ratio in (1.0, 1.5, 10.0, 150.0):
        exact = gdp.delta_of_mu(math.log(ratio), mu=0.7)
        lower = max(bounded_deltas(low, ratio, above=False))
        upper = max(bounded_deltas(high, ratio, above=True))
        if not (lower <= exact.upper and exact.lower <= upper and lower > 0):
            return False
    return True


def two_steps_delta(shift: float, ratio: float) -> float:
    """Return the removed delta of a pass of two steps: one quadrature of a closed form."""
    m = mpmath.mpf(shift)

    def call(strike: mpmath.mpf) -> mpmath.mpf:
        """Return E[(W - strike)+] of the log-normal W."""
        if strike <= 0:
            return 1 - strike
        y = mpmath.log(strike) / m + m / 2
        return mpmath.ncdf(m - y) - strike * mpmath.ncdf(-y)

    def integrand(y: mpmath.mpf) -> mpmath.mpf:
        w = mpmath.exp(m * y - m * m / 2)
        return mpmath.npdf(y) * call(2 * ratio - w) / 2

    with mpmath.workdps(20):
        cut = mpmath.log(2 * ratio) / m + m / 2
        return float(mpmath.quad(integrand, [-12, -4, 0, 3, cut, cut + 4, cut + 12]))


def two_steps_hold() -> bool:
    """Return whether laws of two steps enclose the quadrature."""
    for shift, ratio in ((1.0, 4.0), (2.0, 30.0), (0.3, 1.4)):
        exact = two_steps_delta(shift, ratio)
        for settings in (BELOW, ABOVE):
            law = mean_of_copies(gaussian_step(shift, settings), 2, settings)
            bound = bounded_deltas(law, ratio, above=settings.above)[0]
            if settings.above and not exact <= bound * (1 + 1e-9):
                return False
            if not settings.above and not bound <= exact * (1 + 1e-9):
                return False
    return True


def test_one_step_encloses_the_gaussian() -> None:
    assert planted_steps_hold()


def test_two_steps_enclose_a_quadrature() -> None:
    assert two_steps_hold()


def shares_exchanged(real: Callable[..., RatioLaw]) -> Callable[..., RatioLaw]:
    """Spread to the ends with the shares exchanged: mass is kept, the mean is not."""

    def settle(q, p, grid, errors, *, above, tail):
        law = real(q, p, grid, errors, above=above, tail=tail)
        if not above:
            return law
        x_low, x_high = np.exp(grid.edges[:-1]), np.exp(grid.edges[1:])
        share = np.where(q > 0, (x_high - p / np.maximum(q, 1e-300)) / (x_high - x_low), 0.0)
        masses = np.append(q * (1 - share), 0.0) + np.append(0.0, q * share)
        held = masses > 0
        losses = grid.edges[held]
        return RatioLaw(
            losses, masses[held], masses[held] * np.exp(losses),
            law.lost_q, law.lost_p, law.mass_error, law.move_error,
        )  # fmt: skip

    return settle


def merged_above(real: Callable[..., RatioLaw]) -> Callable[..., RatioLaw]:
    """Merge for the upper bound as well."""
    return lambda q, p, grid, errors, *, above, tail: real(
        q, p, grid, errors, above=False, tail=tail
    )


def spread_below(real: Callable[..., RatioLaw]) -> Callable[..., RatioLaw]:
    """Spread for the lower bound as well."""
    return lambda q, p, grid, errors, *, above, tail: real(
        q, p, grid, errors, above=True, tail=tail
    )


def rounded_to_the_middle(real: Callable[..., RatioLaw]) -> Callable[..., RatioLaw]:
    """Put the mass of a cell at its middle, instead of at its mean."""

    def settle(q, p, grid, errors, *, above, tail):
        middle = np.exp((grid.edges[:-1] + grid.edges[1:]) / 2)
        return real(q, q * middle if not above else p, grid, errors, above=above, tail=tail)

    return settle


PLANTED_SETTLES = [shares_exchanged, merged_above, spread_below, rounded_to_the_middle]


@pytest.mark.parametrize("plant", PLANTED_SETTLES)
def test_a_wrong_move_is_noticed(monkeypatch: pytest.MonkeyPatch, plant) -> None:
    monkeypatch.setattr(ratio_law, "settle", plant(ratio_law.settle))
    assert not order_holds()


def test_a_pair_that_is_counted_once_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ratio_law._sum_over_pairs

    def once(left, right, weights, grid, tail):
        q, p, terms = real(left, right, weights, grid, tail)
        return (q * 0.999, p * 0.999, terms) if left is right else (q, p, terms)

    monkeypatch.setattr(ratio_law, "_sum_over_pairs", once)
    assert not order_holds((1, 1), same=True)


def test_exchanged_weights_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ratio_law._sum_over_pairs
    monkeypatch.setattr(
        ratio_law,
        "_sum_over_pairs",
        lambda left, right, weights, grid, tail: real(left, right, weights[::-1], grid, tail),
    )
    assert not order_holds((2, 1))


def test_rounding_errors_that_are_not_stated_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of almost equal losses, the exact deltas differ from the laws by rounding alone."""
    losses = np.log1p(np.arange(12) * 1e-13)
    q = np.full(12, 1 / 12)
    law = RatioLaw(losses, q, q * np.exp(losses), 0.0, 0.0, 0.0, 0.0)
    exact = exact_means(law, law, (1, 1))
    low = mean_of(law, law, (1, 1), BELOW)
    truth = exact_deltas(exact, 1.0)[0]
    stated = bounded_deltas(low, 1.0, above=False)[0]
    unstated = float(low.q_masses @ np.maximum(np.exp(low.losses) * (1 + 1e-12) - 1.0, 0.0))
    assert Fraction(stated) <= truth < Fraction(unstated)


def test_masses_that_are_left_out_are_stated() -> None:
    settings = JoinSettings(above=True, fineness=0.1, turn=6.0, tail=1e-4)
    law = mean_of_copies(gaussian_step(1.0, settings), 4, settings)
    assert law.lost_p >= 1 - law.p_masses.sum() * math.exp(law.mass_error + law.move_error) - 1e-12
    assert law.lost_q >= 1 - law.q_masses.sum() * math.exp(law.mass_error) - 1e-12
    assert law.lost_p > 1e-5  # the pairs that are left out at this tail are not negligible
    fine = JoinSettings(above=False, fineness=0.1, turn=6.0, tail=1e-30)
    most = mean_of_copies(gaussian_step(1.0, fine), 4, fine)
    for ratio in (1.0, 2.0, 5.0, 12.0):
        lower = bounded_deltas(most, ratio, above=False)
        upper = bounded_deltas(law, ratio, above=True)
        assert all(a <= b for a, b in zip(lower, upper, strict=True))


@pytest.mark.parametrize("edges", [np.linspace(-30, -29, 40), np.linspace(-1, 12, 60)])
def test_masses_of_cells_are_those_in_extended_precision(edges) -> None:
    cells, error = normal_cells(edges)
    with mpmath.workdps(40):
        exact_edges = [mpmath.mpf(float(edge)) for edge in edges]
        for low, high, found in zip(exact_edges[:-1], exact_edges[1:], cells, strict=True):
            if low < 0:
                exact = mpmath.ncdf(high) - mpmath.ncdf(low)
            else:
                exact = mpmath.ncdf(-low) - mpmath.ncdf(-high)
            assert abs(mpmath.mpf(float(found)) / exact - 1) <= error
    assert error < 1e-12


@pytest.mark.parametrize(("width", "turn", "fineness"), [(1.0, 5.0, 0.06), (3e-3, 14.0, 0.01)])
def test_a_loss_lies_in_its_cell_up_to_the_stated_displacement(width, turn, fineness) -> None:
    grid = RatioGrid.covering(-20.0, 25.0, width=width, turn=turn, fineness=fineness)
    draw = np.random.default_rng(5)
    near = draw.choice(grid.edges[1:-1], 800) * (1 + draw.normal(0, 1e-15, 800))
    losses = np.concatenate([near, draw.uniform(-20, 25, 100), draw.normal(0, width, 100)])
    cells = grid.locate(losses.copy())
    with mpmath.workdps(40):
        scale, step = mpmath.mpf(turn) * mpmath.mpf(width), mpmath.mpf(fineness) / mpmath.mpf(turn)
        for cell, loss in zip(cells.tolist(), losses.tolist(), strict=True):
            low = scale * mpmath.sinh((grid.first + cell) * step)
            high = scale * mpmath.sinh((grid.first + cell + 1) * step)
            assert low - grid.placement_error <= loss <= high + grid.placement_error
            assert abs(mpmath.mpf(float(grid.edges[cell])) - low) <= grid.placement_error
    assert grid.placement_error < 2e-11


@pytest.mark.parametrize("function", ["exp", "log", "expm1", "arcsinh", "sinh"])
def test_functions_are_as_accurate_as_the_proof_assumes(function: str) -> None:
    draw = np.random.default_rng(7)
    values = np.concatenate([draw.uniform(-30, 30, 600), draw.normal(0, 1e-3, 200)])
    if function == "log":
        values = np.exp(values)
    found = getattr(np, function)(values)
    exact = getattr(mpmath, {"arcsinh": "asinh"}.get(function, function))
    with mpmath.workdps(40):
        for value, ours in zip(values.tolist(), found.tolist(), strict=True):
            truth = exact(mpmath.mpf(value))
            assert abs(mpmath.mpf(ours) - truth) <= ratio_law.FUNCTION_ERROR * abs(truth)


def test_a_quadrature_with_too_few_points_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    points, weights = np.polynomial.legendre.leggauss(4)
    monkeypatch.setattr(step_law, "POINTS", points)
    monkeypatch.setattr(step_law, "WEIGHTS", weights)
    edges = np.linspace(-1, 12, 60)
    cells, error = normal_cells(edges)
    exact = float(mpmath.ncdf(-edges[-2]) - mpmath.ncdf(-edges[-1]))
    assert abs(cells[-1] / exact - 1) > error
