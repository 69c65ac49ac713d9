"""One training run from its settings to a sealed run directory: a client of the session."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dpaudit.runs.checkpoints import remove_checkpoints
from dpaudit.runs.crosscheck import is_claimed
from dpaudit.runs.directory import RunDirectory, create_run, open_run, remove_run
from dpaudit.runs.ledger_file import complete_seal, read_run
from dpaudit.trainer import attach
from dpaudit.trainer.adam import AdamCorrected
from dpaudit.trainer.added_noise import AddedNoise, Independent, OnGrid
from dpaudit.trainer.canaries import Canaries, make_canaries
from dpaudit.trainer.clip_rules import Always
from dpaudit.trainer.data import Records, Split, load
from dpaudit.trainer.engine import Flat
from dpaudit.trainer.engine.independence import require_independent_records
from dpaudit.trainer.models import (
    Featured,
    default_learning_rate,
    features_of,
    make_model,
    trained_part,
)
from dpaudit.trainer.observations import Observation
from dpaudit.trainer.peers import Peers, begin_ranks, device_of, peers
from dpaudit.trainer.private import Private
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.trainer.recipe import Constant, NoisyCount
from dpaudit.trainer.request import Request
from dpaudit.trainer.sampling import Poisson
from dpaudit.vocabulary.errors import InvalidArgument, RunExists
from dpaudit.vocabulary.settings import PrivacySettings, RunConfig

OnStep = Callable[[int, Observation], None]
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
    canaries = _make_canaries(prepared)
    run = RunDirectory(out) if prepared.ranks.rank != 0 else create_run(out)
    private = attach.begin(
        prepared.model,
        optimizer_of(prepared.model, prepared),
        _request(prepared, canaries),
        canaries,
        prepared.stream,
        prepared.ranks,
        ledger=run.ledger,
        config=prepared.config,
    )
    with private:
        private.checkpoint(run.checkpoints)
        return _take_steps(prepared, private, canaries, run, on_step)


def train_over(prepared: Prepared, out: Path, on_step: OnStep) -> RunDirectory:
    """Train in place of an earlier run, which is removed; anything else is refused."""
    _make_canaries(prepared)  # may refuse
    if prepared.ranks.rank == 0:
        remove_run(out)
    return train(prepared, out, on_step)


def prepare_resume(out: Path) -> Prepared:
    """Make ready to go on with an interrupted run, by its own settings.

    Raises:
        InvalidArgument: There is no such run, or its data are gone.
        IntegrityError: Its settings or canaries are missing or altered.
        RunExists: It died before it began, and there is nothing to go on with.
    """
    run = open_run(out)
    found = run.read_unfinished()
    if found.begun is None:
        raise RunExists(
            f"{out} died before its settings were written, and released nothing: train anew "
            "with its settings, in the same place"
        )
    run.require_unaltered(found.begun.files)
    return prepare(run.read_config())


def resume(prepared: Prepared, out: Path, on_step: OnStep) -> RunDirectory:
    """Go on with an interrupted run, from its newest checkpoint.

    A secure run draws a fresh key, so no noise is used twice; steps since the checkpoint
    are taken, and recorded, again. A run that lacks its seal alone gets it.

    Raises:
        IntegrityError: A file of the run is missing or altered.
        RunExists: The run is finished, or another process writes it.
    """
    run = open_run(out)
    if _lacks_its_seal(run):
        if prepared.ranks.rank == 0:
            complete_seal(run)
        prepared.ranks.require_same("steps", prepared.config.privacy.steps)
        return _without_checkpoints(prepared, run)
    canaries = Canaries.read(run)
    private = attach.go_on(
        prepared.model,
        optimizer_of(prepared.model, prepared),
        _request(prepared, canaries),
        canaries,
        prepared.stream,
        prepared.ranks,
        ledger=run.ledger,
        folder=run.checkpoints,
    )
    with private:
        if private.steps == 0:  # it died before its first checkpoint
            private.checkpoint(run.checkpoints)
        return _take_steps(prepared, private, canaries, run, on_step)


def heldout_records(run: RunDirectory, split: Split) -> Records:
    """Return the held-out records that did not become canaries."""
    taken = np.arange(len(split.heldout)) < run.read_config().canaries.inputs
    return split.heldout[~taken]


def cross_entropies(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return each record's loss, shape ``(records,)``, of (features, labels).

    Of a model with fixed features, its trained part is given these.
    """
    features, labels = batch
    outputs = trained_part(model)(features)
    return nn.functional.cross_entropy(outputs, labels, reduction="none")


