"""Attach differential privacy to your own training loop.

The optimizer step becomes private; everything else stays as it is::

    private = make_private(model, optimizer, data, target_epsilon=3.0, delta=1e-5,
                           epochs=10, dataset_size=60_000, expected_batch_size=512)
    for batch in private.batches():
        private.step(per_sample_loss, batch)
    private.epsilon()
    private.finish()  # with ledger="runs/mine/ledger.jsonl"

``dpaudit train`` uses the same functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

import msgspec
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpaudit.runs.directory import remove_unfinished_run
from dpaudit.trainer.argument_hints import with_argument_hints
from dpaudit.trainer.batches.samplers import Poisson, Sampler
from dpaudit.trainer.canaries.canary_file import CanaryFile
from dpaudit.trainer.canaries.run_canaries import GradientCanaries, RunCanaries
from dpaudit.trainer.clip_rules import ClipRule
from dpaudit.trainer.data_sources.collate import CollateFunction
from dpaudit.trainer.data_sources.data_loaders import LoadableData, LoadingSettings, unpack_loader
from dpaudit.trainer.distributed import RankGroup, current_ranks, is_sharded
from dpaudit.trainer.engine import Clipping
from dpaudit.trainer.noise.correlated_noise import Banded
from dpaudit.trainer.noise.gradient_noise import GradientNoise
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.private import Private
from dpaudit.trainer.session.checkpoint import newest_checkpoint, read_checkpoint
from dpaudit.trainer.session.chosen_noise import choose_noise, recorded_noise
from dpaudit.trainer.session.described_training import describe_training
from dpaudit.trainer.session.resumed_run import (
    read_unfinished_run,
    recorded_canaries,
    require_same_canaries,
    require_same_canary_file,
)
from dpaudit.trainer.session.settings import (
    AttachSettings,
    NoisyCount,
    Schedule,
    to_clip_rule,
    to_float,
)
from dpaudit.trainer.session.training_plan import PlanRequest, TrainingPlan, plan_training
from dpaudit.trainer.session.training_session import Session, SessionState, is_run_ledger
from dpaudit.trainer.trainable import require_trainable
from dpaudit.vocabulary.errors import InvalidArgument, require_count
from dpaudit.vocabulary.ledger import RECORD_COUNT


@dataclass(frozen=True)
class TrainingSetup:
    """What a new and a resumed session are made from.

    Attributes:
        model: The model to train, or to fill from a checkpoint.
        optimizer: The optimizer of its trainable parameters.
        settings: The settings of the session.
        canaries: Canaries with their bits drawn, or how many to draw; None: there are none.
        stream: Keystream of coins and noise, the same on every rank.
        ranks: The group of ranks.
        canary_file: The trainer's canary file, if records include canaries.
        plan: Steps, delta and budget; None: the caller has them.
        loadable: The data, and how they are loaded; None: the caller gives them to ``batches``.
        loading: How data that are given to ``batches`` are loaded.
        released: Names of the tensors that the finished run releases; None: all of the model.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: AttachSettings
    canaries: RunCanaries | GradientCanaries | None
    stream: Keystream
    ranks: RankGroup
    canary_file: CanaryFile | None = None
    plan: TrainingPlan | None = None
    loadable: LoadableData | None = None
    loading: LoadingSettings | None = None
    released: frozenset[str] | None = None


