"""The models of the selective SGD experiments, and models as flat vectors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dpaudit.trainer.federated.selective_models import FlatModel, cnn, mlp, run_epoch
from dpaudit.vocabulary.errors import InvalidArgument


@pytest.mark.parametrize("shape", [(28, 28), (32, 32), (1, 28, 28)])
def test_models_have_the_published_sizes(shape: tuple[int, ...]) -> None:
    for model, size in ((mlp, 140_106), (cnn, 105_506)):
        made = model(shape, 10)
        assert len(FlatModel(made).vector) == size
        assert made(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("shape", [(27, 27), (3, 28, 28), (28, 32), (40, 40), (784,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    for model in (mlp, cnn):
        with pytest.raises(InvalidArgument, match="one channel"):
            model(shape, 10)


def test_an_epoch_equals_the_optimizer_of_torch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    reference, flat = copy.deepcopy(model), FlatModel(model)
    features, labels = torch.randn(10, 5), torch.randint(0, 3, (10,))
    order = np.random.default_rng(0).permutation(10)
    run_epoch(flat, features, labels, order, batch_size=4, learning_rate=0.3)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.3)
    for rows in torch.split(torch.from_numpy(order), 4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(features[rows]), labels[rows]).backward()
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in reference.parameters()])
    torch.testing.assert_close(flat.vector, expected)


def test_a_vector_is_loaded_and_read_back() -> None:
    flat = FlatModel(nn.Linear(3, 2))
    vector = np.arange(8, dtype=np.float32)
    flat.load(vector)
    np.testing.assert_array_equal(flat.read(), vector)
    assert flat.model.bias.tolist() == [6.0, 7.0]
    vector[0] = 99
    assert flat.read()[0] == 0


def test_other_types_than_float32_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="float32"):
        FlatModel(nn.Linear(2, 1).double())
