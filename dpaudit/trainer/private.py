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
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset, default_collate

import dpaudit
from dpaudit.accountants import calibrate, pld
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.trainer.engine import Clipping, Engine, Flat, PerSampleLoss
from dpaudit.trainer.engine.batches import Batch, count, mapped, tensors
from dpaudit.trainer.noise import normals
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.trainer.sampling import Poisson, Sampler
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    BudgetExceeded,
    InvalidArgument,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.ledger import BookedRelease, LedgerHeader
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, Release, Repeated

GRADIENT_SUM = "gradient sum"
Schedule = Callable[[int], float]
"""From the number of the step to a value; fixed before training, blind to the records."""


class Book(Protocol):
    """Where releases are booked; when ``book`` returns, the release counts."""

    def book(self, release: BookedRelease) -> None:
        """Book one release."""


class MemoryBook:
    """A book that is gone with the process."""

    def book(self, release: BookedRelease) -> None:
        """Book one release."""


@dataclass(frozen=True)
class Budget:
    """What must not be exceeded: training stops before the step that would."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_delta("delta", self.delta)


def make_private(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    noise_multiplier: float | Schedule,
    clip_norm: float = 1.0,
    sampling_rate: float | None = None,
    expected_batch_size: float,
    sampler: Sampler | None = None,
    clipping: Clipping | None = None,
    physical_batch_size: int | None = None,
    ledger: Path | str | None = None,
    seed: int | None = None,
) -> Private:
    """Return what takes private steps on ``model`` with ``optimizer``.

    Args:
        model: Any model whose records do not meet; it stays a standard PyTorch model.
        optimizer: Any of torch.optim, over the trainable parameters.
        noise_multiplier: Standard deviation of the noise over the clip norm; or a schedule.
        clip_norm: Largest L2 norm of one record's gradient, over all parameters together.
        sampling_rate: Probability with which each record joins each step.
        expected_batch_size: Public constant that the noisy sum is divided by; not the
            number of records drawn, which is secret.
        sampler: Another way of drawing, in place of ``sampling_rate``.
        clipping: Another way of clipping, in place of ``clip_norm``.
        physical_batch_size: Records in memory at once; None: all. A matter of speed alone.
        ledger: A new file to book every release in before it is made; None: memory.
        seed: For tests alone: whoever knows it knows the noise.

    Raises:
        InvalidArgument: an argument is out of range, or the optimizer lacks a parameter.
        RunExists: the ledger's file exists.
    """
    require_positive("expected_batch_size", expected_batch_size)
    if sampler is None:
        if sampling_rate is None:
            raise InvalidArgument("sampling_rate", None, "given, or a sampler in its place")
        sampler = Poisson(sampling_rate)
    _require_same_parameters(model, optimizer)
    if sampler.caution:
        warnings.warn(sampler.caution, stacklevel=2)
    stream = Keystream.of(seed)
    clipping = clipping or Flat(clip_norm)
    header = LedgerHeader(
        adjacency=sampler.adjacency,
        sampling=sampler.kind,
        randomness=stream.randomness,
        schedule_fixed_in_advance=True,
        clip_norm=clipping.sensitivity,
        versions={
            "dpaudit": dpaudit.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        run=os.urandom(16).hex(),
        takes_as_public=("expected batch size", "hyper-parameters"),
    )
    book = MemoryBook() if ledger is None else LedgerWriter.create(Path(ledger), header)
    return Private(
        model=model,
        optimizer=optimizer,
        noise_multiplier=noise_multiplier if callable(noise_multiplier) else Constant(
            noise_multiplier
        ),
        clipping=clipping,
        sampler=sampler,
        expected_batch_size=expected_batch_size,
        physical_batch_size=physical_batch_size,
        stream=stream,
        header=header,
        book=book,
    )  # fmt: skip


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
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        noise_multiplier: Schedule,
        clipping: Clipping,
        sampler: Sampler,
        expected_batch_size: float,
        physical_batch_size: int | None,
        stream: Keystream,
        header: LedgerHeader,
        book: Book,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.header, self.sampler, self.clipping = header, sampler, clipping
        self._noise_multiplier, self._book, self._stream = noise_multiplier, book, stream
        self._expected, self._chunk = expected_batch_size, physical_batch_size
        self._engine = Engine(model, self._losses)
        self._loss: PerSampleLoss
        self._booked: dict[Release, int] = {}
        self._budget: Budget | None = None
        self._allowed = 0  # steps that the budget was seen to allow
        self.steps = 0
        self._drawn = 0

    def batches(self, dataset: Any, *, steps: int | None = None) -> Iterator[Batch]:
        """Yield the batch of each step, for ``steps`` steps or about one pass.

        Args:
            dataset: Tensors with records first, in a tuple, dict or dataclass; or anything
                with a length and records by index, as torch's own.
            steps: How many; None: as many as draw each record once, on average.

        Ends before the step that would exceed the budget of ``stop_at``.
        """
        records, take = _source(dataset)
        for _ in range(self.sampler.steps_in_a_pass if steps is None else steps):
            if self._drawn > self.steps:
                raise InvalidArgument(
                    "batches", "a batch that no step was taken on", "answered by private.step: "
                    "a batch that is looked at and dropped was drawn in vain",
                )  # fmt: skip
            if not self._may_go_on():
                return
            self._drawn += 1
            yield take(self.sampler.draw(self._stream, self.steps, records))

    def step(self, per_sample_loss: PerSampleLoss, batch: Batch) -> None:
        """Take one private step on a batch of ``batches``.

        Args:
            per_sample_loss: (model, batch) to losses of shape ``(records,)``.
            batch: What ``batches`` yielded, moved or changed as you like, record by record.

        Raises:
            InvalidArgument: the batch was not drawn here, or the model mixes records.
            BudgetExceeded: one step more would exceed the budget.
        """
        if self._drawn <= self.steps:
            raise InvalidArgument(
                "batch", "one that was not drawn by private.batches", "drawn by it, one a step: "
                "what is booked is how it draws",
            )  # fmt: skip
        if not self._may_go_on():
            raise BudgetExceeded("one step more would exceed the budget that was set")
        self._loss = per_sample_loss
        self._engine.require_independence(batch)
        noise_multiplier = self._noise_multiplier(self.steps)
        self._note(self.sampler.booked(Gaussian(noise_multiplier), self.steps))
        clipped = self._engine.clipped_sum(batch, self.clipping, self._chunk)
        self._add_noise(clipped.sums, noise_multiplier * self.clipping.sensitivity)
        for name, parameter in self._engine.parameters.items():
            parameter.grad = clipped.sums[name].div_(self._expected).to(parameter.dtype)
        self.optimizer.step()
        self.steps += 1

    def epsilon(self, *, delta: float) -> Bound:
        """Return the certified interval of epsilon of all that was released so far."""
        if not self._booked:
            return Bound(0.0, 0.0)
        return pld.profile(self._spent(), adjacency=self.header.adjacency).epsilon(delta=delta)

    def stop_at(self, *, epsilon: float, delta: float) -> None:
        """Let ``batches`` end before the step that would cost more than ``epsilon``."""
        self._budget, self._allowed = Budget(epsilon, delta), self.steps

    def _losses(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self._loss(model, batch)

    def _note(self, release: Release | None) -> None:
        if release is not None:
            self._book.book(BookedRelease(GRADIENT_SUM, release, step=self.steps))
            self._booked[release] = self._booked.get(release, 0) + 1

    def _spent(self, more: Release | None = None, times: int = 0) -> Mechanism:
        parts = [Repeated(release, count) for release, count in self._booked.items()]
        return Composed((*parts, *([Repeated(more, times)] if more is not None else [])))

    def _may_go_on(self) -> bool:
        """Return whether the budget, if any, has room for the next step.

        How many steps like it fit is asked once, and again when they are used up.
        """
        if self._budget is None or self.steps < self._allowed:
            return True
        following = self.sampler.booked(Gaussian(self._noise_multiplier(self.steps)), self.steps)
        if following is None:
            return True
        with suppress(InvalidArgument):  # not even one
            found = calibrate.steps(
                lambda times: self._spent(following, times),
                target_epsilon=self._budget.epsilon,
                delta=self._budget.delta,
                adjacency=self.header.adjacency,
            )
            # What a schedule will ask for later is not known: it is asked step by step.
            times = found.value if isinstance(self._noise_multiplier, Constant) else 1
            self._allowed = self.steps + times * self._steps_a_booking
            return True
        return False

    @property
    def _steps_a_booking(self) -> int:
        """For how many steps a release is booked at once."""
        once = self.sampler.booked(Gaussian(1.0), 1) is None
        return self.sampler.steps_in_a_pass if once else 1

    def _add_noise(self, sums: dict[str, torch.Tensor], deviation: float) -> None:
        total = sum(part.numel() for part in sums.values())
        noise = normals(self._stream, Purpose.GRADIENT_NOISE, self.steps, total)
        start = 0
        for part in sums.values():
            drawn = noise[start : start + part.numel()].view_as(part)
            part.add_(drawn.to(part.device, part.dtype), alpha=deviation)
            start += part.numel()


def _source(dataset: Any) -> tuple[int, Callable[[np.ndarray[Any, Any]], Batch]]:
    """Return how many records there are, and how to take some of them."""
    if isinstance(dataset, TensorDataset):
        dataset = dataset.tensors
    if tensors(dataset):
        return count(dataset), lambda which: mapped(dataset, lambda t: t[torch.from_numpy(which)])
    if not isinstance(dataset, Sized) or len(dataset) == 0:
        raise InvalidArgument("dataset", type(dataset).__name__, "tensors, or records by index")
    one = default_collate([dataset[0]])  # type: ignore[index]
    nothing = mapped(one, lambda tensor: tensor[:0])

    def take(which: np.ndarray[Any, Any]) -> Batch:
        return default_collate([dataset[int(i)] for i in which]) if len(which) else nothing  # type: ignore[index]

    return len(dataset), take
