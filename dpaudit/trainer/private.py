"""DP-SGD for a training loop of one's own: the step becomes private, all else stays.

    private = make_private(model, optimizer, noise_multiplier=1.1, clip_norm=1.0,
                           sampling_rate=0.01, expected_batch_size=64)
    for batch in private.batches(dataset):
        private.step(per_sample_loss, batch)
    private.epsilon(delta=1e-5)

Abadi et al. 2016, arXiv:1607.00133, Algorithm 1, with independent sampling of records.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset, default_collate

import dpaudit
from dpaudit.accountants import calibrate, pld
from dpaudit.runs.ledger_file import LedgerWriter, read_unfinished
from dpaudit.trainer.adam import tell_noise
from dpaudit.trainer.added_noise import AddedNoise, Banded, Independent, Moment, Sums, size
from dpaudit.trainer.bags import Bags, Users, averaged
from dpaudit.trainer.books import Book, MemoryBook
from dpaudit.trainer.checkpoint import (
    Progress,
    read_newest_checkpoint,
    read_newest_progress,
    write_checkpoint,
)
from dpaudit.trainer.clip_rules import Always, ClipRule, Scheduled
from dpaudit.trainer.engine import Clipping, Engine, Flat, PerSampleLoss
from dpaudit.trainer.engine.batches import Batch, count, mapped, tensors
from dpaudit.trainer.peers import Peers, peers
from dpaudit.trainer.randomness import Keystream
from dpaudit.trainer.sampling import Cyclic, Poisson, Sampler
from dpaudit.trainer.sharding import set_gradients, whole_parameters
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    BudgetExceeded,
    IntegrityError,
    InvalidArgument,
    require_count,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.ledger import BookedRelease, LedgerHeader, Randomness, Resumed
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, Release, Repeated

GRADIENT_SUM = "gradient sum"
Schedule = Callable[[int], float]
"""From the number of the step to a value; fixed before training, blind to the records."""


@dataclass(frozen=True)
class Budget:
    """What must not be exceeded: training stops before the step that would."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_delta("delta", self.delta)


@dataclass(frozen=True)
class Recipe:
    """What every step does, fixed before training.

    Attributes:
        sampler: Draws the records, or the users.
        noise_multiplier: Of each step.
        noise: What is added.
        expected_batch_size: The public constant that the noisy sum is divided by.
        physical_batch_size: Records in memory at once; None: all.
        unit: What one neighbour more or less is.
    """

    sampler: Sampler
    noise_multiplier: Schedule
    noise: AddedNoise
    expected_batch_size: float
    physical_batch_size: int | None
    unit: str

    def __post_init__(self) -> None:
        require_positive("expected_batch_size", self.expected_batch_size)
        if self.physical_batch_size is not None:
            require_count("physical_batch_size", self.physical_batch_size)
        bands = self.sampler.bands if isinstance(self.sampler, Cyclic) else None
        if bands != (self.noise.bands if isinstance(self.noise, Banded) else None):
            raise InvalidArgument(
                "noise", self.noise, "Banded(bands) together with the sampler Cyclic(bands, ...)"
            )
        if bands is not None and not isinstance(self.noise_multiplier, Constant):
            raise InvalidArgument("noise_multiplier", "a schedule", "constant with banded noise")


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
        physical_batch_size: Records in memory at once; None: all. A matter of speed alone.
        ledger: A new file to book every release in before it is made; None: memory.
        resume: A folder that ``checkpoint`` wrote: go on from there, with that ledger.
        seed: For tests alone: whoever knows it knows the noise.

    Raises:
        InvalidArgument: an argument is out of range, or the optimizer lacks a parameter.
        RunExists: the ledger's file exists, and ``resume`` was not asked for.
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
    header = _header(recipe, rule, stream)
    started = Started(header, MemoryBook(), rule)
    if resume is not None:
        started = _resumed(Path(resume), ledger, model, optimizer, started, ranks)
    elif ledger is not None and ranks.rank == 0:
        started = Started(header, LedgerWriter.create(Path(ledger), header), rule)
    ranks.same_start(model)
    return Private(model, optimizer, recipe, stream, ranks, started)


@dataclass(frozen=True)
class Started:
    """Where a run begins, or goes on.

    Attributes:
        header: Of its ledger.
        book: Where its releases are booked.
        rule: How clipping stands.
        step: How many steps were taken before.
        releases: What was booked before.
    """

    header: LedgerHeader
    book: Book
    rule: ClipRule
    step: int = 0
    releases: tuple[Release, ...] = ()


def _schedule(value: float | Schedule) -> Schedule:
    return value if callable(value) else Constant(value)


def _clip_rule(clipping: Clipping | ClipRule | None, clip_norm: float | Schedule) -> ClipRule:
    if clipping is None:
        return Scheduled(clip_norm) if callable(clip_norm) else Always(Flat(clip_norm))
    return clipping if isinstance(clipping, ClipRule) else Always(clipping)


