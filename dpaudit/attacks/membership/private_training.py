"""DP-SGD on many models at once, for references and audited models that imitate a private run.

The parameters of all models are stacked. One pass takes the per-record gradients of all models
with ``torch.func``, clips each record's gradient, and adds noise to each model's sum. It repeats
the settings of a trainer, not its code: what it shows of a trainer assumes that the trainer does
what its settings say. Randomness is not secure, which an auditor's own models do not need.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from dpaudit.attacks.membership.reference_training import (
    Executor,
    ModelStack,
    SerialExecutor,
    TensorsByName,
    concatenate_stacks,
    inference_stack,
    stack_models,
)
from dpaudit.vocabulary.arrays import BoolArray, IntArray
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_positive,
    require_sampling_rate,
)
from dpaudit.vocabulary.settings import NoProgress, Progress

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
"""Makes an optimizer of tensors; its updates must be elementwise, as those of SGD and Adam are."""

MAX_GRADIENT_NUMBERS = 2**26
"""Numbers in the per-record gradients that are in memory at once, of all models of a stack."""

MODELS_PER_STACK = 16
TIMED_STEPS = 3


def constant_rate(_: int) -> float:
    """Return 1: the learning rate does not change."""
    return 1.0


@dataclass(frozen=True)
class PrivateTraining:
    """Settings of DP-SGD that every model of a stack shares.

    Attributes:
        make_model: Makes a model from a seed, on the CPU.
        make_optimizer: Makes the optimizer of the stacked parameters.
        noise_multiplier: Noise standard deviation over ``clip_norm``, at least 0.
        clip_norm: Largest L2 norm of one record's gradient, above 0.
        sampling_rate: Probability with which each record joins each step, in (0, 1].
        steps: Number of steps, at least 1.
        expected_batch_size: Public constant that noisy sums are divided by, in records.
        seed: Seed of weights, batches and noise; those of a model depend on it and on the
            model's number alone.
        learning_rate_factor: Factor on the learning rate by step, from 0.
        average_decay: Decay per step of an average of the weights, which is then the model;
            None: the last weights are.

    Raises:
        InvalidArgument: If a number is out of its range.
    """

    make_model: Callable[[int], nn.Module]
    make_optimizer: MakeOptimizer
    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    steps: int
    expected_batch_size: float
    seed: int
    learning_rate_factor: Callable[[int], float] = constant_rate
    average_decay: float | None = None

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_count("steps", self.steps)
        require_positive("expected_batch_size", self.expected_batch_size)
        require_count("seed", self.seed, least=0)
        if not 0 <= self.noise_multiplier < math.inf:
            raise InvalidArgument("noise_multiplier", self.noise_multiplier, "at least 0")


@dataclass(frozen=True)
class PrivateChunk:
    """One job of an executor: models that are trained together.

    Attributes:
        settings: Training settings.
        features: Shape ``(records, ...)``.
        labels: Class of each record, shape ``(records,)``.
        member: Whether the model may train on the record, shape ``(models, records)``.
        numbers: Number of each model, which gives its seeds.
    """

    settings: PrivateTraining
    features: NDArray[np.float32]
    labels: IntArray
    member: BoolArray
    numbers: tuple[int, ...]


def train_private_chunk(chunk: PrivateChunk) -> ModelStack:
    """Train the models of one chunk together.

    Args:
        chunk: Models, records and settings.

    Returns:
        The trained models, on the CPU and in evaluation mode.

    Raises:
        InvalidArgument: If the model cannot be stacked: it has an operation that ``torch.func``
            does not support.
    """
    settings = chunk.settings
    seeds = [np.random.SeedSequence([settings.seed, number]) for number in chunk.numbers]
    weights, batches, noise = zip(*(seed.spawn(3) for seed in seeds), strict=True)
    models = [_untrained(settings, seed).train() for seed in weights]
    stack = stack_models(models)
    generators = [torch.Generator().manual_seed(_number(seed)) for seed in noise]
    samplers = [np.random.default_rng(seed) for seed in batches]
    records = torch.from_numpy(chunk.features), torch.from_numpy(chunk.labels)
    members = [np.flatnonzero(row) for row in chunk.member]
    optimizer = settings.make_optimizer(list(stack.parameters.values()))
    rates = [group["lr"] for group in optimizer.param_groups]
    average = {name: value.detach().clone() for name, value in stack.parameters.items()}
    for step in range(settings.steps):
        taken, present = _batch(members, samplers, settings.sampling_rate)
        sums = _clipped_sums(stack, records, taken, present, settings.clip_norm)
        deviation = settings.noise_multiplier * settings.clip_norm
        for name, parameter in stack.parameters.items():
            drawn = [torch.randn(parameter.shape[1:], generator=one) for one in generators]
            noisy = sums[name] + deviation * torch.stack(drawn)
            parameter.grad = noisy / settings.expected_batch_size
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * settings.learning_rate_factor(step)
        optimizer.step()
        if settings.average_decay is not None:
            for name, value in average.items():
                # The first weights start the average, as in torch's AveragedModel.
                share = 1.0 if step == 0 else 1 - settings.average_decay
                value.lerp_(stack.parameters[name].detach(), share)
    if settings.average_decay is not None:
        stack = replace(stack, parameters=average)
    return inference_stack(stack)


def _number(seed: np.random.SeedSequence) -> int:
    return int(seed.generate_state(1)[0])


def _untrained(settings: PrivateTraining, seed: np.random.SeedSequence) -> nn.Module:
    """Return a model whose trainable parameters are all that changes."""
    model = settings.make_model(_number(seed))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    if frozen:
        allowed = "a model whose parameters are all trained: give its trained part"
        raise InvalidArgument("model", f"the frozen parameter {frozen[0]}", allowed)
    return model


def _batch(
    members: Sequence[IntArray], samplers: Sequence[np.random.Generator], rate: float
) -> tuple[Tensor, Tensor]:
    """Draw a Poisson batch per model, padded: indices and presence, ``(models, width)``."""
    drawn = [
        own if rate == 1 else own[sampler.random(len(own)) < rate]
        for own, sampler in zip(members, samplers, strict=True)
    ]
    width = max(1, *map(len, drawn))
    taken = np.zeros((len(drawn), width), dtype=np.int64)
    present = np.zeros((len(drawn), width), dtype=np.float32)
    for row, own in enumerate(drawn):
        taken[row, : len(own)] = own
        present[row, : len(own)] = 1
    return torch.from_numpy(taken), torch.from_numpy(present)


def _clipped_sums(
    stack: ModelStack,
    records: tuple[Tensor, Tensor],
    taken: Tensor,
    present: Tensor,
    clip_norm: float,
) -> TensorsByName:
    """Return the sum of clipped gradients of each model; records that are absent count 0."""
    numbers = sum(p.numel() for p in stack.parameters.values())
    size = max(1, MAX_GRADIENT_NUMBERS // numbers)
    sums = {name: torch.zeros_like(p) for name, p in stack.parameters.items()}
    parameters = {name: p.detach() for name, p in stack.parameters.items()}
    for start in range(0, taken.shape[1], size):
        part = slice(start, start + size)
        features, labels = (column[taken[:, part]] for column in records)
        gradients = _record_gradients(stack, parameters, features, labels)
        squares = [g.flatten(2).square().sum(dim=2) for g in gradients.values()]
        norms = torch.stack(squares).sum(dim=0).sqrt()
        # A gradient that is not finite counts 0, as in a trainer that clips it.
        finite = torch.isfinite(norms)
        factors = present[:, part] * finite * (clip_norm / norms.clamp(min=clip_norm))
        factors = torch.nan_to_num(factors)
        for name, gradient in gradients.items():
            clean = torch.where(finite[(...,) + (None,) * (gradient.ndim - 2)], gradient, 0.0)
            sums[name] += torch.einsum("kb,kb...->k...", factors, clean)
    return sums


def _record_gradients(
    stack: ModelStack, parameters: TensorsByName, features: Tensor, labels: Tensor
) -> TensorsByName:
    """Return the gradient of each record's loss, each of shape ``(models, records, ...)``."""

    def loss(own: TensorsByName, buffers: TensorsByName, record: Tensor, label: Tensor) -> Tensor:
        outputs = functional_call(stack.base, (own, buffers), (record.unsqueeze(0),))
        return nn.functional.cross_entropy(outputs, label.unsqueeze(0))

    per_record = vmap(grad(loss), in_dims=(None, None, 0, 0), randomness="different")
    per_model = vmap(per_record, in_dims=(0, 0, 0, 0), randomness="different")
    try:
        found: TensorsByName = per_model(parameters, stack.buffers, features, labels)
    except RuntimeError as error:
        raise InvalidArgument(
            "model", type(stack.base).__name__, f"one that torch.func can stack ({error})"
        ) from error
    return found


