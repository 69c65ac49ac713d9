"""Reference models: their parameters are stacked, trained and evaluated in one pass.

One batched matrix product in place of many small ones makes this fast, on a CPU and on a GPU.
Each model has its own random generator, so the result for a model does not depend on the others
that are trained with it.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from dpaudit.attacks.membership.output_signals import (
    classifier_features,
    logit_scaled_confidence,
    logits_from_outputs,
)
from dpaudit.vocabulary.arrays import BoolArray, FloatArray, IntArray
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra, require_count, require_positive
from dpaudit.vocabulary.settings import NoProgress, Progress

# Stacks of models with one architecture, which are evaluated in one batched pass.

TensorsByName = dict[str, Tensor]


@dataclass(frozen=True)
class ModelStack:
    """Models of one architecture, with their parameters and buffers stacked along a first axis.

    Attributes:
        base: A module of the architecture; its own weights are not used.
        parameters: Parameters under their names, each of shape ``(models, ...)``.
        buffers: Buffers under their names, each of shape ``(models, ...)``.
    """

    base: nn.Module
    parameters: TensorsByName
    buffers: TensorsByName

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __getitem__(self, which: slice) -> ModelStack:
        return ModelStack(
            self.base,
            {name: values[which] for name, values in self.parameters.items()},
            {name: values[which] for name, values in self.buffers.items()},
        )


def stack_models(models: Sequence[nn.Module], device: str = "cpu") -> ModelStack:
    """Stack models of one architecture.

    Args:
        models: At least one model; they are moved to ``device``.
        device: A device of torch.

    Returns:
        The stack, with a copy of the first model as its base.
    """
    parameters, buffers = stack_module_state([model.to(device) for model in models])
    return ModelStack(copy.deepcopy(models[0]), parameters, buffers)


def outputs_on_own_records(stack: ModelStack, features: Tensor) -> Tensor:
    """Compute the outputs of each model on its own records.

    Args:
        stack: The models.
        features: Shape ``(models, records, ...)``.

    Returns:
        Outputs, shape ``(models, records, classes)``, through which gradients flow.
    """
    outputs: Tensor = vmap(_call(stack.base), randomness="different")(
        stack.parameters, stack.buffers, features
    )
    return outputs


def _call(base: nn.Module) -> Callable[[TensorsByName, TensorsByName, Tensor], Tensor]:
    """Return the forward pass of a module as a function of its parameters and buffers."""

    def call(parameters: TensorsByName, buffers: TensorsByName, features: Tensor) -> Tensor:
        outputs: Tensor = functional_call(base, (parameters, buffers), (features,))
        return outputs

    return call


def logits_on_same_records(stack: ModelStack, features: Tensor) -> Tensor:
    """Compute the logits of every model on the same records, without gradients.

    Args:
        stack: The models.
        features: Shape ``(records, ...)``.

    Returns:
        Shape ``(models, records, classes)``.
    """
    with torch.no_grad():
        logits: Tensor = vmap(_call(stack.base), in_dims=(0, 0, None))(
            stack.parameters, stack.buffers, features
        )
    return logits


def inference_stack(stack: ModelStack) -> ModelStack:
    """Return a stack for inference: on the CPU, in evaluation mode, without gradients.

    Args:
        stack: A trained stack; its base is changed.

    Returns:
        The same models.
    """
    base = stack.base.to("cpu").eval()
    return ModelStack(
        base,
        {name: values.detach().cpu() for name, values in stack.parameters.items()},
        {name: values.detach().cpu() for name, values in stack.buffers.items()},
    )


def concatenate_stacks(stacks: Sequence[ModelStack]) -> ModelStack:
    """Return the models of several stacks as one stack.

    Args:
        stacks: At least one stack, all of one architecture.

    Returns:
        All models in order.
    """

    def join(states: Sequence[TensorsByName]) -> TensorsByName:
        return {name: torch.cat([state[name] for state in states]) for name in states[0]}

    return ModelStack(
        stacks[0].base,
        join([stack.parameters for stack in stacks]),
        join([stack.buffers for stack in stacks]),
    )


# Signals of stacked models, as arrays for attacks.

MAX_NUMBERS_PER_BATCH = 2**24  # features or logits of one part of the records, of all models


@dataclass(frozen=True)
class ModelSignals:
    """Signals of several models on the same records.

    Attributes:
        confidences: Logit-scaled confidences of the true class, shape ``(models, records)``.
        outputs: Features for the attack classifier, shape ``(models, records, features)``.
    """

    confidences: FloatArray
    outputs: NDArray[np.float32]

    def __getitem__(self, which: slice) -> ModelSignals:
        return ModelSignals(self.confidences[which], self.outputs[which])


def model_signals(
    stack: ModelStack, features: NDArray[np.float32], labels: IntArray, *, classes: int
) -> ModelSignals:
    """Compute the signals of every model on every record, with bounded memory.

    Args:
        stack: Trained models on the CPU, in evaluation mode.
        features: Shape ``(records, ...)``, at least one record.
        labels: True class of each record, shape ``(records,)``.
        classes: Number of classes.

    Returns:
        Logit-scaled confidences, and features for the attack classifier.

    Raises:
        InvalidArgument: If a label is no class of the models.

    Example:
        >>> stack = stack_models([nn.Linear(4, 3), nn.Linear(4, 3)])
        >>> features, labels = np.ones((5, 4), dtype=np.float32), np.zeros(5, dtype=np.int64)
        >>> model_signals(stack, features, labels, classes=3).confidences.shape
        (2, 5)
    """
    size = max(1, MAX_NUMBERS_PER_BATCH // (len(stack) * max(classes, features[0].size)))
    confidences, outputs = [], []
    for start in range(0, len(labels), size):
        part = slice(start, start + size)
        logits = logits_on_same_records(stack, torch.from_numpy(features[part])).numpy()
        confidences.append(logit_scaled_confidence(logits, labels[part]))
        outputs.append(classifier_features(logits, labels[part]))
    return ModelSignals(np.concatenate(confidences, axis=1), np.concatenate(outputs, axis=1))


@dataclass(frozen=True)
class StackedModel:
    """One model of a stack, as a target model.

    Attributes:
        stack: The stack.
        index: Index of the model in the stack.
    """

    stack: ModelStack
    index: int

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Compute the logits of records.

        Args:
            features: Shape ``(records, ...)``.

        Returns:
            Shape ``(records, classes)``.

        Raises:
            InvalidArgument: If an output is not finite or has another shape.
        """
        alone = self.stack[slice(self.index, self.index + 1)]
        return logits_from_outputs(
            logits_on_same_records(alone, torch.from_numpy(features))[0].numpy()
        )


