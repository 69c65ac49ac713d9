"""DP-SGD on stacked models equals DP-SGD on single ones."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from dpaudit.attacks.membership.private_training import (
    PrivateChunk,
    PrivateTraining,
    part_of_chunk,
    train_private_chunk,
    train_privately,
)
from dpaudit.vocabulary.errors import InvalidArgument

FEATURES = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
LABELS = np.arange(20) % 3


def settings(**changed) -> PrivateTraining:
    values = {
        "make_model": lambda seed: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        "make_optimizer": partial(torch.optim.SGD, lr=0.2, momentum=0.9),
        "noise_multiplier": 1.0,
        "clip_norm": 0.5,
        "sampling_rate": 0.5,
        "steps": 4,
        "expected_batch_size": 10,
        "seed": 3,
    }
    return PrivateTraining(**(values | changed))


def chunk(models: int = 3, **changed) -> PrivateChunk:
    member = np.ones((models, 20), dtype=bool)
    return PrivateChunk(settings(**changed), FEATURES, LABELS, member, tuple(range(models)))


@pytest.mark.parametrize("changed", [{}, {"average_decay": 0.5}, {"sampling_rate": 1.0}])
def test_a_model_does_not_depend_on_those_beside_it(changed) -> None:
    torch.manual_seed(0)
    make = partial(_seeded, settings().make_model)
    whole = chunk(make_model=make, **changed)
    together = train_private_chunk(whole)
    for place in range(3):
        alone = train_private_chunk(part_of_chunk(whole, slice(place, place + 1)))
        for name, values in alone.parameters.items():
            torch.testing.assert_close(values[0], together.parameters[name][place])


def _seeded(make, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(seed)


def test_a_step_without_noise_is_the_sum_of_clipped_gradients() -> None:
    torch.manual_seed(1)
    linear = nn.Linear(4, 3)
    found = train_private_chunk(
        chunk(
            1,
            make_model=lambda _: linear,
            make_optimizer=partial(torch.optim.SGD, lr=1.0),
            noise_multiplier=0.0,
            sampling_rate=1.0,
            steps=1,
            expected_batch_size=1,
        )
    )
    expected = linear.weight.detach().clone()
    for record, label in zip(torch.from_numpy(FEATURES), torch.from_numpy(LABELS), strict=True):
        linear.zero_grad()
        nn.functional.cross_entropy(linear(record[None]), label[None]).backward()
        norm = torch.sqrt(linear.weight.grad.square().sum() + linear.bias.grad.square().sum())
        expected -= linear.weight.grad * min(1.0, 0.5 / float(norm))
    torch.testing.assert_close(found.parameters["weight"][0], expected)


def test_a_record_with_an_infinite_gradient_counts_nothing() -> None:
    features = FEATURES.copy()
    features[0] = np.inf
    one = chunk(1, noise_multiplier=0.0, steps=1)
    broken = PrivateChunk(one.settings, features, LABELS, one.member, one.numbers)
    assert all(torch.isfinite(p).all() for p in train_private_chunk(broken).parameters.values())


def test_the_method_is_reported() -> None:
    found = train_privately(settings(), FEATURES, LABELS, np.ones((2, 20), dtype=bool))
    assert len(found.stack) == 2
    assert found.method.startswith(("stacked", "one model at a time"))


def test_frozen_parameters_and_models_that_cannot_be_stacked_are_refused() -> None:
    frozen = nn.Linear(4, 3)
    frozen.bias.requires_grad_(False)
    with pytest.raises(InvalidArgument, match="frozen"):
        train_private_chunk(chunk(make_model=lambda _: frozen))

    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    with pytest.raises(InvalidArgument, match="stack"):
        train_private_chunk(chunk(make_model=lambda _: Branching(4, 3)))
