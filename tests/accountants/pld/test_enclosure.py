"""Random configurations against the independent enclosure on a grid."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from dpaudit.accountants import pld
from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld import enclosure
from dpaudit.vocabulary.errors import DpauditError, Unresolvable
from tests.accountants.golden import of_ledger

DIRECTIONS = {"removed": Direction.REMOVED, "added": Direction.ADDED}
COARSE = 0.05  # the enclosure's relative width: only an overlap is checked
IN_PASSING, AT_LENGTH, BATCH = 300, 10_000, 500


@dataclass(frozen=True)
class Configuration:
    entries: list[tuple[float, float, int]]
    delta: float


def configuration(generator: np.random.Generator) -> Configuration:
    """Draw magnitudes log-uniformly; a tenth of all compositions are heterogeneous."""
    count = int(generator.integers(2, 6)) if generator.random() < 0.1 else 1
    entries = [
        (
            10 ** generator.uniform(-6, 0),
            10 ** generator.uniform(math.log10(0.3), 2),
            int(10 ** generator.uniform(0, 6)),
        )
        for _ in range(count)
    ]
    return Configuration(entries, 10 ** generator.uniform(-30, -3))


def examine(asked: Configuration) -> str:
    """Return what is wrong with the answer, "refused", or None."""
    mechanism = of_ledger(asked.entries)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # intermediate NaNs raise warnings
            answers = pld.profile(mechanism).explain_epsilon(delta=asked.delta)
    except Unresolvable:
        return "refused"
    for answer in answers:
        if not 0 <= answer.lower <= answer.upper < math.inf:
            return f"no interval: {answer}"
        if not answer.is_narrow(1e-3, 1e-6):
            return f"wide: {answer}"
    grid = enclosure.profile(mechanism, relative_width=COARSE)
    for answer in answers:
        try:
            if answer.direction:
                other = grid._epsilon_in_direction(asked.delta, DIRECTIONS[answer.direction])
            else:
                other = grid.epsilon(delta=asked.delta)
        except DpauditError:
            continue  # too expensive for the enclosure
        if answer.lower > other.upper or answer.upper < other.lower:
            return f"outside of {other}: {answer}"
    return ""


def wrong(seed: int, count: int) -> tuple[dict[str, list[Configuration]], int]:
    """Return what was wrong with which configurations, and how many were refused."""
    generator = np.random.default_rng(seed)
    found: dict[str, list[Configuration]] = {}
    for _ in range(count):
        asked = configuration(generator)
        try:
            verdict = examine(asked)
        except Exception as error:
            verdict = f"crash: {error!r}"
        if verdict:
            found.setdefault(verdict, []).append(asked)
    refused = len(found.pop("refused", []))
    return found, refused


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))]
)
def test_random_configurations_are_narrow_and_overlap_with_the_enclosure(seed):
    found, refused = wrong(seed, IN_PASSING // 6)
    assert not found
    assert refused == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1000 + AT_LENGTH // BATCH))
def test_many_configurations_are_narrow_and_overlap_with_the_enclosure(seed):
    found, refused = wrong(seed, BATCH)
    assert not found
    assert refused <= BATCH // 1000 + 1
