"""The invariants of one private step, each a test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from dpaudit.runs.ledger_file import LedgerWriter, read_ledger
from dpaudit.trainer import added_noise
from dpaudit.trainer.added_noise import Independent
from dpaudit.trainer.canaries import Canaries
from dpaudit.trainer.data import Records
from dpaudit.trainer.directions import choose_directions, directions_of
from dpaudit.trainer.models import linear
from dpaudit.trainer.peers import Alone
from dpaudit.trainer.private_sgd import (
    GRADIENT_SUM,
    RECORD_COUNT,
    PrivateSgd,
    make_optimizer,
    release_expected_batch_size,
)
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import LedgerHeader, Randomness, Sampling
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled
from dpaudit.vocabulary.settings import PrivacySettings, SpeedSettings

FEATURES, CLASSES = 5, 3
PRIVACY = PrivacySettings(
    sampling_rate=0.3,
    noise_multiplier=2.0,
    clip_norm=0.5,
    steps=4,
    delta=1e-5,
    expected_batch_size=8.0,
    seed=1,
)
HEADER = LedgerHeader(
    Adjacency.ADD_OR_REMOVE_ONE, Sampling.POISSON, Randomness.SEEDED, True, 0.5, {}, "00" * 16
)


def make_records(count: int) -> Records:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((count, FEATURES)).astype(np.float32)
    return Records(features, rng.integers(0, CLASSES, count))


def make_sgd(
    ledger: Path,
    records: Records,
    privacy: PrivacySettings = PRIVACY,
    canaries: int = 0,
    chunk: int = 256,
) -> PrivateSgd:
    torch.manual_seed(0)
    model = linear((FEATURES,), CLASSES)
    none = Records(np.zeros((0, FEATURES), np.float32), np.zeros(0, np.int64))
    return PrivateSgd(
        model=model,
        optimizer=make_optimizer(model, "sgd", 1.0, 0.0),
        records=records,
        canaries=Canaries(np.ones(canaries, np.bool_), none, np.zeros(0, np.bool_)),
        privacy=privacy,
        speed=SpeedSettings(physical_batch_size=chunk),
        stream=Keystream.of(privacy.seed),
        ledger=LedgerWriter.create(ledger, HEADER),
        expected_batch_size=8.0,
        ranks=Alone(),
        noise=Independent(),
    )


def parameters(sgd: PrivateSgd) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in sgd.model.parameters()])


def test_the_normaliser_is_public_whatever_the_number_of_records(tmp_path: Path) -> None:
    """The step on n records and on n + 1 differs by the clipped gradient over the constant."""
    many = make_records(1000)
    few = Records(many.features[:-1], many.labels[:-1])
    full = msgspec.structs.replace(PRIVACY, sampling_rate=1.0)
    moves = []
    for name, records in (("many", many), ("few", few)):
        sgd = make_sgd(tmp_path / name, records, full)
        before = parameters(sgd)
        sgd.step(0)
        moves.append(parameters(sgd) - before)
    gap = float((moves[0] - moves[1]).double().norm()) * 8.0
    assert 0 < gap <= 0.5 * (1 + 1e-5)


def test_an_empty_batch_still_takes_a_noisy_step_and_is_booked(tmp_path: Path) -> None:
    sgd = make_sgd(tmp_path / "ledger", make_records(0))
    before = parameters(sgd)
    sgd.step(0)
    assert (parameters(sgd) - before).abs().min() > 0
    assert len(read_ledger(tmp_path / "ledger").releases) == 1


def test_noise_enters_the_sum_once_with_the_booked_deviation(tmp_path: Path) -> None:
    sgd = make_sgd(tmp_path / "ledger", make_records(0), canaries=40_000)
    seen = sgd.step(0).shown * PRIVACY.clip_norm  # no record joins; canaries join at the rate
    size = len(parameters(sgd)) + 40_000
    drawn = added_noise.normals(sgd.stream, Purpose.GRADIENT_NOISE, 0, size)[-40_000:]
    noise = drawn.numpy() * 2.0 * 0.5
    assert abs(noise.std() / (2.0 * 0.5) - 1) < 0.02
    # A joined canary is clipped like any record: a hair below C, so that rounding stays inside.
    assert set(np.unique(np.round((seen - noise) / 0.5, 4))) == {0.0, 1.0}


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_physical_batches_change_nothing(tmp_path: Path, chunk: int) -> None:
    one = make_sgd(tmp_path / "one", make_records(40))
    other = make_sgd(tmp_path / "other", make_records(40), chunk=chunk)
    for number in range(3):
        one.step(number)
        other.step(number)
    assert torch.allclose(parameters(one), parameters(other), rtol=1e-5, atol=1e-6)


def test_each_release_is_on_disk_before_its_noise_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    booked_at_noise = []
    honest = added_noise.normals

    def watched(stream: Keystream, purpose: Purpose, step: int, count: int) -> torch.Tensor:
        booked_at_noise.append(len(read_ledger(tmp_path / "ledger").releases))
        return honest(stream, purpose, step, count)

    monkeypatch.setattr(added_noise, "normals", watched)
    sgd = make_sgd(tmp_path / "ledger", make_records(10))
    for number in range(3):
        sgd.step(number)
    assert booked_at_noise == [1, 2, 3]


def test_the_ledger_books_what_the_step_does(tmp_path: Path) -> None:
    sgd = make_sgd(tmp_path / "ledger", make_records(10))
    sgd.step(7)
    (release,) = read_ledger(tmp_path / "ledger").releases
    assert (release.what, release.step) == (GRADIENT_SUM, 7)
    assert release.mechanism == PoissonSampled(Gaussian(2.0), 0.3)


def test_a_record_count_that_was_not_given_is_released_with_noise_and_booked(
    tmp_path: Path,
) -> None:
    unknown = msgspec.structs.replace(PRIVACY, expected_batch_size=None)
    with LedgerWriter.create(tmp_path / "ledger", HEADER) as ledger:
        sizes = [
            release_expected_batch_size(1000, unknown, Keystream.seeded(seed), ledger)
            for seed in range(50)
        ]
    booked = read_ledger(tmp_path / "ledger").releases
    assert {(b.what, b.mechanism) for b in booked} == {(RECORD_COUNT, Gaussian(50.0))}
    counts = np.array(sizes) / 0.3
    assert len(booked) == 50
    assert 30 < counts.std() < 70
    assert abs(counts.mean() - 1000) < 30


def test_a_given_batch_size_is_used_as_it_is_and_books_nothing(tmp_path: Path) -> None:
    with LedgerWriter.create(tmp_path / "ledger", HEADER) as ledger:
        size = release_expected_batch_size(1007, PRIVACY, Keystream.seeded(0), ledger)
    assert size == 8.0
    assert not read_ledger(tmp_path / "ledger").releases


def test_records_join_each_step_by_independent_coins_of_the_booked_rate(tmp_path: Path) -> None:
    stream = Keystream.seeded(11)
    joined = np.array(
        [stream.coins(Purpose.RECORD_SAMPLING, step, 2000, 0.1) for step in range(200)]
    )
    sizes = joined.sum(axis=1)
    assert abs(joined.mean() - 0.1) < 0.002
    assert 0.7 < sizes.var() / (2000 * 0.1 * 0.9) < 1.4  # fixed-size batches would have none
    apart = np.corrcoef(joined[:-1].ravel(), joined[1:].ravel())[0, 1]
    assert abs(apart) < 0.01


def test_a_record_with_infinite_features_leaves_the_parameters_finite(tmp_path: Path) -> None:
    records = make_records(10)
    records.features[4] = np.inf
    sgd = make_sgd(tmp_path / "ledger", records, msgspec.structs.replace(PRIVACY, sampling_rate=1))
    sgd.step(0)
    assert torch.isfinite(parameters(sgd)).all()


@pytest.mark.parametrize("kind", ["own", "dirac", "orthogonal"])
def test_what_is_added_along_the_canaries_directions_is_read_there(kind: str) -> None:
    sums = {"a": torch.zeros(30, 4), "b": torch.zeros(7)}
    directions = choose_directions(kind, 12, 127, Keystream.of(3))
    lengths = torch.arange(12.0)
    added = directions.add(dict(sums), lengths)
    assert torch.allclose(directions.read(added), lengths, atol=1e-5)
    # Each has length one, and no two meet: the norm is that of the lengths.
    whole = torch.cat([part.flatten() for part in added.values()])
    assert float(whole.norm()) == pytest.approx(float(lengths.norm()), rel=1e-6)
    kept = directions_of(directions.arrays)
    assert torch.equal(kept.read(added), directions.read(added))


@pytest.mark.parametrize("kind", ["dirac", "orthogonal"])
def test_canaries_among_the_parameters_show_the_booked_noise_and_their_own_length(
    tmp_path: Path, kind: str
) -> None:
    sgd = make_sgd(tmp_path / "ledger", make_records(0), canaries=9)
    size = len(parameters(sgd))
    directions = choose_directions(kind, 9, size, sgd.stream)
    sgd.canaries = dataclasses.replace(sgd.canaries, directions=directions)
    taps = [sgd.step(number) for number in range(300)]
    shown, joined = (np.array([getattr(tap, name) for tap in taps]) for name in ("shown", "joined"))
    noise = shown - joined
    assert abs(noise.std() / PRIVACY.noise_multiplier - 1) < 0.05
    assert abs(noise[joined].mean()) < 4 * PRIVACY.noise_multiplier / np.sqrt(joined.sum())


def test_more_canaries_than_parameters_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most the 5 parameters"):
        choose_directions("dirac", 6, 5, Keystream.of(3))
