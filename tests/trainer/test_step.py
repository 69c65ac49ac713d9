"""The invariants of one private step, each a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from noise_words import fixed_noise
from torch import Tensor, nn

from dpaudit.accountants import pld
from dpaudit.runs.ledger_file import read_ledger
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.batches.samplers import FixedSize
from dpaudit.trainer.canaries.run_canaries import (
    GradientCanaries,
    RunCanaries,
    choose_directions,
    directions_from_arrays,
)
from dpaudit.trainer.data import RecordArrays
from dpaudit.trainer.noise.gaussian_draws import normals
from dpaudit.trainer.noise.gradient_noise import Independent
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.private import Private
from dpaudit.trainer.session.settings import NoisyCount
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import GRADIENT_SUM, RECORD_COUNT, Sampling
from dpaudit.vocabulary.mechanism import Composed, Gaussian, PoissonSampled, Repeated

FEATURES, CLASSES = 5, 3
NOISE, CLIP, BATCH = 2.0, 0.5, 8.0
Data = tuple[Tensor, Tensor]


def records(count: int) -> Data:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.standard_normal((count, FEATURES)).astype(np.float32))
    return features, torch.from_numpy(rng.integers(0, CLASSES, count))


def loss(model: nn.Module, batch: Data) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def private(**changes: object) -> Private:
    torch.manual_seed(0)
    model = nn.Linear(FEATURES, CLASSES)
    given: dict[str, object] = {
        "noise_multiplier": NOISE,
        "clip_norm": CLIP,
        "sampling_rate": 0.3,
        "expected_batch_size": BATCH,
        "seed": 1,
        **changes,
    }
    return make_private(model, torch.optim.SGD(model.parameters(), lr=1.0), **given)  # type: ignore[arg-type]


def take(trainer: Private, data: Data, steps: int = 1) -> Private:
    for batch in trainer.batches(data, steps=steps):
        trainer.step(loss, batch)
    return trainer


def parameters(trainer: Private) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])


def test_the_normaliser_is_public_whatever_the_number_of_records() -> None:
    """The step on n records and on n + 1 differs by the clipped gradient over the constant."""
    many = records(1000)
    few = many[0][:-1], many[1][:-1]
    moves = []
    for data in (many, few):
        trainer = private(sampling_rate=1.0)
        before = parameters(trainer)
        moves.append(parameters(take(trainer, data)) - before)
    gap = float((moves[0] - moves[1]).double().norm()) * BATCH
    assert 0 < gap <= CLIP * (1 + 1e-5)


def test_an_empty_batch_still_takes_a_noisy_step_and_is_recorded(tmp_path: Path) -> None:
    trainer = private(ledger=tmp_path / "ledger", sampling_rate=1e-9)
    before = parameters(trainer)
    take(trainer, records(10))
    assert (parameters(trainer) - before).abs().min() > 0
    assert len(read_ledger(tmp_path / "ledger").releases) == 1


def test_noise_enters_the_sum_once_with_the_recorded_deviation() -> None:
    trainer = private(canaries=GradientCanaries(40_000), noise=Independent())
    assert trainer.canaries is not None
    take(trainer, records(10), 2)
    for step, seen in enumerate(trainer.observations):
        size = len(parameters(trainer)) + 40_000
        stream = trainer._session.stream
        drawn = normals(stream, Purpose.GRADIENT_NOISE, step, size)[-40_000:]
        noise = drawn.numpy() * NOISE
        assert abs(noise.std() / NOISE - 1) < 0.02
        # A canary is clipped like any record: a hair below C, so that rounding stays inside.
        assert set(np.unique(np.round(seen.shown - noise, 4))) == {0.0, 1.0}
        assert np.array_equal(np.round(seen.shown - noise) == 1, seen.joined)
        included = trainer.canaries.gradient_included
        assert not (seen.joined & ~included).any()
        assert abs(seen.joined.sum() / included.sum() - 0.3) < 0.02


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_physical_batches_change_nothing(chunk: int) -> None:
    one = take(private(), records(40), 3)
    other = take(private(physical_batch_size=chunk), records(40), 3)
    assert torch.allclose(parameters(one), parameters(other), rtol=1e-5, atol=1e-6)


def test_each_release_is_on_disk_before_its_noise_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_at_noise = []

    def watched(stream: Keystream, step: int, count: int) -> Tensor:
        recorded_at_noise.append(len(read_ledger(tmp_path / "ledger").releases))
        return normals(stream, Purpose.GRADIENT_NOISE, step, count)

    fixed_noise(monkeypatch, watched)
    take(private(ledger=tmp_path / "ledger"), records(10), 3)
    assert recorded_at_noise == [1, 2, 3]


def test_the_ledger_records_what_the_step_does(tmp_path: Path) -> None:
    take(private(ledger=tmp_path / "ledger"), records(10), 2)
    releases = read_ledger(tmp_path / "ledger").releases
    assert [(one.what, one.step) for one in releases] == [(GRADIENT_SUM, 0), (GRADIENT_SUM, 1)]
    assert {one.mechanism for one in releases} == {PoissonSampled(Gaussian(NOISE), 0.3)}


def test_full_batches_have_one_name_and_one_mechanism(tmp_path: Path) -> None:
    trainer = take(private(ledger=tmp_path / "ledger", sampling_rate=1.0), records(10), 2)
    assert trainer.header.sampling is Sampling.FULL_BATCH
    assert {one.mechanism for one in read_ledger(tmp_path / "ledger").releases} == {Gaussian(NOISE)}


def test_a_noisy_record_count_is_released_and_recorded(tmp_path: Path) -> None:
    trainer = private(expected_batch_size=NoisyCount(1000), ledger=tmp_path / "ledger")
    (count,) = read_ledger(tmp_path / "ledger").releases
    assert (count.what, count.mechanism) == (RECORD_COUNT, Gaussian(50.0))
    assert "expected batch size" not in trainer.header.assumed_public
    take(trainer, records(10))
    both = Composed((Gaussian(50.0), Repeated(PoissonSampled(Gaussian(NOISE), 0.3), 1)))
    assert trainer.epsilon(delta=1e-5) == pld.profile(both).epsilon(delta=1e-5)
    sizes = [
        private(expected_batch_size=NoisyCount(1000), seed=seed).step_settings.expected_batch_size
        for seed in range(50)
    ]
    counts = np.array(sizes) / 0.3
    assert 30 < counts.std() < 70
    assert abs(counts.mean() - 1000) < 30


def test_a_noisy_count_needs_poisson_sampling() -> None:
    with pytest.raises(InvalidArgument, match="unless the sampler is Poisson"):
        private(expected_batch_size=NoisyCount(10), sampler=FixedSize(2, 10), sampling_rate=None)


def test_records_join_each_step_by_independent_coins_of_the_recorded_rate() -> None:
    stream = Keystream.seeded(11)
    joined = np.array(
        [stream.coins(Purpose.RECORD_SAMPLING, step, 2000, 0.1) for step in range(200)]
    )
    sizes = joined.sum(axis=1)
    assert abs(joined.mean() - 0.1) < 0.002
    assert 0.7 < sizes.var() / (2000 * 0.1 * 0.9) < 1.4  # fixed-size batches would have none
    apart = np.corrcoef(joined[:-1].ravel(), joined[1:].ravel())[0, 1]
    assert abs(apart) < 0.01


def test_a_record_with_infinite_features_leaves_the_parameters_finite() -> None:
    data = records(10)
    data[0][4] = np.inf
    assert torch.isfinite(parameters(take(private(sampling_rate=1.0), data))).all()


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
    kept = directions_from_arrays(directions.arrays)
    assert torch.equal(kept.read(added), directions.read(added))


@pytest.mark.parametrize("kind", ["dirac", "orthogonal"])
def test_canaries_among_the_parameters_show_the_recorded_noise_and_their_own_length(
    kind: str,
) -> None:
    trainer = private(canaries=GradientCanaries(9, kind), sampling_rate=0.3)
    data = records(1)
    data[0][:] = np.inf  # a record that adds nothing
    take(trainer, data, 300)
    shown, joined = (
        np.array([getattr(one, name) for one in trainer.observations])
        for name in ("shown", "joined")
    )
    noise = shown - joined
    assert abs(noise.std() / NOISE - 1) < 0.05
    assert abs(noise[joined].mean()) < 4 * NOISE / np.sqrt(joined.sum())


def test_more_canaries_than_parameters_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most the 18 parameters"):
        private(canaries=GradientCanaries(19, "dirac"))


def test_canaries_need_the_sampling_and_noise_that_they_are_read_by() -> None:
    with pytest.raises(InvalidArgument, match="Poisson with gradient canaries"):
        private(canaries=GradientCanaries(3), sampler=FixedSize(2, 10), sampling_rate=None)


def test_canaries_of_an_own_loop_are_files_of_its_run(tmp_path: Path) -> None:
    ledger = tmp_path / "run" / "ledger.jsonl"
    trainer = private(canaries=GradientCanaries(30), ledger=ledger, seed=None)
    take(trainer, records(20), 5)
    run = trainer.finish(delta=1e-5)
    kept = RunCanaries.read(run)
    assert np.array_equal(kept.gradient_included, trainer.canaries.gradient_included)  # type: ignore[union-attr]
    assert isinstance(kept.inputs, RecordArrays)
    assert run.observations.exists()
    seal = run.read_finished().seal
    assert seal is not None
    bound = {"canaries.npz", "canaries.secret.npz", "observations.npz", "model.safetensors"}
    assert set(seal.files) == bound
