"""A process that is killed at the end of its run leaves one that is finished, or goes on.

Every kill is of a forked child. The exhaustive ones die at each call that reaches the disk in
turn; the slow ones die at a random moment.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json
from dpaudit.trainer import run as runs
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.canaries.run_canaries import GradientCanaries
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import DpauditError
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)
from dpaudit.workflow.train.finish import finish_run

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

STEPS, DELTA, KILLS = 3, 1e-5, 300
DISK = ("fsync", "replace", "open", "unlink", "rmdir", "mkdir", "ftruncate")
"""Calls of ``os`` that a run's end reaches the disk by."""


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 4, generator=generator)
    return x, (x[:, 0] > 0).long()


def private(run: Path, *, resume: bool = False) -> Private:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    return make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        noise_multiplier=1.5,
        sampling_rate=0.3,
        expected_batch_size=9,
        canaries=GradientCanaries(5),
        ledger=run / "ledger.jsonl",
        resume=run / "checkpoints" if resume else None,
    )


def own_loop(run: Path, begins_to_finish: Callable[[], None], *, resume: bool = False) -> None:
    trainer = private(run, resume=resume)
    left = STEPS - trainer.steps
    for batch in trainer.batches(data(), steps=left):
        trainer.step(loss, batch)
    trainer.checkpoint(run / "checkpoints")
    begins_to_finish()
    trainer.finish(delta=DELTA)


def config(folder: Path) -> RunConfig:
    rng = np.random.default_rng(1)
    labels = np.arange(60) % 3
    source = folder / "data.npz"
    np.savez(source, x=rng.normal(size=(60, 4)) + labels[:, None], y=labels)
    return RunConfig(
        DataSettings(str(source)),
        PrivacySettings(0.3, 1.0, 0.5, STEPS, DELTA, expected_batch_size=15.0),
        ModelSettings("linear"),
        CanarySettings(gradient=8, inputs=2),
        SpeedSettings(checkpoint_every=2),
    )


def by_command(run: Path, begins_to_finish: Callable[[], None], *, resume: bool = False) -> None:
    def on_step(done: int, seen: object) -> None:
        if done == STEPS:
            begins_to_finish()

    if resume:
        runs.resume_run(runs.prepare_resume(run), run, on_step)
    else:
        runs.train_run(runs.prepare_run(config(run.parent)), run, on_step)


LOOPS = {"own loop": own_loop, "dpaudit train": by_command}


def in_a_child(act: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def dies_at(call: int) -> Callable[[], None]:
    """Return what lets this process die at its ``call``-th call that reaches the disk."""
    left = call

    def dying(honest: Callable[..., object]) -> Callable[..., object]:
        def counted(*given: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            return honest(*given, **options)

        return counted

    def arm() -> None:
        for name in DISK:
            setattr(os, name, dying(getattr(os, name)))

    return arm


def require_finished_or_resumable(run: Path, loop: str, used: int) -> str:
    """Require that a killed run can be completed; return how it was."""
    directory = RunDirectory(run)
    assert len(directory.read_unfinished().releases) >= used  # nothing is lost
    if directory.read_unfinished().seal is not None:
        how = "finished"
    else:
        try:
            finish_run(directory, DELTA)
            how = "completed"
        except DpauditError:
            assert in_a_child(lambda: LOOPS[loop](run, lambda: None, resume=True)) == 0
            how = "resumed"
    ledger = directory.read_finished()
    assert len(ledger.releases) >= used
    assert read_json(directory.claim, Claim).ledger_head == ledger.head
    return how


@pytest.mark.parametrize("every", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("loop", LOOPS)
def test_kill_at_a_call_of_the_end_leaves_a_run_that_can_be_had(
    tmp_path: Path, loop: str, every: int
) -> None:
    found = []
    for call in range(3, 300, every):
        run = tmp_path / "folder" / "run"
        run.parent.mkdir()
        code = in_a_child(lambda run=run, call=call: LOOPS[loop](run, dies_at(call)))
        found.append(require_finished_or_resumable(run, loop, STEPS))
        shutil.rmtree(run.parent)
        if code == 0:
            break
    assert code == 0, "the end has more calls than were tried"
    assert {"finished", "resumed"} <= set(found)
    assert every > 1 or "completed" in found


def moments() -> Iterator[float]:
    chance = random.Random(0)
    while True:
        yield chance.uniform(0, 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_kill_at_any_moment_of_the_end_leaves_a_run_that_can_be_had(
    tmp_path: Path, loop: str
) -> None:
    found = []
    for _, wait in zip(range(KILLS // len(LOOPS)), moments(), strict=False):
        run = tmp_path / "folder" / "run"
        run.parent.mkdir()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                LOOPS[loop](run, lambda writing=writing: os.write(writing, b"x") and None)
            finally:
                os._exit(0)
        os.read(reading, 1)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
        found.append(require_finished_or_resumable(run, loop, STEPS))
        shutil.rmtree(run.parent)
    assert len(set(found)) > 1, found  # kills before the seal and after it
    print({how: found.count(how) for how in set(found)})