# The fastest way to train, measured on a few steps.


@dataclass(frozen=True)
class TrainedPrivately:
    """Models trained by DP-SGD, and how.

    Attributes:
        stack: The models.
        method: How they were trained, as text for reports.
    """

    stack: ModelStack
    method: str


def train_privately(
    settings: PrivateTraining,
    features: NDArray[np.float32],
    labels: IntArray,
    member: BoolArray,
    *,
    executor: Executor | None = None,
    processes: int = 1,
    first: int = 0,
    progress: Progress | None = None,
) -> TrainedPrivately:
    """Train one model by DP-SGD for each row of ``member``, in the way that is faster.

    A few steps of a stack are timed against those of a single model. If stacking does not pay,
    the models are trained one by one, in the executor's processes.

    Args:
        settings: Training settings of each model.
        features: Shape ``(records, ...)``.
        labels: Class of each record, shape ``(records,)``.
        member: Whether the model may train on the record, shape ``(models, records)``.
        executor: Trains single models; None: this process, one after the other.
        processes: Number of processes of the executor, at least 1.
        first: Number of the first model; a model's number gives its seeds.
        progress: Receives each finished model.

    Returns:
        The models in the order of ``member``, and the way that was chosen.

    Raises:
        InvalidArgument: If shapes do not fit, or the model cannot be stacked.

    Example:
        >>> settings = PrivateTraining(
        ...     lambda seed: nn.Linear(4, 2), partial(torch.optim.SGD, lr=0.1), noise_multiplier=1,
        ...     clip_norm=1, sampling_rate=0.5, steps=2, expected_batch_size=3, seed=0,
        ... )
        >>> features, labels = np.ones((6, 4), dtype=np.float32), np.zeros(6, dtype=np.int64)
        >>> found = train_privately(settings, features, labels, np.ones((3, 6), dtype=bool))
        >>> len(found.stack)
        3
    """
    if member.ndim != 2 or member.shape[1] != len(labels) or len(member) == 0:
        given = f"shape {member.shape}"
        raise InvalidArgument("member", given, f"(models, {len(labels)}), at least one model")
    numbers = tuple(range(first, first + len(member)))
    whole = PrivateChunk(settings, features, labels, member, numbers)
    progress = progress or NoProgress()
    progress.start("training models by DP-SGD", len(member))
    stacked = len(member) > 1 and stacking_pays(whole, processes)
    size = MODELS_PER_STACK if stacked else 1
    chunks = [part_of_chunk(whole, slice(i, i + size)) for i in range(0, len(member), size)]
    run = SerialExecutor() if stacked or executor is None else executor
    stacks = []
    for found in run.map(train_private_chunk, chunks):
        progress.advance(len(found))
        stacks.append(found)
    alone = "one model at a time" + (f", in {processes} processes" if processes > 1 else "")
    method = f"stacked, {min(size, len(member))} at a time" if stacked else alone
    return TrainedPrivately(concatenate_stacks(stacks), method)


def part_of_chunk(chunk: PrivateChunk, which: slice) -> PrivateChunk:
    """Return some models of a chunk.

    Args:
        chunk: The models.
        which: The rows to keep.

    Returns:
        A chunk with these models, which keep their numbers.
    """
    return replace(chunk, member=chunk.member[which], numbers=chunk.numbers[which])


def stacking_pays(chunk: PrivateChunk, processes: int) -> bool:
    """Measure whether a step of stacked models takes less time per model than one by itself.

    Args:
        chunk: The models, at least 2.
        processes: Number of processes that train single models at once.

    Returns:
        Whether stacking is faster.
    """
    few = replace(chunk, settings=replace(chunk.settings, steps=TIMED_STEPS))
    many = part_of_chunk(few, slice(0, MODELS_PER_STACK))
    one = part_of_chunk(few, slice(0, 1))
    train_private_chunk(replace(one, settings=replace(one.settings, steps=1)))  # warms up
    by_itself = _seconds(partial(train_private_chunk, one)) / processes
    return _seconds(partial(train_private_chunk, many)) < len(many.member) * by_itself


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