# Executors: chunks of models are trained in this process or in worker processes.

Job = TypeVar("Job")
Result = TypeVar("Result")


class Executor(Protocol):
    """Interface for running jobs; results have the order of the jobs."""

    def map(self, function: Callable[[Job], Result], jobs: Sequence[Job], /) -> Iterable[Result]:
        """Run a function on each job.

        Args:
            function: Must be importable in other processes if the executor uses them.
            jobs: The arguments, which may run in any order.

        Returns:
            ``function(job)`` for each job, in order.
        """
        ...


@dataclass(frozen=True)
class SerialExecutor:
    """Runs jobs one after the other, in this process."""

    def map(self, function: Callable[[Job], Result], jobs: Sequence[Job], /) -> Iterable[Result]:
        """Run a function on each job, in order.

        Args:
            function: Any function.
            jobs: The arguments.

        Returns:
            ``function(job)`` for each job, in order.
        """
        return [function(job) for job in jobs]


@dataclass(frozen=True)
class JoblibExecutor:
    """Runs jobs in worker processes of this machine, with joblib.

    Attributes:
        workers: Number of processes, at least 1; -1 for one per CPU.
    """

    workers: int

    def map(self, function: Callable[[Job], Result], jobs: Sequence[Job], /) -> Iterable[Result]:
        """Run a function on each job, in worker processes.

        Args:
            function: Must be importable there or serializable by joblib.
            jobs: The arguments.

        Returns:
            ``function(job)`` for each job, in order.

        Raises:
            MissingExtra: If joblib is not installed.
        """
        try:
            joblib = import_module("joblib")
        except ImportError as error:
            raise MissingExtra("joblib", "train") from error
        calls = (joblib.delayed(function)(job) for job in jobs)
        # A generator in the order of the jobs, so that a caller sees each result early.
        found: Iterable[Result] = joblib.Parallel(n_jobs=self.workers, return_as="generator")(calls)
        return found


COPIES_PER_WEIGHT = 5  # the weight, its gradient, two moments, temporary values of a step
COPIES_PER_ACTIVATION = 3
BYTES_PER_NUMBER = 4

# Torch has one generator for all threads. Two threads that seed it at once would share draws.
_TORCH_GENERATOR_LOCK = threading.Lock()


