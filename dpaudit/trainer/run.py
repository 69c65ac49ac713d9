"""One training run from its settings to a sealed run directory."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_model
from torch import nn

import dpaudit
from dpaudit.runs.directory import RunDirectory, create_run, open_run, remove_run
from dpaudit.runs.files import sha256, sync, write_arrays, write_toml
from dpaudit.runs.ledger_file import LedgerWriter, read_unfinished
from dpaudit.trainer.added_noise import Independent
from dpaudit.trainer.canaries import Canaries, make_canaries
from dpaudit.trainer.checkpoint import Progress, read_newest_checkpoint, write_checkpoint
from dpaudit.trainer.data import Records, Split, load
from dpaudit.trainer.engine.independence import require_independent_records
from dpaudit.trainer.models import default_learning_rate, make_model
from dpaudit.trainer.peers import Alone
from dpaudit.trainer.private_sgd import (
    PrivateSgd,
    make_optimizer,
    release_expected_batch_size,
)
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, RunExists
from dpaudit.vocabulary.ledger import LedgerHeader, Resumed, Sampling
from dpaudit.vocabulary.settings import RunConfig

OnStep = Callable[[int], None]
"""Called after each step with the number of steps done."""


@dataclass(frozen=True)
class Prepared:
    """Everything that can fail on bad input, done before a file is touched."""

    config: RunConfig
    split: Split
    model: nn.Module
    stream: Keystream


def prepare(config: RunConfig) -> Prepared:
    """Read the records, make the model and check that it keeps records apart.

    Raises:
        InvalidArgument: data, model or a setting is not usable.
    """
    split = load(config.data)
    stream = Keystream.of(config.privacy.seed)
    seed = stream.seed_for(Purpose.MODEL)
    model = make_model(config.model.model, split.shape, len(split.classes), seed)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidArgument("model", config.model.model, "a model with a trainable parameter")
    model.train()
    require_independent_records(model, split.shape)
    return Prepared(config, split, model, stream)


def train(prepared: Prepared, out: Path, on_step: OnStep) -> RunDirectory:
    """Train into a new run directory; it must not exist."""
    config = prepared.config
    canaries, _ = make_canaries(config.canaries, prepared.split, prepared.stream)
    run = create_run(out)
    # The ledger first: it is what keeps two runs out of one place.
    with LedgerWriter.create(run.ledger, _header(prepared)) as ledger:
        write_toml(run.config, config)
        canaries.write(run)
        bound = (run.config, run.canaries, run.secret_canaries)
        ledger.begin({path.name: sha256(path) for path in bound})
        sgd = _new_sgd(prepared, canaries, ledger)
        _save_progress(run, sgd, [])
        _finish(run, sgd, [], on_step)
    return run


def train_over(prepared: Prepared, out: Path, on_step: OnStep) -> RunDirectory:
    """Train in place of an earlier run, which is removed; anything else is refused."""
    make_canaries(prepared.config.canaries, prepared.split, prepared.stream)  # may refuse
    remove_run(out)
    return train(prepared, out, on_step)


def prepare_resume(out: Path) -> Prepared:
    """Make ready to go on with an interrupted run, by its own settings.

    Raises:
        InvalidArgument: there is no such run, or its data are gone.
        IntegrityError: its settings or canaries are missing or altered.
        RunExists: it died before it began, and there is nothing to go on with.
    """
    run = open_run(out)
    begun = read_unfinished(run.ledger).begun
    if begun is None:
        raise RunExists(f"{out} died before it began: train anew with --overwrite")
    run.require_unaltered(begun.files)
    return prepare(run.read_config())


def resume(prepared: Prepared, out: Path, on_step: OnStep) -> RunDirectory:
    """Go on with an interrupted run, from its newest checkpoint.

    A secure run draws a fresh key, so no noise is used twice; steps since the checkpoint
    are taken, and booked, again.

    Raises:
        IntegrityError: a file of the run is missing or altered.
        RunExists: the run is finished, or another process writes it.
    """
    run = open_run(out)
    canaries, optimizer = Canaries.read(run), _optimizer(prepared)
    found = read_newest_checkpoint(run.checkpoints, prepared.model, optimizer)
    step = found[0].steps_done if found else 0
    with LedgerWriter.resume(run.ledger, Resumed(step, prepared.stream.randomness)) as ledger:
        if found is not None and ledger.releases < found[0].releases:
            raise IntegrityError(
                f"{run.ledger} books {ledger.releases} releases, its checkpoint says "
                f"{found[0].releases}: the ledger was cut"
            )
        if found is None:  # it died before its first checkpoint
            observations: list[NDArray[np.float32]] = []
            sgd = _new_sgd(prepared, canaries, ledger)
            _save_progress(run, sgd, observations)
        else:
            progress, observations = found
            sgd = _sgd(prepared, canaries, ledger, optimizer, progress.expected_batch_size)
        _finish(run, sgd, observations, on_step)
    return run


def heldout_records(run: RunDirectory, split: Split) -> Records:
    """Return the held-out records that did not become canaries."""
    taken = np.arange(len(split.heldout)) < run.read_config().canaries.inputs
    return split.heldout[~taken]


def _header(prepared: Prepared) -> LedgerHeader:
    privacy = prepared.config.privacy
    public = ["feature shape", "label set", "hyper-parameters"]
    if privacy.expected_batch_size is not None:
        public.append("expected batch size")
    return LedgerHeader(
        adjacency=Adjacency.ADD_OR_REMOVE_ONE,
        sampling=Sampling.FULL_BATCH if privacy.sampling_rate == 1 else Sampling.POISSON,
        randomness=prepared.stream.randomness,
        schedule_fixed_in_advance=True,
        clip_norm=privacy.clip_norm,
        versions={
            "dpaudit": dpaudit.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        run=os.urandom(16).hex(),
        leaves_out=privacy.leaves_out,
        takes_as_public=tuple(public),
    )


def _optimizer(prepared: Prepared) -> torch.optim.Optimizer:
    asked = prepared.config.model
    learning_rate = asked.learning_rate or default_learning_rate(
        asked.model, prepared.split.shape, asked.optimizer
    )
    return make_optimizer(prepared.model, asked.optimizer, learning_rate, asked.momentum)


def _new_sgd(prepared: Prepared, canaries: Canaries, ledger: LedgerWriter) -> PrivateSgd:
    records = len(prepared.split.train) + len(canaries.trained_inputs)
    normaliser = release_expected_batch_size(
        records, prepared.config.privacy, prepared.stream, ledger
    )
    return _sgd(prepared, canaries, ledger, _optimizer(prepared), normaliser)


def _sgd(
    prepared: Prepared,
    canaries: Canaries,
    ledger: LedgerWriter,
    optimizer: torch.optim.Optimizer,
    expected_batch_size: float,
) -> PrivateSgd:
    inputs, train = canaries.trained_inputs, prepared.split.train
    return PrivateSgd(
        model=prepared.model,
        optimizer=optimizer,
        records=Records(
            np.concatenate([train.features, inputs.features]),
            np.concatenate([train.labels, inputs.labels]),
        ),
        canaries=canaries,
        privacy=prepared.config.privacy,
        speed=prepared.config.speed,
        stream=prepared.stream,
        ledger=ledger,
        expected_batch_size=expected_batch_size,
        ranks=Alone(),
        noise=Independent(),
    )


def _save_progress(
    run: RunDirectory, sgd: PrivateSgd, observations: list[NDArray[np.float32]], done: int = 0
) -> None:
    progress = Progress(done, sgd.ledger.releases, sgd.expected_batch_size)
    write_checkpoint(run.checkpoints, progress, sgd.model, sgd.optimizer, observations)


def _finish(
    run: RunDirectory, sgd: PrivateSgd, observations: list[NDArray[np.float32]], on_step: OnStep
) -> None:
    """Take the steps that are left, save what ships and seal the ledger."""
    for number in range(len(observations), sgd.privacy.steps):
        observations.append(sgd.step(number))
        done = number + 1
        if done % sgd.speed.checkpoint_every == 0 and done < sgd.privacy.steps:
            _save_progress(run, sgd, observations, done)
        on_step(done)
    sgd.model.eval()
    save_model(sgd.model, str(run.model))
    sync(run.model)
    write_arrays(run.observations, rows=np.array(observations, dtype=np.float32))
    sgd.ledger.seal({path.name: sha256(path) for path in run.sealed_files})
    shutil.rmtree(run.checkpoints, ignore_errors=True)
