"""The privacy tests of CI: pytest --dpaudit-run runs/ci"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from data import FEATURES, heldout_records, training_records
from numpy.typing import NDArray
from safetensors.torch import load_model
from settings import MAX_EPSILON, SETTINGS
from train import Batch, batches, begin, make_model, per_sample_loss, take_step

from dpaudit.attacks.conformance import Effort, StepClaim
from dpaudit.pytest_plugin import (
    assert_conforms,
    assert_epsilon_at_most,
    assert_not_leaking,
    assert_policy_holds,
)
from dpaudit.runs.directory import RunDirectory

CLAIM = StepClaim(
    noise_multiplier=SETTINGS.noise_multiplier,
    clip_norm=SETTINGS.clip_norm,
    sampling_rate=SETTINGS.sampling_rate,
    steps=SETTINGS.steps,
    update_scale=-SETTINGS.learning_rate / SETTINGS.expected_batch_size,
)
SCORED = 400  # members, and as many non-members
# Takes seconds; the default detects smaller faults.
EFFORT = Effort(noise_samples=30_000, sampler_steps=180, replays=1)

Record = tuple[Any, Any]


class Trainer:
    """The steps of train.py, on any records and under a seed, as assert_conforms takes them."""

    groups: dict[str, slice]

    def __init__(self, records: Sequence[Record], seed: int) -> None:
        self._private = begin(seed=seed)
        self._batches = batches(self._private, as_dataset(records))
        self.sampled: list[int] = []

    def step(self) -> NDArray[np.float64]:
        """Take a step; return all released values in one row."""
        batch = next(self._batches)
        self.sampled = batch[2].tolist()
        released = take_step(self._private, batch)
        ends = np.cumsum([value.numel() for value in released.values()])
        self.groups = {
            name: slice(int(end) - value.numel(), int(end))
            for (name, value), end in zip(released.items(), ends, strict=True)
        }
        return np.concatenate([value.double().numpy().ravel() for value in released.values()])


def as_dataset(records: Sequence[Record]) -> Batch:
    """Return features, labels and indices; the data set may be empty."""
    features = np.array([x for x, _ in records], dtype=np.float32).reshape(-1, FEATURES)
    labels = np.array([y for _, y in records], dtype=np.int64)
    return torch.from_numpy(features), torch.from_numpy(labels), torch.arange(len(records))


def all_records() -> list[Record]:
    features, labels = training_records()
    return list(zip(features.numpy(), labels.tolist(), strict=True))


def test_every_step_does_what_is_claimed() -> None:
    assert_conforms(Trainer, CLAIM, records=all_records(), effort=EFFORT)


def test_epsilon_is_within_the_limit(dpaudit_run: RunDirectory) -> None:
    assert_epsilon_at_most(dpaudit_run, MAX_EPSILON, delta=SETTINGS.delta)


def test_the_run_passes_the_policy(dpaudit_run: RunDirectory) -> None:
    assert_policy_holds(dpaudit_run, "dpaudit.toml", "baseline.json")


def test_membership_inference_is_within_the_limit(dpaudit_run: RunDirectory) -> None:
    model = make_model()
    load_model(model, dpaudit_run.model)
    with torch.no_grad():
        inside = -per_sample_loss(model, training_records())[:SCORED]
        outside = -per_sample_loss(model, heldout_records())[:SCORED]
    assert_not_leaking(
        torch.cat([inside, outside]).numpy(),
        np.repeat([1, 0], SCORED),
        max_tpr_at_fpr={0.1: 0.3},
        claim_epsilon=MAX_EPSILON,
        delta=SETTINGS.delta,
    )
