"""One training run of ``dpaudit train``, from its settings to a sealed run directory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import nn

from dpaudit.runs.checkpoints import remove_checkpoints
from dpaudit.runs.consistency import is_proven_by_claim
from dpaudit.runs.directory import RunDirectory, create_run, open_run, remove_run
from dpaudit.runs.ledger_file import complete_seal, read_run
from dpaudit.trainer import attach
from dpaudit.trainer.adam import AdamCorrected
from dpaudit.trainer.batches.grouped_records import RecordGroups, Views
from dpaudit.trainer.batches.samplers import Poisson
from dpaudit.trainer.canaries.added_canaries import AddedCanaryFile
from dpaudit.trainer.canaries.run_canaries import Observation, RunCanaries
from dpaudit.trainer.clip_rules import ConstantClipping
from dpaudit.trainer.data import DatasetSplit
from dpaudit.trainer.distributed import (
    RankGroup,
    current_ranks,
    join_process_group,
    select_device,
)
from dpaudit.trainer.engine import Flat
from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.trainer.models.factories import trained_part
from dpaudit.trainer.models.wide_resnet import random_crop_and_flip
from dpaudit.trainer.noise.gradient_noise import GradientNoise, Independent, OnGrid, default_noise
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.private import Private
from dpaudit.trainer.session.settings import AttachSettings, ConstantSchedule, NoisyCount
from dpaudit.trainer.tasks import (
    CLASSIFICATION,
    Split,
    Task,
    make_run_model,
    public_base,
    released_names,
    split_of_run,
    task_of,
)
from dpaudit.vocabulary.errors import InvalidArgument, RunExists
from dpaudit.vocabulary.settings import ModelSettings, PrivacySettings, RunConfig

StepCallback = Callable[[int, Observation], None]
"""Called after each step with the number of steps done and the observation of the canaries."""


@dataclass(frozen=True)
class PreparedRun:
    """A run whose settings, data and model were checked before any file is written.

    Attributes:
        config: The run's settings.
        split: Records to train on, and records held out.
        model: The model, on its device.
        stream: Keystream of coins and noise, the same on every rank.
        ranks: The group of ranks.
        canary_file: The file whose included canaries are among the records; None: there is none.
    """

    config: RunConfig
    split: Split
    model: nn.Module
    stream: Keystream
    ranks: RankGroup
    canary_file: AddedCanaryFile | None = None

    @property
    def task(self) -> Task:
        """What the model learns from the records."""
        return task_of(self.config.data)


def prepare_run(config: RunConfig) -> PreparedRun:
    """Read the records, make the model, and check that it processes records independently.

    Args:
        config: The run's settings.

    Returns:
        The prepared run.

    Raises:
        InvalidArgument: If data, model or a setting cannot be used.
    """
    device = select_device(config.speed.device)
    join_process_group(device)
    ranks = current_ranks()
    task = task_of(config.data)
    split = split_of_run(config, task.load(config.data))
    file = (
        None if config.canaries.file is None else AddedCanaryFile.read(Path(config.canaries.file))
    )
    if file is not None:
        split = task.with_file_canaries(split, file, config.data)
    stream = ranks.broadcast_stream(Keystream.of(config.privacy.seed))
    model = _prepared_model(task, config.model, split, stream).to(device)
    return PreparedRun(_with_noise_kind(config, model), split, model, stream, ranks, file)


def _with_noise_kind(config: RunConfig, model: nn.Module) -> RunConfig:
    """Return the settings with the kind of noise that is used, in place of ``auto``."""
    privacy = config.privacy
    if privacy.noise != "auto":
        return config
    trained = [p for p in trained_part(model).parameters() if p.requires_grad]
    dimension = sum(p.numel() for p in trained) + config.canaries.gradient
    norm, multiplier = privacy.clip_norm, privacy.noise_multiplier
    noise = default_noise(trained[0].device, multiplier, norm, dimension)
    return replace(config, privacy=replace(privacy, noise=noise.kind.value))


def prepare_model(name: str, split: DatasetSplit, stream: Keystream) -> nn.Module:
    """Make a model in training mode, and check that it can be trained privately.

    Args:
        name: Name of the model in the settings.
        split: The records, for their shape and the number of classes.
        stream: Keystream of the initial weights.

    Returns:
        The model, on the CPU.

    Raises:
        InvalidArgument: If it has no trainable parameter, or mixes records.
    """
    return _prepared_model(CLASSIFICATION, ModelSettings(name), split, stream)


def _prepared_model(
    task: Task, settings: ModelSettings, split: Split, stream: Keystream
) -> nn.Module:
    """Return a run's model in training mode; refuse one that mixes records."""
    model = make_run_model(task, settings, split, stream.seed_for(Purpose.MODEL))
    model.train()
    task.require_independent(model, split)
    if settings.views > 1 and not (task.has_images(split) and trained_part(model) is model):
        allowed = "1, except for images that a model without a fixed part takes"
        raise InvalidArgument("views", settings.views, allowed)
    return model