@dataclass(frozen=True)
class ReferenceModelSettings:
    """Settings for training reference models with AdamW on the cross-entropy.

    Attributes:
        make_model: Makes an untrained model from a seed. Executors with worker processes must
            be able to import it there.
        epochs: Passes of each model over its records; at least 1.
        batch_size: Largest number of records of one model in a step; at least 1.
        learning_rate: Learning rate of AdamW; above 0.
        seed: Seed of initial weights and of the order of records; at least 0. Those of a model
            depend on it and on the model's number alone.
        weight_decay: Decoupled weight decay of AdamW; at least 0.

    Raises:
        InvalidArgument: If a setting is out of its range.
    """

    make_model: Callable[[int], nn.Module]
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require_count("epochs", self.epochs)
        require_count("batch_size", self.batch_size)
        require_positive("learning_rate", self.learning_rate)
        require_count("seed", self.seed, least=0)
        if not 0 <= self.weight_decay < math.inf:
            raise InvalidArgument("weight_decay", self.weight_decay, "at least 0 and finite")


@dataclass(frozen=True)
class ReferenceSpeedSettings:
    """Settings that change speed and memory alone.

    Attributes:
        memory: Memory for one chunk of models, in bytes; a single model may take more.
        chunks: Number of chunks to aim for, such as the number of workers; at least 1.
        device: Device of torch for training.

    Raises:
        InvalidArgument: If a number is below 1.
    """

    memory: int = 2**30
    chunks: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_count("memory", self.memory)
        require_count("chunks", self.chunks)


@dataclass(frozen=True)
class TrainingChunk:
    """One job of an executor: models that are trained together.

    Attributes:
        settings: Training settings.
        features: Shape ``(records, ...)``.
        labels: Class of each record, shape ``(records,)``.
        member: Whether the model trains on the record, shape ``(models, records)``.
        first: Number of the first model, among the models of all chunks.
        device: Device of torch for training.
    """

    settings: ReferenceModelSettings
    features: NDArray[np.float32]
    labels: IntArray
    member: BoolArray
    first: int
    device: str


