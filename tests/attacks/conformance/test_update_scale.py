"""An update scale that is not stated is measured, and faults in what shows it are found."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.conformance import ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.reference_trainer import (
    CLAIM,
    CLIP,
    LITTLE,
    NOISE,
    WIDTH,
    Array,
    Plain,
    records,
    scaled,
)
from tests.attacks.conformance.test_causes import included

UNSTATED = msgspec.structs.replace(CLAIM, update_scale=None)


def audited(kind: Any, **changed: Any) -> ConformanceResult:
    claim: StepClaim = msgspec.structs.replace(UNSTATED, **changed)
    return conformance.check(kind, claim, records=records(), effort=LITTLE)


@pytest.mark.parametrize("kind", [Plain, included(Plain)])
def test_scale_of_a_conforming_trainer_is_measured_exactly(kind: Any) -> None:
    result = audited(kind)
    assert result.verdict is Outcome.PASS, result.findings
    assert CLAIM.update_scale is not None
    assert result.claim.update_scale == pytest.approx(abs(CLAIM.update_scale), rel=1e-6)
    assert any("update_scale was measured" in one for one in result.assumptions)


def test_scale_is_measured_where_records_are_replaced() -> None:
    result = audited(included(Plain), adjacency=Adjacency.REPLACE_ONE)
    assert result.verdict is Outcome.PASS, result.findings


def test_low_noise_is_found_by_the_movement_of_records() -> None:
    result = audited(scaled(0.9))
    assert "replay" in {finding.check for finding in result.violations}


def test_missing_clipping_is_found() -> None:
    class Unclipped(Plain):
        def clipped(self, gradient: Array) -> Array:
            return np.nan_to_num(gradient)

    assert "replay" in {finding.check for finding in audited(Unclipped).violations}


class Silent(Plain):
    def noise(self) -> Array:
        return np.zeros(31)


def test_absent_noise_is_found() -> None:
    assert "noise" in {finding.check for finding in audited(Silent).violations}


def test_scale_that_cannot_be_measured_is_inconclusive_with_the_remedy() -> None:
    result = audited(scaled(1.5))
    assert result.verdict is Outcome.INCONCLUSIVE
    assert "state update_scale in the claim" in result.findings[0].why


class Scheduled(Plain):
    """The learning rate falls by 3% a step: noise and records move together."""

    def step(self) -> Array:
        factor = 0.97**self.number
        return factor * super().step()


def test_a_schedule_of_learning_rates_is_no_violation() -> None:
    result = audited(Scheduled)
    assert result.verdict is Outcome.INCONCLUSIVE
    assert 'observe="gradients"' in result.findings[0].why


@pytest.mark.parametrize("few_records_reach_the_clip_norm", [False, True])
def test_noise_that_every_step_repeats_is_named(few_records_reach_the_clip_norm: bool) -> None:
    class Repeats(Plain):
        def noise(self) -> Array:
            return NOISE * CLIP * np.random.default_rng(self.seed).normal(size=WIDTH + 1)

        def clipped(self, gradient: Array) -> Array:
            return super().clipped(gradient) * (0.5 if few_records_reach_the_clip_norm else 1)

    result = audited(Repeats)
    assert [(one.check, one.name) for one in result.violations] == [("correlation", "steps")]


def test_scale_is_required_where_it_is_not_measured() -> None:
    with pytest.raises(InvalidArgument, match="update_scale"):
        UNSTATED.scale  # noqa: B018


def test_claim_without_a_scale_survives_a_json_round_trip() -> None:
    again = msgspec.json.decode(msgspec.json.encode(UNSTATED), type=StepClaim)
    assert again == UNSTATED
