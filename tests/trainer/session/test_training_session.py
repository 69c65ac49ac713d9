"""One session: what ships is what was recorded, no noise twice, no second writer."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dpaudit.runs.consistency import RELEASES_KEY, RUN_KEY
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json
from dpaudit.runs.ledger_file import LedgerWriter, read_ledger
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.batches.samplers import BallsInBins, Cyclic, Shuffled
from dpaudit.trainer.canaries.run_canaries import GradientCanaries
from dpaudit.trainer.noise.correlated_noise import Banded
from dpaudit.trainer.noise.gradient_noise import Independent, OnGrid, Prefetched
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.private import Private
from dpaudit.trainer.session.checkpoint import write_weights
from dpaudit.trainer.session.settings import NoisyCount
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import (
    DpauditError,
    ForkedSession,
    InvalidArgument,
    NoiseReused,
    RunExists,
    UnrecordedChange,
)
from dpaudit.vocabulary.ledger import ChangeEntry
from dpaudit.vocabulary.mechanism import Gaussian, SampledWithoutReplacement
from dpaudit.workflow.audit.run_audit import audit_run
from dpaudit.workflow.train.finish import finish_run

WIDTH, RECORDS = 6, 30
Change = Callable[[Private], None]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 8), nn.Linear(8, 2)
        self.register_buffer("shift", torch.zeros(8))
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("kept", torch.zeros(5, dtype=torch.bool), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x) + self.shift))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.fixture(autouse=True)
def _new_data() -> None:
    """Each test has records of its own, the same in all its steps."""
    data.cache_clear()


@cache
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(RECORDS, WIDTH, generator=generator)
    return x, (x[:, 0] > 0).long()


def private(ledger: Path | None = None, **changes: object) -> Private:
    torch.manual_seed(0)
    model = Net()
    given: dict[str, object] = {
        "noise_multiplier": 50.0,
        "sampling_rate": 0.3,
        "expected_batch_size": 9.0,
        "ledger": ledger,
        **changes,
    }
    return make_private(model, torch.optim.SGD(model.parameters(), lr=0.5), **given)  # type: ignore[arg-type]


def take(trainer: Private, steps: int = 1) -> Private:
    for batch in trainer.batches(data(), steps=steps):
        trainer.step(loss, batch)
    return trainer


def weights(trainer: Private) -> Tensor:
    return nn.utils.parameters_to_vector(trainer.model.parameters()).detach().clone()


# What ships is the result of the recorded steps.


def plain_step(trainer: Private) -> None:
    trainer.optimizer.zero_grad()
    loss(trainer.model, data()).mean().backward()
    trainer.optimizer.step()


def write_past_the_version_counter(trainer: Private) -> None:
    trainer.model.last.bias.data[0] += 1e-3


def write_through_numpy(trainer: Private) -> None:
    trainer.model.first.weight.detach().numpy()[2, 3] = 7


def load_other_weights(trainer: Private) -> None:
    trainer.model.load_state_dict(Net().state_dict())


def replace_a_parameter(trainer: Private) -> None:
    trainer.model.last.weight = nn.Parameter(trainer.model.last.weight.detach() * 2)


def replace_a_layer(trainer: Private) -> None:
    trainer.model.last = nn.Linear(8, 2)


def move_an_integer_buffer(trainer: Private) -> None:
    trainer.model.seen[1] += 1


def move_a_boolean_buffer(trainer: Private) -> None:
    trainer.model.kept[4] = True


def another_type(trainer: Private) -> None:
    trainer.model.first.double()


CHANGES: list[Change] = [
    plain_step,
    write_past_the_version_counter,
    write_through_numpy,
    load_other_weights,
    replace_a_parameter,
    replace_a_layer,
    move_an_integer_buffer,
    move_a_boolean_buffer,
    another_type,
]


@pytest.mark.parametrize("change", CHANGES)
def test_change_before_the_next_step_is_refused(change: Change) -> None:
    trainer = take(private(), 2)
    change(trainer)
    before, recorded = weights(trainer), trainer._session.recorded
    with pytest.raises(UnrecordedChange, match=r"changed outside of private\.step since step 2"):
        take(trainer)
    assert torch.equal(before, weights(trainer))
    assert trainer._session.recorded == recorded


@pytest.mark.parametrize("change", CHANGES)
def test_change_after_the_last_step_is_not_sealed(tmp_path: Path, change: Change) -> None:
    trainer = take(private(tmp_path / "ledger.jsonl"), 2)
    change(trainer)
    with pytest.raises(UnrecordedChange):
        trainer.finish(delta=1e-5)
    with pytest.raises(UnrecordedChange):
        trainer.checkpoint(tmp_path / "checkpoints")
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.jsonl"]
    assert read_ledger(tmp_path / "ledger.jsonl").seal is None


class Keeping(Net):
    """Ships a tensor that is neither a parameter nor a buffer."""

    memory = torch.zeros(3)

    def get_extra_state(self) -> Tensor:
        return self.memory

    def set_extra_state(self, state: Tensor) -> None:
        self.memory = state


def test_extra_state_that_changes_after_the_last_step_is_not_sealed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Keeping()
    model.memory = torch.zeros(3)
    trainer = make_private(
        model, torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=1.0,
        sampling_rate=0.3, expected_batch_size=9.0, ledger=tmp_path / "ledger.jsonl",
    )  # fmt: skip
    take(trainer)
    model.memory[1] = float(data()[0].mean())
    with pytest.raises(UnrecordedChange, match="_extra_state"):
        trainer.finish(delta=1e-5)


def test_permuted_rows_are_noticed(tmp_path: Path) -> None:
    trainer = take(private(tmp_path / "ledger.jsonl"))
    with torch.no_grad():
        trainer.model.first.weight.copy_(trainer.model.first.weight.flip(0))
    with pytest.raises(UnrecordedChange, match=r"first\.weight"):
        trainer.finish(delta=1e-5)


@pytest.mark.parametrize("how", ["in place", "loaded"])
def test_gradients_put_into_the_optimizer_are_refused(how: str) -> None:
    trainer = private()
    for group in trainer.optimizer.param_groups:
        group["momentum"] = 0.9
    take(trainer)
    if how == "loaded":
        plain = torch.optim.SGD(trainer.model.parameters(), lr=0.5, momentum=0.9)
        loss(trainer.model, data()).mean().backward()
        kept = copy.deepcopy(trainer.model.state_dict())
        plain.step()
        trainer.model.load_state_dict(kept)
        trainer.optimizer.load_state_dict(plain.state_dict())
    else:
        state = trainer.optimizer.state[trainer.model.last.weight]
        state["momentum_buffer"].add_(1.0)
    with pytest.raises(UnrecordedChange, match="the optimizer's state"):
        take(trainer)


def test_frozen_parameter_that_a_step_moved_is_not_sealed(tmp_path: Path) -> None:
    """Written by ``.data`` in the loss, it would pass for the step's result."""
    trainer = private(tmp_path / "ledger.jsonl")
    trainer.model.first.weight.requires_grad_(False)

    def writing(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        model.first.weight.data[0, 0] = 7.0
        return loss(model, batch)

    with suppress(DpauditError):
        for batch in trainer.batches(data(), steps=1):
            trainer.step(writing, batch)
    with pytest.raises(DpauditError):
        trainer.finish(delta=1e-5)


def large_frozen(ledger: Path) -> Private:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 5000), nn.Tanh(), nn.Linear(5000, 2))
    model[0].requires_grad_(False)
    return make_private(
        model, torch.optim.SGD(model[2].parameters(), lr=0.1), noise_multiplier=1.0,
        sampling_rate=0.3, expected_batch_size=9.0, ledger=ledger,
    )  # fmt: skip


