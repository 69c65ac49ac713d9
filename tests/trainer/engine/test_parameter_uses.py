"""Parameters that are scaled, added, multiplied or computed with: sums and norms of the loop."""

from __future__ import annotations

import math

import pytest
import torch

from dpaudit.trainer.engine import Engine, Flat
from tests.trainer.engine.networks import RECORDS
from tests.trainer.engine.oracle import per_record, relative_gap
from tests.trainer.engine.parameter_networks import (
    FLOAT32_ONLY,
    PARAMETER_NETWORKS,
    PLANNED_LATER,
    TAKEN_SLOWLY,
)

UNCLIPPED = Flat(1e6)


@pytest.mark.parametrize("name", PARAMETER_NETWORKS)
def test_sum_and_norms_are_those_of_a_loop_without_the_slow_way(name: str) -> None:
    network = PARAMETER_NETWORKS[name]
    built = network.build()
    engine = Engine(built.model, built.loss)
    for records in (RECORDS, 3):
        batch = built.batch if records == RECORDS else network.batch(records)
        gradients = per_record(built.model, built.loss, batch)
        clipping = Flat(float(gradients.norms.median()))
        got = engine.clipped_sum(batch, clipping)
        assert relative_gap(got.sums, gradients.clipped_sum(clipping)) <= 1e-5
        assert torch.allclose(got.norms, gradients.norms, rtol=1e-5, atol=0.0)
        if name not in PLANNED_LATER:
            assert set(engine.record_by_record) <= TAKEN_SLOWLY.get(name, set())


@pytest.mark.parametrize("name", sorted(PLANNED_LATER))
def test_a_first_batch_that_shows_too_little_is_planned_again(name: str) -> None:
    network = PARAMETER_NETWORKS[name]
    built = network.build()
    engine = Engine(built.model, built.loss)
    slow = []
    for _ in range(16):
        engine.clipped_sum(network.batch(RECORDS), UNCLIPPED)
        slow.append(len(engine.record_by_record))
    assert 0 in slow


@pytest.mark.parametrize("name", [n for n in PARAMETER_NETWORKS if n not in FLOAT32_ONLY])
def test_in_double_precision_every_parameter_has_its_sum(name: str) -> None:
    built = PARAMETER_NETWORKS[name].build().double()
    gradients = per_record(built.model, built.loss, built.batch)
    engine = Engine(built.model, built.loss)
    truth = gradients.clipped_sum(UNCLIPPED)
    whole = math.hypot(*(float(part.norm()) for part in truth.values()))
    for chunk in (None, 2):
        sums = engine.clipped_sum(built.batch, UNCLIPPED, chunk).sums
        for parameter, own in truth.items():
            gap = float((sums[parameter] - own).norm())
            assert gap <= 1e-9 * float(own.norm()) + 1e-13 * whole, parameter


@pytest.mark.parametrize("name", PARAMETER_NETWORKS)
def test_what_one_record_adds_is_never_longer_than_the_sensitivity(name: str) -> None:
    built = PARAMETER_NETWORKS[name].build()
    engine = Engine(built.model, built.weighted())
    engine.clipped_sum((built.batch, torch.ones(RECORDS)), UNCLIPPED)
    for record in (0, RECORDS - 1):
        weights = torch.zeros(RECORDS)
        weights[record] = 1000.0
        sums = engine.clipped_sum((built.batch, weights), Flat(0.3)).sums
        assert math.hypot(*(float(part.double().norm()) for part in sums.values())) <= 0.3