def train_references(
    settings: ReferenceModelSettings,
    features: NDArray[np.float32],
    labels: IntArray,
    member: BoolArray,
    *,
    speed: ReferenceSpeedSettings | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> ModelStack:
    """Train one reference model for each row of ``member``.

    Args:
        settings: Training settings of each model.
        features: Shape ``(records, ...)``.
        labels: Class of each record, shape ``(records,)``.
        member: Whether the model trains on the record, shape ``(models, records)``.
        speed: Memory, number of chunks and device; None for the defaults.
        executor: Runs the chunks; None trains them one after the other in this process.
        progress: Receives each finished epoch of a chunk; of other processes, whole chunks.

    Returns:
        The trained models in the order of ``member``, on the CPU and in evaluation mode.

    Raises:
        InvalidArgument: If shapes do not fit, there is no model, or a model has no records.

    Example:
        >>> from dpaudit.attacks.membership import random_halves
        >>> settings = ReferenceModelSettings(
        ...     lambda seed: nn.Linear(4, 2), epochs=1, batch_size=8, learning_rate=0.01, seed=0
        ... )
        >>> features, labels = np.ones((6, 4), dtype=np.float32), np.zeros(6, dtype=np.int64)
        >>> len(train_references(settings, features, labels, random_halves(4, 6, seed=0)))
        4
    """
    if member.ndim != 2 or member.shape[1] != len(labels) or len(features) != len(labels):
        given = f"shapes {features.shape}, {labels.shape}, {member.shape}"
        raise InvalidArgument(
            "member",
            given,
            "of shape (models, records), with as many records as features and labels",
        )
    if len(member) == 0 or not member.any(axis=1).all():
        raise InvalidArgument(
            "member",
            f"{len(member)} rows",
            "at least one row, and at least one record in every row",
        )
    speed, executor = speed or ReferenceSpeedSettings(), executor or SerialExecutor()
    fitting = models_per_chunk(settings, features, speed.memory)
    size = min(fitting, -(-len(member) // speed.chunks))  # rounded up
    chunks = [
        TrainingChunk(settings, features, labels, member[start : start + size], start, speed.device)
        for start in range(0, len(member), size)
    ]
    progress = progress or NoProgress()
    progress.start("training reference models", settings.epochs * len(chunks))
    if isinstance(executor, SerialExecutor):  # no callback reaches another process
        job = partial(train_chunk, on_epoch=progress.advance)
        return concatenate_stacks(list(executor.map(job, chunks)))
    stacks = []
    for stack in executor.map(train_chunk, chunks):
        progress.advance(settings.epochs)
        stacks.append(stack)
    return concatenate_stacks(stacks)


def models_per_chunk(
    settings: ReferenceModelSettings, features: NDArray[np.float32], memory: int
) -> int:
    """Estimate how many models can be trained together in a given memory.

    Args:
        settings: Training settings; one model is made to measure its size.
        features: Shape ``(records, ...)``; the first two records are evaluated.
        memory: Available memory, in bytes.

    Returns:
        Number of models, at least 1.
    """
    model = _untrained_model(settings, np.random.SeedSequence(0))
    weights: int = sum(p.numel() for p in model.parameters())
    activations = features[0].size + _activation_count(model, features[:2]) // 2
    one = COPIES_PER_WEIGHT * weights + COPIES_PER_ACTIVATION * activations * settings.batch_size
    return int(max(1, memory // (BYTES_PER_NUMBER * one)))


def _activation_count(model: nn.Module, features: NDArray[np.float32]) -> int:
    """Return the number of values in the outputs of all layers for ``features``."""
    sizes: list[int] = []

    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    handles = [layer.register_forward_hook(note) for layer in model.modules()]
    with torch.no_grad():
        model.eval()(torch.from_numpy(features))
    for handle in handles:
        handle.remove()
    return sum(sizes)


def train_chunk(chunk: TrainingChunk, *, on_epoch: Callable[[], None] = lambda: None) -> ModelStack:
    """Train the models of one chunk together; ``on_epoch`` is called after each epoch."""
    settings, count = chunk.settings, len(chunk.member)
    # The number of a model among all chunks gives its seed, so chunking does not change it.
    seeds = [np.random.SeedSequence([settings.seed, chunk.first + k]) for k in range(count)]
    models = [_untrained_model(settings, seed).train() for seed in seeds]
    orders = [np.random.default_rng(seed) for seed in seeds]
    stack = stack_models(models, chunk.device)
    features = torch.from_numpy(chunk.features).to(chunk.device)
    labels = torch.from_numpy(chunk.labels).to(chunk.device)
    optimizer = torch.optim.AdamW(
        list(stack.parameters.values()),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    # Random numbers inside a model (dropout) must come from the seed, too.
    with _TORCH_GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeds[0].generate_state(1)[0]))
        for _ in range(settings.epochs):
            for taken, weights in _batches(chunk.member, settings.batch_size, orders):
                optimizer.zero_grad()
                torch.autograd.backward(_summed_loss(stack, features, labels, taken, weights))
                optimizer.step()
            on_epoch()
    return inference_stack(stack)


def _untrained_model(settings: ReferenceModelSettings, seed: np.random.SeedSequence) -> nn.Module:
    """Return a model with weights from ``seed``, even if ``make_model`` ignores its argument."""
    number = int(seed.generate_state(1)[0])
    with _TORCH_GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        return settings.make_model(number)


def _batches(
    member: BoolArray, batch_size: int, orders: Sequence[np.random.Generator]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the records and their weights, each ``(models, batch)``, for each step of one epoch.

    All models take the same number of steps. The records of a model, in its own random order, are
    divided among them as evenly as possible. Shorter rows are padded with one of the model's own
    records, of weight 0. A record of another model would change the statistics of batch
    normalization.
    """
    own = [
        generator.permutation(np.flatnonzero(row))
        for row, generator in zip(member, orders, strict=True)
    ]
    steps = -(-max(map(len, own)) // batch_size)
    parts = [np.array_split(records, steps) for records in own]
    fill = np.array([records[0] for records in own])
    for step in range(steps):
        yield _padded_batch([part[step] for part in parts], fill)


def _padded_batch(rows: list[IntArray], fill: IntArray) -> tuple[Tensor, Tensor]:
    """Return record indices and weights of one step; weights of a model sum to 1 (0 if empty)."""
    width = max(map(len, rows))
    taken = np.repeat(fill[:, None], width, axis=1)
    weights = np.zeros(taken.shape, dtype=np.float32)
    for row, records in enumerate(rows):
        taken[row, : len(records)] = records
        weights[row, : len(records)] = 1 / max(1, len(records))
    return torch.from_numpy(taken), torch.from_numpy(weights)


def _summed_loss(
    stack: ModelStack, features: Tensor, labels: Tensor, taken: Tensor, weights: Tensor
) -> Tensor:
    """Return the sum of the models' mean losses; its gradient is each model's own gradient."""
    taken, weights = taken.to(labels.device), weights.to(labels.device)
    outputs = outputs_on_own_records(stack, features[taken])
    losses = nn.functional.cross_entropy(
        outputs.flatten(0, 1), labels[taken].flatten(), reduction="none"
    )
    return (losses * weights.flatten()).sum()