def _header(recipe: Recipe, rule: ClipRule, stream: Keystream) -> LedgerHeader:
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
        takes_as_public=("expected batch size", "hyper-parameters"),
        unit=recipe.unit,
    )


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
    return Started(book.header, writer, rule, progress.steps_done, releases)


@dataclass(frozen=True)
class Constant:
    """The same in every step."""

    value: float

    def __post_init__(self) -> None:
        require_positive("noise_multiplier", self.value)

    def __call__(self, step: int) -> float:
        """Return the value."""
        return self.value


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


class Private:
    """Private steps on one model: made by ``make_private``."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        stream: Keystream,
        ranks: Peers,
        started: Started,
    ) -> None:
        self.model, self.optimizer, self.recipe = model, optimizer, recipe
        self.header, self.clip_rule = started.header, started.rule
        self._stream, self._ranks, self._book = stream, ranks, started.book
        self._engine = Engine(model, self._losses)
        self._loss: PerSampleLoss
        self._booked: dict[Release, int] = {}
        for release in started.releases:
            self._booked[release] = self._booked.get(release, 0) + 1
        self._budget: Budget | None = None
        self._room: dict[Release, int] = {}  # how many more the budget was seen to allow
        self.steps = self._drawn = started.step
        self._most = 0  # records, or users, that the batch at hand was drawn with
        seeded = stream.randomness is Randomness.SEEDED
        self._first = 0 if seeded else started.step  # where this key began

    def batches(
        self, dataset: Any, *, steps: int | None = None, users: Users | None = None
    ) -> Iterator[Batch]:
        """Yield the batch of each step, for ``steps`` steps or about one pass.

        Args:
            dataset: Tensors with records first, in a tuple, dict or dataclass; or anything
                with a length and records by index, as torch's own.
            steps: How many; None: as many as draw each record once, on average.
            users: Whose the records are: users are drawn in their place, and what is
                yielded are ``Bags``. Needed where ``unit`` is anything but a record.

        Ends before the step that would exceed the budget of ``stop_at``.
        """
        if (users is None) != (self.recipe.unit == "record"):
            raise InvalidArgument(
                "users", users, f"given if, and only if, the unit is another than a record; it "
                f"is {self.recipe.unit!r}",
            )  # fmt: skip
        take = _source(dataset, users)
        sampler = self.recipe.sampler
        for _ in range(sampler.steps_in_a_pass if steps is None else steps):
            if self._drawn > self.steps:
                raise InvalidArgument(
                    "batches", "a batch that no step was taken on", "answered by private.step: "
                    "a batch that is looked at and dropped was drawn in vain",
                )  # fmt: skip
            if not self._may_go_on():
                return
            drawn = self._ranks.share(sampler.draw(self._stream, self.steps, take.records))
            batch = take(drawn, self._stream, self.steps)
            self._drawn, self._most = self._drawn + 1, len(drawn)
            yield batch

    def step(self, per_sample_loss: PerSampleLoss, batch: Batch) -> None:
        """Take one private step on a batch of ``batches``.

        Args:
            per_sample_loss: (model, batch) to losses of shape ``(records,)``.
            batch: What ``batches`` yielded, moved or changed as you like, record by record;
                or ``Bags`` of it, whose rows' losses are averaged before anything is clipped.

        Raises:
            InvalidArgument: the batch was not drawn here, or the model mixes records.
            BudgetExceeded: one step more would exceed the budget.
        """
        if self._drawn <= self.steps:
            raise InvalidArgument(
                "batch", "one that was not drawn by private.batches", "drawn by it, one a step: "
                "what is booked is how it draws",
            )  # fmt: skip
        if count(batch) > self._most:
            raise InvalidArgument(
                "batch", "one of more records than were drawn", "changed record by record: "
                "several rows of one record, as its views, go into Bags",
            )  # fmt: skip
        if not self._may_go_on():
            raise BudgetExceeded("one step more would exceed the budget that was set")
        self._loss = averaged(per_sample_loss) if isinstance(batch, Bags) else per_sample_loss
        noise_multiplier = self.recipe.noise_multiplier(self.steps)
        norm = self.clip_rule.sensitivity(self.steps, noise_multiplier)
        with whole_parameters(self.model):
            self._engine.require_independence(batch)
            self._note(self._to_book(noise_multiplier, self.steps))
            sums = self._clipped_sums(batch, noise_multiplier)
        self._ranks.add_up(sums)
        moment = Moment(self._stream, self.steps, self._first)
        self.steps += 1  # from here on, whatever fails: this step's noise is not used again
        noise, expected = self.recipe.noise, self.recipe.expected_batch_size
        deviation = noise.deviation(noise_multiplier, norm, size(sums), moment)
        noisy = noise.added(sums, moment, noise_multiplier, norm)
        self.clip_rule = self.clip_rule.after(noisy, noise_multiplier, expected)
        self._descend(noisy, deviation)

    def checkpoint(self, folder: Path | str) -> None:
        """Write model, optimizer and progress into ``folder``; the newest two are kept.

        No key is written: a run that is resumed draws a fresh one, and books the steps that
        it takes again. What was released meanwhile stays booked.

        Raises:
            InvalidArgument: the run has no ledger that could be resumed with it.
        """
        if self._ranks.rank != 0:
            return
        if not isinstance(self._book, LedgerWriter):
            raise InvalidArgument("ledger", None, "a file, so that a resumed run goes on with it")
        progress = Progress(
            self.steps,
            self._book.releases,
            self.recipe.expected_batch_size,
            clip_norm=self.clip_rule.learned,
            run=self.header.run,
        )
        write_checkpoint(Path(folder), progress, self.model, self.optimizer, [])

    def epsilon(self, *, delta: float) -> Bound:
        """Return the certified interval of epsilon of all that was released so far."""
        if not self._booked:
            return Bound(0.0, 0.0)
        return pld.profile(self._spent(), adjacency=self.header.adjacency).epsilon(delta=delta)

    def stop_at(self, *, epsilon: float, delta: float) -> None:
        """Let ``batches`` end before the step that would cost more than ``epsilon``."""
        self._budget, self._room = Budget(epsilon, delta), {}

    def _losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self._loss(model, batch)

    def _clipped_sums(self, batch: Batch, noise_multiplier: float) -> Sums:
        clipping = self.clip_rule.at(self.steps)
        clipped = self._engine.clipped_sum(batch, clipping, self.recipe.physical_batch_size)
        return {**clipped.sums, **self.clip_rule.beside(clipped, noise_multiplier)}

    def _descend(self, noisy: Sums, deviation: float) -> None:
        expected = self.recipe.expected_batch_size
        set_gradients(self.model, noisy, expected)
        tell_noise(self.optimizer, deviation / expected)
        self.optimizer.step()

    def _to_book(self, noise_multiplier: float, step: int) -> Release | None:
        return self.recipe.sampler.booked(Gaussian(noise_multiplier), step, self._first)

    def _note(self, release: Release | None) -> None:
        if release is not None:
            self._book.book(BookedRelease(GRADIENT_SUM, release, step=self.steps))
            self._booked[release] = self._booked.get(release, 0) + 1
            self._room = {release: self._room.get(release, 0) - 1}

    def _spent(self, more: Release | None = None, times: int = 0) -> Mechanism:
        parts = [Repeated(release, count) for release, count in self._booked.items()]
        return Composed((*parts, *([Repeated(more, times)] if more is not None else [])))

    def _may_go_on(self) -> bool:
        """Return whether the budget, if any, has room for the next step.

        How many releases like its own fit is asked once, and again when they are used up.
        """
        if self._budget is None:
            return True
        following = self._to_book(self.recipe.noise_multiplier(self.steps), self.steps)
        if following is None or self._room.get(following, 0) > 0:
            return True
        with suppress(InvalidArgument):  # not even one
            found = calibrate.steps(
                lambda times: self._spent(following, times),
                target_epsilon=self._budget.epsilon,
                delta=self._budget.delta,
                adjacency=self.header.adjacency,
            )
            self._room = {following: found.value}
            return True
        return False


@dataclass(frozen=True)
class _Source:
    """Where batches come from.

    Attributes:
        records: How many records, or users, there are to draw from.
        rows: Takes the records at some positions.
        users: Whose they are, if users are drawn.
    """

    records: int
    rows: Callable[[NDArray[np.int64]], Batch]
    users: Users | None = None

    def __call__(self, drawn: NDArray[np.int64], stream: Keystream, step: int) -> Batch:
        if self.users is None:
            return self.rows(drawn)
        chosen, weights = self.users.rows_of(drawn, stream, step)
        flat = self.rows(chosen.flatten())
        apart = mapped(flat, lambda tensor: tensor.reshape(*chosen.shape, *tensor.shape[1:]))
        return Bags(apart, weights)


def _source(dataset: Any, users: Users | None) -> _Source:
    """Return where batches come from: how many there are, and how to take some of them."""
    if isinstance(dataset, TensorDataset):
        dataset = dataset.tensors
    records, rows = _tensor_rows(dataset) if tensors(dataset) else _indexed_rows(dataset)
    if users is None:
        return _Source(records, rows)
    if users.records != records:
        raise InvalidArgument("owners", users.records, f"one for each of {records} records")
    return _Source(len(users), rows, users)


Rows = Callable[[NDArray[np.int64]], Batch]


def _tensor_rows(dataset: Batch) -> tuple[int, Rows]:
    return count(dataset), lambda which: mapped(dataset, lambda t: t[torch.from_numpy(which)])


def _indexed_rows(dataset: Any) -> tuple[int, Rows]:
    if not isinstance(dataset, Sized) or len(dataset) == 0:
        raise InvalidArgument("dataset", type(dataset).__name__, "tensors, or records by index")
    one = default_collate([dataset[0]])  # type: ignore[index]
    nothing = mapped(one, lambda tensor: tensor[:0])

    def take(which: NDArray[np.int64]) -> Batch:
        return default_collate([dataset[int(i)] for i in which]) if len(which) else nothing  # type: ignore[index]

    return len(dataset), take
