"""What is measured of one model: the sum against a loop over records, path, cost and memory."""

from __future__ import annotations

import copy
import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dpaudit.trainer import Engine, Flat, Independent, Private, make_private
from dpaudit.trainer.engine import PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch, map_tensors, slice_records
from dpaudit.trainer.engine.clipping import ROUNDING_MARGIN
from dpaudit.vocabulary.errors import DpauditError
from public_models import RECORDS, Subject

TOLERANCE = 1e-4
"""Relative gap allowed between two float32 computations of one sum.

Rounding stays below it, but for badly conditioned gradients: these are compared in float64."""

TOLERANCE_FLOAT64 = 2.0**-18
"""The same in float64: norms are float32 there, too, and clipping has this margin for it."""

EARLY_STEPS, STEPS_BETWEEN = 5, 3
"""Steps of the first measurement, after the first step; and steps until the second begins.

The premises are verified again at steps 4, 8, 16 and 32, which both medians pass over."""

LEARNING_RATE = 1e-3

Step = Callable[[], None]


@dataclass(frozen=True)
class Correctness:
    """How the engine's sum compares with a loop over records.

    Attributes:
        gap: Norm of the difference over the norm of the loop's sum. None if refused, and where
            parameters that are differentiated record by record draw numbers of their own.
        refusal: The error, if the model was refused.
        parameters: Number of trained parameters.
        slow: Parameters that are differentiated record by record, with the functions of torch
            that use them.
        gap_float64: The gap in float64, where that in float32 is above the tolerance.
    """

    gap: float | None
    refusal: str | None
    parameters: int
    slow: dict[str, list[str]] = field(default_factory=dict)
    gap_float64: float | None = None


