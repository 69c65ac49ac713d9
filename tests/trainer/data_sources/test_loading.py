"""Batches that are loaded in advance, in a thread or a process, are the same batches."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.batches.grouped_records import Users
from dpaudit.trainer.batches.samplers import Cyclic
from dpaudit.trainer.data_sources.batch_source import make_batch_source
from dpaudit.trainer.data_sources.data_loaders import LoadingSettings
from dpaudit.trainer.data_sources.digest import data_digest
from dpaudit.trainer.data_sources.loading import load_batches
from dpaudit.trainer.noise.correlated_noise import Banded
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import InvalidArgument, UserCodeError

RECORDS = 30
X = torch.randn(RECORDS, 4, generator=torch.Generator().manual_seed(3))
Y = torch.arange(RECORDS) % 3


class Augmented(Dataset[Any]):
    """Records with random numbers of torch, NumPy and Python."""

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> Any:
        noise = torch.randn(4) + random.random() + float(np.random.rand())  # noqa: NPY002
        return X[index] + 0.1 * noise, Y[index]


class Failing(Augmented):
    def __getitem__(self, index: int) -> Any:
        raise KeyError("label")


class Dying(Augmented):
    def __getitem__(self, index: int) -> Any:
        import os

        if torch.utils.data.get_worker_info() is not None:
            os._exit(3)
        return super().__getitem__(index)


class Spying(Augmented):
    """Tries to read the key of the trainer's stream, or a cipher with it."""

    stream: Keystream | None = None

    def __getitem__(self, index: int) -> Any:
        assert self.stream is not None
        held = torch.utils.data.get_worker_info() is not None and (
            self.stream._key or self.stream._blocks is not None
        )
        return X[index] + (1.0 if held else 0.0), Y[index]


def losses(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def private(data: Any, **options: Any) -> Private:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    given = {"sampling_rate": 0.4, "expected_batch_size": 12, "noise_multiplier": 1.0, "seed": 5}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return make_private(model, optimizer, data, **(given | options))


def trained(data: Any, **options: Any) -> Tensor:
    trainer = private(data, **options)
    for batch in trainer.batches(steps=4):
        trainer.step(losses, batch)
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(
    "options", [{"workers": 2}, {"prefetch": 3}, {"workers": 1, "prefetch": 2}]
)
def test_workers_and_prefetching_change_no_batch(options: dict[str, int]) -> None:
    assert torch.equal(trained(Augmented(), **options), trained(Augmented()))


def test_prefetched_columns_are_the_same() -> None:
    assert torch.equal(trained((X, Y), prefetch=3), trained((X, Y)))


def test_loading_leaves_the_global_generators_as_they_were() -> None:
    trainer = private(Augmented())
    before = torch.get_rng_state(), random.getstate(), np.random.rand.__self__.get_state()[2]
    next(trainer.batches())
    after = torch.get_rng_state(), random.getstate(), np.random.rand.__self__.get_state()[2]
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_records_of_a_batch_are_augmented_differently_in_each_step() -> None:
    source, stream = make_batch_source(Augmented(), None), Keystream.seeded(0)
    one, other = (source(np.array([3, 3]), stream, step)[0] for step in range(2))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, other)


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_data_set_is_named_in_every_process(workers: int) -> None:
    with pytest.raises(UserCodeError, match=r"data\[\d+\] raised KeyError: 'label'"):
        trained(Failing(), workers=workers)


def test_worker_that_dies_is_an_error() -> None:
    with pytest.raises(UserCodeError, match="a worker process that loads data raised"):
        trained(Dying(), workers=1)


def test_forked_worker_has_no_key() -> None:
    data = Spying()
    trainer = private(data, workers=1)
    Spying.stream = trainer._session.stream
    Spying.stream.seed_for(Purpose.MODEL)  # the cipher that is kept for short streams exists
    assert Spying.stream._blocks is not None
    batch = next(trainer.batches(steps=1))
    assert len(batch[0])
    assert all(any(torch.equal(row, x) for x in X) for row in batch[0])


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_data_that_cannot_be_sent_to_a_process_are_refused() -> None:
    class Local(Augmented):
        pass

    source = make_batch_source(Local(), None)
    settings = LoadingSettings(workers=1, context="spawn")

    def request(number: int) -> Any:
        return source.request(np.array([number]), Keystream.seeded(0), number)

    with pytest.raises(InvalidArgument, match="workers must be"):
        next(load_batches(source.source, request, 2, settings))