def test_large_frozen_layer_passes_step_after_step(tmp_path: Path) -> None:
    trainer = take(large_frozen(tmp_path / "ledger.jsonl"), 3)
    assert len(trainer.finish(delta=1e-5).read_finished().releases) == 3


def test_few_frozen_words_that_a_step_moved_are_noticed_at_the_end(tmp_path: Path) -> None:
    """Past the version counter, the sample before and after the step may miss them."""
    trainer = large_frozen(tmp_path / "ledger.jsonl")

    def writing(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        model[0].weight.data[1, 1] += 1e-3
        return loss(model, batch)

    for batch in trainer.batches(data(), steps=1):
        trainer.step(writing, batch)
    with pytest.raises(UnrecordedChange, match=r"0\.weight \(1 in all\)"):
        trainer.finish(delta=1e-5)


def test_interrupted_loop_gets_its_batch_again() -> None:
    trainer, other = private(seed=2), private(seed=2)
    first = next(trainer.batches(data(), steps=3))
    for batch in trainer.batches(data(), steps=3):
        if trainer.steps == 0:
            assert torch.equal(first[0], batch[0])
        trainer.step(loss, batch)
    assert torch.equal(weights(trainer), weights(take(other, 3)))


def test_schedules_are_asked_once_a_step() -> None:
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 1.0 + len(asked)

    trainer = private(noise_multiplier=schedule)
    asked.clear()
    take(trainer, 3)
    assert sum(trainer._session.recorded.values()) == 3
    assert asked == sorted(set(asked)), "the same step was asked for twice"


@pytest.mark.filterwarnings("ignore:certified bounds", "ignore:shuffled passes")
@pytest.mark.parametrize("sampler", [BallsInBins(5), Shuffled(6, RECORDS), Cyclic(5, 20)])
def test_noise_is_constant_where_one_release_covers_several_steps(sampler: object) -> None:
    noise = Banded(5) if isinstance(sampler, Cyclic) else None
    with pytest.raises(InvalidArgument, match="constant where one release"):
        private(
            sampler=sampler, sampling_rate=None, noise=noise,
            noise_multiplier=lambda step: 10.0 if step % 5 == 0 else 0.2,
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:certified bounds", "ignore:shuffled passes")
def test_records_in_another_order_in_mid_pass_are_refused() -> None:
    x, y = data()
    for sampler in (BallsInBins(5), Shuffled(6, RECORDS)):
        trainer = private(sampler=sampler, sampling_rate=None)
        for _ in range(7):  # the same tensors in new tuples are the same data set
            for batch in trainer.batches((x, y), steps=1):
                trainer.step(loss, batch)
        order = torch.randperm(RECORDS)
        with pytest.raises(InvalidArgument, match="draws by position"):
            next(trainer.batches((x[order], y[order]), steps=1))


@pytest.mark.parametrize(
    "release", [1.0, None, "gaussian", SampledWithoutReplacement(Gaussian(2.0), 2, 9)]
)
def test_further_release_that_cannot_be_claimed_is_not_recorded(
    tmp_path: Path, release: object
) -> None:
    trainer = take(private(tmp_path / "ledger.jsonl"))
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(InvalidArgument):
        trainer.also_released("count", release)  # type: ignore[arg-type]
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    trainer.also_released("count", Gaussian(20.0))
    trainer.finish(delta=1e-5)


def test_second_checkpoint_at_a_step_loses_none(tmp_path: Path) -> None:
    trainer = take(private(tmp_path / "ledger.jsonl"), 2)
    folder = tmp_path / "checkpoints"
    for _ in range(3):
        trainer.checkpoint(folder)
    trainer.close()
    assert len(list(folder.iterdir())) == 2
    assert private(tmp_path / "ledger.jsonl", resume=folder).steps == 2


def test_checkpoints_of_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    one, other = (take(private(tmp_path / name / "ledger.jsonl")) for name in ("one", "other"))
    one.checkpoint(tmp_path / "checkpoints")
    with pytest.raises(InvalidArgument, match="one of this run alone"):
        other.checkpoint(tmp_path / "checkpoints")
    one.close()
    resume = tmp_path / "checkpoints"
    assert private(tmp_path / "one" / "ledger.jsonl", resume=resume).steps == 1


def test_finish_that_was_interrupted_takes_no_more_steps_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = take(private(tmp_path / "ledger.jsonl"), 2)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LedgerWriter, "seal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.finish(delta=1e-5)
    with pytest.raises(InvalidArgument, match=r"call finish\(\) again"):
        take(trainer)
    assert len(trainer.finish(delta=1e-5).read_finished().releases) == 2


def test_finished_files_are_those_that_the_session_wrote(tmp_path: Path) -> None:
    """A model that was trained on after the process died is not taken for its result."""
    trainer = take(private(tmp_path / "ledger.jsonl"), 2)
    run = RunDirectory(tmp_path)
    metadata = {RUN_KEY: trainer.header.run, RELEASES_KEY: "2"}
    write_weights(run.model, Net(), metadata)
    trainer.close()
    with pytest.raises(DpauditError):
        finish_run(run, 1e-5)
    assert not run.claim.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"clipping": 1.0},
        {"noise": "grid"},
        {"sampler": 0.1},
        {"canaries": 10},
        {"sampling_rate": "0.05"},
        {"expected_batch_size": None},
        {"noise_multiplier": "1.0"},
        {"noise_multiplier": lambda step: "high"},
        {"unaccounted": "tuning"},
        {"seed": 1.5},
        {"unit": ""},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_kinds_of_arguments_are_named(wrong: dict[str, object]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidArgument, match=name):
        take(private(**wrong))


def test_numbers_of_numpy_and_torch_are_taken(tmp_path: Path) -> None:
    trainer = private(
        tmp_path / "ledger.jsonl", noise_multiplier=np.float64(50), clip_norm=np.float32(0.5),
        sampling_rate=torch.tensor(0.3), expected_batch_size=np.int64(9),
    )  # fmt: skip
    assert len(take(trainer).finish(delta=1e-5).read_finished().releases) == 1


def test_few_words_of_a_large_tensor_are_noticed_at_the_end(tmp_path: Path) -> None:
    """Past the version counter, they may be missed by the sample before a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 5000), nn.Linear(5000, 2))
    trainer = make_private(
        model, torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=1.0,
        sampling_rate=0.3, expected_batch_size=9.0, ledger=tmp_path / "ledger.jsonl",
    )  # fmt: skip
    take(trainer)
    model[0].weight.detach().numpy()[1, 1] += 1e-3
    with pytest.raises(UnrecordedChange, match=r"0\.weight \(1 in all\)"):
        trainer.finish(delta=1e-5)


def test_change_of_a_resumed_model_before_its_first_step_is_refused(tmp_path: Path) -> None:
    first = take(private(tmp_path / "ledger.jsonl"), 2)
    first.checkpoint(tmp_path / "checkpoints")
    first.close()
    trainer = private(tmp_path / "ledger.jsonl", resume=tmp_path / "checkpoints")
    load_other_weights(trainer)
    with pytest.raises(UnrecordedChange):
        take(trainer)


def test_change_of_the_average_that_ships_is_refused(tmp_path: Path) -> None:
    trainer = take(private(tmp_path / "ledger.jsonl", average_decay=0.5), 2)
    average = trainer._session.trained.average
    assert average is not None
    with torch.no_grad():
        average.module.first.bias.add_(1.0)
    with pytest.raises(UnrecordedChange, match=r"average of module\.first\.bias"):
        trainer.finish(delta=1e-5)


def test_weights_that_were_swapped_for_an_evaluation_and_back_pass(tmp_path: Path) -> None:
    trainer = take(private(tmp_path / "ledger.jsonl"), 2)
    kept = copy.deepcopy(trainer.model.state_dict())
    load_other_weights(trainer)
    trainer.model.load_state_dict(kept)
    take(trainer)
    trainer.finish(delta=1e-5)


@pytest.mark.parametrize("change", [plain_step, load_other_weights])
def test_change_before_the_first_step_is_refused(change: Change) -> None:
    """Plain training that comes before is as unrecorded as any."""
    trainer = private()
    change(trainer)
    with pytest.raises(UnrecordedChange, match="load weights before make_private"):
        take(trainer)


def test_run_without_a_step_is_not_sealed(tmp_path: Path) -> None:
    """Whatever else it released: no weights came of it."""
    trainer = private(tmp_path / "ledger.jsonl", expected_batch_size=NoisyCount(RECORDS))
    with pytest.raises(InvalidArgument, match="steps must be at least 1"):
        trainer.finish(delta=1e-5)


def test_evaluation_and_moved_data_pass(tmp_path: Path) -> None:
    trainer = private(tmp_path / "ledger.jsonl")
    for batch in trainer.batches(data(), steps=3):
        trainer.step(loss, batch)
        trainer.model.eval()
        with torch.no_grad():
            loss(trainer.model, data())
        trainer.model.train()
    trainer.finish(delta=1e-5)


def test_declared_change_is_recorded_and_named_by_the_claim(tmp_path: Path) -> None:
    trainer = take(private(tmp_path / "ledger.jsonl"), 2)
    load_other_weights(trainer)
    trainer.declare_change("pruned the  first layer\nby magnitude")
    run = take(trainer).finish(delta=1e-5)
    change = ChangeEntry("pruned the first layer by magnitude", 2)
    assert change in run.read_finished().lines
    (left_out,) = read_json(run.claim, Claim).unaccounted
    assert "pruned the first layer by magnitude" in left_out
    assert "step 2" in left_out


def test_declaration_covers_what_was_changed_before_it_alone() -> None:
    trainer = take(private())
    plain_step(trainer)
    trainer.declare_change("a plain step on public records")
    plain_step(trainer)
    with pytest.raises(UnrecordedChange):
        take(trainer)


@pytest.mark.parametrize("what", ["", "  \n"])
def test_declaration_says_something(what: str) -> None:
    with pytest.raises(InvalidArgument, match="what was changed and why"):
        private().declare_change(what)


def test_refused_loss_leaves_the_batch_to_be_stepped_on(tmp_path: Path) -> None:
    trainer = private(tmp_path / "ledger.jsonl", seed=3)
    before = weights(trainer)
    for batch in trainer.batches(data(), steps=2):
        with pytest.raises(InvalidArgument, match="per_sample_loss"):
            trainer.step(lambda model, part: loss(model, part).mean(), batch)
        assert torch.equal(before, weights(trainer))
        trainer.step(loss, batch)
        before = weights(trainer)
    assert len(read_ledger(tmp_path / "ledger.jsonl").releases) == 2
    assert torch.equal(weights(trainer), weights(take(private(seed=3), 2)))


def test_ledger_that_released_nothing_is_begun_anew(tmp_path: Path) -> None:
    first = private(tmp_path / "run" / "ledger.jsonl")
    first.close()
    trainer = take(private(tmp_path / "run" / "ledger.jsonl"))
    assert len(trainer.finish(delta=1e-5).read_finished().releases) == 1


def test_ledger_that_released_something_is_not_begun_anew(tmp_path: Path) -> None:
    take(private(tmp_path / "ledger.jsonl")).close()
    with pytest.raises(RunExists):
        private(tmp_path / "ledger.jsonl")
    assert len(read_ledger(tmp_path / "ledger.jsonl").releases) == 1


def test_closed_session_takes_no_step(tmp_path: Path) -> None:
    with private(tmp_path / "ledger.jsonl") as trainer:
        take(trainer)
    for attempt in (lambda: take(trainer), lambda: trainer.finish(delta=1e-5)):
        with pytest.raises(InvalidArgument, match="open: continue with make_private"):
            attempt()
    trainer.close()


# Noise is used once.


NOISES = {
    "independent": lambda: {"noise": Independent()},
    "on grid": lambda: {"noise": OnGrid()},
    "ahead of time": lambda: {"noise": Prefetched()},
    "banded": lambda: {"noise": Banded(2), "sampler": Cyclic(2, 10), "sampling_rate": None},
}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("what", ["trainer", "session", "stream"])
def test_copies_and_pickles_are_refused(
    tmp_path: Path, what: str, copied: Callable[[object], object]
) -> None:
    trainer = take(private(tmp_path / "ledger.jsonl"))
    session = trainer._session
    owner = {"trainer": trainer, "session": session, "stream": session.stream}[what]
    with pytest.raises(ForkedSession, match="copied or pickled"):
        copied(owner)
    take(trainer)  # it goes on


def in_a_fork(attempt: Callable[[], object]) -> str:
    """Return what a forked child said of ``attempt``: the error's name, or "done"."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "done"
        try:
            attempt()
        except BaseException as error:
            said = type(error).__name__
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read()


@needs_fork
@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("steps", [0, 2])
def test_forked_child_takes_no_step_and_the_parent_goes_on(
    tmp_path: Path, kind: str, steps: int
) -> None:
    trainer = private(tmp_path / "ledger.jsonl", **NOISES[kind]())
    take(trainer, steps) if steps else None
    attempts: list[Callable[[], object]] = [
        lambda: take(trainer),
        lambda: next(trainer.batches(data(), steps=1)),
        lambda: trainer.finish(delta=1e-5),
        lambda: trainer.also_released("count", read_ledger(tmp_path / "ledger.jsonl")),  # type: ignore[arg-type]
        lambda: trainer.checkpoint(tmp_path / "checkpoints"),
        lambda: trainer.declare_change("nothing"),
    ]
    before = (tmp_path / "ledger.jsonl").read_bytes()
    for attempt in attempts:
        assert in_a_fork(attempt) == "ForkedSession"
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    take(trainer, 2)
    assert (tmp_path / "ledger.jsonl").read_bytes().startswith(before)


@needs_fork
@pytest.mark.parametrize(
    "draw",
    [
        lambda stream: stream.key,
        lambda stream: stream.words(Purpose.GRADIENT_NOISE, 0, 4),
        lambda stream: stream.normals(Purpose.COUNT_NOISE, 0, 4),
        lambda stream: stream.coins(Purpose.RECORD_SAMPLING, 0, 4, 0.5),
        lambda stream: stream.seed_for(Purpose.DROPOUT),
    ],
)
def test_forked_child_gets_nothing_of_a_key_stream(draw: Callable[[Keystream], object]) -> None:
    stream = Keystream.secure()
    assert in_a_fork(lambda: draw(stream)) == "ForkedSession"
    draw(stream)


@needs_fork
def test_forked_child_makes_a_session_of_its_own() -> None:
    moves = []
    for _ in range(2):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            trainer = private()
            os.write(writing, (weights(take(trainer)) - weights(private())).numpy().tobytes())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            moves.append(np.frombuffer(pipe.read(), dtype="f4"))
        os.waitpid(child, 0)
    assert len(moves[0])
    assert np.linalg.norm(moves[0] - moves[1]) > 0.5 * np.linalg.norm(moves[0])


class Holding(Dataset[Tensor]):
    """Records that hold the trainer, as a closure may: workers get a copy of it by the fork."""

    def __init__(self, trainer: Private, draws: bool) -> None:
        self._trainer, self._draws = trainer, draws

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        if self._draws:
            take(self._trainer)
        return torch.tensor(float(index))


@needs_fork
def test_data_loader_workers_neither_draw_noise_nor_hold_the_ledger(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    trainer = take(private(ledger))
    loader = DataLoader(Holding(trainer, draws=False), num_workers=1, persistent_workers=True)
    workers = iter(loader)
    assert float(next(workers)) == 0.0
    with pytest.raises(ForkedSession):
        next(iter(DataLoader(Holding(trainer, draws=True), num_workers=1)))
    trainer.checkpoint(tmp_path / "checkpoints")
    trainer.close()
    take(private(ledger, resume=tmp_path / "checkpoints"))  # while the workers still live
    assert len(read_ledger(ledger).releases) == 2


def test_second_thread_in_the_middle_of_a_step_is_refused() -> None:
    trainer = private()
    errors: list[DpauditError] = []
    inside, go_on = threading.Event(), threading.Event()

    def waiting(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inside.set()
        go_on.wait(30)
        return loss(model, batch)

    for batch in trainer.batches(data(), steps=1):
        first = threading.Thread(target=trainer.step, args=(waiting, batch))
        first.start()
        inside.wait(30)

        def second(batch: tuple[Tensor, Tensor] = batch) -> None:
            try:
                trainer.step(loss, batch)
            except DpauditError as error:
                errors.append(error)

        other = threading.Thread(target=second)
        other.start()
        other.join(30)
        go_on.set()
        first.join(30)
    assert [type(error) for error in errors] == [NoiseReused]
    assert trainer.steps == 1


def test_steps_of_several_threads_in_turn_are_all_recorded(tmp_path: Path) -> None:
    trainer = private(tmp_path / "ledger.jsonl")
    for _ in range(4):
        thread = threading.Thread(target=take, args=(trainer,))
        thread.start()
        thread.join(30)
    steps = [release.step for release in read_ledger(tmp_path / "ledger.jsonl").releases]
    assert steps == [0, 1, 2, 3]


def test_noise_of_a_step_is_handed_out_once_even_if_the_step_fails() -> None:
    trainer = private()
    drawn: list[int] = []
    honest = trainer.optimizer.step

    def fails(*_: object) -> None:
        drawn.append(trainer.steps)
        raise MemoryError

    trainer.optimizer.step = fails  # type: ignore[assignment,method-assign]
    for batch in trainer.batches(data(), steps=1):
        with pytest.raises(MemoryError):
            trainer.step(loss, batch)
    trainer.optimizer.step = honest  # type: ignore[method-assign]
    take(trainer)
    assert (drawn, trainer.steps) == ([1], 2)
    assert sum(trainer._session.recorded.values()) == 2


def test_step_that_was_interrupted_after_its_noise_leaves_a_run_that_can_be_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = private(
        tmp_path / "ledger.jsonl",
        canaries=GradientCanaries(40),
        noise_multiplier=2.0,
        noise=Independent(),
    )
    take(trainer, 20)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Independent, "add_noise", interrupted)
        with pytest.raises(KeyboardInterrupt):
            take(trainer)
    run = take(trainer, 20).finish(delta=1e-5)
    assert len(run.read_finished().releases) == 41
    report = audit_run(run, confidence=0.95)
    assert len(report.bounds) >= 2
    assert report.membership == ()


# What is trained may change.


def test_noise_made_ahead_fits_what_is_trained_now() -> None:
    trainers = [private(seed=5, noise=noise) for noise in (Prefetched(), Independent())]
    for trainer in trainers:
        take(trainer, 2)
        trainer.model.first.requires_grad_(False)
        take(trainer, 2)
        trainer.model.first.requires_grad_(True)
        take(trainer, 2)
    assert torch.equal(weights(trainers[0]), weights(trainers[1]))


def test_correlated_noise_refuses_other_coordinates() -> None:
    trainer = take(private(**NOISES["banded"]()), 2)
    trainer.model.first.requires_grad_(False)
    with pytest.raises(InvalidArgument, match="correlated noise"):
        take(trainer)


def test_frozen_layer_with_a_gradient_left_stays() -> None:
    trainer = take(private(), 2)
    kept = trainer.model.first.weight.detach().clone()
    trainer.model.first.requires_grad_(False)
    take(trainer, 2)
    assert torch.equal(kept, trainer.model.first.weight)


def test_unfrozen_layer_must_be_known_to_the_optimizer() -> None:
    model = Net()
    model.first.requires_grad_(False)
    own = [p for p in model.parameters() if p.requires_grad]
    trainer = make_private(
        model, torch.optim.SGD(own, lr=0.1), noise_multiplier=1.0, sampling_rate=0.3,
        expected_batch_size=9.0,
    )  # fmt: skip
    take(trainer)
    model.first.requires_grad_(True)
    with pytest.raises(InvalidArgument, match=r"lacks first\.weight, first\.bias"):
        take(trainer)
