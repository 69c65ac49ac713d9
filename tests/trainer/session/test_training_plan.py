"""One call computes rate, steps and noise; what is missing or contradicts itself is named."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpaudit.accountants import pld
from dpaudit.runs.ledger_file import read_ledger
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.batches.samplers import (
    BallsInBins,
    Cyclic,
    FixedSize,
    Poisson,
    Sampler,
    Shuffled,
)
from dpaudit.trainer.noise.correlated_noise import Banded
from dpaudit.trainer.private import Private
from dpaudit.trainer.session.settings import NoisyCount
from dpaudit.trainer.session.training_plan import PlanRequest, plan_training
from dpaudit.vocabulary.errors import BudgetExceeded, InvalidArgument
from dpaudit.vocabulary.ledger import RECORD_COUNT
from dpaudit.vocabulary.mechanism import Composed, Gaussian, PoissonSampled, Repeated

RECORDS = 60
DATA = (torch.randn(RECORDS, 4, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3)
ONE_CALL: dict[str, Any] = {
    "target_epsilon": 2.0,
    "delta": 1e-5,
    "epochs": 3,
    "dataset_size": RECORDS,
    "expected_batch_size": 6,
}


def losses(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def private(data: Any = DATA, **options: Any) -> Private:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), data, **options)


def train(trainer: Private, **options: Any) -> Private:
    for batch in trainer.batches(**options):
        trainer.step(losses, batch)
    return trainer


def test_one_call_meets_the_target_with_the_last_step() -> None:
    trainer = train(private(**ONE_CALL))
    assert trainer.step_settings.sampler == Poisson(0.1)
    assert trainer.steps == 30
    assert 1.99 < trainer.epsilon().upper <= 2.0
    assert trainer.plan is not None
    assert trainer.plan.calibration is not None
    assert trainer.epsilon().upper <= trainer.plan.calibration.epsilon.upper * (1 + 1e-9)


def test_no_step_beyond_the_target_is_taken() -> None:
    trainer = private(**ONE_CALL)
    batches = trainer.batches(steps=40)
    for batch in batches:
        trainer.step(losses, batch)
    assert trainer.steps == 30
    assert list(trainer.batches()) == []
    with pytest.raises(BudgetExceeded):
        trainer.also_released("accuracy", Gaussian(5.0))


def test_plan_of_the_ledger_is_what_was_calibrated(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with train(private(ledger=path, **ONE_CALL)) as trainer:
        assert trainer.plan is not None
        noise = trainer.plan.noise_multiplier(0)
    ledger = read_ledger(path)
    assert {one.mechanism for one in ledger.releases} == {PoissonSampled(Gaussian(noise), 0.1)}
    assert len(ledger.releases) == 30
    assert "number of records" in ledger.header.assumed_public
    spent = Composed((Repeated(PoissonSampled(Gaussian(noise), 0.1), 30),))
    profile = pld.profile(spent, adjacency=ledger.header.adjacency)
    assert profile.epsilon(delta=1e-5).upper <= 2.0


def test_noisy_count_is_part_of_the_target(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    options = {"target_epsilon": 1.0, "delta": 1e-5, "epochs": 2, "sampling_rate": 0.1}
    with train(private(ledger=path, dataset_size=NoisyCount(RECORDS, 20.0), **options)) as trainer:
        assert trainer.steps == 20
        assert 0.99 < trainer.epsilon().upper <= 1.0
    ledger = read_ledger(path)
    assert [one.what for one in ledger.releases].count(RECORD_COUNT) == 1
    assert "number of records" not in ledger.header.assumed_public


@pytest.mark.parametrize(
    ("sampler", "steps", "batch_size"),
    [
        (FixedSize(6, RECORDS), 30, 6),
        (BallsInBins(10), 30, 6),
        (Shuffled(6, RECORDS), 30, 6),
    ],
)
def test_every_sampler_is_calibrated(sampler: Sampler, steps: int, batch_size: float) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = private(
            sampler=sampler, target_epsilon=4.0, delta=1e-5, epochs=3, dataset_size=RECORDS
        )
    cautions = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    assert (sampler.caution in cautions) == bool(sampler.caution)
    train(trainer)
    assert trainer.steps == steps
    assert trainer.step_settings.expected_batch_size == batch_size
    assert 3.9 < trainer.epsilon().upper <= 4.0


def test_banded_run_is_calibrated_as_a_whole() -> None:
    trainer = private(
        sampler=Cyclic(2, 12, 0.5), noise=Banded(2), target_epsilon=4.0, delta=1e-5,
        dataset_size=RECORDS,
    )  # fmt: skip
    assert train(trainer).steps == 12
    assert trainer.step_settings.expected_batch_size == RECORDS / 4
    assert 3.9 < trainer.epsilon().upper <= 4.0


def test_interrupted_plan_is_resumed_to_its_end(tmp_path: Path) -> None:
    path, folder = tmp_path / "ledger.jsonl", tmp_path / "checkpoints"
    with private(ledger=path, seed=3, **ONE_CALL) as trainer:
        train(trainer, steps=12)
        trainer.checkpoint(folder)
    with private(ledger=path, resume=folder, seed=3, **ONE_CALL) as again:
        assert train(again).steps == 30
        assert again.epsilon().upper <= 2.0
    whole = train(private(seed=3, **ONE_CALL))
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rate_and_batch_size_give_each_other() -> None:
    by_rate = private(noise_multiplier=1.0, sampling_rate=0.1, dataset_size=RECORDS)
    assert by_rate.step_settings.expected_batch_size == 6
    by_size = private(noise_multiplier=1.0, expected_batch_size=6, dataset_size=RECORDS)
    assert by_size.step_settings.sampler == Poisson(0.1)


def test_batch_size_has_a_default() -> None:
    plan = plan_training(PlanRequest(noise_multiplier=1.0, dataset_size=2560))
    assert (plan.sampler, plan.expected_batch_size) == (Poisson(0.1), 256)
    small = plan_training(PlanRequest(noise_multiplier=1.0, dataset_size=10))
    assert (small.sampler, small.expected_batch_size) == (Poisson(1.0), 10)


@pytest.mark.parametrize(
    ("epochs", "rate", "steps"), [(3, 0.1, 30), (1, 1 / 3, 3), (2.5, 0.1, 25), (0.01, 0.5, 1)]
)
def test_epochs_give_steps(epochs: float, rate: float, steps: int) -> None:
    plan = plan_training(
        PlanRequest(noise_multiplier=1.0, sampling_rate=rate, expected_batch_size=4, epochs=epochs)
    )
    assert plan.steps == steps


def test_delta_of_the_plan_is_that_of_the_claim(tmp_path: Path) -> None:
    ledger = tmp_path / "run" / "ledger.jsonl"
    run = train(private(ledger=ledger, **ONE_CALL)).finish()
    assert json.loads(run.claim.read_text())["delta"] == 1e-5


def test_delta_is_asked_for_where_it_is_missing() -> None:
    trainer = private(noise_multiplier=1.0, sampling_rate=0.1, expected_batch_size=6)
    with pytest.raises(InvalidArgument, match="delta must be given here or to make_private"):
        trainer.epsilon()


@pytest.mark.parametrize("number", [np.int64(60), torch.tensor(60)])
def test_whole_numbers_of_numpy_and_torch_are_taken(number: Any) -> None:
    plan = plan_training(PlanRequest(noise_multiplier=1.0, dataset_size=number, steps=number))
    assert plan.steps == 60
    assert plan.expected_batch_size == 60


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in ONE_CALL.items() if name not in names}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no size": (without("dataset_size"), "sampling_rate must be given, or dataset_size"),
    "no delta": (without("delta"), "delta must be given with target_epsilon"),
    "no epochs": (without("epochs"), r"epochs must be given \(or steps\)"),
    "epochs and steps": (ONE_CALL | {"steps": 5}, "epochs must be None with steps"),
    "two noises": (ONE_CALL | {"noise_multiplier": 1.0}, "target_epsilon must be None with"),
    "no noise": (without("target_epsilon"), "noise_multiplier must be given, or target_epsilon"),
    "batch above size": (ONE_CALL | {"expected_batch_size": 70}, "at most the dataset_size of 60"),
    "contradiction": (ONE_CALL | {"sampling_rate": 0.5}, "expected_batch_size must be about 30"),
    "two counts": (
        ONE_CALL | {"expected_batch_size": NoisyCount(60)},
        "dataset_size must be None with expected_batch_size=NoisyCount",
    ),
    "count without rate": (
        ONE_CALL | {"dataset_size": NoisyCount(60)}, "sampling_rate must be given",
    ),
    "count and batch size": (
        ONE_CALL | {"dataset_size": NoisyCount(60), "sampling_rate": 0.1},
        "sampling_rate must be given, without an expected batch size",
    ),
    "rate alone": (
        {"noise_multiplier": 1.0, "sampling_rate": 0.1},
        "expected_batch_size must be given, or dataset_size .* secret",
    ),
    "size as text": (ONE_CALL | {"dataset_size": "60"}, "dataset_size must be a whole number"),
    "size of zero": (ONE_CALL | {"dataset_size": 0}, "dataset_size"),
    "epochs of zero": (ONE_CALL | {"epochs": 0}, "epochs must be above 0"),
    "steps as a float": (without("epochs") | {"steps": 2.5}, "steps must be a whole number"),
    "NaN": (ONE_CALL | {"target_epsilon": math.nan}, "target_epsilon must be above 0"),
    "delta of one": (ONE_CALL | {"delta": 1.0}, "delta must be at least 1e-300 and below 1"),
    "no noise is enough": (
        without("expected_batch_size") | {"target_epsilon": 1e-12, "delta": 1e-12},
        "target_epsilon",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_plan_that_is_incomplete_or_contradicts_itself_is_refused_before_a_ledger_exists(
    name: str, tmp_path: Path
) -> None:
    options, why = REFUSED[name]
    with pytest.raises(InvalidArgument, match=why):
        private(ledger=tmp_path / "run" / "ledger.jsonl", **options)
    assert list(tmp_path.iterdir()) == []
