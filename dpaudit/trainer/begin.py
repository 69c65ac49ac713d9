"""DP-SGD for a training loop of one's own: the step becomes private, all else stays.

private = make_private(model, optimizer, noise_multiplier=1.1, clip_norm=1.0,
                       sampling_rate=0.01, expected_batch_size=64)
for batch in private.batches(dataset):
    private.step(per_sample_loss, batch)
private.epsilon(delta=1e-5)
private.finish(delta=1e-5)  # with ledger="runs/mine/ledger.jsonl": runs/mine is a run directory
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import dpaudit
from dpaudit.runs.ledger_file import LedgerWriter, read_unfinished
from dpaudit.trainer.added_noise import AddedNoise, Independent
from dpaudit.trainer.books import Book, MemoryBook
from dpaudit.trainer.checkpoint import (
    read_newest_checkpoint,
    read_newest_progress,
)
from dpaudit.trainer.clip_rules import Always, ClipRule, Scheduled
from dpaudit.trainer.engine import Clipping, Flat
from dpaudit.trainer.finishing import new_ledger
from dpaudit.trainer.peers import Peers, peers
from dpaudit.trainer.private import Private, Started
from dpaudit.trainer.randomness import Keystream
from dpaudit.trainer.recipe import Constant, Recipe, Schedule
from dpaudit.trainer.sampling import Poisson, Sampler
from dpaudit.vocabulary.errors import (
    IntegrityError,
    InvalidArgument,
)
from dpaudit.vocabulary.ledger import LedgerHeader, Resumed


def make_private(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    noise_multiplier: float | Schedule,
    clip_norm: float | Schedule = 1.0,
    sampling_rate: float | None = None,
    expected_batch_size: float,
    sampler: Sampler | None = None,
    clipping: Clipping | ClipRule | None = None,
    noise: AddedNoise | None = None,
    unit: str = "record",
    leaves_out: Sequence[str] = (),
    physical_batch_size: int | None = None,
    ledger: Path | str | None = None,
    resume: Path | str | None = None,
    seed: int | None = None,
) -> Private:
    """Return what takes private steps on ``model`` with ``optimizer``.

    In a process group of torch.distributed, each rank calls this, with a model of the same
    shape: plain, or sharded by ``fully_shard``. Each takes its part of every batch.

    Args:
        model: Any model whose records do not meet; it stays a standard PyTorch model.
        optimizer: Any of torch.optim, over the trainable parameters.
        noise_multiplier: Standard deviation of the noise over the clip norm; or a schedule.
        clip_norm: Largest L2 norm of one record's gradient, over all parameters together;
            or a schedule.
        sampling_rate: Probability with which each record joins each step.
        expected_batch_size: Public constant that the noisy sum is divided by; not the
            number of records drawn, which is secret.
        sampler: Another way of drawing, in place of ``sampling_rate``.
        clipping: Another way of clipping, in place of ``clip_norm``.
        noise: Another kind of noise than independent normals.
        unit: What one neighbour more or less is; anything but a record needs the owners of
            records in ``batches``.
        leaves_out: What else was done with the records that no claim of this run covers:
            tuning, early stopping, training losses that are shown. It is written down.
        physical_batch_size: Records in memory at once; None: about as many as plain training
            has memory for. A matter of speed alone.
        ledger: A new file to book every release in before it is made; None: memory. Its
            folder is made where it is missing, and ``runs/NAME/ledger.jsonl`` becomes the run
            directory runs/NAME by ``finish``.
        resume: A folder that ``checkpoint`` wrote: go on from there, with that ledger.
        seed: For tests alone: whoever knows it knows the noise.

    Raises:
        InvalidArgument: an argument is out of range, or the optimizer lacks a parameter.
        RunExists: the ledger's file, or another of an earlier run, is in its folder, and
            ``resume`` was not asked for.
        IntegrityError: what is to be resumed is missing, broken or another run's.
    """
    if sampler is None:
        if sampling_rate is None:
            raise InvalidArgument("sampling_rate", None, "given, or a sampler in its place")
        sampler = Poisson(sampling_rate)
    recipe = Recipe(
        sampler=sampler,
        noise_multiplier=_schedule(noise_multiplier),
        noise=noise or Independent(),
        expected_batch_size=expected_batch_size,
        physical_batch_size=physical_batch_size,
        unit=unit,
    )
    rule = _clip_rule(clipping, clip_norm)
    rule.sensitivity(0, recipe.noise_multiplier(0))  # what it refuses, it refuses now
    _require_same_parameters(model, optimizer)
    if sampler.caution:
        warnings.warn(sampler.caution, stacklevel=2)
    ranks = peers()
    stream = ranks.agreed(Keystream.of(seed))
    header = _header(recipe, rule, stream, tuple(leaves_out))
    started = Started(header, MemoryBook(), rule)
    if resume is not None:
        started = _resumed(Path(resume), ledger, model, optimizer, started, ranks)
    elif ledger is not None:
        started = _with_ledger(Path(ledger), started, ranks)
    ranks.same_start(model)
    return Private(model, optimizer, recipe, stream, ranks, started)


def _schedule(value: float | Schedule) -> Schedule:
    return value if callable(value) else Constant(value)


def _clip_rule(clipping: Clipping | ClipRule | None, clip_norm: float | Schedule) -> ClipRule:
    if clipping is None:
        return Scheduled(clip_norm) if callable(clip_norm) else Always(Flat(clip_norm))
    return clipping if isinstance(clipping, ClipRule) else Always(clipping)


def _header(
    recipe: Recipe, rule: ClipRule, stream: Keystream, leaves_out: tuple[str, ...]
) -> LedgerHeader:
    return LedgerHeader(
        adjacency=recipe.sampler.adjacency,
        sampling=recipe.sampler.kind,
        randomness=stream.randomness,
        schedule_fixed_in_advance=True,
        clip_norm=rule.at(0).sensitivity,
        versions={
            "dpaudit": dpaudit.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        run=os.urandom(16).hex(),
        leaves_out=leaves_out,
        takes_as_public=("expected batch size", "hyper-parameters"),
        unit=recipe.unit,
    )


def _with_ledger(path: Path, asked: Started, ranks: Peers) -> Started:
    """Begin a ledger, which the first rank writes."""
    book = asked.book if ranks.rank != 0 else new_ledger(path, asked.header)
    return replace(asked, book=book, ledger=path.absolute())


def _resumed(
    folder: Path,
    ledger: Path | str | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    asked: Started,
    ranks: Peers,
) -> Started:
    """Fill model and optimizer from the newest checkpoint, and go on with its ledger."""
    if ledger is None:
        raise InvalidArgument("ledger", None, "the run's own, to be resumed with it")
    path = Path(ledger)
    book = read_unfinished(path)
    for name in ("adjacency", "sampling", "clip_norm", "unit", "randomness"):
        was, is_now = getattr(book.header, name), getattr(asked.header, name)
        if was != is_now:
            raise InvalidArgument(name, is_now, f"{was!r}, as in the run that is resumed")
    progress = read_newest_progress(folder)
    if progress is None:
        raise IntegrityError(f"{folder} has no complete checkpoint to resume from")
    if progress.run != book.header.run:
        raise IntegrityError(f"{path} is the ledger of another run than {folder} is of")
    if len(book.releases) < progress.releases:
        raise IntegrityError(
            f"{path} books {len(book.releases)} releases, its checkpoint says "
            f"{progress.releases}: the ledger was cut"
        )
    read_newest_checkpoint(folder, model, optimizer)
    writer: Book = MemoryBook()
    if ranks.rank == 0:
        writer = LedgerWriter.resume(path, Resumed(progress.steps_done, asked.header.randomness))
    rule = asked.rule.at_norm(progress.clip_norm)
    releases = tuple(booked.mechanism for booked in book.releases)
    return Started(book.header, writer, rule, progress.steps_done, releases, path.absolute())


def _require_same_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [
        name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held
    ]
    if missing:
        raise InvalidArgument(
            "optimizer",
            type(optimizer).__name__,
            f"one over all trainable parameters; it lacks {', '.join(missing)} (freeze them, "
            "or add them)",
        )
