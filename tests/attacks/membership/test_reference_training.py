"""Models that are trained together are those that each would be alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from dpaudit.attacks.membership.reference_models import random_halves
from dpaudit.attacks.membership.reference_training import (
    JoblibExecutor,
    ModelStack,
    ReferenceModelSettings,
    ReferenceSpeedSettings,
    SerialExecutor,
    StackedModel,
    logits_on_same_records,
    model_signals,
    models_per_chunk,
    train_references,
)
from dpaudit.vocabulary.errors import InvalidArgument

CLASSES = 3


def make_mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, CLASSES))


def make_normalised(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, CLASSES))


def make_dropping(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, CLASSES))


GENERATOR = np.random.default_rng(0)
FEATURES = GENERATOR.standard_normal((61, 5)).astype(np.float32)
LABELS = GENERATOR.integers(0, CLASSES, 61)
RECIPE = ReferenceModelSettings(
    make_mlp, epochs=3, batch_size=8, learning_rate=0.01, seed=4, weight_decay=0.1
)


def trained(recipe: ReferenceModelSettings, member: np.ndarray, **how: object) -> ModelStack:
    return train_references(recipe, FEATURES, LABELS, member, **how)  # type: ignore[arg-type]


def outputs(stack: ModelStack) -> np.ndarray:
    return logits_on_same_records(stack, torch.from_numpy(FEATURES)).numpy()


def alone(member: np.ndarray, number: int, steps: int) -> np.ndarray:
    """One model, one optimizer, one batch after the other."""
    seed = np.random.SeedSequence([RECIPE.seed, number])
    model = make_mlp(int(seed.generate_state(1)[0]))
    order = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(RECIPE.epochs):
        for batch in np.array_split(order.permutation(np.flatnonzero(member)), steps):
            optimizer.zero_grad()
            said = model(torch.from_numpy(FEATURES[batch]))
            torch.autograd.backward(
                nn.functional.cross_entropy(said, torch.from_numpy(LABELS[batch]))
            )
            optimizer.step()
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(FEATURES)).numpy())


def test_each_model_is_the_one_that_a_plain_loop_trains() -> None:
    member = random_halves(4, 61, seed=0)  # 30 or 31 records each
    member[3, 40:] = False  # and one with fewer
    found = outputs(trained(RECIPE, member))
    for number in range(4):
        assert found[number] == pytest.approx(alone(member[number], number, 4), abs=1e-5)


def test_chunks_change_nothing() -> None:
    member = random_halves(5, 61, seed=0)
    assert models_per_chunk(RECIPE, FEATURES, 1) == 1
    together, one_by_one = (
        trained(RECIPE, member),
        trained(RECIPE, member, speed=ReferenceSpeedSettings(memory=1)),
    )
    assert len(one_by_one) == 5
    assert outputs(one_by_one) == pytest.approx(outputs(together), abs=1e-5)
    for_three_workers = trained(RECIPE, member, speed=ReferenceSpeedSettings(chunks=3))
    assert outputs(for_three_workers) == pytest.approx(outputs(together), abs=1e-5)


def test_more_memory_holds_more_models() -> None:
    one = models_per_chunk(RECIPE, FEATURES, 2**20)
    assert 1 < one < models_per_chunk(RECIPE, FEATURES, 2**22)


@pytest.mark.parametrize("executor", [SerialExecutor(), ThreadPoolExecutor(2), JoblibExecutor(1)])
def test_any_executor_with_a_map_will_do(executor: object) -> None:
    member = random_halves(3, 61, seed=0)
    found = trained(RECIPE, member, speed=ReferenceSpeedSettings(memory=1), executor=executor)
    assert outputs(found) == pytest.approx(outputs(trained(RECIPE, member)), abs=1e-5)


@pytest.mark.parametrize("make", [make_normalised, make_dropping])
def test_models_with_buffers_or_random_numbers_are_trained_too(make: object) -> None:
    member = random_halves(3, 61, seed=0)
    recipe = ReferenceModelSettings(make, epochs=30, batch_size=16, learning_rate=0.02, seed=1)  # type: ignore[arg-type]
    torch.manual_seed(0)
    first = outputs(trained(recipe, member))
    torch.manual_seed(1)
    assert np.array_equal(first, outputs(trained(recipe, member)))
    right = first.argmax(2) == LABELS
    assert right[member].mean() > right[~member].mean()


def test_initial_weights_come_from_the_seed_even_if_the_maker_ignores_it() -> None:
    recipe = ReferenceModelSettings(
        lambda seed: nn.Linear(5, CLASSES), epochs=1, batch_size=8, learning_rate=0.1, seed=0
    )
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = outputs(trained(recipe, random_halves(2, 61, seed=0)))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert np.array_equal(first, outputs(trained(recipe, random_halves(2, 61, seed=0))))
    assert not np.allclose(first[0], first[1])


def test_a_model_never_meets_a_record_that_it_does_not_train_on() -> None:
    """Not even in a batch statistic, where it is dealt fewer records than others."""
    recipe = ReferenceModelSettings(
        make_normalised, epochs=2, batch_size=8, learning_rate=0.1, seed=0
    )
    member = random_halves(2, 61, seed=0)
    member[1, 30:] = False
    member[1, 0] = False
    first = trained(recipe, member)
    changed = FEATURES.copy()
    changed[~member[1]] += 100
    second = train_references(recipe, changed, LABELS, member)
    for name, values in first.buffers.items():
        assert torch.equal(values[1], second.buffers[name][1])
        assert name.endswith("num_batches_tracked") or not torch.equal(
            values[0], second.buffers[name][0]
        )


def test_signals_do_not_depend_on_how_records_are_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpaudit.attacks.membership import reference_training

    stack = trained(RECIPE, random_halves(2, 61, seed=0))
    whole = model_signals(stack, FEATURES, LABELS, classes=CLASSES)
    monkeypatch.setattr(reference_training, "MAX_NUMBERS_PER_BATCH", 60)
    parts = model_signals(stack, FEATURES, LABELS, classes=CLASSES)
    assert parts.confidences == pytest.approx(whole.confidences, abs=1e-5)
    assert parts.outputs == pytest.approx(whole.outputs, abs=1e-5)


def test_one_model_of_a_stack_is_a_model() -> None:
    stack = trained(RECIPE, random_halves(3, 61, seed=0))
    assert StackedModel(stack, 1).predict(FEATURES) == pytest.approx(outputs(stack)[1], abs=1e-6)


@pytest.mark.parametrize(
    "member",
    [
        np.ones((2, 60), dtype=bool),
        np.ones(61, dtype=bool),
        np.zeros((0, 61), dtype=bool),
        np.zeros((2, 61), dtype=bool),
    ],
)
def test_models_without_records_are_refused(member: np.ndarray) -> None:
    with pytest.raises(InvalidArgument, match="member"):
        trained(RECIPE, member)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", float("nan")),
        ("weight_decay", -1.0),
        ("weight_decay", float("nan")),
        ("seed", -1),
    ],
)
def test_recipe_without_trainable_parameters_is_refused(setting: str, value: float) -> None:
    good = {"epochs": 1, "batch_size": 1, "learning_rate": 0.1, "seed": 0}
    with pytest.raises(InvalidArgument, match=setting):
        ReferenceModelSettings(make_mlp, **{**good, setting: value})  # type: ignore[arg-type]
