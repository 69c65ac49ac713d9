"""Bugs of our federated training, one small patch each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from dpaudit.trainer.federated import aggregation, federation
from dpaudit.trainer.federated.aggregation import AggregateResult, ParticipantAggregation
from dpaudit.trainer.federated.local_training import PrivateTrainer
from dpaudit.trainer.federated.secure_aggregation import client as secure_client
from dpaudit.trainer.federated.secure_aggregation.messages import AdvertisedKeys
from dpaudit.trainer.federated.secure_aggregation.server import Server
from dpaudit.trainer.federated.updates import Update
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from tests.planted_bugs.patches import Patch

Total = dict[str, Any]
honest_noise = ParticipantAggregation._with_noise
honest_aggregate = ParticipantAggregation.aggregate
honest_train = PrivateTrainer.train
honest_stream = federation.participant_stream
honest_bits = Keystream.bits
honest_receive = Server.receive_keys
honest_key = secure_client.derive_key


def adds_noise(noise: Any) -> Patch:
    return lambda: patch.object(ParticipantAggregation, "_with_noise", noise)


def of_the_sum(server: ParticipantAggregation, total: Total, grid: float) -> Total:
    """Return the sum without noise."""
    return {name: part * grid for name, part in total.items()}


def divided_twice(server: ParticipantAggregation, number: int, total: Total, grid: float) -> Total:
    clean, noisy = of_the_sum(server, total, grid), honest_noise(server, number, total, grid)
    divisor = server.settings.denominator
    return {name: part + (noisy[name] - part) / divisor for name, part in clean.items()}


def in_the_first_round(
    server: ParticipantAggregation, number: int, total: Total, grid: float
) -> Total:
    honest = honest_noise(server, number, total, grid)
    return honest if number == 0 else of_the_sum(server, total, grid)


def of_the_first_round(
    server: ParticipantAggregation, number: int, total: Total, grid: float
) -> Total:
    return honest_noise(server, 0, total, grid)


def without_clipping() -> AbstractContextManager[Any]:
    return patch.object(aggregation, "clip_update", lambda update, norm: (update, 1.0))


def clips_each_parameter() -> AbstractContextManager[Any]:
    def clip(update: Update, norm: float) -> tuple[Update, float]:
        parts = {}
        for name, part in update.items():
            factor = min(1.0, norm / max(float(np.linalg.norm(part)), 1e-12))
            parts[name] = (part * factor).astype(np.float32)
        return parts, 1.0

    return patch.object(aggregation, "clip_update", clip)


def aggregates_by(change: Any) -> Patch:
    def aggregate(
        self: ParticipantAggregation, number: int, updates: Any, expected: Any
    ) -> AggregateResult:
        return change(self, honest_aggregate(self, number, updates, expected), expected)

    return lambda: patch.object(ParticipantAggregation, "aggregate", aggregate)


def over_the_replies(
    server: ParticipantAggregation, result: AggregateResult, expected: Any
) -> AggregateResult:
    count = max(1, len(result.accepted)) * server.settings.participation_rate
    average = {n: (p / count).astype(np.float32) for n, p in result.noisy_sum.items()}
    return replace(result, average=average)


def accepts_nan() -> AbstractContextManager[Any]:
    def check(update: Mapping[str, Any], reference: Any, *, participant: int) -> Update:
        return {name: np.asarray(update[name]).real.astype(np.float32) for name in reference}

    return patch.object(aggregation, "check_update", check)


def draws_twice_as_many() -> AbstractContextManager[Any]:
    def draw(self: ParticipantAggregation, number: int) -> Any:
        settings = self.settings
        coins = self._stream.coins(Purpose.PARTICIPANT_SAMPLING, number, settings.participants, 0.8)
        return np.flatnonzero(coins)

    return patch.object(ParticipantAggregation, "draw_participants", draw)


def trains_by(train: Any) -> Patch:
    return lambda: patch.object(PrivateTrainer, "train", train)


def scaled_by_the_records(
    self: PrivateTrainer, weights: Mapping[str, Tensor], number: int
) -> dict[str, Tensor]:
    trained, count = honest_train(self, weights, number), len(self._records[1])
    return {name: weights[name] + count * (p - weights[name]) for name, p in trained.items()}


def with_one_step_without_noise(
    self: PrivateTrainer, weights: Mapping[str, Tensor], number: int
) -> dict[str, Tensor]:
    trained = honest_train(self, weights, number)
    features, labels = self._records
    if len(labels):
        model = self.private.model
        loss = torch.nn.functional.cross_entropy(model(features), labels)
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        trained = {n: p - 0.01 * g for (n, p), g in zip(trained.items(), gradients, strict=True)}
    return trained


def pairs_share_a_key() -> AbstractContextManager[Any]:
    return patch.object(
        federation, "participant_stream", lambda server, number: honest_stream(server, number // 2)
    )


def masks_without_the_round() -> AbstractContextManager[Any]:
    """Secrets and masks of round 0 in every round."""

    def bits(self: Keystream, purpose: Purpose, address: int, count: int) -> Any:
        own = 0 if purpose is Purpose.AGGREGATION_SECRETS else address
        return honest_bits(self, purpose, own, count)

    def key(secret: bytes, purpose: Any, session: bytes, number: int, *pair: int) -> bytes:
        return honest_key(secret, purpose, session, 0, *pair)

    def receive(self: Server, message: AdvertisedKeys) -> None:
        self._seen_keys.clear()  # the honest server refuses a key that it saw before
        honest_receive(self, message)

    stack = ExitStack()
    stack.enter_context(patch.object(Server, "receive_keys", receive))
    stack.enter_context(patch.object(Keystream, "bits", bits))
    stack.enter_context(patch.object(secure_client, "derive_key", key))
    return stack
