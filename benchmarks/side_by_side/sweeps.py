"""Grids of plans, curves of one plan, and different Laplace releases: CPU time and width."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dpaudit.accountants import Composed, Gaussian, Laplace, PoissonSampled, Repeated, pld
from side_by_side.clock import timed
from side_by_side.tables import fixed, short, table, titled

PLANS_A_SECOND, CURVE_MS, LAPLACE_MS = 300, 100, 200
"""Targets."""

CASES = 1000


def _random_grid(place: int) -> tuple[Any, int]:
    """Return 1,000 plans of practice, no two alike, each at a delta of its own."""
    rng = np.random.default_rng(place)

    def between(low: float, high: float) -> Any:
        return np.exp(rng.uniform(math.log(low), math.log(high), CASES))

    steps = np.round(between(300, 30_000))
    found = pld.epsilon_grid(between(1e-3, 0.1), between(0.6, 3), steps, between(1e-8, 1e-4))
    return found, CASES


def _product_grid(place: int) -> tuple[Any, int]:
    """Return 8 x 8 x 8 x 4 plans of rates, noise, steps and deltas."""
    rates = np.geomspace(0.002, 0.1, 8)[:, None, None, None] * (1 + 1e-13 * place)
    steps = np.geomspace(200, 20_000, 8).round()[:, None]
    noises = np.linspace(0.6, 3, 8)[:, None, None]
    found = pld.epsilon_grid(rates, noises, steps, np.geomspace(1e-4, 1e-8, 4))
    return found, found.upper.size


def _profile(place: int) -> Any:
    step = PoissonSampled(Gaussian(1.0 + 1e-13 * place), 0.01)
    return pld.profile(Repeated(step, 1000))


def _epsilons(place: int) -> tuple[Any, int]:
    return _profile(place).epsilons(deltas=np.geomspace(1e-3, 1e-12, 100)), 100


def _deltas(place: int) -> tuple[Any, int]:
    return _profile(place).deltas(epsilons=np.linspace(0.1, 6, 100)), 100


def _steps(place: int) -> tuple[Any, int]:
    steps = np.linspace(100, 10_000, 100).round()
    return pld.epsilon_grid(0.01, 1.0 + 1e-13 * place, steps, 1e-5), 100


def _laplace(place: int) -> tuple[Any, int]:
    parts = tuple(Laplace(3 + 0.37 * k + 1e-13 * place) for k in range(10))
    found = pld.profile(Composed(parts)).epsilon(delta=1e-5)
    return pld.BoundArray(np.array([found.lower]), np.array([found.upper])), 1


ROWS: dict[str, tuple[Callable[[int], tuple[Any, int]], str, float]] = {
    "1,000 random plans": (_random_grid, "plans a second", PLANS_A_SECOND),
    "8 x 8 x 8 x 4 plans": (_product_grid, "plans a second", PLANS_A_SECOND),
    "epsilon of A at 100 deltas": (_epsilons, "ms", CURVE_MS),
    "delta of A at 100 epsilons": (_deltas, "ms", CURVE_MS),
    "epsilon over 100 numbers of steps": (_steps, "ms", CURVE_MS),
    "10 different Laplace releases": (_laplace, "ms", LAPLACE_MS),
}


def measure(*, repeats: int) -> list[dict[str, Any]]:
    """Return CPU time, width and whether the target is met, of each case."""
    rows = []
    for name, (ask, unit, target) in ROWS.items():
        asked = timed(ask, min(repeats, 3))
        row: dict[str, Any] = {"name": name, "ms": asked.best, "error": asked.why_not}
        if asked.value is not None:
            bounds, count = asked.value
            figure = count / asked.best * 1e3 if unit != "ms" else asked.best
            with np.errstate(invalid="ignore"):
                width = float(np.max((bounds.upper - bounds.lower) / bounds.upper))
            met = figure >= target if unit != "ms" else figure <= target
            row |= {"figure": figure, "unit": unit, "target": target, "met": met, "width": width}
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    lines = [
        (
            row["name"],
            fixed(row["ms"], 1),
            f"{fixed(row.get('figure'), 0)} {row.get('unit', '')}",
            str(row.get("target", "-")),
            short(row.get("width")),
            row["error"] or ("met" if row["met"] else "NOT MET"),
        )
        for row in rows
    ]
    heading = ("", "CPU ms", "figure", "target", "largest relative width", "")
    return titled("Grids and curves, CPU time of one core", table(heading, lines))
