"""Attach differential privacy to your own training loop.

The optimizer step becomes private; everything else stays as it is::

    private = make_private(model, optimizer, noise_multiplier=1.1, clip_norm=1.0,
                           sampling_rate=0.01, expected_batch_size=64)
    for batch in private.batches(dataset):
        private.step(per_sample_loss, batch)
    private.epsilon(delta=1e-5)
    private.finish(delta=1e-5)  # with ledger="runs/mine/ledger.jsonl"

``dpaudit train`` uses the same functions.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

import msgspec
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.ledger_file import read_unfinished
from dpaudit.trainer.batches.samplers import Poisson, Sampler
from dpaudit.trainer.canaries.canary_file import CanaryFile
from dpaudit.trainer.canaries.run_canaries import GradientCanaries, RunCanaries
from dpaudit.trainer.clip_rules import ClipRule, ConstantClipping, Scheduled
from dpaudit.trainer.distributed import RankGroup, current_ranks, is_sharded
from dpaudit.trainer.engine import Clipping, Flat
from dpaudit.trainer.noise.gradient_noise import Banded, GradientNoise, Independent
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.private import Private, require_all_parameters
from dpaudit.trainer.session.checkpoint import newest_checkpoint, read_checkpoint
from dpaudit.trainer.session.settings import (
    AttachSettings,
    ConstantSchedule,
    NoisyCount,
    Schedule,
    to_float,
    to_schedule,
)
from dpaudit.trainer.session.training_session import Session, SessionState, is_run_ledger
from dpaudit.vocabulary.errors import InvalidArgument, RunExists, require_count
from dpaudit.vocabulary.ledger import RECORD_COUNT, PrivacyLedger
from dpaudit.vocabulary.mechanism import Gaussian


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
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: AttachSettings
    canaries: RunCanaries | GradientCanaries | None
    stream: Keystream
    ranks: RankGroup
    canary_file: CanaryFile | None = None


def make_private(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    noise_multiplier: float | Schedule,
    clip_norm: float | Schedule = 1.0,
    sampling_rate: float | None = None,
    expected_batch_size: float | NoisyCount,
    sampler: Sampler | None = None,
    clipping: Clipping | ClipRule | None = None,
    noise: GradientNoise | None = None,
    unit: str = "record",
    unaccounted: Sequence[str] = (),
    physical_batch_size: int | None = None,
    canaries: GradientCanaries | None = None,
    canary_file: Path | str | None = None,
    average_decay: float | None = None,
    ledger: Path | str | None = None,
    resume: Path | str | None = None,
    seed: int | None = None,
) -> Private:
    """Return a trainer that takes private steps on ``model`` with ``optimizer``.

    In a process group of torch.distributed, each rank calls this with a model of the same shape:
    plain, or sharded by ``fully_shard``. Each rank processes its part of every batch. Ranks
    compare all settings before the first step.

    Args:
        model: Any model that processes each record independently; it is not wrapped.
        optimizer: Any optimizer of torch, over all trainable parameters.
        noise_multiplier: Noise standard deviation over the sensitivity (the clip norm, for plain
            clipping); or a schedule, from the number of the step to a value.
        clip_norm: Largest L2 norm of one record's gradient, over all parameters together; or a
            schedule.
        sampling_rate: Probability with which each record joins each step, in (0, 1].
        expected_batch_size: Public constant that noisy sums are divided by, in records. It is not
            the number of drawn records, which is secret. ``NoisyCount`` releases one.
        sampler: Another sampler than Poisson sampling, in place of ``sampling_rate``.
        clipping: Another clipping or clip rule, in place of ``clip_norm``.
        noise: Another kind of noise; None: independent normals.
        unit: What neighboring data sets differ in: ``record`` or ``user``. Users need the owners
            of records in ``batches``.
        unaccounted: Other uses of the records that no claim of this run covers, as tuning, early
            stopping or printed training losses. The ledger records them.
        physical_batch_size: Records in memory at once; None: about as many as plain training has
            memory for. Affects speed alone.
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
        resume: A folder that ``checkpoint`` wrote to: continue from its newest checkpoint, with
            the same ledger. Without a checkpoint, training begins at step 0, and the ledger's
            releases still count.
        seed: For tests only: the noise can be computed from the seed.

    Returns:
        The trainer.

    Raises:
        InvalidArgument: If an argument is out of range, the optimizer lacks a parameter, or ranks
            have different settings.
        RunExists: If the ledger, or another file of an earlier run, is in the folder, and
            ``resume`` is None.
        IntegrityError: If the run to be resumed is missing files, broken, or another run's.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(3, 1)
        >>> private = make_private(
        ...     model, torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=1.0,
        ...     sampling_rate=0.5, expected_batch_size=4)
        >>> def per_sample_loss(model, batch):
        ...     features, targets = batch
        ...     return (model(features)[:, 0] - targets) ** 2
        >>> for batch in private.batches((torch.randn(8, 3), torch.randn(8)), steps=3):
        ...     private.step(per_sample_loss, batch)
        >>> private.steps
        3
        >>> 0 < private.epsilon(delta=1e-5).upper < 10
        True
    """
    _require_kinds(model, optimizer, canaries, seed)
    settings = AttachSettings(
        sampler=_sampler(sampler, sampling_rate),
        noise_multiplier=to_schedule("noise_multiplier", noise_multiplier),
        noise=_noise(noise),
        rule=_clip_rule(clipping, clip_norm),
        expected_batch_size=_batch_size(expected_batch_size),
        physical_batch_size=physical_batch_size,
        unit=unit,
        unaccounted=unaccounted,
        average_decay=None if average_decay is None else to_float("average_decay", average_decay),
    )
    ranks = current_ranks()
    stream = ranks.broadcast_stream(Keystream.of(seed))
    if settings.sampler.caution:
        warnings.warn(settings.sampler.caution, stacklevel=2)
    path = None if ledger is None else Path(ledger)
    file = None if canary_file is None else CanaryFile.read(Path(canary_file))
    setup = TrainingSetup(model, optimizer, settings, canaries, stream, ranks, file)
    if resume is None:
        return begin_training(setup, ledger=path)
    if path is None:
        raise InvalidArgument("ledger", None, "the ledger of the run that is resumed")
    return resume_training(setup, ledger=path, folder=Path(resume))


def begin_training(
    setup: TrainingSetup, *, ledger: Path | None, config: msgspec.Struct | None = None
) -> Private:
    """Return the trainer of a new session.

    Args:
        setup: Model, optimizer, settings, canaries, keystream and ranks.
        ledger: A new file; None: releases are recorded in memory.
        config: Settings to write beside the ledger, which records their digest.

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
    if ledger is not None:
        _close_unused(ledger)
    session = Session.begin(settings.header(stream), stream, ranks, trained, ledger)
    if ledger is not None:
        _SESSIONS[ledger.absolute()] = session
    with close_on_error(session):
        session.bind(canaries, config, file)
        return _private(setup, session, _released_batch_size(settings, session), canaries)