def train_run(prepared: PreparedRun, out: Path, on_step: StepCallback) -> RunDirectory:
    """Train into a new run directory.

    In a process group the first rank writes; the others process their parts of its steps.

    Args:
        prepared: The prepared run.
        out: The run directory, which must not exist.
        on_step: Called on the first rank after each step.

    Returns:
        The finished run directory.

    Raises:
        InvalidArgument: If settings do not fit together.
        RunExists: If ``out`` exists.
    """
    canaries = _make_canaries(prepared)
    run = RunDirectory(out) if prepared.ranks.rank != 0 else create_run(out)
    private = attach.begin_training(
        _training_setup(prepared, canaries), ledger=run.ledger, config=prepared.config
    )
    with private:
        private.checkpoint(run.checkpoints)
        return _take_steps(prepared, private, canaries, run, on_step)


def replace_run(prepared: PreparedRun, out: Path, on_step: StepCallback) -> RunDirectory:
    """Train in place of an earlier run, which is removed.

    Args:
        prepared: The prepared run.
        out: The run directory of the earlier run; any other folder is refused.
        on_step: Called on the first rank after each step.

    Returns:
        The finished run directory.
    """
    _make_canaries(prepared)  # before the earlier run is removed, as it may refuse
    if prepared.ranks.rank == 0:
        remove_run(out)
    return train_run(prepared, out, on_step)


def prepare_resume(out: Path) -> PreparedRun:
    """Prepare to continue an interrupted run with its own settings.

    Args:
        out: The run directory.

    Returns:
        The prepared run.

    Raises:
        InvalidArgument: If there is no such run, or its data are gone.
        IntegrityError: If its settings or canaries are missing or altered.
        RunExists: If it died before its settings were written: it cannot be resumed.
    """
    run = open_run(out)
    found = run.read_unfinished()
    if found.begun is None:
        raise RunExists(
            f"{out} stopped before its settings were written, and released nothing: train again "
            "with the same settings into the same folder"
        )
    run.require_unaltered(found.begun.files)
    config = run.read_config()
    if config.canaries.file is not None:  # the copy, whose digest is in the ledger
        copied = replace(config.canaries, file=str(run.canary_file_copy))
        config = replace(config, canaries=copied)
    return prepare_run(config)


