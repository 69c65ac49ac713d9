"""One training run from its settings to a sealed run directory."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_model
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dpaudit
from dpaudit.runs.directory import RunDirectory, create_run, open_run, remove_run
from dpaudit.runs.files import sha256, sync, write_secret_arrays, write_toml
from dpaudit.runs.ledger_file import LedgerWriter, read_unfinished
from dpaudit.trainer.added_noise import Independent, OnGrid
from dpaudit.trainer.books import Book, MemoryBook
from dpaudit.trainer.canaries import Canaries, make_canaries
from dpaudit.trainer.checkpoint import Progress, read_newest_checkpoint, write_checkpoint
from dpaudit.trainer.data import Records, Split, load
from dpaudit.trainer.engine.independence import require_independent_records
from dpaudit.trainer.models import (
    Featured,
    default_learning_rate,
    features_of,
    make_model,
    trained_part,
)
from dpaudit.trainer.peers import Peers, begin_ranks, device_of, peers
from dpaudit.trainer.private_sgd import (
    PrivateSgd,
    make_optimizer,
    release_expected_batch_size,
)
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.trainer.taps import Tap, as_arrays
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, RunExists
from dpaudit.vocabulary.ledger import LedgerHeader, Resumed, Sampling
from dpaudit.vocabulary.settings import RunConfig

OnStep = Callable[[int, Tap], None]
"""Called after each step with the number of steps done and what it showed of canaries."""


@dataclass(frozen=True)
class Prepared:
    """Everything that can fail on bad input, done before a file is touched."""

    config: RunConfig
    split: Split
    model: nn.Module
    stream: Keystream
    ranks: Peers


def prepare(config: RunConfig) -> Prepared:
    """Read the records, make the model and check that it keeps records apart.

    Raises:
        InvalidArgument: data, model or a setting is not usable.
    """
    device = device_of(config.speed.device)
    begin_ranks(device)
    ranks = peers()
    split = load(config.data)
    stream = ranks.agreed(Keystream.of(config.privacy.seed))
    seed = stream.seed_for(Purpose.MODEL)
    model = make_model(config.model.model, split.shape, len(split.classes), seed)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidArgument("model", config.model.model, "a model with a trainable parameter")
    model.train()
    require_independent_records(model, split.shape)
    if isinstance(model, Featured):  # a trained part that begins at zero hides what it is given
        require_independent_records(model.features, split.shape)
    return Prepared(config, split, model.to(device), stream, ranks)


def train(prepared: Prepared, out: Path, on_step: OnStep) -> RunDirectory:
    """Train into a new run directory; it must not exist.

    Of several ranks the first one writes; the others take their parts of its steps.
    """
    config = prepared.config
    canaries = _make_canaries(prepared)
    if prepared.ranks.rank != 0:
        _follow(prepared, _new_sgd(prepared, canaries, MemoryBook()), 0)
        return RunDirectory(out)
    run = create_run(out)
    # The ledger first: it is what keeps two runs out of one place.
    with LedgerWriter.create(run.ledger, _header(prepared)) as ledger:
        write_toml(run.config, config)
        canaries.write(run)
        bound = (run.config, run.canaries, run.secret_canaries)
        ledger.begin({path.name: sha256(path) for path in bound})
        sgd = _new_sgd(prepared, canaries, ledger)
        running = _Running(run, prepared, sgd, ledger, [])
        running.save_progress()
        running.finish(on_step)
    return run


def train_over(prepared: Prepared, out: Path, on_step: OnStep) -> RunDirectory:
    """Train in place of an earlier run, which is removed; anything else is refused."""
    _make_canaries(prepared)  # may refuse
    if prepared.ranks.rank == 0:
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
    average = _average(prepared)
    found = read_newest_checkpoint(run.checkpoints, prepared.model, optimizer, average)
    step = found[0].steps_done if found else 0
    prepared.ranks.require_same("checkpoint", step)
    booked = len(read_unfinished(run.ledger).releases)
    if found is not None and booked < found[0].releases:
        raise IntegrityError(
            f"{run.ledger} books {booked} releases, its checkpoint says {found[0].releases}: "
            "the ledger was cut"
        )
    if prepared.ranks.rank != 0:
        _follow(prepared, _resumed_sgd(prepared, canaries, MemoryBook(), optimizer, found), step)
        return run
    with LedgerWriter.resume(run.ledger, Resumed(step, prepared.stream.randomness)) as ledger:
        sgd = _resumed_sgd(prepared, canaries, ledger, optimizer, found)
        running = _Running(run, prepared, sgd, ledger, found[1] if found else [], average)
        if found is None:  # it died before its first checkpoint
            running.save_progress()
        running.finish(on_step)
    return run


def _make_canaries(prepared: Prepared) -> Canaries:
    trained = trained_part(prepared.model).parameters()
    parameters = sum(p.numel() for p in trained if p.requires_grad)
    settings, stream = prepared.config.canaries, prepared.stream
    return make_canaries(settings, prepared.split, parameters, stream)[0]


def heldout_records(run: RunDirectory, split: Split) -> Records:
    """Return the held-out records that did not become canaries."""
    taken = np.arange(len(split.heldout)) < run.read_config().canaries.inputs
    return split.heldout[~taken]


def _header(prepared: Prepared) -> LedgerHeader:
    privacy = prepared.config.privacy
    public = ["feature shape", "label set", "hyper-parameters"]
    if prepared.config.preset is not None:
        public.append(f"preset {prepared.config.preset}")
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
    asked, rate = prepared.config.model, _learning_rate(prepared)
    return make_optimizer(prepared.model, asked.optimizer, rate, asked.momentum)


def _learning_rate(prepared: Prepared) -> float:
    asked = prepared.config.model
    return asked.learning_rate or default_learning_rate(
        asked.model, prepared.split.shape, asked.optimizer
    )


def _resumed_sgd(
    prepared: Prepared,
    canaries: Canaries,
    ledger: Book,
    optimizer: torch.optim.Optimizer,
    found: tuple[Progress, list[Tap]] | None,
) -> PrivateSgd:
    if found is None:
        return _new_sgd(prepared, canaries, ledger)
    return _sgd(prepared, canaries, ledger, optimizer, found[0].expected_batch_size)


def _new_sgd(prepared: Prepared, canaries: Canaries, ledger: Book) -> PrivateSgd:
    records = len(prepared.split.train) + len(canaries.trained_inputs)
    normaliser = release_expected_batch_size(
        records, prepared.config.privacy, prepared.stream, ledger
    )
    return _sgd(prepared, canaries, ledger, _optimizer(prepared), normaliser)


def _sgd(
    prepared: Prepared,
    canaries: Canaries,
    ledger: Book,
    optimizer: torch.optim.Optimizer,
    expected_batch_size: float,
) -> PrivateSgd:
    inputs, train = canaries.trained_inputs, prepared.split.train
    return PrivateSgd(
        model=trained_part(prepared.model),
        optimizer=optimizer,
        records=Records(
            features_of(prepared.model, np.concatenate([train.features, inputs.features])),
            np.concatenate([train.labels, inputs.labels]),
        ),
        canaries=canaries,
        privacy=prepared.config.privacy,
        speed=prepared.config.speed,
        stream=prepared.stream,
        ledger=ledger,
        expected_batch_size=expected_batch_size,
        ranks=prepared.ranks,
        noise=OnGrid() if prepared.config.privacy.noise == "grid" else Independent(),
    )


def _average(prepared: Prepared) -> AveragedModel | None:
    decay = prepared.config.model.average_decay
    if decay is None:
        return None
    return AveragedModel(prepared.model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


def _set_learning_rate(prepared: Prepared, sgd: PrivateSgd, number: int) -> None:
    """Set the learning rate of a step, which is fixed before training."""
    if prepared.config.model.learning_rate_schedule == "cosine":
        share = (1 + math.cos(math.pi * number / sgd.privacy.steps)) / 2
        for group in sgd.optimizer.param_groups:
            group["lr"] = share * _learning_rate(prepared)


def _follow(prepared: Prepared, sgd: PrivateSgd, first: int) -> None:
    """Take the other ranks' part of the first one's steps; nothing is written."""
    for number in range(first, sgd.privacy.steps):
        _set_learning_rate(prepared, sgd, number)
        sgd.step(number)


class _Running:
    """A run whose files are open.

    Args:
        run: Its directory.
        prepared: What was asked for.
        sgd: Takes its steps.
        ledger: To be sealed.
        taps: What each step so far showed of the gradient canaries.
        average: Of the weights so far, if it ships.
    """

    def __init__(
        self,
        run: RunDirectory,
        prepared: Prepared,
        sgd: PrivateSgd,
        ledger: LedgerWriter,
        taps: list[Tap],
        average: AveragedModel | None = None,
    ) -> None:
        self._run, self._prepared, self._sgd, self._ledger = run, prepared, sgd, ledger
        self._taps = taps
        self._average = average or _average(prepared)

    def save_progress(self) -> None:
        """Write a checkpoint."""
        sgd, done = self._sgd, len(self._taps)
        progress = Progress(done, self._ledger.releases, sgd.expected_batch_size)
        write_checkpoint(
            self._run.checkpoints,
            progress,
            self._prepared.model,
            sgd.optimizer,
            self._taps,
            self._average,
        )

    def finish(self, on_step: OnStep) -> None:
        """Take the steps that are left, save what ships and seal the ledger."""
        steps, every = self._sgd.privacy.steps, self._sgd.speed.checkpoint_every
        for number in range(len(self._taps), steps):
            _set_learning_rate(self._prepared, self._sgd, number)
            self._taps.append(self._sgd.step(number))
            if self._average is not None:
                self._average.update_parameters(self._prepared.model)
            done = number + 1
            if done % every == 0 and done < steps:
                self.save_progress()
            on_step(done, self._taps[-1])
        self._ship()

    def _ship(self) -> None:
        run, average = self._run, self._average
        model = self._prepared.model if average is None else average.module
        save_model(model.cpu().eval(), str(run.model))
        sync(run.model)
        write_secret_arrays(run.observations, **as_arrays(self._taps))
        self._ledger.seal({path.name: sha256(path) for path in run.sealed_files})
        shutil.rmtree(run.checkpoints, ignore_errors=True)