@with_argument_hints
def make_private(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Any = None,
    *,
    target_epsilon: float | None = None,
    delta: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    dataset_size: int | NoisyCount | None = None,
    noise_multiplier: float | Schedule | None = None,
    clip_norm: float | Schedule = 1.0,
    sampling_rate: float | None = None,
    expected_batch_size: float | NoisyCount | None = None,
    sampler: Sampler | None = None,
    clipping: Clipping | ClipRule | None = None,
    noise: GradientNoise | None = None,
    unit: str = "record",
    unaccounted: Sequence[str] = (),
    physical_batch_size: int | None = None,
    collate_fn: CollateFunction | None = None,
    workers: int | None = None,
    prefetch: int = 0,
    canaries: GradientCanaries | None = None,
    canary_file: Path | str | None = None,
    average_decay: float | None = None,
    ledger: Path | str | None = None,
    overwrite: bool = False,
    resume: Path | str | None = None,
    seed: int | None = None,
) -> Private:
    """Return a trainer that takes private steps on ``model`` with ``optimizer``.

    With ``target_epsilon``, ``delta``, ``epochs`` and ``dataset_size``, everything else is
    computed: sampling rate, number of steps, and the least noise multiplier that meets the
    target, by the PLD accountant. The budget is set, so that no step can exceed it.

    The number of records is never taken from ``data``: under add-or-remove-one it is secret.
    ``dataset_size`` is a number that you declare public, or ``NoisyCount(len(data))``.

    In a process group of torch.distributed, each rank calls this with a model of the same shape:
    plain, or sharded by ``fully_shard``. Each rank processes its part of every batch. Ranks
    compare all settings before the first step.

    Args:
        model: Any model that processes each record independently; it is not wrapped.
        optimizer: Any optimizer of torch whose step needs no closure, over all trainable
            parameters.
        data: The records that ``private.batches()`` draws from: tensors, NumPy arrays or pandas
            objects with records first, alone or in a tuple or dict; or records by index: a list,
            a map-style data set of torch or Hugging Face, or a DataLoader. Of a DataLoader the
            data set, ``collate_fn``, workers and ``pin_memory`` are used; its sampler is replaced.
            None: data are given to ``batches``.
        target_epsilon: Largest epsilon at ``delta``, in place of ``noise_multiplier``.
        delta: Delta of the target, and default of ``epsilon`` and ``finish``, in [1e-300, 1).
        epochs: Number of passes over the records, on average.
        steps: Number of steps, in place of ``epochs``.
        dataset_size: Public number of records (or users), or a ``NoisyCount``, which is released
            and recorded. It connects sampling rate and expected batch size.
        noise_multiplier: Noise standard deviation over the sensitivity (the clip norm, for plain
            clipping); or a schedule, from the number of the step to a value.
        clip_norm: Largest L2 norm of one record's gradient, over all parameters together; or a
            schedule.
        sampling_rate: Probability with which each record joins each step, in (0, 1]. None:
            ``expected_batch_size / dataset_size``.
        expected_batch_size: Public constant that noisy sums are divided by, in records. It is not
            the number of drawn records, which is secret. None: ``sampling_rate * dataset_size``;
            without a sampling rate the batch size of the DataLoader, or else 256 (or all records
            of a smaller ``dataset_size``). ``NoisyCount`` releases one.
        sampler: Another sampler than Poisson sampling, in place of ``sampling_rate``.
        clipping: Another clipping or clip rule, in place of ``clip_norm``.
        noise: Another kind of noise. None: exact noise on a grid (``OnGrid``) on a CPU, if the
            installation has the compiled kernels; else independent normals in float32
            (``Independent``). A resumed run keeps the kind that its ledger names.
        unit: What neighboring data sets differ in: ``record`` or ``user``. Users need the owners
            of records in ``batches``.
        unaccounted: Other uses of the records that no claim of this run covers, as tuning, early
            stopping or printed training losses. The ledger records them.
        physical_batch_size: Records in memory at once; None: about as many as plain training has
            memory for. Affects speed alone.
        collate_fn: Makes a batch of a list of records, as ``PadTokens(128)``; None: values of
            records are stacked. Rows must not depend on other records.
        workers: Number of processes that read records by index; None: those of the DataLoader,
            or 0. Affects speed alone.
        prefetch: Number of batches that are loaded in advance, by a thread for columns, by
            a process for records by index. Affects speed alone.
        canaries: Gradient canaries, from which ``dpaudit audit`` computes lower bounds. Their
            files are written beside the ledger of a run directory.
        canary_file: The trainer's file of ``dpaudit canaries make``. Its canaries must be among
            the records of ``batches``. The ledger records its digest before the first step, so
            that ``dpaudit audit RUN --canaries`` applies to this run.
        average_decay: Decay per step, in (0, 1), of the exponential average of the weights that
            is released; None: the last weights are released.
        ledger: A new file, in which every release is recorded before it is made; None: memory.
            Its folder is created. ``finish`` turns the folder of ``runs/NAME/ledger.jsonl`` into
            a run directory. A ledger without a release is begun again.
        overwrite: Remove the files of an unfinished run that is in the place of the ledger. A
            finished run is never removed.
        resume: A folder that ``checkpoint`` wrote to: continue from its newest checkpoint, with
            the same ledger. Without a checkpoint, training begins at step 0, and the ledger's
            releases still count.
        seed: For tests only: the noise can be computed from the seed.

    Returns:
        The trainer.

    Raises:
        InvalidArgument: If an argument is missing, unknown, out of range or contradicts another
            one, the model or optimizer cannot be trained, or ranks have different settings.
        RunExists: If the ledger, or another file of an earlier run, is in the folder, and
            ``resume`` is None.
        IntegrityError: If the run to be resumed is missing files, broken, or another run's.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(3, 1)
        >>> private = make_private(
        ...     model, torch.optim.SGD(model.parameters(), lr=0.1),
        ...     (torch.randn(80, 3), torch.randn(80)),
        ...     target_epsilon=2.0, delta=1e-5, epochs=3, dataset_size=80, expected_batch_size=8)
        >>> def per_sample_loss(model, batch):
        ...     features, targets = batch
        ...     return (model(features)[:, 0] - targets) ** 2
        >>> for batch in private.batches():
        ...     private.step(per_sample_loss, batch)
        >>> private.steps
        30
        >>> 1.9 < private.epsilon().upper <= 2.0
        True
    """
    require_trainable(model, optimizer)
    _require_kinds(canaries, seed)
    loading = LoadingSettings(collate_fn, workers, prefetch)
    loadable = unpack_loader(data, loading, depth=2)
    plan = plan_training(
        PlanRequest(
            sampler=sampler,
            sampling_rate=sampling_rate,
            expected_batch_size=expected_batch_size,
            dataset_size=dataset_size,
            noise_multiplier=noise_multiplier,
            target_epsilon=target_epsilon,
            delta=delta,
            epochs=epochs,
            steps=steps,
            loader_batch_size=loadable.batch_size,
        )
    )
    rule = to_clip_rule(clipping, clip_norm)
    recorded = recorded_noise(ledger) if resume is not None else None
    settings = AttachSettings(
        sampler=plan.sampler,
        noise_multiplier=plan.noise_multiplier,
        noise=choose_noise(noise, model, plan.noise_multiplier, rule, recorded),
        rule=rule,
        expected_batch_size=plan.expected_batch_size,
        physical_batch_size=physical_batch_size,
        unit=unit,
        unaccounted=unaccounted,
        average_decay=None if average_decay is None else to_float("average_decay", average_decay),
        assumed_public=("number of records",) if plan.size_is_public else (),
    )
    ranks = current_ranks()
    stream = ranks.broadcast_stream(Keystream.of(seed))
    if settings.sampler.caution:
        warnings.warn(settings.sampler.caution, stacklevel=3)
    path = None if ledger is None else Path(ledger)
    file = None if canary_file is None else CanaryFile.read(Path(canary_file))
    setup = TrainingSetup(
        model, optimizer, settings, canaries, stream, ranks, file, plan, loadable, loading
    )
    if resume is None:
        return begin_training(setup, ledger=path, overwrite=overwrite)
    if overwrite:
        raise InvalidArgument("overwrite", True, "False with resume, which continues the run")
    if path is None:
        raise InvalidArgument("ledger", None, "the ledger of the run that is resumed")
    return resume_training(setup, ledger=path, folder=Path(resume))


