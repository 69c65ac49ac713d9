"""Reference models, many at once: their parameters are stacked and trained in one pass.

One batched product of matrices in place of many small ones is what makes this fast, on a CPU
as on a GPU. Each model draws from a generator of its own: it is the same model, whichever
others it is trained beside.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.attacks.membership.executors import Executor, InProcess
from dpaudit.attacks.membership.stacks import Stack, finished, joined, outputs, stacked
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive

COPIES_OF_A_WEIGHT = 5  # the weight, its gradient, two moments, and what a step makes of them
COPIES_OF_AN_ACTIVATION = 3
BYTES = 4

# Torch has one generator for all threads: two that seeded it at once would share their draws.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Recipe:
    """How each reference model is trained: Adam on the cross-entropy, as they all are.

    Attributes:
        make_model: Makes an untrained model from a seed. For executors with processes of
            their own it must be importable there.
        epochs: How often each model sees each of its records.
        batch_size: Records of one model in a step, at most.
        learning_rate: Of Adam.
        weight_decay: Decoupled, as AdamW has it.
        seed: Of initial weights and of the order of records; each model's depend on it and on
            the model's number alone.
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
class Speed:
    """What changes speed and memory alone.

    Attributes:
        memory: Bytes that one chunk of models may take, or one model, if that takes more.
        chunks: At least so many, for as many workers.
        device: Where they are trained.
    """

    memory: int = 2**30
    chunks: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_count("memory", self.memory)
        require_count("chunks", self.chunks)


@dataclass(frozen=True)
class Chunk:
    """One job: models that are trained together.

    Attributes:
        recipe: How.
        features: Shape ``(records, ...)``.
        labels: Shape ``(records,)``.
        member: What each model trains on, shape ``(models, records)``.
        first: Number of the first model.
        device: Where.
    """

    recipe: Recipe
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    member: NDArray[np.bool_]
    first: int
    device: str


def train_references(
    recipe: Recipe,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    member: NDArray[np.bool_],
    *,
    speed: Speed | None = None,
    executor: Executor | None = None,
) -> Stack:
    """Return one trained model for each row of ``member``, on the CPU and in evaluation mode.

    Args:
        recipe: How each model is trained.
        features: Shape ``(records, ...)``.
        labels: Shape ``(records,)``.
        member: Whether a model trains on a record, shape ``(models, records)``.
        speed: How much memory a chunk may take, and where it is trained.
        executor: Who trains the chunks; None for this process.

    Raises:
        InvalidArgument: shapes that do not fit, or a model without records.
    """
    if member.ndim != 2 or member.shape[1] != len(labels) or len(features) != len(labels):
        given = f"shapes {features.shape}, {labels.shape}, {member.shape}"
        raise InvalidArgument("member", given, "of shape (models, records), of these records")
    if len(member) == 0 or not member.any(axis=1).all():
        raise InvalidArgument("member", f"{len(member)} rows", "a record at least in every row")
    speed, executor = speed or Speed(), executor or InProcess()
    fitting = models_at_once(recipe, features, speed.memory)
    size = min(fitting, -(-len(member) // speed.chunks))
    chunks = [
        Chunk(recipe, features, labels, member[start : start + size], start, speed.device)
        for start in range(0, len(member), size)
    ]
    return joined(list(executor.map(train_chunk, chunks)))


def models_at_once(recipe: Recipe, features: NDArray[np.float32], memory: int) -> int:
    """Return how many models fit into ``memory`` bytes together, one at least."""
    model = _made(recipe, np.random.SeedSequence(0))
    weights: int = sum(p.numel() for p in model.parameters())
    activations = features[0].size + _outputs_of_layers(model, features[:2]) // 2
    one = COPIES_OF_A_WEIGHT * weights + COPIES_OF_AN_ACTIVATION * activations * recipe.batch_size
    return int(max(1, memory // (BYTES * one)))


def _outputs_of_layers(model: nn.Module, features: NDArray[np.float32]) -> int:
    """Return how many numbers all layers put out for ``features``."""
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


def train_chunk(chunk: Chunk) -> Stack:
    """Train the models of one chunk together."""
    recipe, count = chunk.recipe, len(chunk.member)
    seeds = [np.random.SeedSequence([recipe.seed, chunk.first + k]) for k in range(count)]
    models = [_made(recipe, seed).train() for seed in seeds]
    orders = [np.random.default_rng(seed) for seed in seeds]
    stack = stacked(models, chunk.device)
    features = torch.from_numpy(chunk.features).to(chunk.device)
    labels = torch.from_numpy(chunk.labels).to(chunk.device)
    optimizer = torch.optim.AdamW(
        list(stack.parameters.values()), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    # A model that draws random numbers of its own (dropout) must draw them from a seed, too.
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeds[0].generate_state(1)[0]))
        for _ in range(recipe.epochs):
            for taken, weights in _batches(chunk.member, recipe.batch_size, orders):
                optimizer.zero_grad()
                torch.autograd.backward(_loss(stack, features, labels, taken, weights))
                optimizer.step()
    return finished(stack)


def _made(recipe: Recipe, seed: np.random.SeedSequence) -> nn.Module:
    """Return a model whose weights come from ``seed``, even if its maker does not use it."""
    number = int(seed.generate_state(1)[0])
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        return recipe.make_model(number)


def _batches(
    member: NDArray[np.bool_], batch_size: int, orders: Sequence[np.random.Generator]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Return one epoch: for each step which records, and their weights, ``(models, batch)``.

    Every model takes as many steps; its own records, in an order of its own, are dealt to
    them as evenly as can be. Rows that are shorter are filled with one of the model's own
    records, of weight 0: others would still move the statistics of a batch normalisation.
    """
    own = [
        generator.permutation(np.flatnonzero(row))
        for row, generator in zip(member, orders, strict=True)
    ]
    steps = -(-max(map(len, own)) // batch_size)
    parts = [np.array_split(records, steps) for records in own]
    fill = np.array([records[0] for records in own])
    for step in range(steps):
        yield _padded([part[step] for part in parts], fill)


def _padded(rows: list[NDArray[np.int64]], fill: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    taken = np.repeat(fill[:, None], width, axis=1)
    weights = np.zeros(taken.shape, dtype=np.float32)
    for row, records in enumerate(rows):
        taken[row, : len(records)] = records
        weights[row, : len(records)] = 1 / max(1, len(records))
    return torch.from_numpy(taken), torch.from_numpy(weights)


def _loss(stack: Stack, features: Tensor, labels: Tensor, taken: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of the models' mean losses: each weight gets its own model's gradient."""
    taken, weights = taken.to(labels.device), weights.to(labels.device)
    said = outputs(stack, features[taken])
    losses = nn.functional.cross_entropy(
        said.flatten(0, 1), labels[taken].flatten(), reduction="none"
    )
    return (losses * weights.flatten()).sum()