_SESSIONS: WeakValueDictionary[Path, Session] = WeakValueDictionary()
"""The newest session of this process by ledger: a notebook keeps one that failed."""


def _close_unused(ledger: Path) -> None:
    """Close an earlier session of this process on the ledger, if it has recorded nothing.

    After an error in its first step, a variable or the traceback keeps the session, and with it
    the lock of the ledger. It holds no release, so a new one may replace it.
    """
    earlier = _SESSIONS.get(ledger.absolute())
    if earlier is not None and not earlier.recorded:
        earlier.close()


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
    found = _read_unfinished(ledger)
    header = settings.header(stream)
    # The header holds for the whole ledger, so a resumed run must have the same one.
    for name in ("adjacency", "sampling", "clip_norm", "unit", "randomness", "unaccounted"):
        recorded, given = getattr(found.header, name), getattr(header, name)
        if recorded != given:
            raise InvalidArgument(name, given, f"{recorded!r}, as in the run that is resumed")
    canaries = _recorded_canaries(ledger, found)
    _require_same_canaries(setup.canaries, canaries)
    _require_same_canary_file(setup.canary_file, ledger, found)
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
    return Private(session, step_settings, setup.settings.rule, texts, canaries, setup.canary_file)


def _session_state(setup: TrainingSetup) -> SessionState:
    """Return the state that steps change, after all ranks agree on the settings."""
    model, optimizer, settings = setup.model, setup.optimizer, setup.settings
    canaries, stream, decay = setup.canaries, setup.stream, settings.average_decay
    require_all_parameters(model, optimizer)
    setup.ranks.require_same_settings(
        {
            **settings.settings_with(model, optimizer),
            "seed": stream.randomness.value,
            "optimizer settings": _describe_optimizer(optimizer),
            "trainable": _describe_trainable(model),
            "records": _record_count_digest(settings, stream),
            "canaries": repr(canaries) if isinstance(canaries, GradientCanaries) else "",
        }
    )
    if decay is None:
        return SessionState(model, optimizer)
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise InvalidArgument("average_decay", decay, "None for a sharded model")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    return SessionState(model, optimizer, average)


def _describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Return an optimizer's class and the settings of its groups."""
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__} {groups!r}"


def _record_count_digest(settings: AttachSettings, stream: Keystream) -> str:
    """Return a keyed digest of the number of records that is counted, as it is secret."""
    count = settings.expected_batch_size
    if not isinstance(count, NoisyCount):
        return ""
    return hashlib.sha256(stream.key + str(count.records).encode()).hexdigest()


