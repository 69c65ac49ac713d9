"""Bugs, one small patch of our own trainer each.

Each is a context manager: inside of it, the trainer has the bug.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from dpaudit.trainer.batches.samplers import FixedSize, Indices, Poisson, Shuffled
from dpaudit.trainer.engine import ClippedSums, Engine, Flat, clipping
from dpaudit.trainer.engine.batch_structure import count_records, map_tensors, split_into_chunks
from dpaudit.trainer.noise.gaussian_draws import normals
from dpaudit.trainer.noise.gradient_noise import (
    GradientSums,
    Independent,
    NoiseContext,
    count_coordinates,
)
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.private import Private
from dpaudit.trainer.session.training_session import Session

Patch = Callable[[], AbstractContextManager[Any]]
ClippedSum = Callable[[Engine, Any, Flat], ClippedSums]

UNLIMITED = Flat(1e30)
honest_sum, honest_noise = Engine.clipped_sum, Independent.add_noise
honest_step, honest_draw, honest_batches = Private.step, Poisson.draw, Private.batches


def clips_by(sums: ClippedSum) -> Patch:
    """Sums of clipped gradients are made by ``sums``."""

    def clipped_sum(self: Engine, batch: Any, rule: Flat, chunk: int | None = None) -> ClippedSums:
        return sums(self, batch, rule)

    return lambda: patch.object(Engine, "clipped_sum", clipped_sum)


def factors_by(factors: Callable[[Flat, Tensor], Tensor]) -> Patch:
    return lambda: patch.object(Flat, "factors", factors)


def adds(noise: Callable[[GradientSums, NoiseContext, float, float], GradientSums]) -> Patch:
    """Noise is added by ``noise``."""

    def add_noise(
        self: Independent,
        sums: GradientSums,
        context: NoiseContext,
        noise_multiplier: float,
        norm: float,
    ) -> GradientSums:
        return noise(sums, context, noise_multiplier, norm)

    return lambda: patch.object(Independent, "add_noise", add_noise)


def scales_noise(factor: Callable[[NoiseContext, float], float]) -> Patch:
    return adds(
        lambda sums, context, noise, norm: honest_noise(
            Independent(), sums, context, noise * factor(context, norm), norm
        )
    )


def draws_by(draw: Callable[[Poisson, Keystream, int, int], Indices]) -> Patch:
    return lambda: patch.object(Poisson, "draw", draw)


def step_by_step(chosen: Callable[[Private, Any], Patch]) -> Patch:
    """Each step has the bug that is ``chosen`` for it, by the trainer and the step's batch."""

    def step(self: Private, per_sample_loss: Any, batch: Any) -> None:
        with chosen(self, batch)():
            honest_step(self, per_sample_loss, batch)

    return lambda: patch.object(Private, "step", step)


def none() -> AbstractContextManager[Any]:
    """Plant nothing."""
    return nullcontext()


# Clipping


def every_finite_record_whole(rule: Flat, squares: Tensor) -> Tensor:
    return torch.ones_like(squares)


def ten_times_the_clip_norm(rule: Flat, squares: Tensor) -> Tensor:
    factors = clipping.clip_factors(squares.sum(dim=0).sqrt(), 10 * rule.clip_norm)
    return factors.expand_as(squares)


def each_parameter_by_itself(rule: Flat, squares: Tensor) -> Tensor:
    return torch.stack([clipping.clip_factors(row.sqrt(), rule.clip_norm) for row in squares])


def biases_left_out(rule: Flat, squares: Tensor) -> Tensor:
    weights = squares[::2].sum(dim=0).sqrt()
    factors = clipping.clip_factors(weights, rule.clip_norm).expand_as(squares).clone()
    factors[1::2] = 1
    return factors


def cut(clipped: ClippedSums, clip_norm: float) -> ClippedSums:
    norm = torch.cat([part.flatten() for part in clipped.sums.values()]).norm()
    factor = float(clip_norm / norm.clamp(min=clip_norm))
    return replace(clipped, sums={name: part * factor for name, part in clipped.sums.items()})


def the_batch_as_a_whole(engine: Engine, batch: Any, rule: Flat) -> ClippedSums:
    return cut(honest_sum(engine, batch, UNLIMITED), rule.clip_norm)


def sums_of_four(engine: Engine, batch: Any, rule: Flat) -> ClippedSums:
    total = engine._nothing()
    for some in split_into_chunks(batch, 4):
        part = cut(honest_sum(engine, some, UNLIMITED), rule.clip_norm)
        for name, own in part.sums.items():
            total.sums[name] += own
    return total


def with_an_auxiliary_loss(engine: Engine, batch: Any, rule: Flat) -> ClippedSums:
    clipped = honest_sum(engine, batch, rule)
    if count_records(batch):
        auxiliary = engine._model(batch[0]).square().sum()
        parameters = engine.parameters
        extra = torch.autograd.grad(auxiliary, list(parameters.values()))
        for name, own in zip(parameters, extra, strict=True):
            clipped.sums[name] += own
    return clipped


def two_copies_of_each(engine: Engine, batch: Any, rule: Flat) -> ClippedSums:
    return honest_sum(engine, map_tensors(batch, lambda part: torch.cat([part, part])), rule)


def normalised_over_the_batch(engine: Engine, batch: Any, rule: Flat) -> ClippedSums:
    features, *others = batch
    if len(features) > 1:
        features = (features - features.mean(dim=0)) / (features.std(dim=0) + 1e-5)
    return honest_sum(engine, (features, *others), rule)


