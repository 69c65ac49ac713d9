"""Dropout and augmentation: a correct trainer is never rejected, a faulty one never passes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpaudit.attacks import conformance
from dpaudit.trainer.conformance_trainers import PrivateTrainerFactory
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.reference_trainer import (
    CLAIM,
    CLIP,
    LITTLE,
    NOISE,
    RATE,
    WIDTH,
    Array,
    Plain,
    records,
)
from tests.planted_bugs import patches
from tests.planted_bugs.parts import checks_alone


class Drops(Plain):
    """Random dropout of features; ``place`` is the position in the batch, ``index`` in the data."""

    clips = True

    def step(self) -> Array:
        self.sampled = self.draw()
        self.begin()
        total = np.zeros(WIDTH + 1)
        for place, index in enumerate(self.sampled):
            x, y = self.known[index]
            gradient = self.gradient(self.changed(x, place, index), y)
            total += self.clipped(gradient) if self.clips else np.nan_to_num(gradient)
        update = CLAIM.update_scale * (total + self.noise())
        self.weights, self.number = self.weights + update, self.number + 1
        return np.asarray(update)

    def begin(self) -> None:
        pass

    def changed(self, x: Array, place: int, index: int) -> Array:
        raise NotImplementedError


class ByPlaceInColumns(Drops):
    """One mask of the whole batch: one more record changes every row."""

    def begin(self) -> None:
        drawn = np.random.default_rng([self.seed, self.number, 7])
        self.masks = drawn.random((WIDTH, len(self.sampled))) < 0.8

    def changed(self, x: Array, place: int, index: int) -> Array:
        return np.asarray(x * self.masks[:, place])


class ShuffledAugmentation(Drops):
    """Shifts from Python's generator, in an order that it shuffles too."""

    def begin(self) -> None:
        random.shuffle(self.sampled)

    def changed(self, x: Array, place: int, index: int) -> Array:
        return np.roll(x, random.randrange(WIDTH))


class OneMaskAfterTheCoins(Drops):
    """One mask per step, drawn after the inclusions of all records."""

    def draw(self) -> list[int]:
        self.drawn = np.random.default_rng([self.seed, self.number, 1])
        return np.flatnonzero(self.drawn.random(len(self.known)) < RATE).tolist()

    def begin(self) -> None:
        self.mask = self.drawn.random(WIDTH) < 0.8

    def changed(self, x: Array, place: int, index: int) -> Array:
        return np.asarray(x * self.mask)


class ByIndex(Drops):
    """A separate generator for each record: nothing depends on the others."""

    def changed(self, x: Array, place: int, index: int) -> Array:
        drawn = np.random.default_rng([self.seed, self.number, 3, index])
        return np.asarray(x * (drawn.random(WIDTH) < 0.8))


class ByNumpyGlobally(Drops):
    """NumPy's global generator, row by row: an additional last record changes no other."""

    def changed(self, x: Array, place: int, index: int) -> Array:
        return np.asarray(x * (np.random.random(WIDTH) < 0.8))  # noqa: NPY002


class Unseeded(Drops):
    def changed(self, x: Array, place: int, index: int) -> Array:
        return np.asarray(x * (np.random.default_rng().random(WIDTH) < 0.8))


def audited(make: conformance.MakeTrainer) -> ConformanceResult:
    return conformance.check(make, CLAIM, records=records(), effort=LITTLE)


def undecided(result: ConformanceResult) -> dict[str, ConformanceFinding]:
    return {f.name: f for f in result.findings if f.outcome is Outcome.INCONCLUSIVE}


@pytest.mark.parametrize("kind", [ByPlaceInColumns, ShuffledAugmentation, OneMaskAfterTheCoins])
def test_masks_that_others_change_are_inconclusive_with_the_remedy(kind: type[Drops]) -> None:
    result = audited(kind)
    assert result.verdict is Outcome.INCONCLUSIVE, result.violations
    assert "eval mode" in undecided(result)["randomness of gradients"].why


@pytest.mark.parametrize("kind", [ByIndex, ByNumpyGlobally])
def test_masks_that_replay_are_compared(kind: type[Drops]) -> None:
    assert audited(kind).verdict is Outcome.PASS