def resume_run(prepared: PreparedRun, out: Path, on_step: StepCallback) -> RunDirectory:
    """Continue an interrupted run from its newest checkpoint.

    A secure run draws a fresh key, so no noise is used twice; steps after the checkpoint are
    taken, and recorded, again. A run that lacks only its seal is sealed.

    Args:
        prepared: The prepared run.
        out: The run directory.
        on_step: Called on the first rank after each step.

    Returns:
        The finished run directory.

    Raises:
        IntegrityError: If a file of the run is missing or altered.
        RunExists: If the run is finished, or another process writes it.
    """
    run = open_run(out)
    if _lacks_only_seal(run):
        if prepared.ranks.rank == 0:
            complete_seal(run)
        prepared.ranks.require_same("steps", prepared.config.privacy.steps)
        return _remove_checkpoints(prepared, run)
    canaries = RunCanaries.read(run)
    private = attach.resume_training(
        _training_setup(prepared, canaries), ledger=run.ledger, folder=run.checkpoints
    )
    with private:
        if private.steps == 0:  # the run died before its first checkpoint
            private.checkpoint(run.checkpoints)
        return _take_steps(prepared, private, canaries, run, on_step)


def heldout_records(run: RunDirectory, split: Split) -> Any:
    """Return the held-out records that did not become canaries.

    Args:
        run: The run directory, for the number of input canaries.
        split: The run's data set.

    Returns:
        The rest of the held-out records.
    """
    settings = run.read_settings()  # those of a federation have no canaries
    inputs = settings.canaries.inputs if isinstance(settings, RunConfig) else 0
    taken = np.arange(len(split.heldout)) < inputs
    return split.heldout[~taken]


def make_optimizer(
    model: nn.Module, name: str, learning_rate: float, momentum: float
) -> torch.optim.Optimizer:
    """Return a standard optimizer: everything after the noisy sum is post-processing.

    Args:
        model: The model whose trainable parameters are updated.
        name: ``adam``, ``adamw``, ``adam-corrected`` or ``sgd``.
        learning_rate: The learning rate.
        momentum: Momentum of SGD; the Adam variants do not use it.

    Returns:
        The optimizer.
    """
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


def noise_from_settings(privacy: PrivacySettings) -> GradientNoise:
    """Return the kind of noise that settings select.

    Args:
        privacy: The run's privacy settings.

    Returns:
        Noise on a grid, or independent noise.
    """
    return OnGrid() if privacy.noise == "grid" else Independent()


def optimizer_from_settings(model: nn.Module, prepared: PreparedRun) -> torch.optim.Optimizer:
    """Return the optimizer that a run's settings select, over ``model``.

    Args:
        model: The model whose trainable parameters are updated.
        prepared: The prepared run.

    Returns:
        The optimizer.
    """
    settings = prepared.config.model
    return make_optimizer(
        model, settings.optimizer, stated_learning_rate(prepared), settings.momentum
    )


def _make_canaries(prepared: PreparedRun) -> RunCanaries:
    """Draw the canaries that a run's settings select."""
    trained = trained_part(prepared.model).parameters()
    parameters = sum(p.numel() for p in trained if p.requires_grad)
    settings, stream = prepared.config.canaries, prepared.stream
    return prepared.task.draw_canaries(settings, prepared.split, parameters, stream)


def _training_setup(prepared: PreparedRun, canaries: RunCanaries) -> attach.TrainingSetup:
    """Return what the run's session is made from."""
    return attach.TrainingSetup(
        model=prepared.model,
        optimizer=optimizer_from_settings(prepared.model, prepared),
        settings=_attach_settings(prepared, canaries),
        canaries=canaries,
        stream=prepared.stream,
        ranks=prepared.ranks,
        canary_file=prepared.canary_file,
        released=released_names(prepared.config.model, prepared.model),
    )


def _attach_settings(prepared: PreparedRun, canaries: RunCanaries) -> AttachSettings:
    """Return the session settings of a run."""
    config, privacy = prepared.config, prepared.config.privacy
    batch: float | NoisyCount | None = privacy.expected_batch_size
    if batch is None:
        records = len(prepared.split.train) + len(canaries.trained_inputs)
        batch = NoisyCount(records, privacy.count_noise_multiplier)
    preset = () if config.preset is None else (f"preset {config.preset}",)
    base = public_base(config.model)
    weights = () if base is None else (base.description,)
    return AttachSettings(
        sampler=Poisson(privacy.sampling_rate),
        noise_multiplier=ConstantSchedule(privacy.noise_multiplier),
        noise=noise_from_settings(privacy),
        rule=ConstantClipping(Flat(privacy.clip_norm)),
        expected_batch_size=batch,
        physical_batch_size=config.speed.physical_batch_size,
        unaccounted=privacy.unaccounted,
        average_decay=config.model.average_decay,
        assumed_public=(*prepared.task.assumed_public, *weights, *preset),
    )