def _describe_trainable(model: nn.Module) -> str:
    """Return the names of the trainable parameters."""
    return ", ".join(name for name, p in model.named_parameters() if p.requires_grad)


def _released_batch_size(settings: AttachSettings, session: Session) -> float:
    """Return the expected batch size: the given one, or one from a noisy count of records."""
    count = settings.expected_batch_size
    if not isinstance(count, NoisyCount):
        return count
    assert isinstance(settings.sampler, Poisson)
    # Recorded before the noise is drawn, like every release.
    session.record(RECORD_COUNT, Gaussian(count.noise_multiplier))
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


def _read_unfinished(ledger: Path) -> PrivacyLedger:
    """Return the ledger of an unfinished run, checked against the run's other files."""
    run = RunDirectory(ledger.parent)
    found = run.read_unfinished() if run.ledger == ledger else read_unfinished(ledger)
    if found.seal is not None:
        raise RunExists(f"{ledger.parent} is finished: there is nothing to resume")
    return found


def _recorded_canaries(ledger: Path, found: PrivacyLedger) -> RunCanaries | None:
    """Return the canaries that an interrupted run was begun with, if any; refuse altered files."""
    run = RunDirectory(ledger.parent)
    if found.begun is None or run.secret_canaries.name not in found.begun.files:
        return None
    run.require_unaltered(found.begun.files)
    return RunCanaries.read(run)


def _require_same_canaries(
    given: RunCanaries | GradientCanaries | None, recorded: RunCanaries | None
) -> None:
    """Refuse to resume with another number of gradient canaries than the run began with."""
    if given is recorded or isinstance(given, RunCanaries):
        return
    count = 0 if recorded is None else len(recorded.gradient_included)
    if (0 if given is None else given.count) != count:
        raise InvalidArgument(
            "canaries", given, f"{count} gradient canaries, as at the beginning of the run"
        )


def _require_same_canary_file(given: CanaryFile | None, ledger: Path, found: PrivacyLedger) -> None:
    """Refuse to resume with another canary file than the one at the run's beginning."""
    run, begun = RunDirectory(ledger.parent), found.begun
    recorded = None if begun is None else begun.files.get(run.canary_file_copy.name)
    digest = None if given is None else hashlib.sha256(given.content).hexdigest()
    if recorded != digest:
        path = None if given is None else str(given.path)
        raise InvalidArgument("canary_file", path, "the file that the run was begun with, or None")


def _require_kinds(model: object, optimizer: object, canaries: object, seed: object) -> None:
    """Refuse a model, optimizer, canaries or seed of the wrong type, before anything is drawn."""
    if not isinstance(model, nn.Module):
        raise InvalidArgument("model", type(model).__name__, "a torch.nn.Module")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidArgument("optimizer", type(optimizer).__name__, "a torch.optim.Optimizer")
    if not isinstance(canaries, GradientCanaries | None):
        raise InvalidArgument("canaries", canaries, "GradientCanaries(count), or None")
    if seed is not None:
        require_count("seed", cast(int, seed), least=0)


def _sampler(sampler: object, sampling_rate: object) -> Sampler:
    """Return the given sampler, or Poisson sampling at the given rate."""
    if sampler is None and sampling_rate is None:
        raise InvalidArgument("sampling_rate", None, "given, unless there is a sampler")
    if sampler is None:
        return Poisson(to_float("sampling_rate", sampling_rate))
    if not hasattr(sampler, "draw") or not hasattr(sampler, "release_at"):
        raise InvalidArgument("sampler", sampler, "a sampler, as Poisson(0.01)")
    return cast(Sampler, sampler)


def _noise(noise: object) -> GradientNoise:
    """Return the given noise, or independent noise."""
    if noise is None:
        return Independent()
    if not hasattr(noise, "add_noise") or not hasattr(noise, "deviation"):
        raise InvalidArgument("noise", noise, "a kind of noise, as OnGrid()")
    return cast(GradientNoise, noise)


def _batch_size(value: object) -> float | NoisyCount:
    """Return the expected batch size as a float, or the noisy count."""
    return value if isinstance(value, NoisyCount) else to_float("expected_batch_size", value)


def _clip_rule(clipping: object, clip_norm: object) -> ClipRule:
    """Return the clip rule from ``clipping``, or from ``clip_norm`` if that is None."""
    if clipping is None:
        norm = to_schedule("clip_norm", clip_norm)
        return (
            ConstantClipping(Flat(norm.value))
            if isinstance(norm, ConstantSchedule)
            else Scheduled(norm)
        )
    if isinstance(clipping, ClipRule):
        return clipping
    if not hasattr(clipping, "factors") or not hasattr(clipping, "sensitivity"):
        raise InvalidArgument("clipping", clipping, "a kind of clipping, as PerLayer((1.0, 0.5))")
    return ConstantClipping(cast(Clipping, clipping))
