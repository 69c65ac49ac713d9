"""Only records that reach the clip norm test clipping; a search finds such records."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpaudit.attacks import conformance
from dpaudit.attacks.conformance.clipping_coverage import (
    ClippingCoverage,
    ProbeMovement,
    check_coverage,
)
from dpaudit.attacks.conformance.probes import LATE_TO
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance import saturating_trainers as models
from tests.attacks.conformance.reference_trainer import CLAIM, LITTLE, Plain
from tests.attacks.conformance.reference_trainer import records as plain_records

EFFORT = conformance.Effort(noise_samples=10_000, replays=1, sampler_steps=72)
SHORT_SEARCH = replace(EFFORT, search_steps=500)
"""For gradients that no record makes as long as the clip norm: no search finds one."""


def unclipped(gradient: models.Array) -> models.Array:
    return gradient


def audited(
    make: Any,
    clip_norm: float,
    known: Any = None,
    seed: int = 0,
    effort: conformance.Effort = EFFORT,
    **claimed: Any,
) -> ConformanceResult:
    known = models.records() if known is None else known
    claim = models.claim(clip_norm, **claimed)
    return conformance.check(make, claim, records=known, effort=effort, seed=seed)


def clipping(result: ConformanceResult) -> ConformanceFinding:
    (found,) = [finding for finding in result.findings if finding.name == "clipping"]
    return found


SATURATING = [
    (models.tanh_network, 10.0, models.TANH_GROUPS),
    (models.tanh_network, 40.0, models.TANH_GROUPS),
    (models.squared_sigmoid, 5.0, None),
    (models.squared_sigmoid, 100.0, None),
]


@pytest.mark.parametrize(("gradient", "norm", "groups"), SATURATING)
@pytest.mark.parametrize("seed", [0, 1])
def test_saturating_model_that_is_not_clipped_is_rejected(
    gradient: models.Gradient, norm: float, groups: Any, seed: int
) -> None:
    result = audited(models.trainer(gradient, unclipped, norm, groups), norm, seed=seed)
    assert result.verdict is Outcome.FAIL
    assert {finding.name for finding in result.violations} == {"searched records"}


@pytest.mark.parametrize(("gradient", "norm", "groups"), SATURATING)
def test_saturating_model_that_is_clipped_passes(
    gradient: models.Gradient, norm: float, groups: Any
) -> None:
    result = audited(models.trainer(gradient, models.clipped_to(norm), norm, groups), norm)
    assert result.verdict is Outcome.PASS, result.findings
    assert clipping(result).norm == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("gradient", "clip"),
    [
        (models.normalised, unclipped),
        (models.gaussian_bump, models.clipped_to(10.0)),
        pytest.param(models.normalised, models.clipped_to(10.0), marks=pytest.mark.slow),
        pytest.param(models.gaussian_bump, unclipped, marks=pytest.mark.slow),
    ],
)
def test_gradients_that_never_reach_the_clip_norm_decide_nothing(
    gradient: models.Gradient, clip: Any
) -> None:
    """These trainers take the same steps with and without clipping."""
    result = audited(models.trainer(gradient, clip, 10.0), 10.0, effort=SHORT_SEARCH)
    assert result.verdict is Outcome.INCONCLUSIVE
    found = clipping(result)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.norm is not None
    assert 0 < found.norm < 1
    assert f"{found.norm:.4g} C" in found.why
    assert "--probes FILE" in found.why
    assert found.power.startswith("none")
    assert all("does not test clipping" in f.power for f in result.findings if f.limit)


@pytest.mark.parametrize("gradient", [models.normalised, models.gaussian_bump])
def test_clip_norm_that_records_reach_is_conclusive(gradient: models.Gradient) -> None:
    norm = 0.2
    good = audited(models.trainer(gradient, models.clipped_to(norm), norm), norm)
    assert good.verdict is Outcome.PASS, good.findings
    assert audited(models.trainer(gradient, unclipped, norm), norm).verdict is Outcome.FAIL


@pytest.mark.parametrize(("clip_norm", "length"), [(6.0, 12), (12.0, 24)])
def test_token_ids_are_searched(clip_norm: float, length: int) -> None:
    known = models.token_records(length)
    clip = models.clipped_to(clip_norm)
    good = models.trainer(models.embedding, clip, clip_norm, models.EMBEDDING_GROUPS)
    bad = models.trainer(models.embedding, unclipped, clip_norm, models.EMBEDDING_GROUPS)
    assert audited(good, clip_norm, known).verdict is Outcome.PASS
    assert audited(bad, clip_norm, known).verdict is Outcome.FAIL


@pytest.mark.parametrize("norm", [10.0, 40.0])
def test_replaced_records_are_searched_too(norm: float) -> None:
    known = models.records()
    for clip, verdict in ((unclipped, Outcome.FAIL), (models.clipped_to(norm), Outcome.PASS)):
        make = models.trainer(models.tanh_network, clip, norm, models.TANH_GROUPS)
        result = audited(make, norm, known, adjacency=Adjacency.REPLACE_ONE)
        assert result.verdict is verdict, result.findings


def one_group_unclipped(group: str, norm: float) -> Any:
    own = models.TANH_GROUPS[group]

    def clip(gradient: models.Array) -> models.Array:
        rest = gradient.copy()
        rest[own] = 0
        return np.asarray(models.clipped_to(norm)(rest) + (gradient - rest))

    return clip


@pytest.mark.parametrize("norm", [0.5, 4.0])
@pytest.mark.parametrize("group", list(models.TANH_GROUPS))
def test_unclipped_group_is_rejected(group: str, norm: float) -> None:
    clip = one_group_unclipped(group, norm)
    result = audited(models.trainer(models.tanh_network, clip, norm, models.TANH_GROUPS), norm)
    assert result.verdict is Outcome.FAIL


def test_given_probe_is_conclusive_where_the_search_is_not() -> None:
    """The gradient is long only in a small region that the search does not find."""
    place = np.random.default_rng(9).normal(size=models.FEATURES) * 7

    def hidden(x: models.Array, y: int) -> models.Array:
        near = math.exp(-float((x - place) @ (x - place)) * 200)
        return np.asarray(0.1 * np.tanh(x) + 50 * near * place)

    make = models.trainer(hidden, unclipped, 5.0)
    assert audited(make, 5.0).verdict is Outcome.INCONCLUSIVE
    claim = models.claim(5.0)
    probes = [(place, 0)]
    result = conformance.check(
        make, claim, records=models.records(dtype="f8"), probes=probes, effort=EFFORT
    )
    assert result.verdict is Outcome.FAIL
    clean = models.trainer(hidden, models.clipped_to(5.0), 5.0)
    result = conformance.check(
        clean, claim, records=models.records(dtype="f8"), probes=probes, effort=EFFORT
    )
    assert result.verdict is Outcome.PASS, result.findings


def test_no_search_where_usual_records_reach_the_clip_norm() -> None:
    result = conformance.check(Plain, CLAIM, records=plain_records(), effort=LITTLE)
    assert "searched records" not in {finding.name for finding in result.findings}
    assert clipping(result).outcome is Outcome.PASS


def test_search_keeps_its_step_budget() -> None:
    steps = 0

    class Counted(models.trainer(models.normalised, unclipped, 10.0)):  # type: ignore[misc]
        def step(self) -> models.Array:
            nonlocal steps
            steps += 1
            return np.asarray(super().step())

    counts = []
    for searched in (1, 201):
        effort = conformance.Effort(noise_samples=100, sampler_steps=24, search_steps=searched)
        steps = 0
        conformance.check(Counted, models.claim(10.0), records=models.records(), effort=effort)
        counts.append(steps)
    compared = 2 * (LATE_TO + 1)  # the steps that each of two places is compared with, once
    assert counts[1] - counts[0] <= 201 + compared


# The rule for groups


def reach(
    movement: float, reached_clip_norm: bool, notable: float = 0.01, **shares: float
) -> ProbeMovement:
    return ProbeMovement("probe", movement, reached_clip_norm, shares, notable)


def test_group_moved_only_below_the_clip_norm_is_inconclusive() -> None:
    coverage = ClippingCoverage.of(
        [reach(1.0, True, a=1.0, b=0.001), reach(0.6, False, a=0.1, b=0.59)]
    )
    assert coverage.reached
    assert not coverage.complete
    assert coverage.untested == {"b": 0.59}
    found = check_coverage(coverage, "", "replay")
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "at most b 0.59 C" in found.why
    assert found.power == "none for b"


def test_negligible_group_is_named_and_does_not_count() -> None:
    coverage = ClippingCoverage.of(
        [reach(1.0, True, a=1.0, b=0.001), reach(0.6, False, a=0.6, b=0.05)]
    )
    assert coverage.complete
    found = check_coverage(coverage, "", "replay")
    assert found.outcome is Outcome.PASS
    assert "not tested: parameters" in found.power
    assert "b 0.05 C" in found.power


def test_groups_may_be_tested_by_different_records() -> None:
    assert ClippingCoverage.of(
        [reach(1.0, True, a=1.0, b=0.0), reach(1.0, True, a=0.0, b=1.0)]
    ).complete


def test_movement_that_is_not_finite_covers_nothing() -> None:
    coverage = ClippingCoverage.of([reach(math.inf, True, a=math.inf)])
    assert not coverage.reached
    assert check_coverage(coverage, "", "replay").outcome is Outcome.INCONCLUSIVE


@given(st.floats(1e-6, 0.02), st.floats(1.0, 50.0), st.floats(0.0, 1.0))
def test_group_left_out_of_the_clip_exceeds_the_limit_from_a_notable_share_on(
    excess: float, length: float, beyond: float
) -> None:
    """Two faults: a norm over all groups, and a norm that excludes the unclipped group."""
    share = 2 * math.sqrt(excess) + beyond * (1 - 2 * math.sqrt(excess))
    if length**2 <= 1.5 + excess / 4 + 1e-9:
        return
    own, rest = length * share, length * math.sqrt(1 - share**2)
    over_all = math.hypot(rest / length, own)
    without_it = math.hypot(min(rest, 1.0), own)
    assert min(over_all, without_it) > 1 + excess


# Batches of a fixed size: another record is replaced


def fixed_size(gradient: models.Gradient, clip: Any, norm: float, groups: Any) -> Any:
    class Fixed(models.trainer(gradient, clip, norm, groups)):  # type: ignore[misc]
        def drawn(self) -> list[int]:
            chosen = np.random.default_rng([self.seed, self.number, 1])
            size = round(models.RATE * len(self.known))
            return chosen.choice(len(self.known), size, replace=False).tolist()

    return Fixed


@pytest.mark.parametrize(
    ("gradient", "norm", "groups"),
    [(models.tanh_network, 0.5, models.TANH_GROUPS), (models.normalised, 0.2, None)],
)
def test_replaced_records_of_fixed_batches_are_compared_with_one_that_adds_nothing(
    gradient: models.Gradient, norm: float, groups: Any
) -> None:
    claimed = {"adjacency": Adjacency.REPLACE_ONE, "sampling": Sampling.FIXED_SIZE}
    for clip, verdict in ((models.clipped_to(norm), Outcome.PASS), (unclipped, Outcome.FAIL)):
        result = audited(fixed_size(gradient, clip, norm, groups), norm, **claimed)
        assert result.verdict is verdict, result.findings


def test_fixed_batches_below_the_clip_norm_are_inconclusive() -> None:
    claimed = {"adjacency": Adjacency.REPLACE_ONE, "sampling": Sampling.FIXED_SIZE}
    make = fixed_size(models.normalised, unclipped, 10.0, None)
    result = audited(make, 10.0, effort=SHORT_SEARCH, **claimed)
    assert result.verdict is Outcome.INCONCLUSIVE
    assert clipping(result).outcome is Outcome.INCONCLUSIVE