def begin_training(
    setup: TrainingSetup,
    *,
    ledger: Path | None,
    config: msgspec.Struct | None = None,
    overwrite: bool = False,
) -> Private:
    """Return the trainer of a new session.

    Args:
        setup: Model, optimizer, settings, canaries, keystream and ranks.
        ledger: A new file; None: releases are recorded in memory.
        config: Settings to write beside the ledger, which records their digest.
        overwrite: Remove the files of an unfinished run that is in the place of the ledger.

    Returns:
        The trainer, at step 0.

    Raises:
        InvalidArgument: As for ``make_private``.
        RunExists: As for ``make_private``.
    """
    settings, stream, ranks, file = setup.settings, setup.stream, setup.ranks, setup.canary_file
    trained = _session_state(setup)
    canaries = setup.canaries
    if isinstance(canaries, GradientCanaries):
        canaries = canaries.draw(_trainable_size(setup.model), stream)
    _require_canaries_fit(canaries, settings)
    has_canaries = canaries is not None or file is not None
    if has_canaries and ledger is not None and not is_run_ledger(ledger):
        allowed = "runs/NAME/ledger.jsonl with canaries: their files are written beside it"
        raise InvalidArgument("ledger", str(ledger), allowed)
    ranks.broadcast_parameters(setup.model)
    if ledger is not None and ranks.rank == 0:
        _clear(ledger, overwrite=overwrite)
    session = Session.begin(settings.header(stream), stream, ranks, trained, ledger)
    if ledger is not None:
        _SESSIONS[ledger.absolute()] = session
    with close_on_error(session):
        session.bind(canaries, config, file)
        return _private(setup, session, _released_batch_size(settings, session), canaries)


