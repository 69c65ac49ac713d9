"""Flower client apps as clients under test: one local step, several steps, and faults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'dpaudit[federated]'")

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dpaudit.attacks.conformance import Effort, StepClaim, wrap
from dpaudit.attacks.conformance.federated import check_client
from dpaudit.attacks.conformance.federated.clients import (
    check_metrics,
    check_noise_of_clients,
    check_uploads,
)
from dpaudit.attacks.conformance.federated.flower_clients import FlowerClientFactory, LocalSteps
from dpaudit.vocabulary.conformance import ConformanceFinding
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.federated.reference_client import (
    BATCH,
    CLAIM,
    LEARNING_RATE,
    WIDTH,
    ReferenceClient,
    records,
)

EFFORT = Effort(noise_samples=3_000, sampler_steps=40, replays=1, search_steps=100, longest_run=12)
REFERENCE = {"w": np.zeros((WIDTH // 2, 2), np.float64)}


class App:
    """A Flower client app around a reference client, with the steps that it took."""

    client = ReferenceClient

    def __init__(self, data: Sequence[Any], seed: int, participant: int) -> None:
        self.reference = self.client(data, seed, participant)
        self.app = ClientApp()
        self.app.train()(self.train)

    def __call__(self, message: Message, context: Context) -> Message:
        return self.app(message, context)

    def train(self, message: Message, context: Context) -> Message:
        model = message.content.array_records["arrays"]["w"].numpy()
        upload = self.reference.local_update(model.ravel())
        moved = ArrayRecord({"w": Array(model + upload.reshape(model.shape))})
        content = RecordDict({"arrays": moved, "metrics": MetricRecord(self.metrics())})
        return Message(content, reply_to=message)

    def metrics(self) -> dict[str, float]:
        return {"num-examples": 1}


class CountsItsRecords(App):
    def metrics(self) -> dict[str, float]:
        return {"num-examples": len(self.reference.rows)}


class ReportsItsLoss(App):
    def metrics(self) -> dict[str, float]:
        return {"num-examples": 1, "train-loss": float(np.abs(self.reference.rows).sum())}


def steps_of(app: App) -> LocalSteps:
    return LocalSteps(np.array(app.reference.noisy_sums), app.reference.sampled)  # type: ignore[arg-type]


def factory(app: type[App]) -> FlowerClientFactory:
    return FlowerClientFactory(app, REFERENCE, -LEARNING_RATE / BATCH, read_steps=steps_of)


def finding(findings: Sequence[ConformanceFinding], name: str) -> ConformanceFinding:
    return next(one for one in findings if one.name == name)


def test_conforming_app_passes() -> None:
    result = check_client(factory(App), CLAIM, records=records(), effort=EFFORT)
    assert result.verdict is Outcome.PASS, result.findings


def test_weight_of_record_counts_is_detected() -> None:
    result = check_client(factory(CountsItsRecords), CLAIM, records=records(), effort=EFFORT)
    constants = finding(result.findings, "public constants")
    assert constants.outcome is Outcome.FAIL
    assert "the weight of the upload" in constants.why


def test_metric_without_noise_is_detected() -> None:
    (found,) = check_metrics(factory(ReportsItsLoss), records(), 0)
    assert found.outcome is Outcome.FAIL
    assert "train-loss" in found.why


class EqualSeeds(ReferenceClient):
    def seeds(self, seed: int, participant: int) -> list[int]:
        return [seed]


class EqualSeedsApp(App):
    client = EqualSeeds


def test_equal_noise_seeds_are_detected() -> None:
    found = check_noise_of_clients(factory(EqualSeedsApp), records(), 0)
    assert found.outcome is Outcome.FAIL


class Leaks(ReferenceClient):
    def upload(self, change: np.ndarray) -> np.ndarray:
        return np.asarray(change + 0.1 * self.rows[:1].sum(axis=0))


class LeakingApp(App):
    client = Leaks


def test_upload_beyond_the_noted_steps_is_detected() -> None:
    (found,) = check_uploads(factory(LeakingApp), records(), 0)
    assert found.outcome is Outcome.FAIL


class OneStepClient(ReferenceClient):
    """One local step per round: nothing needs to be noted."""

    def local_update(self, model: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng([*self.key, self.number])
        noise = self.noise(rng)
        chosen = np.flatnonzero(rng.random(1000)[: len(self.rows)] < 0.4)
        self.number += 1
        return np.asarray(-LEARNING_RATE / BATCH * (self.clipped_sum(model, chosen) + noise))


class OneStepApp(App):
    client = OneStepClient


class UnclippedOneStepClient(OneStepClient):
    def factors(self, norms: np.ndarray) -> np.ndarray:
        return np.ones_like(norms)


class UnclippedApp(App):
    client = UnclippedOneStepClient


def one_step(app: type[App]) -> FlowerClientFactory:
    return FlowerClientFactory(app, REFERENCE, -LEARNING_RATE / BATCH)


def claim() -> StepClaim:
    return CLAIM


def test_app_of_one_step_needs_no_notes() -> None:
    result = check_client(one_step(OneStepApp), claim(), records=records(), effort=EFFORT)
    assert not result.violations
    unknown = [one.check for one in result.findings if one.outcome is Outcome.INCONCLUSIVE]
    assert set(unknown) <= {"sampler", "noise"}  # the app does not say which records it drew


def test_unclipped_app_of_one_step_is_detected() -> None:
    result = check_client(one_step(UnclippedApp), claim(), records=records(), effort=EFFORT)
    assert any(one.check == "replay" for one in result.violations)


def test_wrap_names_the_factory_of_clients() -> None:
    with pytest.raises(InvalidArgument, match="FlowerClientFactory"):
        wrap(lambda records: ClientApp())(records(), 0)