def stated_learning_rate(prepared: PreparedRun) -> float:
    """Return the learning rate of the settings, or the model's default.

    Args:
        prepared: The prepared run.

    Returns:
        The rate before any schedule.
    """
    settings = prepared.config.model
    default = prepared.task.learning_rate(settings.model, prepared.split, settings.optimizer)
    return settings.learning_rate or default


def set_learning_rate(prepared: PreparedRun, private: Private) -> None:
    """Set the next step's learning rate, by a schedule fixed before training.

    Args:
        prepared: The prepared run, for the schedule.
        private: The trainer; its optimizer is changed.
    """
    if prepared.config.model.learning_rate_schedule != "constant":
        for group in private.optimizer.param_groups:
            factor = learning_rate_factor(prepared.config, private.steps)
            group["lr"] = factor * stated_learning_rate(prepared)


def learning_rate_factor(config: RunConfig, step: int) -> float:
    """Return the factor of the schedule on the learning rate.

    Args:
        config: The run's settings.
        step: Number of steps that were taken.

    Returns:
        1 for a constant rate; for cosine decay, from 1 at step 0 to 0 after the last step.
    """
    if config.model.learning_rate_schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * step / config.privacy.steps)) / 2


def _take_steps(
    prepared: PreparedRun,
    private: Private,
    canaries: RunCanaries,
    run: RunDirectory,
    on_step: StepCallback,
) -> RunDirectory:
    """Take the remaining steps, and finish the run."""
    steps, every = prepared.config.privacy.steps, prepared.config.speed.checkpoint_every
    device = next(prepared.model.parameters()).device
    remaining = steps - private.steps
    task = prepared.task
    records = task.inputs(prepared.model, prepared.split, canaries)
    for inputs, targets in private.batches(records, steps=remaining):
        set_learning_rate(prepared, private)
        batch = viewed_batch(prepared, private, (inputs.to(device), targets.to(device)))
        private.step(task.losses, batch)
        if private.steps % every == 0 or private.steps == steps:
            private.checkpoint(run.checkpoints)
        if prepared.ranks.rank == 0:
            on_step(private.steps, private.observations[-1])
    private.finish(delta=prepared.config.privacy.delta)
    return _remove_checkpoints(prepared, run)


def viewed_batch(prepared: PreparedRun, private: Private, batch: Batch) -> Batch | RecordGroups:
    """Return the views of each image of a batch that the settings ask for.

    They are drawn anew for each step, so that a step that is run again has the same views.

    Args:
        prepared: The prepared run, for the number of views and their stream.
        private: The trainer, for the number of the step.
        batch: Images and labels.

    Returns:
        The batch itself, or the views of each image.
    """
    views = prepared.config.model.views
    if views == 1:
        return batch
    with torch.random.fork_rng():
        torch.manual_seed(prepared.stream.seed_for(Purpose.AUGMENTATION, private.steps))
        return Views(random_crop_and_flip, views)(batch)


def _lacks_only_seal(run: RunDirectory) -> bool:
    """Return whether a run died between its claim and its seal, as its files prove."""
    return is_proven_by_claim(run, read_run(run))


def _remove_checkpoints(prepared: PreparedRun, run: RunDirectory) -> RunDirectory:
    """Remove the checkpoints of a finished run, which hold more than what is released."""
    if prepared.ranks.rank == 0:
        remove_checkpoints(run.checkpoints)
    return run