_SESSIONS: WeakValueDictionary[Path, Session] = WeakValueDictionary()
"""The newest session of this process by ledger: a notebook keeps one that failed."""


def _clear(ledger: Path, *, overwrite: bool) -> None:
    """Close an earlier session of this process on the ledger, and remove what may be replaced.

    After an error in its first step, a variable or the traceback keeps a session, and with it
    the lock of the ledger. It holds no release, so a new one may replace it.
    """
    earlier = _SESSIONS.get(ledger.absolute())
    if earlier is not None and (overwrite or not earlier.recorded):
        earlier.close()
    if overwrite:
        remove_unfinished_run(ledger)


def resume_training(setup: TrainingSetup, *, ledger: Path, folder: Path) -> Private:
    """Return the trainer of a session that continues from the newest checkpoint in ``folder``.

    Args:
        setup: Model and optimizer to fill, the run's settings, and a keystream for the steps to
            come. The canaries are those recorded in the run.
        ledger: The run's ledger.
        folder: The folder of its checkpoints.

    Returns:
        The trainer, at the checkpoint's step.

    Raises:
        InvalidArgument: If a setting differs from the run's.
        IntegrityError: If ledger or checkpoint are missing, broken, or of another run.
        RunExists: If the run is finished, or another process writes it.
    """
    settings, stream, ranks = setup.settings, setup.stream, setup.ranks
    trained = _session_state(setup)
    found = read_unfinished_run(ledger)
    header = settings.header(stream)
    # The header holds for the whole ledger, so a resumed run must have the same one.
    same = ("adjacency", "sampling", "clip_norm", "unit", "randomness", "unaccounted", "noise")
    for name in same:
        recorded, given = getattr(found.header, name), getattr(header, name)
        # Earlier versions did not record the noise in the header, but in the checkpoint.
        if recorded != given and not (name == "noise" and recorded is None):
            raise InvalidArgument(name, given, f"{recorded!r}, as in the run that is resumed")
    canaries = recorded_canaries(ledger, found)
    require_same_canaries(setup.canaries, canaries)
    require_same_canary_file(setup.canary_file, ledger, found)
    _require_canaries_fit(canaries, settings)
    kept = newest_checkpoint(folder, found)
    if kept is None:  # the run died before its first checkpoint: begin at step 0
        ranks.broadcast_parameters(setup.model)
        session = Session.resume(stream, ranks, trained, ledger, step=0)
        with close_on_error(session):
            return _private(setup, session, _released_batch_size(settings, session), canaries)
    texts = settings.settings_with(setup.model, setup.optimizer)
    for name, text in kept.progress.settings.items():
        if texts.get(name) != text:
            raise InvalidArgument(name, texts.get(name), f"{text}, as in the run that is resumed")
    ranks.require_same("checkpoint", kept.progress.steps_done)
    observations = read_checkpoint(kept, setup.model, setup.optimizer, trained.average)
    session = Session.resume(
        stream,
        ranks,
        trained,
        ledger,
        step=kept.progress.steps_done,
        observations=tuple(observations),
    )
    learned = replace(settings, rule=settings.rule.with_clip_norm(kept.progress.clip_norm))
    setup = replace(setup, settings=learned)
    with close_on_error(session):
        return _private(setup, session, kept.progress.expected_batch_size, canaries, texts)


