"""The tests of a client pass a client that conforms, and detect each fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dpaudit.attacks.conformance import Effort
from dpaudit.attacks.conformance.federated import check_client
from dpaudit.attacks.conformance.federated.client_protocol import ClientTrainer
from dpaudit.attacks.conformance.statistical_tests import STATISTICAL_FINDINGS
from dpaudit.vocabulary.conformance import ConformanceFinding
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.federated.reference_client import (
    CLAIM,
    CLIP_NORM,
    LOCAL_STEPS,
    ReferenceClient,
    records,
)

EFFORT = Effort(noise_samples=6_000, sampler_steps=60, replays=1, search_steps=300)


def check(kind: type[ReferenceClient], seed: int = 0) -> Sequence[ConformanceFinding]:
    return check_client(kind, CLAIM, records=records(), effort=EFFORT, seed=seed).findings


def finding(findings: Sequence[ConformanceFinding], name: str) -> ConformanceFinding:
    return next(one for one in findings if one.name == name)


@pytest.mark.parametrize("seed", range(2))
def test_conforming_client_passes(seed: int) -> None:
    result = check_client(ReferenceClient, CLAIM, records=records(), effort=EFFORT, seed=seed)
    assert result.verdict is Outcome.PASS, result.findings
    assert sum(one.p_value is not None for one in result.findings) <= STATISTICAL_FINDINGS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 25))
def test_conforming_client_passes_under_many_seeds(seed: int) -> None:
    result = check_client(ReferenceClient, CLAIM, records=records(), effort=EFFORT, seed=seed)
    assert result.verdict is Outcome.PASS, result.violations


class NoClipping(ReferenceClient):
    def factors(self, norms: np.ndarray) -> np.ndarray:
        return np.ones_like(norms)


class EqualSeeds(ReferenceClient):
    def seeds(self, seed: int, participant: int) -> list[int]:
        return [seed]


class TwoClientsShareASeed(ReferenceClient):
    def seeds(self, seed: int, participant: int) -> list[int]:
        return [seed, participant // 2]


class GlobalGenerator(ReferenceClient):
    """Clients whose processes seed their global generators alike share their noise."""

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        return super().noise(np.random.mtrand._rand)  # type: ignore[attr-defined]


class NoiseInFirstRoundOnly(ReferenceClient):
    def noise(self, rng: np.random.Generator) -> np.ndarray:
        return super().noise(rng) * (self.number < LOCAL_STEPS)


class WeightOfRecords(ReferenceClient):
    @property
    def weight(self) -> float:  # type: ignore[override]
        return float(len(self.rows))


class ScaledByRecords(ReferenceClient):
    def upload(self, change: np.ndarray) -> np.ndarray:
        return len(self.rows) * change


class UploadLeaksAGradient(ReferenceClient):
    def upload(self, change: np.ndarray) -> np.ndarray:
        return np.asarray(change + 0.01 * CLIP_NORM * self.rows[:1].sum(axis=0))


class ReportsItsLoss(ReferenceClient):
    @property
    def metrics(self) -> dict[str, float]:
        return {"loss": float(np.square(self.rows).sum())}


@dataclass(frozen=True)
class Fault:
    """A faulty client, the finding and the words that must detect it."""

    client: type[ReferenceClient]
    name: str
    word: str


FAULTS = {
    "no clipping": Fault(NoClipping, "huge features", "not clipped"),
    "equal seeds": Fault(EqualSeeds, "clients", "noise is reused"),
    "two clients share a seed": Fault(TwoClientsShareASeed, "clients", "clients 0 and 1"),
    "a global generator": Fault(GlobalGenerator, "clients", "equal states"),
    "noise in the first round only": Fault(
        NoiseInFirstRoundOnly, "scale of each step", "at step 3 has 0 times"
    ),
    "weight of records": Fault(WeightOfRecords, "public constants", "the weight of the upload is"),
    "scaled by records": Fault(ScaledByRecords, "uploads", "it is 16 times that"),
    "upload leaks a gradient": Fault(UploadLeaksAGradient, "uploads", "of their norm"),
    "reports its loss": Fault(ReportsItsLoss, "metrics", "released without noise: loss"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_detected(name: str) -> None:
    fault = FAULTS[name]
    found = finding(check(fault.client, seed=1), fault.name)
    assert found.outcome is Outcome.FAIL
    assert fault.word in found.why


class ConstantMetric(ReferenceClient):
    @property
    def metrics(self) -> dict[str, float]:
        return {"rounds": 3.0}


def test_metric_that_does_not_depend_on_records_passes() -> None:
    assert finding(check(ConstantMetric), "metrics").outcome is Outcome.PASS


class WithoutRecompute:
    """A client whose upload cannot be recomputed."""

    def __init__(self, data: Sequence[Any], seed: int, participant: int) -> None:
        self._client = ReferenceClient(data, seed, participant)
        self.global_model = self._client.global_model

    def local_update(self, model: np.ndarray) -> np.ndarray:
        upload = self._client.local_update(model)
        self.noisy_sums, self.sampled = self._client.noisy_sums, self._client.sampled
        return upload


def test_upload_that_cannot_be_recomputed_is_inconclusive() -> None:
    result = check_client(WithoutRecompute, CLAIM, records=records(), effort=EFFORT)
    assert result.verdict is Outcome.INCONCLUSIVE
    assert finding(result.findings, "uploads").outcome is Outcome.INCONCLUSIVE


class WrongShape(ReferenceClient):
    def local_update(self, model: np.ndarray) -> np.ndarray:
        upload = super().local_update(model)
        self.noisy_sums = self.noisy_sums[0]
        return upload


def test_noisy_sums_of_another_shape_are_refused() -> None:
    trainer = ClientTrainer(WrongShape(records(), 0, 0))
    with pytest.raises(InvalidArgument, match="noisy_sums"):
        trainer.step()


def test_rounds_of_a_client_are_steps_of_a_trainer() -> None:
    trainer = ClientTrainer(ReferenceClient(records(), 0, 0))
    client = ReferenceClient(records(), 0, 0)
    first = client.local_update(client.global_model)
    sums = list(client.noisy_sums)
    client.local_update(client.global_model + first)
    sums += list(client.noisy_sums)
    for own in sums:
        assert np.array_equal(trainer.step(), own)
    assert np.array_equal(trainer.sampled, client.sampled[-1])
