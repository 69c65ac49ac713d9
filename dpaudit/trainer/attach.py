"""DP-SGD for a training loop of your own: the step becomes private, all else stays.

private = make_private(model, optimizer, noise_multiplier=1.1, clip_norm=1.0,
                       sampling_rate=0.01, expected_batch_size=64)
for batch in private.batches(dataset):
    private.step(per_sample_loss, batch)
private.epsilon(delta=1e-5)
private.finish(delta=1e-5)  # with ledger="runs/mine/ledger.jsonl": runs/mine is a run directory
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import msgspec
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.ledger_file import read_unfinished
from dpaudit.trainer.added_noise import AddedNoise, Banded, Independent
from dpaudit.trainer.canaries import Canaries, GradientCanaries
from dpaudit.trainer.canary_file import CanaryFile
from dpaudit.trainer.checkpoint import newest_checkpoint, read_checkpoint
from dpaudit.trainer.clip_rules import Always, ClipRule, Scheduled
from dpaudit.trainer.engine import Clipping, Flat
from dpaudit.trainer.peers import Peers, peers
from dpaudit.trainer.private import Private, require_same_parameters
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.trainer.recipe import Constant, NoisyCount, Schedule, number, schedule_of
from dpaudit.trainer.request import Request
from dpaudit.trainer.sampling import Poisson, Sampler
from dpaudit.trainer.session import Session, Trained, is_run_ledger
from dpaudit.trainer.sharding import is_sharded
from dpaudit.vocabulary.errors import InvalidArgument, RunExists, require_count
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.mechanism import Gaussian
from dpaudit.vocabulary.release_names import RECORD_COUNT


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
    noise: AddedNoise | None = None,
    unit: str = "record",
    leaves_out: Sequence[str] = (),
    physical_batch_size: int | None = None,
    canaries: GradientCanaries | None = None,
    canary_file: Path | str | None = None,
    average_decay: float | None = None,
    ledger: Path | str | None = None,
    resume: Path | str | None = None,
    seed: int | None = None,
) -> Private:
    """Return what takes private steps on ``model`` with ``optimizer``.

    In a process group of torch.distributed, each rank calls this, with a model of the same
    shape: plain, or sharded by ``fully_shard``. Each takes its part of every batch. Ranks
    compare all their settings before the first step.

    Args:
        model: Any model whose records do not meet; it stays a standard PyTorch model.
        optimizer: Any of torch.optim, over the trainable parameters.
        noise_multiplier: Standard deviation of the noise over the clip norm; or a schedule.
        clip_norm: Largest L2 norm of one record's gradient, over all parameters together;
            or a schedule.
        sampling_rate: Probability with which each record joins each step.
        expected_batch_size: Public constant that the noisy sum is divided by; not the
            number of records drawn, which is secret. Or ``NoisyCount``, which releases one.
        sampler: Another way of drawing, in place of ``sampling_rate``.
        clipping: Another way of clipping, in place of ``clip_norm``.
        noise: Another kind of noise than independent normals.
        unit: What one neighbour more or less is; anything but a record needs the owners of
            records in ``batches``.
        leaves_out: What else was done with the records that no claim of this run covers:
            tuning, early stopping, training losses that are shown. It is written down.
        physical_batch_size: Records in memory at once; None: about as many as plain training
            has memory for. A matter of speed alone.
        canaries: Gradient canaries, whose traces ``dpaudit audit`` turns into lower bounds.
            Their files are written beside the ledger, if that is in a run directory.
        canary_file: What ``dpaudit canaries make`` wrote for the trainer. Its canaries must be
            among the records of ``batches``. The ledger holds its digest before the first step,
            so that ``dpaudit audit RUN --canaries`` of them counts for this run.
        average_decay: What ships is an exponential average of the weights over the steps, of
            which each step keeps this much, in (0, 1); None: the last weights.
        ledger: A new file to record every release in before it is made; None: memory. Its
            folder is made where it is missing, and ``runs/NAME/ledger.jsonl`` becomes the run
            directory runs/NAME by ``finish``. A ledger without a release is begun anew.
        resume: A folder that ``checkpoint`` writes to: go on from there, with that ledger.
            Without a checkpoint in it, training begins at step 0, and what the ledger
            holds stays recorded.
        seed: For tests alone: whoever knows it knows the noise.

    Raises:
        InvalidArgument: An argument is out of range, the optimizer lacks a parameter, or
            ranks have different settings.
        RunExists: The ledger's file, or another of an earlier run, is in its folder, and
            ``resume`` was not asked for.
        IntegrityError: What is to be resumed is missing, broken or another run's.
    """
    _require_kinds(model, optimizer, canaries, seed)
    request = Request(
        sampler=_sampler(sampler, sampling_rate),
        noise_multiplier=schedule_of("noise_multiplier", noise_multiplier),
        noise=_noise(noise),
        rule=_clip_rule(clipping, clip_norm),
        expected_batch_size=_batch_size(expected_batch_size),
        physical_batch_size=physical_batch_size,
        unit=unit,
        leaves_out=leaves_out,
        average_decay=None if average_decay is None else number("average_decay", average_decay),
    )
    ranks = peers()
    stream = ranks.agreed(Keystream.of(seed))
    if request.sampler.caution:
        warnings.warn(request.sampler.caution, stacklevel=2)
    path = None if ledger is None else Path(ledger)
    planted = None if canary_file is None else CanaryFile.read(Path(canary_file))
    if resume is None:
        return begin(
            model, optimizer, request, canaries, stream, ranks, ledger=path, planted=planted
        )
    if path is None:
        raise InvalidArgument("ledger", None, "the run's own, to be resumed with it")
    return go_on(
        model,
        optimizer,
        request,
        canaries,
        stream,
        ranks,
        ledger=path,
        folder=Path(resume),
        planted=planted,
    )


def begin(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    request: Request,
    canaries: Canaries | GradientCanaries | None,
    stream: Keystream,
    ranks: Peers,
    *,
    ledger: Path | None,
    config: msgspec.Struct | None = None,
    planted: CanaryFile | None = None,
) -> Private:
    """Return the trainer of a new session.

    Args:
        model: To be trained.
        optimizer: Over its trainable parameters.
        request: What is asked of the session.
        canaries: With their coins tossed, or how many are to be made; None: there are none.
        stream: Where coins and noise come from, the same on every rank.
        ranks: Who trains.
        ledger: A new file; None: memory.
        config: Settings to be written beside the ledger, and bound to it.
        planted: Canaries of ``dpaudit canaries make`` that are among the records.

    Raises:
        InvalidArgument: See ``make_private``.
        RunExists: See ``make_private``.
    """
    trained = _trained(model, optimizer, request, stream, ranks, canaries)
    if isinstance(canaries, GradientCanaries):
        canaries = canaries.made(_trainable(model), stream)
    _require_canaries_fit(canaries, request)
    some = canaries is not None or planted is not None
    if some and ledger is not None and not is_run_ledger(ledger):
        allowed = "runs/NAME/ledger.jsonl where there are canaries: their files lie beside it"
        raise InvalidArgument("ledger", str(ledger), allowed)
    ranks.same_start(model)
    session = Session.begin(request.header(stream), stream, ranks, trained, ledger)
    with closed_on_error(session):
        session.bind(canaries, config, planted)
        private = _private(session, request, _released_batch_size(request, session), canaries)
        private.planted = planted
        return private


def go_on(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    request: Request,
    canaries: Canaries | GradientCanaries | None,
    stream: Keystream,
    ranks: Peers,
    *,
    ledger: Path,
    folder: Path,
    planted: CanaryFile | None = None,
) -> Private:
    """Return the trainer of a session that goes on from the newest checkpoint in ``folder``.

    Args:
        model: To be filled from the checkpoint.
        optimizer: To be filled from the checkpoint.
        request: What was asked of the run, and is asked again.
        canaries: What was asked of them; those that the run was begun with are taken.
        stream: Where coins and noise come from from here on, the same on every rank.
        ranks: Who trains.
        ledger: The run's own.
        folder: Where its checkpoints are.
        planted: Canaries of ``dpaudit canaries make``, as the run was begun with.

    Raises:
        InvalidArgument: A setting differs from the run's.
        IntegrityError: Ledger or checkpoint are missing, broken, or of another run.
        RunExists: The run is finished, or another process writes it.
    """
    trained = _trained(model, optimizer, request, stream, ranks, canaries)
    found = _read_unfinished(ledger)
    header = request.header(stream)
    for name in ("adjacency", "sampling", "clip_norm", "unit", "randomness", "leaves_out"):
        was, is_now = getattr(found.header, name), getattr(header, name)
        if was != is_now:
            raise InvalidArgument(name, is_now, f"{was!r}, as in the run that is resumed")
    bound = _bound_canaries(ledger, found)
    _require_same_canaries(canaries, bound)
    _require_same_planted(planted, ledger, found)
    _require_canaries_fit(bound, request)
    kept = newest_checkpoint(folder, found)
    if kept is None:
        ranks.same_start(model)
        session = Session.resume(stream, ranks, trained, ledger, step=0)
        with closed_on_error(session):
            private = _private(session, request, _released_batch_size(request, session), bound)
            private.planted = planted
            return private
    settings = request.settings_with(model, optimizer)
    for name, words in kept.progress.settings.items():
        if settings.get(name) != words:
            raise InvalidArgument(
                name, settings.get(name), f"{words}, as in the run that is resumed"
            )
    ranks.require_same("checkpoint", kept.progress.steps_done)
    observations = read_checkpoint(kept, model, optimizer, trained.average)
    session = Session.resume(
        stream,
        ranks,
        trained,
        ledger,
        step=kept.progress.steps_done,
        observations=tuple(observations),
    )
    asked = replace(request, rule=request.rule.at_norm(kept.progress.clip_norm))
    private = _private(session, asked, kept.progress.expected_batch_size, bound, settings)
    private.planted = planted
    return private


@contextmanager
def closed_on_error(session: Session) -> Iterator[None]:
    """Give the ledger back if a session cannot begin."""
    try:
        yield
    except BaseException:
        session.close()
        raise


def _private(
    session: Session,
    request: Request,
    expected_batch_size: float,
    canaries: Canaries | None,
    settings: dict[str, str] | None = None,
) -> Private:
    settings = settings or request.settings_with(session.trained.model, session.trained.optimizer)
    recipe = request.recipe(expected_batch_size)
    return Private(session, recipe, request.rule, settings, canaries)


def _trained(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    request: Request,
    stream: Keystream,
    ranks: Peers,
    canaries: Canaries | GradientCanaries | None,
) -> Trained:
    """Return what steps change, once all ranks are seen to agree on it."""
    require_same_parameters(model, optimizer)
    ranks.require_same_settings(
        {
            **request.settings_with(model, optimizer),
            "seed": stream.randomness.value,
            "optimizer settings": _optimizer_words(optimizer),
            "trainable": _trainable_words(model),
            "records": _counted(request, stream),
            "canaries": repr(canaries) if isinstance(canaries, GradientCanaries) else "",
        }
    )
    if request.average_decay is None:
        return Trained(model, optimizer)
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise InvalidArgument("average_decay", request.average_decay, "None for a sharded model")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(request.average_decay))  # type: ignore[no-untyped-call]
    return Trained(model, optimizer, average)


def _optimizer_words(optimizer: torch.optim.Optimizer) -> str:
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    return f"{type(optimizer).__name__} {groups!r}"


def _counted(request: Request, stream: Keystream) -> str:
    """Return a keyed digest of the records that are to be counted: the number is a secret."""
    asked = request.expected_batch_size
    if not isinstance(asked, NoisyCount):
        return ""
    return hashlib.sha256(stream.key + str(asked.records).encode()).hexdigest()


def _trainable_words(model: nn.Module) -> str:
    return ", ".join(name for name, p in model.named_parameters() if p.requires_grad)


def _released_batch_size(request: Request, session: Session) -> float:
    """Return the expected batch size: the one that was given, else one from a noisy count."""
    asked = request.expected_batch_size
    if not isinstance(asked, NoisyCount):
        return asked
    assert isinstance(request.sampler, Poisson)
    session.record(RECORD_COUNT, Gaussian(asked.noise_multiplier))
    noise = float(session.stream.normals(Purpose.COUNT_NOISE, 0, 1)[0])
    count = asked.records + asked.noise_multiplier * noise
    return max(1.0, request.sampler.sampling_rate * count)


def _trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _require_canaries_fit(canaries: Canaries | None, request: Request) -> None:
    """Refuse gradient canaries where they would not be drawn, or seen, as records are."""
    if canaries is None or not canaries.in_gradients:
        return
    if not isinstance(request.sampler, Poisson):
        allowed = "Poisson where there are gradient canaries: they are drawn by coins of its rate"
        raise InvalidArgument("sampler", request.sampler, allowed)
    if isinstance(request.noise, Banded):
        allowed = "independent between steps where there are gradient canaries"
        raise InvalidArgument("noise", request.noise, allowed)


def _read_unfinished(ledger: Path) -> PrivacyLedger:
    """Return a ledger that is to go on, checked against the other files of its run."""
    run = RunDirectory(ledger.parent)
    found = run.read_unfinished() if run.ledger == ledger else read_unfinished(ledger)
    if found.seal is not None:
        raise RunExists(f"{ledger.parent} is finished: there is nothing to resume")
    return found


def _bound_canaries(ledger: Path, found: PrivacyLedger) -> Canaries | None:
    """Return the canaries that an interrupted run was begun with, if any.

    Raises:
        IntegrityError: They are missing or altered.
    """
    run = RunDirectory(ledger.parent)
    if found.begun is None or run.secret_canaries.name not in found.begun.files:
        return None
    run.require_unaltered(found.begun.files)
    return Canaries.read(run)


def _require_same_canaries(
    asked: Canaries | GradientCanaries | None, bound: Canaries | None
) -> None:
    """Refuse to resume with other gradient canaries than the run was begun with."""
    if asked is bound or isinstance(asked, Canaries):
        return
    count = 0 if bound is None else len(bound.gradient_included)
    if (0 if asked is None else asked.count) != count:
        raise InvalidArgument(
            "canaries", asked, f"{count} gradient canaries, as the run began with"
        )


def _require_same_planted(asked: CanaryFile | None, ledger: Path, found: PrivacyLedger) -> None:
    """Refuse to resume with another canary file than the run was begun with."""
    run, begun = RunDirectory(ledger.parent), found.begun
    digest = None if begun is None else begun.files.get(run.planted_canaries.name)
    given = None if asked is None else hashlib.sha256(asked.content).hexdigest()
    if digest != given:
        path = None if asked is None else str(asked.path)
        raise InvalidArgument("canary_file", path, "the file that the run was begun with, or None")


def _require_kinds(model: object, optimizer: object, canaries: object, seed: object) -> None:
    """Refuse what is no model, optimizer, canaries or seed, before anything is drawn."""
    if not isinstance(model, nn.Module):
        raise InvalidArgument("model", type(model).__name__, "a torch.nn.Module")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidArgument("optimizer", type(optimizer).__name__, "a torch.optim.Optimizer")
    if not isinstance(canaries, GradientCanaries | None):
        raise InvalidArgument("canaries", canaries, "GradientCanaries(count), or None")
    if seed is not None:
        require_count("seed", cast(int, seed), least=0)


def _sampler(sampler: object, sampling_rate: object) -> Sampler:
    if sampler is None and sampling_rate is None:
        raise InvalidArgument("sampling_rate", None, "given, or a sampler in its place")
    if sampler is None:
        return Poisson(number("sampling_rate", sampling_rate))
    if not hasattr(sampler, "draw") or not hasattr(sampler, "booked"):
        raise InvalidArgument("sampler", sampler, "a sampler, as Poisson(0.01)")
    return cast(Sampler, sampler)


def _noise(noise: object) -> AddedNoise:
    if noise is None:
        return Independent()
    if not hasattr(noise, "added") or not hasattr(noise, "deviation"):
        raise InvalidArgument("noise", noise, "a kind of noise, as OnGrid()")
    return cast(AddedNoise, noise)


def _batch_size(value: object) -> float | NoisyCount:
    return value if isinstance(value, NoisyCount) else number("expected_batch_size", value)


def _clip_rule(clipping: object, clip_norm: object) -> ClipRule:
    if clipping is None:
        norm = schedule_of("clip_norm", clip_norm)
        return Always(Flat(norm.value)) if isinstance(norm, Constant) else Scheduled(norm)
    if isinstance(clipping, ClipRule):
        return clipping
    if not hasattr(clipping, "factors") or not hasattr(clipping, "sensitivity"):
        raise InvalidArgument("clipping", clipping, "a way of clipping, as PerLayer((1.0, 0.5))")
    return Always(cast(Clipping, clipping))
