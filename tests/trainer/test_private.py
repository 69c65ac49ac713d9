"""Private steps in a loop of one's own: what is recorded, drawn, refused and released."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from noise_words import fixed_noise
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from dpaudit.accountants import pld
from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.ledger_file import read_ledger
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.batches.samplers import BallsInBins, FixedSize, Shuffled, Truncated
from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import BudgetExceeded, InvalidArgument, RunExists
from dpaudit.vocabulary.ledger import Randomness, Sampling
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, RandomAllocation, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency

RECORDS, WIDTH = 40, 6


def model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 3))


def loss(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(net(x), y, reduction="none")


@pytest.fixture(autouse=True)
def _new_data() -> None:
    """Each test has records of its own, the same in all its steps."""
    data.cache_clear()


@cache
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(RECORDS, WIDTH, generator=generator)
    return x, torch.randint(0, 3, (RECORDS,), generator=generator)


def private(net: nn.Module | None = None, **changes: object) -> Private:
    net = net or model()
    given: dict[str, object] = {
        "noise_multiplier": 1.3,
        "clip_norm": 0.5,
        "sampling_rate": 0.25,
        "expected_batch_size": 10.0,
        "seed": 11,
    }
    given.update(changes)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)
    return make_private(net, optimizer, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["loss", "model"])
def test_session_that_failed_before_its_first_release_does_not_block_its_ledger(
    tmp_path: Path, fault: str
) -> None:
    """As in a notebook, which keeps the failed session in a variable."""
    ledger = tmp_path / "run" / "ledger.jsonl"
    mixing = nn.Sequential(nn.Linear(WIDTH, 3), nn.BatchNorm1d(3))
    failed = private(mixing if fault == "model" else None, ledger=ledger)
    (batch,) = failed.batches(data(), steps=1)
    with pytest.raises(InvalidArgument):
        failed.step(loss if fault == "model" else lambda net, b: loss(net, b).mean(), batch)
    run(private(ledger=ledger), 2)
    with pytest.raises(InvalidArgument, match="closed"):
        run(failed, 1)


def test_session_with_a_release_keeps_its_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "run" / "ledger.jsonl"
    first = run(private(ledger=ledger), 1)
    with pytest.raises(RunExists):
        private(ledger=ledger)
    run(first, 1)
    assert len(read_ledger(ledger).releases) == 2


def run(trainer: Private, steps: int) -> Private:
    for batch in trainer.batches(data(), steps=steps):
        trainer.step(loss, batch)
    return trainer


def weights(trainer: Private) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_the_step_is_the_noisy_clipped_sum_over_the_public_constant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixed_noise(monkeypatch, lambda stream, step, count: torch.ones(count))
    trainer, net = private(physical_batch_size=3), model()
    (batch,) = trainer.batches(data(), steps=1)
    trainer.step(loss, batch)
    expected = torch.zeros(len(weights(trainer)), dtype=torch.float64)
    for record in range(len(batch[1])):
        one = tuple(part[record : record + 1] for part in batch)
        gradients = torch.autograd.grad(loss(net, one).sum(), list(net.parameters()))
        flat = torch.cat([g.flatten() for g in gradients]).double()
        expected += flat * min(1.0, 0.5 / float(flat.norm()))
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    moved = (weights(trainer) - before).double()
    assert torch.allclose(moved, -0.5 * (expected + 1.3 * 0.5) / 10.0, atol=1e-6)


def test_epsilon_is_that_of_the_steps_taken() -> None:
    trainer = private()
    assert trainer.epsilon(delta=1e-5).upper == 0
    run(trainer, 7)
    planned = Repeated(PoissonSampled(Gaussian(1.3), 0.25), 7)
    assert trainer.epsilon(delta=1e-5) == pld.profile(planned).epsilon(delta=1e-5)


def test_every_release_is_on_disk_before_the_step(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    trainer = private(ledger=path, seed=None)
    for number, batch in enumerate(trainer.batches(data(), steps=3), start=1):
        trainer.step(loss, batch)
        ledger = read_ledger(path)
        assert len(ledger.releases) == number
    assert ledger.header.randomness is Randomness.SECURE
    claim = claim_from_ledger(ledger, 1e-5, "pld")
    assert claim.epsilon == trainer.epsilon(delta=1e-5)
    with pytest.raises(RunExists):
        private(ledger=path)


def test_an_empty_batch_takes_a_step_with_noise() -> None:
    trainer = private(sampling_rate=1e-12)
    before = weights(trainer)
    run(trainer, 1)
    assert (weights(trainer) - before).abs().min() > 0


def test_result_is_independent_of_the_physical_batch_size() -> None:
    whole, parts = run(private(), 4), run(private(physical_batch_size=3), 4)
    assert torch.allclose(weights(whole), weights(parts), atol=1e-5)


def test_seeded_runs_are_equal_and_secure_ones_are_not() -> None:
    assert torch.equal(weights(run(private(), 3)), weights(run(private(), 3)))
    secure = [weights(run(private(seed=None), 3)) for _ in range(2)]
    assert not torch.equal(*secure)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_records_that_are_not_finite_leave_the_parameters_finite(bad: float) -> None:
    x, y = data()
    x[::3] = bad
    trainer = private(sampling_rate=1.0)
    for batch in trainer.batches((x, y), steps=2):
        trainer.step(loss, batch)
    assert torch.isfinite(weights(trainer)).all()


def test_training_stops_before_the_budget_is_exceeded() -> None:
    trainer = private()
    trainer.stop_at(epsilon=2.0, delta=1e-5)
    run(trainer, 10_000)
    assert trainer.epsilon(delta=1e-5).upper <= 2.0
    more = Repeated(PoissonSampled(Gaussian(1.3), 0.25), trainer.steps + 1)
    assert pld.profile(more).epsilon(delta=1e-5).upper > 2.0


def test_a_budget_too_small_for_a_step_allows_none() -> None:
    trainer = private()
    trainer.stop_at(epsilon=1e-4, delta=1e-9)
    assert list(trainer.batches(data(), steps=1)) == []


def test_a_budget_set_after_the_draw_holds_back_the_step() -> None:
    trainer = private()
    (batch,) = trainer.batches(data(), steps=1)
    trainer.stop_at(epsilon=1e-4, delta=1e-9)
    with pytest.raises(BudgetExceeded):
        trainer.step(loss, batch)
    assert trainer.epsilon(delta=1e-5).upper == 0


def test_a_noise_schedule_is_recorded_step_by_step() -> None:
    trainer = run(private(noise_multiplier=lambda step: 1.0 + step), 3)
    steps = [PoissonSampled(Gaussian(1.0 + step), 0.25) for step in range(3)]
    assert trainer._session.recorded == dict.fromkeys(steps, 1)


def test_a_schedule_is_stopped_in_time_as_well() -> None:
    trainer = private(noise_multiplier=lambda step: 4.0 / (1 + step))
    trainer.stop_at(epsilon=2.0, delta=1e-5)
    run(trainer, 30)
    assert 0 < trainer.steps < 30
    assert trainer.epsilon(delta=1e-5).upper <= 2.0


def test_a_batch_from_elsewhere_is_refused() -> None:
    trainer = private()
    with pytest.raises(InvalidArgument, match=r"not drawn by private\.batches"):
        trainer.step(loss, data())


def test_a_batch_cannot_be_used_twice() -> None:
    trainer = private()
    (batch,) = trainer.batches(data(), steps=1)
    trainer.step(loss, batch)
    with pytest.raises(InvalidArgument, match="not drawn"):
        trainer.step(loss, batch)


def test_a_batch_cannot_be_passed_over() -> None:
    with pytest.raises(InvalidArgument, match="a batch without a step"):
        list(private().batches(data(), steps=2))


def test_a_model_that_mixes_records_is_refused_before_anything_is_recorded() -> None:
    net = nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    trainer = private(net)
    with pytest.raises(InvalidArgument, match="BatchNorm1d '1'"):
        run(trainer, 1)
    assert trainer._session.recorded == {}


class Centred(nn.Module):
    """Mixes records where no gradient shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x - x.mean(dim=0).detach())
        return out