def clipped(gradients: dict[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Return the sum of gradients clipped at their median norm, and that norm.

    Args:
        gradients: Per-record gradients in float64, with records first.
    """
    squares = [g.reshape(len(g), -1).square().sum(dim=1) for g in gradients.values()]
    norms = torch.stack(squares).sum(dim=0).sqrt()
    clip_norm = float(norms.median())
    factors = (ROUNDING_MARGIN * clip_norm / norms).clamp(max=1)
    return {
        name: torch.einsum("n,n...->...", factors, g) for name, g in gradients.items()
    }, clip_norm


def _rows(model: nn.Module, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the gradients of some losses in float64, one row per loss."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in named}
    for loss in losses:
        found = torch.autograd.grad(
            loss, list(named.values()), allow_unused=True, retain_graph=True
        )
        for (name, p), g in zip(named.items(), found, strict=True):
            rows[name].append((torch.zeros_like(p) if g is None else g).double())
    return {name: torch.stack(each) for name, each in rows.items()}


def loop_over_records(model: nn.Module, loss: PerSampleLoss, batch: Batch) -> dict[str, Tensor]:
    """Return per-record gradients of each record's loss on a batch of itself alone."""
    alone = (loss(model, slice_records(batch, n, n + 1))[0] for n in range(RECORDS))
    return _rows(model, alone)


def loop_over_losses(model: nn.Module, loss: PerSampleLoss, batch: Batch) -> dict[str, Tensor]:
    """Return per-record gradients of one pass over the batch, for a model that draws numbers.

    A record alone would draw other numbers. That records are independent, the engine verifies.
    """
    return _rows(model, loss(model, batch))


def relative_gap(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the norm of the difference over that of what was expected; NaN stays NaN."""
    gaps = torch.cat([(got[name].double() - e).flatten() for name, e in expected.items()])
    whole = torch.cat([e.flatten() for e in expected.values()])
    return float(gaps.norm() / whole.norm())


class UsesOfParameters(TorchFunctionMode):
    """Notes which functions of torch get which parameters."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self.found: dict[str, list[str]] = {name: [] for name in names.values()}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        what = getattr(func, "__qualname__", str(func)).removeprefix("TensorBase.")
        for value in _flat([args, kwargs or {}]):
            name = self._names.get(id(value))
            if name is not None and what not in self.found[name] and not what.endswith("__get__"):
                self.found[name].append(what)
        return func(*args, **(kwargs or {}))


def _flat(value: Any) -> Iterator[Any]:
    """Yield everything in nested lists, tuples and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def functions_using(
    model: nn.Module, loss: PerSampleLoss, batch: Batch, names: Iterable[str]
) -> dict[str, list[str]]:
    """Return the functions of torch that get each of some parameters in a pass."""
    named = dict(model.named_parameters())
    with UsesOfParameters({id(named[name]): name for name in names}) as uses:
        loss(model, batch)
    return uses.found


def correctness(subject: Subject) -> Correctness:
    """Compare clipped sums with the loop: in float32, and in float64 if rounding may be large."""
    found = _compared(subject, torch.float32)
    if found.gap is None or found.gap <= TOLERANCE:
        return found
    return replace(found, gap_float64=_compared(subject, torch.float64).gap)


def _compared(subject: Subject, dtype: torch.dtype) -> Correctness:
    """Compare two clipped sums of an engine, of its first and its second step, with the loop."""
    torch.manual_seed(0)
    model, batch = subject.make(), map_tensors(subject.batch(RECORDS), _floats_as(dtype))
    if dtype != torch.float32:
        model = model.to(dtype)
    engine = Engine(model, subject.loss)
    oracle = loop_over_losses if subject.draws else loop_over_records
    gaps = []
    try:
        for seed in (1, 2):
            torch.manual_seed(seed)
            expected, clip_norm = clipped(oracle(model, subject.loss, batch))
            if subject.draws:  # new shapes and steps are verified first, with other numbers
                engine.clipped_sum(batch, Flat(clip_norm))
                torch.manual_seed(seed)
            got = engine.clipped_sum(batch, Flat(clip_norm)).sums
            gaps.append(relative_gap(got, expected))
    except DpauditError as error:
        return Correctness(None, str(error), len(engine.parameters))
    slow = functions_using(model, subject.loss, batch, engine.record_by_record)
    comparable = not (subject.draws and slow)
    worst = max(gaps, key=lambda gap: math.inf if math.isnan(gap) else gap)
    return Correctness(worst if comparable else None, None, len(engine.parameters), slow)


def _floats_as(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a function that casts tensors of real numbers, and keeps others."""
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


# Cost.


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=LEARNING_RATE)


def plain_step(subject: Subject, model: nn.Module, batch: Batch) -> Step:
    """Return a step of plain SGD on the mean loss."""
    optimizer = _optimizer(model)

    def step() -> None:
        optimizer.zero_grad()
        subject.loss(model, batch).mean().backward()
        optimizer.step()

    return step


def private_step(subject: Subject, model: nn.Module, batch: Batch) -> tuple[Step, Private]:
    """Return a private step with secure float32 noise, and its trainer."""
    # What is drawn are numbers, so that the step takes the batch of the plain step.
    numbers = torch.arange(RECORDS)
    private = make_private(
        model,
        _optimizer(model),
        noise_multiplier=1.0,
        clip_norm=1.0,
        sampling_rate=1.0,
        expected_batch_size=RECORDS,
        noise=Independent(),
    )
    draws = iter(private.batches(numbers, steps=10**6))

    def step() -> None:
        next(draws)
        private.step(subject.loss, batch)

    return step, private


@dataclass(frozen=True)
class Cost:
    """CPU time of private steps over plain SGD's.

    Attributes:
        milliseconds: Median CPU time of a plain step.
        first: The first private step, in which the premises are verified and a plan is made,
            over the median plain step.
        early: Median ratio in the steps after it.
        later: Median ratio after ``STEPS_BETWEEN`` further steps, once zeros have moved.
        slow: Number of parameters that are then differentiated record by record.
    """

    milliseconds: float
    first: float
    early: float
    later: float
    slow: int


def cost(subject: Subject, rounds: int) -> Cost:
    """Time plain and private steps in turns, on two copies of one model.

    Args:
        subject: The model.
        rounds: Steps of each kind in the second measurement.
    """
    torch.manual_seed(0)
    model, batch = subject.make(), subject.batch(RECORDS)
    plain = plain_step(subject, copy.deepcopy(model), batch)
    private, trainer = private_step(subject, model, batch)
    for _ in range(2):
        plain()
    first = _seconds(private)
    early = [_pair(plain, private) for _ in range(EARLY_STEPS)]
    for _ in range(STEPS_BETWEEN):
        private()
    later = [_pair(plain, private) for _ in range(rounds)]
    yardstick = statistics.median(one for one, _ in early + later)
    return Cost(
        1e3 * yardstick,
        first / yardstick,
        statistics.median(own / one for one, own in early),
        statistics.median(own / one for one, own in later),
        len(trainer._engine.record_by_record),
    )


def _pair(plain: Step, private: Step) -> tuple[float, float]:
    """Return CPU seconds of a plain and of a private step, one after the other."""
    return _seconds(plain), _seconds(private)


def _seconds(step: Step) -> float:
    """Return CPU seconds of a step, of all threads."""
    start = time.process_time()
    step()
    return time.process_time() - start


# Memory.


def _status(key: str) -> float:
    """Return one line of this process's memory status, in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    (line,) = [each for each in status.splitlines() if each.startswith(key)]
    return int(line.split()[1]) / 1024


def peak_memory(subject: Subject, *, private: bool) -> float:
    """Return by how many MB this process grows for the model and three steps, at most.

    What is loaded on first use does not count: the model is made once before, and a small one
    takes steps. Linux with glibc only.

    Args:
        subject: The model.
        private: Whether steps are private.
    """
    torch.manual_seed(0)
    subject.make()
    small = Subject("torch", lambda: nn.Linear(2, 1), lambda n: torch.randn(n, 2), _squares)
    for each in (True, False):
        _steps(small, private=each)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what is held now
    before = _status("VmRSS")
    _steps(subject, private=private)
    return _status("VmHWM") - before


def _squares(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch)[:, 0].square()


def _steps(subject: Subject, *, private: bool) -> None:
    model, batch = subject.make(), subject.batch(RECORDS)
    step = private_step(subject, model, batch)[0] if private else plain_step(subject, model, batch)
    for _ in range(3):
        step()
