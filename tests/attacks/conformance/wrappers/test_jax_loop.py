"""Loops in JAX: padding, batches and what is observed; division by the actual batch is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.verdict import Outcome

jax = pytest.importorskip("jax", reason="jax is not installed")
optax = pytest.importorskip("optax", reason="optax is not installed")

WIDTH, CLASSES, SIZE, STEPS, RATE = 40, 3, 24, 12, 0.25
NOISE, CLIP, LEARNING_RATE, PADDED = 2.0, 0.5, 0.05, 12
EFFORT = conformance.Effort(
    noise_samples=10_000, replays=1, sampler_steps=48, search_steps=200, longest_run=STEPS
)


def records() -> list[Any]:
    rng = np.random.default_rng(2)
    return [
        (rng.standard_normal(WIDTH, dtype=np.float32), int(rng.integers(CLASSES)))
        for _ in range(SIZE)
    ]


def loss(params: Any, x: Any, y: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(x @ params, y)


def batches(seed: int) -> Any:
    for step in range(STEPS):
        yield np.flatnonzero(np.random.default_rng([seed, step]).random(SIZE) < RATE)


def build(known: Any, seed: int) -> Any:
    optimizer = optax.contrib.dpsgd(LEARNING_RATE, CLIP, NOISE, seed=seed)
    return jax.numpy.zeros((WIDTH, CLASSES)), optimizer, loss, batches(seed)


def claim(rows: int) -> conformance.StepClaim:
    return conformance.StepClaim(
        noise_multiplier=NOISE, clip_norm=CLIP, sampling_rate=RATE, steps=STEPS,
        update_scale=-LEARNING_RATE / rows,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_padded_loop_of_optax_passes_and_states_the_padding() -> None:
    result = conformance.check(
        conformance.wrap(build, batch_size=PADDED), claim(PADDED), records=records(),
        effort=EFFORT, assumptions=[conformance.Assumption.NO_NAN],
    )  # fmt: skip
    assert result.verdict is Outcome.PASS, result.violations
    assert any("12 rows" in one for one in result.assumptions)


@pytest.mark.filterwarnings("ignore")
def test_division_by_the_actual_batch_size_is_named() -> None:
    result = conformance.check(
        conformance.wrap(build), claim(6), records=records(), effort=EFFORT,
        assumptions=[conformance.Assumption.NO_NAN],
    )  # fmt: skip
    whys = [one.why for one in result.violations if one.check == "replay"]
    assert whys
    assert all("divides by the actual number of records" in why for why in whys), whys


@pytest.mark.filterwarnings("ignore")
def test_batch_that_exceeds_its_rows_is_refused() -> None:
    trainer = conformance.wrap(build, batch_size=2)(records(), 0)
    with pytest.raises(InvalidArgument, match="batch_size"):
        trainer.step(include=[0, 1, 2])


def test_own_loop_draws_its_batches() -> None:
    def own(known: Any, seed: int) -> Any:
        return conformance.JaxLoop(
            np.zeros(WIDTH), lambda state, batch: state + batch[0].sum(axis=0), batches=[[0, 2]]
        )

    trainer = conformance.wrap(own)(records(), 0)
    expected = records()[0][0].astype(float) + records()[2][0]
    assert trainer.step() == pytest.approx(expected, rel=1e-5)
    assert trainer.sampled == [0, 2]
    with pytest.raises(InvalidArgument, match="fewer batches than steps"):
        trainer.step()


def test_without_batches_the_sampler_is_not_known() -> None:
    loop = conformance.JaxLoop(np.zeros(WIDTH), lambda state, batch: state + batch[0].sum(axis=0))
    trainer = conformance.wrap(lambda known: loop)(records(), 0)
    trainer.step()
    assert trainer.sampled is None
