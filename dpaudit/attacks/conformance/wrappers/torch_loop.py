"""Steps of a training loop in torch: Opacus, Accelerate, or the user's own.

``step(include=indices)`` collates these records with the loader's own function, and takes the
user's step on them. ``step()`` takes the next batch of the loader's own batch sampler.

Random numbers of the global generators are separated by use: those of the sampler, those of the
gradients and those of Opacus' noise each have a seed that depends on the step only. Otherwise a
sampler that draws one number for each record would change the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.attacks.conformance.trainer_protocol import (
    draw_seeds,
    reseed_global_generators,
    seed_global_generators,
)
from dpaudit.attacks.conformance.wrappers.parts import Observed, TorchLoop
from dpaudit.vocabulary.errors import InvalidArgument

GRADIENTS = (
    "the optimizer's update is post-processing of the gradients that it gets: learning rates, "
    "momentum and weight decay do not depend on the records"
)
SCHEDULED = (
    "the optimizer's schedule of learning rates is public, and each step is measured in units of it"
)
ADAPTED = (
    "the clip norm of each step is public (its noisy count is accounted for elsewhere), and the "
    "noisy sum is measured in clip norms of its step"
)
PLAIN_SGD = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
"""Options of ``torch.optim.SGD`` that must be off for its steps to be multiples of the sum."""

SAME_CHANGE = 1e-2
"""Relative difference that rounding of 32-bit parameters may have from the change of a step."""

Schedule = dict[int, NDArray[np.float64]]
"""Learning rates of each coordinate, by step."""


class TorchTrainer:
    """A trainer that takes the steps of a ``TorchLoop``.

    Args:
        loop: The user's loop.
        observe: What a step returns; None for the change of the parameters where that is a
            multiple of the noisy sum, as under plain SGD.
        schedule: Learning rates of the factory's first trainer, by step; filled by the trainers.

    Attributes:
        sampled: Indices of the records of the last step.
        groups: Slices of coordinates by parameter name.
        constants: Numbers that Opacus derives from the data set and treats as public.
        assumptions: What is assumed about the loop, as sentences.
    """

    def __init__(
        self, loop: TorchLoop, observe: Observed | None, schedule: Schedule | None = None
    ) -> None:
        self._loop, self._batches = loop, _forever(loop.loader)
        self._schedule: Schedule = {} if schedule is None else schedule
        self._number = 0
        self._observe = observe or preferred_observation(loop.optimizer)
        self.assumptions = _assumptions(loop.optimizer, self._observe)
        if any(not np.array_equal(rates, self._schedule[0]) for rates in self._schedule.values()):
            self.assumptions = (*self.assumptions, SCHEDULED)
        self._gradients: NDArray[np.float64] | None = None
        self._noise_seed: int | None = None
        self.sampled: list[int] = []
        self.groups = parameter_slices(loop.model)
        self.constants = public_constants(loop.optimizer, loop.loader)
        if self._observe == "gradients":
            _require_optimizer(loop.optimizer)
        if hasattr(base_optimizer(loop.optimizer), "register_step_post_hook"):
            # After the step: Lightning computes the gradients inside of it.
            base_optimizer(loop.optimizer).register_step_post_hook(self._note_gradients)
        noisy = _with_noise(loop.optimizer)
        if noisy is not None:
            self._seed_noise(noisy)

    def step(self, include: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Take one step on the loader's next batch, or on the given records.

        Args:
            include: Indices of the records; None for those that the loader draws.

        Returns:
            The observed change or gradients, flat, shape ``(d,)``; over the clip norm of the step
            where Opacus adapts it.
        """
        of_sampler, of_gradients, self._noise_seed = draw_seeds(3)
        if include is None:
            with seed_global_generators(of_sampler):
                include = next(self._batches)
        self.sampled = [int(index) for index in include]
        unit = adaptive_clip_norm(self._loop.optimizer)
        before, self._gradients = flat_parameters(self._loop.model), None
        rates = learning_rates(self._loop.model, self._loop.optimizer)
        with seed_global_generators(of_gradients):
            self._loop.train_step(collate(self._loop.loader, self.sampled))
        return np.asarray(self._observed(before, rates) / unit)

    def _observed(
        self, before: NDArray[np.float64], rates: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        number, self._number = self._number, self._number + 1
        if self._observe == "parameters":
            change = flat_parameters(self._loop.model) - before
            return change if rates is None else change * self._first_over(rates, number, change)
        if self._gradients is None:
            raise InvalidArgument(
                "train_step", "no step of the optimizer", "a function that takes one on each batch"
            )
        return self._gradients

    def _first_over(
        self, rates: NDArray[np.float64], number: int, change: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the learning rates of the first step over those that are scheduled for this one.

        The schedule is that of the factory's first trainer: rates that depend on the records
        differ from it, and so move the observed sum. It is 1 for all coordinates if the
        optimizer's gradients times its learning rates are not the change.
        """
        first = self._schedule.setdefault(0, rates)
        scheduled = self._schedule.setdefault(number, rates)
        ones = np.ones_like(change)
        if np.array_equal(first, scheduled) or self._gradients is None:
            return ones
        if not (first.all() and scheduled.all()):
            allowed = 'above 0 in every step, or wrap(..., observe="gradients")'
            raise InvalidArgument("learning rate", 0.0, allowed)
        expected = -rates * self._gradients
        apart = float(np.linalg.norm(change - expected))
        fits = apart <= SAME_CHANGE * float(np.linalg.norm(expected))
        return first / scheduled if fits or not np.isfinite(apart) else ones

    def _note_gradients(self, *arguments: Any) -> None:
        self._gradients = flat_gradients(self._loop.model)

    def _seed_noise(self, optimizer: Any) -> None:
        """Seed the global generators before Opacus draws noise; its own generator is left alone."""
        genuine = optimizer.add_noise

        def add_noise(*arguments: Any, **named: Any) -> Any:
            if self._noise_seed is not None:
                reseed_global_generators(self._noise_seed)
            return genuine(*arguments, **named)

        optimizer.add_noise = add_noise


def loop_of_opacus(model: nn.Module, optimizer: Any, loader: Any, loss: Any) -> TorchLoop:
    """Return the usual loop over what Opacus' ``make_private`` returns, or over plain torch.

    Args:
        model: The model.
        optimizer: The optimizer.
        loader: The data loader, of pairs of features and labels.
        loss: Mean loss of outputs and labels; for ghost clipping, that of ``make_private``.

    Returns:
        The loop.
    """

    def train_step(batch: Any) -> None:
        features, labels = batch
        optimizer.zero_grad()
        loss(model(features), labels).backward()
        optimizer.step()

    return TorchLoop(model, loader, train_step, optimizer)


# The parts of a loop.


def collate(loader: Any, indices: Sequence[int]) -> Any:
    """Build a batch of the given records, as the loader does without workers.

    Args:
        loader: The data loader.
        indices: Indices of the records; none for a batch of shape ``(0, ...)``.

    Returns:
        The batch.
    """
    if len(indices):
        return loader.collate_fn([loader.dataset[index] for index in indices])
    return _without_records(loader.collate_fn([loader.dataset[0]]))


def _without_records(batch: Any) -> Any:
    """Return a batch without its records."""
    if isinstance(batch, Tensor):
        return batch[:0]
    if isinstance(batch, dict):
        return {name: _without_records(part) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        return [_without_records(part) for part in batch]
    return batch


def _forever(loader: Any) -> Iterator[Sequence[int]]:
    """Yield the indices of the loader's batches, pass after pass."""
    if loader.batch_sampler is None:
        raise InvalidArgument("loader", "no batch sampler", "a loader with batches")
    while True:
        yield from iter(loader.batch_sampler)


def flat_parameters(model: nn.Module) -> NDArray[np.float64]:
    """Return the trainable parameters, flat, shape ``(d,)``."""
    parts = [p.detach().flatten() for p in model.parameters() if p.requires_grad]
    return np.asarray(torch.cat(parts).double().cpu().numpy())


def flat_gradients(model: nn.Module) -> NDArray[np.float64]:
    """Return the gradients of the trainable parameters, flat, shape ``(d,)``."""
    parts = [
        (torch.zeros_like(p) if p.grad is None else p.grad.detach()).flatten()
        for p in model.parameters()
        if p.requires_grad
    ]
    return np.asarray(torch.cat(parts).double().cpu().numpy())


def learning_rates(model: nn.Module, optimizer: Any) -> NDArray[np.float64] | None:
    """Return the learning rate of each trainable coordinate, shape ``(d,)``.

    Args:
        model: The model.
        optimizer: The optimizer; None for an unknown one.

    Returns:
        The rates; None if a parameter has none that is known.
    """
    groups = getattr(base_optimizer(optimizer), "param_groups", ()) if optimizer is not None else ()
    rate_of = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
    trained = [p for p in model.parameters() if p.requires_grad]
    if not all(id(p) in rate_of for p in trained):
        return None
    return np.concatenate([np.full(p.numel(), rate_of[id(p)]) for p in trained])


def parameter_slices(model: nn.Module) -> dict[str, slice]:
    """Return the slice of each trainable parameter in an update, by name."""
    groups, start = {}, 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name.removeprefix("_module.")] = slice(start, start + parameter.numel())
            start += parameter.numel()
    return groups


def _wrapped_optimizers(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer and those inside of it, such as that of Opacus in Accelerate's."""
    while optimizer is not None:
        yield optimizer
        inner = getattr(optimizer, "original_optimizer", None)
        optimizer = getattr(optimizer, "optimizer", None) if inner is None else inner


def _with_noise(optimizer: Any) -> Any:
    """Return Opacus' optimizer; None if there is none."""
    found = (one for one in _wrapped_optimizers(optimizer) if hasattr(type(one), "add_noise"))
    return next(found, None)


def base_optimizer(optimizer: Any) -> Any:
    """Return the optimizer that changes the parameters, inside of those that wrap it; or None."""
    return next(iter(reversed(list(_wrapped_optimizers(optimizer)))), None)


def preferred_observation(optimizer: Any) -> Observed:
    """Return what to observe: the parameters, unless an optimizer changes the shape of the sum.

    Args:
        optimizer: The optimizer; None for an unknown one.

    Returns:
        ``parameters`` for plain SGD and for an unknown optimizer, otherwise ``gradients``.
    """
    if optimizer is None:
        return "parameters"
    inner = base_optimizer(optimizer)
    plain = type(inner) is torch.optim.SGD and not any(
        group.get(name) for group in inner.param_groups for name in PLAIN_SGD
    )
    return "parameters" if plain else "gradients"


def _require_optimizer(optimizer: Any) -> None:
    if not hasattr(base_optimizer(optimizer), "register_step_post_hook"):
        raise InvalidArgument(
            "optimizer", type(optimizer).__name__, "a torch optimizer, to observe its gradients"
        )


def _assumptions(optimizer: Any, observe: Observed) -> tuple[str, ...]:
    found = [GRADIENTS] if observe == "gradients" else []
    return (*found, ADAPTED) if is_adaptive(optimizer) else tuple(found)


def is_adaptive(optimizer: Any) -> bool:
    """Return whether the optimizer is one of Opacus' that adapts its clip norm."""
    return hasattr(_with_noise(optimizer), "target_unclipped_quantile")


def adaptive_clip_norm(optimizer: Any) -> float:
    """Return the clip norm of the next step if Opacus adapts it; otherwise 1."""
    return float(_with_noise(optimizer).max_grad_norm) if is_adaptive(optimizer) else 1.0


def public_constants(optimizer: Any, loader: Any) -> dict[str, float]:
    """Return the numbers that Opacus derives from the data set and treats as public.

    Args:
        optimizer: The optimizer.
        loader: The data loader.

    Returns:
        The numbers by name; empty for other libraries.
    """
    expected = getattr(_with_noise(optimizer), "expected_batch_size", None)
    if expected is None:
        return {}
    found = {
        "the number of batches of an epoch": float(len(loader)),
        "the expected batch size": float(expected),
    }
    rate = getattr(loader, "sample_rate", None)
    return found if rate is None else {**found, "the sampling rate": float(rate)}