@pytest.mark.parametrize("data", [(X, Y), Augmented()])
def test_users_are_loaded_in_advance(data: Any) -> None:
    def batch(prefetch: int) -> Any:
        trainer = private(data, unit="user", prefetch=prefetch)
        return next(trainer.batches(users=Users(torch.arange(RECORDS) // 3, rows=2))).rows[0]

    assert torch.equal(batch(2), batch(0))


@pytest.mark.parametrize("data", [(X, Y), Augmented()])
def test_steps_beyond_a_sampler_are_refused_in_their_turn(data: Any) -> None:
    trainer = private(data, sampler=Cyclic(2, 3), noise=Banded(2), prefetch=2)
    taken = 0
    with pytest.raises(InvalidArgument, match="steps"):  # noqa: PT012
        for batch in trainer.batches(steps=5):
            trainer.step(losses, batch)
            taken += 1
    assert taken == 3


def noisy(batch: Any) -> Any:
    return batch[0] + torch.randn_like(batch[0]), batch[1]


def centered(batch: Any) -> Any:
    return batch[0] - batch[0].mean(dim=0), batch[1]


def fails_on_nothing(batch: Any) -> Any:
    return torch.stack([2 * row for row in batch[0]]), batch[1]


def test_random_transform_depends_on_key_and_step_alone() -> None:
    def batch(begin: int) -> Tensor:
        trainer = private((X, Y))
        for number, drawn in enumerate(trainer.batches(steps=3, transform=noisy)):
            if number == 2:
                return drawn[0]
            torch.manual_seed(begin)  # what the user's code draws in between does not count
            trainer.step(losses, drawn)
        raise AssertionError

    assert torch.equal(batch(0), batch(1))


def test_transform_that_mixes_records_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="transform"):
        next(private((X, Y)).batches(transform=centered))


@pytest.mark.parametrize("data", [(X, Y), Augmented()])
def test_transform_that_fails_on_nothing_takes_empty_batches(data: Any) -> None:
    trainer = private(data, sampling_rate=1e-12)
    for batch in trainer.batches(steps=2, transform=fails_on_nothing):
        assert batch[0].shape == (0, 4)
        trainer.step(losses, batch)
    assert trainer.steps == 2


def test_a_batch_without_a_step_is_refused_if_the_next_one_is_ready() -> None:
    batches = private((X, Y), prefetch=2).batches(steps=3)
    next(batches)
    with pytest.raises(InvalidArgument, match="a batch without a step"):
        next(batches)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((X, Y), (X.flip(0), Y)),
        ((X, Y), (X.double(), Y)),
        ({"x": X, "text": ["a"] * RECORDS}, {"x": X, "text": ["b"] * RECORDS}),
        ([(x, 0) for x in X], [(x, 1) for x in X]),
    ],
)
def test_digest_tells_data_apart(one: Any, other: Any) -> None:
    stream = Keystream.seeded(0)
    first, again, second = (
        data_digest(make_batch_source(data, None).source, stream) for data in (one, one, other)
    )
    assert first == again != second


def test_digest_of_random_records_is_that_of_their_shape() -> None:
    class Random(Augmented):
        def __getitem__(self, index: int) -> Any:
            return torch.from_numpy(np.random.default_rng().normal(size=4)), Y[index]

    source, stream = make_batch_source(Random(), None).source, Keystream.seeded(0)
    assert data_digest(source, stream) == data_digest(source, stream)


def test_digest_is_keyed() -> None:
    source = make_batch_source((X, Y), None).source
    assert data_digest(source, Keystream.seeded(0)) != data_digest(source, Keystream.seeded(1))


@pytest.mark.parametrize(
    "options", [{"workers": -1}, {"prefetch": -1}, {"workers": 1.5}, {"collate_fn": 3}]
)
def test_loading_settings_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        private((X, Y), **options)