def test_unseeded_masks_are_inconclusive() -> None:
    assert "the same seed give another run" in undecided(audited(Unseeded))["reproducible"].why


@pytest.mark.parametrize(
    "kind",
    [ByPlaceInColumns, ShuffledAugmentation, OneMaskAfterTheCoins, ByIndex, ByNumpyGlobally],
)
def test_masks_do_not_hide_missing_clipping(kind: type[Drops]) -> None:
    class Unclipped(kind):  # type: ignore[valid-type,misc]
        clips = False

    assert audited(Unclipped).verdict is Outcome.FAIL


def test_unseeded_masks_do_not_hide_missing_clipping() -> None:
    class Unclipped(Unseeded):
        clips = False

    assert audited(Unclipped).verdict is not Outcome.PASS


def test_joint_clipping_is_not_taken_for_randomness() -> None:
    """The other records matter here too, but exchanging two records does not."""

    class Together(Plain):
        def step(self) -> Array:
            self.sampled = self.draw()
            total = sum((self.gradient(*self.known[i]) for i in self.sampled), np.zeros(WIDTH + 1))
            update = CLAIM.update_scale * (self.clipped(total) + self.noise())
            self.weights, self.number = self.weights + update, self.number + 1
            return np.asarray(update)

    assert audited(Together).verdict is Outcome.FAIL


def test_noise_of_the_global_generator_is_replayed() -> None:
    class Global(Plain):
        def noise(self) -> Array:
            return NOISE * CLIP * np.random.normal(size=WIDTH + 1)  # noqa: NPY002

    class Unclipped(Global):
        def clipped(self, gradient: Array) -> Array:
            return np.nan_to_num(gradient)

    assert audited(Global).verdict is Outcome.PASS
    assert audited(Unclipped).verdict is Outcome.FAIL


# Models of torch, by our own trainer


class NoisyInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.randn_like(x) if self.training else x


def seeded(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def model() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(*(layer() for layer in layers))

    return model


CONVOLUTIONAL = seeded(
    lambda: nn.Conv2d(1, 4, 3),
    nn.ReLU,
    nn.Flatten,
    lambda: nn.Dropout(0.25),
    lambda: nn.Linear(64, 3),
)
NOISY = seeded(NoisyInput, lambda: nn.Linear(9, 16), nn.ReLU, lambda: nn.Linear(16, 3))


def bench(
    model: Callable[[], nn.Module], shape: Sequence[int]
) -> tuple[PrivateTrainerFactory, list]:  # type: ignore[type-arg]
    rng = np.random.default_rng(1)
    known = [(rng.normal(size=shape).astype(np.float32), int(y)) for y in rng.integers(3, size=40)]

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")

    made = PrivateTrainerFactory(
        model, loss, known[0], learning_rate=0.1, noise_multiplier=1.0, clip_norm=0.5,
        sampling_rate=0.2, expected_batch_size=8,
    )  # fmt: skip
    return made, known


@pytest.mark.parametrize(
    ("model", "shape"),
    [(CONVOLUTIONAL, (1, 6, 6)), pytest.param(NOISY, (9,), marks=pytest.mark.slow)],
)
def test_model_that_draws_is_rejected_only_where_it_does_not_clip(
    model: Callable[[], nn.Module], shape: Sequence[int]
) -> None:
    made, known = bench(model, shape)
    effort = conformance.Effort(noise_samples=5_000, replays=1, sampler_steps=40, search_steps=300)
    result = conformance.check(made, made.claim(20), records=known, effort=effort)
    assert result.verdict is not Outcome.FAIL, result.violations
    open_ = set(undecided(result)) - {"opposed records"}  # none at all, where all masks replay
    assert open_ <= {"randomness of gradients"}, open_
    with patches.factors_by(patches.every_finite_record_whole)(), checks_alone("replay"):
        result = conformance.check(made, made.claim(20), records=known, effort=effort)
    assert result.verdict is Outcome.FAIL


def test_model_in_eval_mode_passes() -> None:
    made, known = bench(lambda: CONVOLUTIONAL().eval(), (1, 6, 6))
    effort = conformance.Effort(noise_samples=5_000, replays=1, sampler_steps=40, search_steps=300)
    result = conformance.check(made, made.claim(20), records=known, effort=effort)
    assert result.verdict is Outcome.PASS, result.findings