def make_optimizer(
    model: nn.Module, name: str, learning_rate: float, momentum: float
) -> torch.optim.Optimizer:
    """Return a standard PyTorch optimizer: what follows the noisy sum is post-processing."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    match name:
        case "adam":
            return torch.optim.Adam(parameters, lr=learning_rate)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=learning_rate)
        case "adam-corrected":
            return AdamCorrected(parameters, lr=learning_rate)
        case _:
            return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)


def noise_of(privacy: PrivacySettings) -> AddedNoise:
    """Return the kind of noise that settings ask for."""
    return OnGrid() if privacy.noise == "grid" else Independent()


def optimizer_of(model: nn.Module, prepared: Prepared) -> torch.optim.Optimizer:
    """Return the optimizer that a run's settings ask for, over ``model``."""
    asked = prepared.config.model
    return make_optimizer(model, asked.optimizer, _learning_rate(prepared), asked.momentum)


def _make_canaries(prepared: Prepared) -> Canaries:
    trained = trained_part(prepared.model).parameters()
    parameters = sum(p.numel() for p in trained if p.requires_grad)
    settings, stream = prepared.config.canaries, prepared.stream
    return make_canaries(settings, prepared.split, parameters, stream)[0]


def _request(prepared: Prepared, canaries: Canaries) -> Request:
    """Return what a run's settings ask of its session."""
    config, privacy = prepared.config, prepared.config.privacy
    batch: float | NoisyCount | None = privacy.expected_batch_size
    if batch is None:
        records = len(prepared.split.train) + len(canaries.trained_inputs)
        batch = NoisyCount(records, privacy.count_noise_multiplier)
    preset = () if config.preset is None else (f"preset {config.preset}",)
    return Request(
        sampler=Poisson(privacy.sampling_rate),
        noise_multiplier=Constant(privacy.noise_multiplier),
        noise=noise_of(privacy),
        rule=Always(Flat(privacy.clip_norm)),
        expected_batch_size=batch,
        physical_batch_size=config.speed.physical_batch_size,
        leaves_out=privacy.leaves_out,
        average_decay=config.model.average_decay,
        takes_as_public=("feature shape", "label set", *preset),
    )


def _learning_rate(prepared: Prepared) -> float:
    asked = prepared.config.model
    return asked.learning_rate or default_learning_rate(
        asked.model, prepared.split.shape, asked.optimizer
    )


def _set_learning_rate(prepared: Prepared, private: Private) -> None:
    """Set the learning rate of a step, which is fixed before training."""
    if prepared.config.model.learning_rate_schedule == "cosine":
        share = (1 + math.cos(math.pi * private.steps / prepared.config.privacy.steps)) / 2
        for group in private.optimizer.param_groups:
            group["lr"] = share * _learning_rate(prepared)


def _records(prepared: Prepared, canaries: Canaries) -> tuple[Tensor, Tensor]:
    """Return all that train, input canaries among them, as the trained part takes them."""
    inputs, train = canaries.trained_inputs, prepared.split.train
    features = np.concatenate([train.features, inputs.features])
    labels = np.concatenate([train.labels, inputs.labels])
    return torch.from_numpy(features_of(prepared.model, features)), torch.from_numpy(labels)


def _take_steps(
    prepared: Prepared, private: Private, canaries: Canaries, run: RunDirectory, on_step: OnStep
) -> RunDirectory:
    """Take the steps that are left, and finish the run."""
    steps, every = prepared.config.privacy.steps, prepared.config.speed.checkpoint_every
    device = next(prepared.model.parameters()).device
    left = steps - private.steps
    for features, labels in private.batches(_records(prepared, canaries), steps=left):
        _set_learning_rate(prepared, private)
        private.step(cross_entropies, (features.to(device), labels.to(device)))
        if private.steps % every == 0 or private.steps == steps:
            private.checkpoint(run.checkpoints)
        if prepared.ranks.rank == 0:
            on_step(private.steps, private.observations[-1])
    private.finish(delta=prepared.config.privacy.delta)
    return _without_checkpoints(prepared, run)


def _lacks_its_seal(run: RunDirectory) -> bool:
    """Return whether a run died between its claim and its seal, as its files prove."""
    return is_claimed(run, read_run(run))


def _without_checkpoints(prepared: Prepared, run: RunDirectory) -> RunDirectory:
    """Return a finished run, whose checkpoints hold more than what ships: they go."""
    if prepared.ranks.rank == 0:
        remove_checkpoints(run.checkpoints)
    return run
