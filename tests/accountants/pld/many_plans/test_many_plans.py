"""Epsilon and delta over arrays against golden values and against one plan at a time."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from dpaudit.accountants import pld
from dpaudit.accountants.numerics import CertifiedInterval
from dpaudit.accountants.pld.grids import sampled_plan
from dpaudit.accountants.pld.many_plans import SampledPlans, deltas_of_many, epsilons_of_many
from dpaudit.accountants.pld.many_plans.sampled_normals import NodeGrid, TiltedNodes
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.errors import Unresolvable
from dpaudit.vocabulary.mechanism import Composed, Gaussian, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.accountants.golden import of_ledger, values

ADD = Adjacency.ADD_OR_REMOVE_ONE
ONE = np.zeros(1, dtype=np.int64)
ROWS = {"remove": 0, "add": 1}
SAMPLED = [one for one in values("sampled_gaussian") if any(q < 1 for q, _, _ in one["ledger"])]


def plan_of(ledger: list[Any]) -> SampledPlans:
    plan = sampled_plan(count_releases(of_ledger(ledger)), ADD)
    assert plan is not None
    return plan


def test_golden_values_lie_inside_in_each_direction() -> None:
    narrow = asked = 0
    for value in SAMPLED:
        plan = plan_of(value["ledger"])
        if "at_delta" in value:
            lower, upper = epsilons_of_many(plan, ONE, np.array([value["at_delta"]]))
            truths = value["epsilon"]
        else:
            lower, upper = deltas_of_many(plan, ONE, np.array([value["at_epsilon"]]))
            truths = value["delta"]
        for direction, truth in truths.items():
            low, high = (float(end[ROWS[direction], 0]) for end in (lower, upper))
            assert Decimal(low) <= Decimal(truth) <= Decimal(high), value
            narrow += high - low <= 1e-3 * high
            asked += 1
    assert narrow > asked / 2


def random_plans(count: int, seed: int) -> tuple[SampledPlans, np.ndarray, np.ndarray]:
    """Return plans far into the corners, with a delta and an epsilon each."""
    rng = np.random.default_rng(seed)

    def between(low: float, high: float) -> np.ndarray:
        return np.exp(rng.uniform(math.log(low), math.log(high), count))

    plans = SampledPlans(
        1 / between(0.25, 100), between(1e-6, 0.9999), np.round(between(1, 1e6)),
        np.arange(count), np.zeros(count),
    )  # fmt: skip
    return plans, between(1e-30, 0.04), between(1e-3, 30)


def overlaps(low: float, high: float, other: CertifiedInterval) -> bool:
    return low <= other.upper * (1 + 1e-12) and high >= other.lower * (1 - 1e-12)


def compare(count: int, seed: int) -> int:
    """Compare both routes in each direction; return how many narrow intervals there were."""
    plans, delta, epsilon = random_plans(count, seed)
    by_delta = epsilons_of_many(plans, np.arange(count), delta)
    by_epsilon = deltas_of_many(plans, np.arange(count), epsilon)
    for place in range(count):
        step = PoissonSampled(Gaussian(1 / float(plans.shift[place])), float(plans.rate[place]))
        profile = pld.profile(Repeated(step, int(plans.times[place])))
        try:
            single = (
                profile.explain_epsilon(delta=float(delta[place])),
                profile.explain_delta(epsilon=float(epsilon[place])),
            )
        except Unresolvable:
            continue
        for (lower, upper), others in zip((by_delta, by_epsilon), single, strict=True):
            if len(others) == 2:  # otherwise a closed form of the larger of both directions
                for row, other in enumerate(others):
                    assert overlaps(lower[row, place], upper[row, place], other), step
    return int((by_delta[1] - by_delta[0] <= 1e-3 * by_delta[0]).sum())


def test_random_plans_agree_with_one_plan_at_a_time() -> None:
    assert compare(16, seed=11) > 8


@pytest.mark.slow
def test_many_random_plans_agree_with_one_plan_at_a_time() -> None:
    assert compare(600, seed=12) > 300


def test_an_understated_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted error: steps four times too large, whose error counts as zero."""
    truth = pld.profile(Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000)).epsilon(delta=1e-5)
    plan = plan_of([(0.01, 1.0, 1000)])
    of, tilted = NodeGrid.of, NodeGrid.tilted

    def coarse(rows: Any, step: Any, strip: Any, high: Any, count: int) -> NodeGrid:
        return of(rows, 4 * step, strip, high, count)

    def careless(grid: NodeGrid, order: Any, reach: Any) -> TiltedNodes:
        found = tilted(grid, order, reach)
        return TiltedNodes(
            found.losses, found.masses, found.mean, found.log_moment, 0 * found.error
        )

    monkeypatch.setattr(NodeGrid, "of", coarse)
    lower, upper = epsilons_of_many(plan, ONE, np.array([1e-5]))
    assert lower.max() <= truth.upper  # the bound on the error is honest at any step
    assert upper.max() >= truth.lower
    monkeypatch.setattr(NodeGrid, "tilted", careless)
    lower, upper = epsilons_of_many(plan, ONE, np.array([1e-5]))
    assert not lower.max() <= truth.lower <= truth.upper <= upper.max()


def test_a_ledger_of_different_releases_agrees_with_its_parts_in_groups() -> None:
    """Forty releases, one by one over arrays; the same ones merged into two by two classes."""
    rates, noises = (0.01, 0.03), (0.9, 1.7)
    exact = Composed([Repeated(PoissonSampled(Gaussian(s), q), 10) for q in rates for s in noises])
    different = Composed(
        [
            PoissonSampled(Gaussian(s * (1 + 1e-13 * k)), q)
            for q in rates
            for s in noises
            for k in range(10)
        ]
    )
    whole, merged = pld.profile(different), pld.profile(exact)
    assert len(whole.explain_epsilon(delta=1e-6)) == 2
    assert {one.method for one in whole.explain_epsilon(delta=1e-6)} == {pld.ARRAY_METHOD}
    for one, other in (
        (whole.epsilon(delta=1e-6), merged.epsilon(delta=1e-6)),
        (whole.delta(epsilon=0.5), merged.delta(epsilon=0.5)),
    ):
        assert one.lower <= other.upper * (1 + 1e-9)
        assert one.upper >= other.lower * (1 - 1e-9)
        assert one.upper - one.lower <= 1e-3 * one.upper


def test_the_profile_at_many_points_is_consistent() -> None:
    profile = pld.profile(
        Composed([Repeated(PoissonSampled(Gaussian(1.1), 0.02), 300), Gaussian(8.0)])
    )
    deltas = np.geomspace(1e-3, 1e-10, 40)
    curve = profile.epsilons(deltas=deltas)
    assert (np.diff(curve.upper) > 0).all()  # epsilon rises where delta falls
    assert (curve.upper - curve.lower <= 1e-3 * curve.upper).all()
    back = profile.deltas(epsilons=curve.upper)
    assert (back.lower <= deltas).all()
    assert (back.upper <= deltas * 1.01).all()
    single = profile.epsilon(delta=float(deltas[7]))
    assert curve.lower[7] <= single.upper
    assert single.lower <= curve.upper[7]