@contextmanager
def close_on_error(session: Session) -> Iterator[None]:
    """Close a session if the ``with`` block raises, which releases the ledger's lock."""
    try:
        yield
    except BaseException:
        session.close()
        raise


def _private(
    setup: TrainingSetup,
    session: Session,
    expected_batch_size: float,
    canaries: RunCanaries | None,
    texts: dict[str, str] | None = None,
) -> Private:
    """Return the trainer of a session; ``texts`` are its settings where they are known."""
    texts = texts or setup.settings.settings_with(setup.model, setup.optimizer)
    step_settings = setup.settings.step_settings(expected_batch_size)
    private = Private(
        session,
        step_settings,
        setup.settings.rule,
        texts,
        canaries,
        setup.canary_file,
        plan=setup.plan,
        loadable=setup.loadable,
        loading=setup.loading,
    )
    if setup.plan is not None and setup.plan.budget is not None:
        session.stop_at(setup.plan.budget)
    return private


def _session_state(setup: TrainingSetup) -> SessionState:
    """Return the state that steps change, after all ranks agree on the settings."""
    model, optimizer, settings = setup.model, setup.optimizer, setup.settings
    canaries, stream, decay = setup.canaries, setup.stream, settings.average_decay
    require_trainable(model, optimizer)
    setup.ranks.require_same_settings(
        describe_training(model, optimizer, settings, canaries, stream, setup.plan)
    )
    if decay is None:
        return SessionState(model, optimizer, released=setup.released)
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise InvalidArgument("average_decay", decay, "None for a sharded model")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    return SessionState(model, optimizer, average, setup.released)


def _released_batch_size(settings: AttachSettings, session: Session) -> float:
    """Return the expected batch size: the given one, or one from a noisy count of records."""
    count = settings.expected_batch_size
    if not isinstance(count, NoisyCount):
        return count
    assert isinstance(settings.sampler, Poisson)
    # Recorded before the noise is drawn, like every release.
    session.record(RECORD_COUNT, count.release)
    noise = float(session.stream.normals(Purpose.COUNT_NOISE, 0, 1)[0])
    noisy = count.records + count.noise_multiplier * noise
    return max(1.0, settings.sampler.sampling_rate * noisy)


def _trainable_size(model: nn.Module) -> int:
    """Return the number of trainable parameters, entry by entry."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _require_canaries_fit(canaries: RunCanaries | None, settings: AttachSettings) -> None:
    """Refuse gradient canaries that would not be sampled or observed as records are."""
    if canaries is None or not canaries.has_gradient_canaries:
        return
    if not isinstance(settings.sampler, Poisson):
        allowed = "Poisson with gradient canaries: they are drawn by coins of its sampling rate"
        raise InvalidArgument("sampler", settings.sampler, allowed)
    if isinstance(settings.noise, Banded):
        allowed = "independent between steps with gradient canaries"
        raise InvalidArgument("noise", settings.noise, allowed)


def _require_kinds(canaries: object, seed: object) -> None:
    """Refuse canaries or a seed of the wrong type, before anything is drawn."""
    if not isinstance(canaries, GradientCanaries | None):
        raise InvalidArgument("canaries", canaries, "GradientCanaries(count), or None")
    if seed is not None:
        require_count("seed", cast(int, seed), least=0)