@contextmanager
def nan_passes() -> Iterator[None]:
    def factors(norms: Tensor, clip_norm: float) -> Tensor:
        return (clip_norm / norms).clamp(max=1.0)

    with (
        patch.object(clipping, "clip_factors", factors),
        patch("dpaudit.trainer.engine.clipped_sums.finite_records", all_of_them),
    ):
        yield


def all_of_them(squares: Tensor) -> Tensor:
    return torch.ones(len(squares[0]), dtype=torch.bool)


# What the sum is divided by, and the descent


def steps_as(change: Callable[[Private, Any, Any], None]) -> Patch:
    """Before each step, ``change`` is done to the trainer."""

    def step(self: Private, per_sample_loss: Any, batch: Any) -> None:
        change(self, per_sample_loss, batch)
        honest_step(self, per_sample_loss, batch)

    return lambda: patch.object(Private, "step", step)


def divides_by_the_batch(private: Private, loss: Any, batch: Any) -> None:
    private.step_settings = replace(
        private.step_settings, expected_batch_size=max(1, count_records(batch))
    )


def learns_faster_from_large_losses(private: Private, loss: Any, batch: Any) -> None:
    with torch.no_grad():
        losses = loss(private.model, batch).nan_to_num()
    private.optimizer.param_groups[0]["lr"] = 0.05 * (1 + float(losses.sum()))


@contextmanager
def divides_by_the_data_set() -> Iterator[None]:
    def batches(self: Private, dataset: Any, **options: Any) -> Iterator[Any]:
        expected = max(1.0, 0.25 * count_records(dataset))
        self.step_settings = replace(self.step_settings, expected_batch_size=expected)
        yield from honest_batches(self, dataset, **options)

    with patch.object(Private, "batches", batches):
        yield


# Noise


def half_on_one_group(
    sums: GradientSums, context: NoiseContext, noise: float, norm: float
) -> GradientSums:
    clean = sums["2.weight"].clone()
    noisy = honest_noise(Independent(), sums, context, noise, norm)
    noisy["2.weight"] = (noisy["2.weight"] + clean) / 2
    return noisy


def none_on_the_last_bias(
    sums: GradientSums, context: NoiseContext, noise: float, norm: float
) -> GradientSums:
    clean = sums["4.bias"].clone()
    return {**honest_noise(Independent(), sums, context, noise, norm), "4.bias": clean}


def only_where_gradients_are(
    sums: GradientSums, context: NoiseContext, noise: float, norm: float
) -> GradientSums:
    clean = {name: part.clone() for name, part in sums.items()}
    noisy = honest_noise(Independent(), sums, context, noise, norm)
    return {name: torch.where(clean[name] != 0, part, clean[name]) for name, part in noisy.items()}


def always_that_of_the_first_step(
    sums: GradientSums, context: NoiseContext, noise: float, norm: float
) -> GradientSums:
    return honest_noise(Independent(), sums, replace(context, step=0), noise, norm)


def of_a_fixed_key(
    sums: GradientSums, context: NoiseContext, noise: float, norm: float
) -> GradientSums:
    fixed = replace(context, stream=Keystream.seeded(1))
    return honest_noise(Independent(), sums, fixed, noise, norm)


def the_same_in_every_layer(
    sums: GradientSums, context: NoiseContext, noise: float, norm: float
) -> GradientSums:
    drawn = normals(context.stream, Purpose.GRADIENT_NOISE, context.step, count_coordinates(sums))
    return {
        name: part + noise * norm * drawn[: part.numel()].view_as(part)
        for name, part in sums.items()
    }


def uniform(sums: GradientSums, context: NoiseContext, noise: float, norm: float) -> GradientSums:
    """As wide as is claimed, but of bounded support."""
    words = context.stream.words(Purpose.GRADIENT_NOISE, context.step, count_coordinates(sums))
    drawn = torch.from_numpy(((words >> np.uint64(11)) * 2.0**-53 - 0.5) * np.sqrt(12))
    parts = torch.split(drawn.float(), [part.numel() for part in sums.values()])
    return {
        name: part + noise * norm * own.view_as(part)
        for (name, part), own in zip(sums.items(), parts, strict=True)
    }


@contextmanager
def resumes_at_the_first_step() -> Iterator[None]:
    honest = Session.resume

    def resumed(*args: Any, **options: Any) -> Session:
        return honest(*args, **{**options, "step": 0})

    with patch.object(Session, "resume", resumed):
        yield


# Sampling


def shuffles(self: Poisson, stream: Keystream, step: int, records: int) -> Indices:
    if records == 0:
        return np.zeros(0, dtype=np.int64)
    batch = max(1, round(self.sampling_rate * records))
    return Shuffled(batch, records).draw(stream, step, records)


def takes_a_fixed_number(self: Poisson, stream: Keystream, step: int, records: int) -> Indices:
    if records == 0:
        return np.zeros(0, dtype=np.int64)
    batch = max(1, round(self.sampling_rate * records))
    return FixedSize(batch, records).draw(stream, step, records)


def twice_as_often(self: Poisson, stream: Keystream, step: int, records: int) -> Indices:
    return honest_draw(Poisson(2 * self.sampling_rate), stream, step, records)


def neighbours_together(self: Poisson, stream: Keystream, step: int, records: int) -> Indices:
    blocks = honest_draw(self, stream, step, (records + 1) // 2)
    both = np.concatenate([2 * blocks, 2 * blocks + 1])
    return np.sort(both[both < records])


def the_same_for_two_steps(self: Poisson, stream: Keystream, step: int, records: int) -> Indices:
    return honest_draw(self, stream, step // 2, records)