def test_mixing_that_no_gradient_shows_is_found() -> None:
    with pytest.raises(InvalidArgument, match="mix records"):
        run(private(Centred()), 1)


def test_an_optimizer_without_a_parameter_is_refused() -> None:
    net = model()
    optimizer = torch.optim.SGD(list(net.parameters())[:2], lr=1.0)
    with pytest.raises(InvalidArgument, match=r"2\.weight"):
        make_private(net, optimizer, noise_multiplier=1.0, sampling_rate=0.1, expected_batch_size=4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise_multiplier", 0.0),
        ("noise_multiplier", float("nan")),
        ("clip_norm", -1.0),
        ("sampling_rate", 1.5),
        ("sampling_rate", None),
        ("expected_batch_size", 0.0),
        ("expected_batch_size", float("nan")),
    ],
)
def test_bad_numbers_are_named(name: str, value: float | None) -> None:
    with pytest.raises(InvalidArgument, match=name):
        private(**{name: value})


@dataclass(frozen=True)
class Pair:
    x: Tensor
    y: Tensor


class ByIndex(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = data()
        return x[index], y[index]


SOURCES = {
    "tuple": (data, lambda b: b),
    "dict": (lambda: dict(zip("xy", data(), strict=True)), lambda b: (b["x"], b["y"])),
    "dataclass": (lambda: Pair(*data()), lambda b: (b.x, b.y)),
    "tensor data set": (lambda: TensorDataset(*data()), lambda b: b),
    "by index": (ByIndex, lambda b: b),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("sampling_rate", [0.25, 1e-12])
def test_every_kind_of_data_set_gives_the_same_steps(name: str, sampling_rate: float) -> None:
    make, unpack = SOURCES[name]
    trainer = private(sampling_rate=sampling_rate)
    for batch in trainer.batches(make(), steps=3):
        trainer.step(lambda net, b: loss(net, unpack(b)), batch)
    expected = run(private(sampling_rate=sampling_rate), 3)
    assert torch.equal(weights(trainer), weights(expected))


SAMPLERS = [
    (Truncated(0.25, RECORDS, 25), Sampling.TRUNCATED_POISSON, Adjacency.ADD_OR_REMOVE_ONE),
    (FixedSize(10, RECORDS), Sampling.FIXED_SIZE, Adjacency.REPLACE_ONE),
    (BallsInBins(4), Sampling.BALLS_IN_BINS, Adjacency.ADD_OR_REMOVE_ONE),
    (Shuffled(10, RECORDS), Sampling.SHUFFLED, Adjacency.REPLACE_ONE),
]


@pytest.mark.parametrize(("sampler", "kind", "adjacency"), SAMPLERS)
def test_every_way_of_drawing_is_recorded_as_what_it_is(
    tmp_path: Path, sampler: object, kind: Sampling, adjacency: Adjacency
) -> None:
    path = tmp_path / "ledger"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = private(sampler=sampler, ledger=path, noise_multiplier=8.0)
    assert (sampler.caution in [str(one.message) for one in caught]) == bool(sampler.caution)
    run(trainer, 8)
    ledger = read_ledger(path)
    assert (ledger.header.sampling, ledger.header.adjacency) == (kind, adjacency)
    claim = claim_from_ledger(ledger, 1e-5, "pld")
    assert 0 < claim.epsilon.upper == trainer.epsilon(delta=1e-5).upper


def test_a_pass_is_recorded_once_and_draws_every_record_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = private(sampler=BallsInBins(4))
    everyone = torch.arange(RECORDS)
    drawn: list[int] = []
    for batch in trainer.batches((everyone, *data()), steps=8):
        drawn += batch[0].tolist()
        trainer.step(lambda net, b: loss(net, b[1:]), batch)
    assert sorted(drawn) == sorted([*range(RECORDS)] * 2)
    assert trainer._session.recorded == {RandomAllocation(Gaussian(1.3), 4): 2}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_coins_have_the_rate_they_should() -> None:
    trainer = private(sampling_rate=0.25)
    sizes = [len(batch[1]) for batch in _batches(trainer, 300)]
    assert np.mean(sizes) == pytest.approx(10, abs=4 * (RECORDS * 0.25 * 0.75 / 300) ** 0.5)


def _batches(trainer: Private, steps: int) -> Iterator[Batch]:
    for batch in trainer.batches(data(), steps=steps):
        yield batch
        trainer.step(loss, batch)
