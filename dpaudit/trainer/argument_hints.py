"""Errors for unknown arguments that name the right one, also for the names of other libraries."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from dpaudit.vocabulary.errors import InvalidArgument, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")

FOREIGN_NAMES: Mapping[str, str] = {
    "module": "use model",
    "net": "use model",
    "data_loader": "use data (a DataLoader is taken)",
    "dataloader": "use data (a DataLoader is taken)",
    "train_loader": "use data (a DataLoader is taken)",
    "train_dataloader": "use data (a DataLoader is taken)",
    "dataset": "use data",
    "train_dataset": "use data",
    "max_grad_norm": "use clip_norm",
    "max_per_sample_grad_norm": "use clip_norm",
    "l2_norm_clip": "use clip_norm",
    "clipping_norm": "use clip_norm",
    "per_sample_max_grad_norm": "use clip_norm",
    "sample_rate": "use sampling_rate",
    "target_delta": "use delta",
    "epsilon": "use target_epsilon",
    "noise_scale": "use noise_multiplier",
    "sigma": "use noise_multiplier",
    "batch_size": "use expected_batch_size: the size of Poisson batches varies",
    "logical_batch_size": "use expected_batch_size: the size of Poisson batches varies",
    "lot_size": "use expected_batch_size: the size of Poisson batches varies",
    "max_physical_batch_size": "use physical_batch_size",
    "micro_batch_size": "use physical_batch_size",
    "num_microbatches": "use physical_batch_size",
    "sample_size": "use dataset_size",
    "num_examples": "use dataset_size",
    "num_samples": "use dataset_size",
    "num_steps": "use steps",
    "max_steps": "use steps",
    "num_epochs": "use epochs",
    "num_workers": "use workers",
    "prefetch_factor": "use prefetch",
    "poisson_sampling": "use sampler: Poisson sampling is the default",
    "secure_mode": "leave it out: noise is secure unless a seed is given",
    "noise_generator": "leave it out: noise is secure unless a seed is given",
    "loss_reduction": "leave it out: private.step takes one loss per record (reduction='none')",
    "criterion": "give the loss to private.step: (model, batch) to one loss per record",
    "batch_first": "leave it out: records are the first dimension",
    "grad_sample_mode": "leave it out: the engine chooses the fastest exact rule",
    "accountant": "leave it out: the ledger is read by every accountant (dpaudit epsilon RUN)",
}
"""What to use in place of arguments of Opacus, TensorFlow Privacy, fastDP and DataLoader."""


def with_argument_hints(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with typed errors for missing and unknown arguments.

    Args:
        function: A function without ``**`` arguments; its signature stays.

    Returns:
        A function that raises ``InvalidArgument``, which names the right argument.

    Example:
        >>> @with_argument_hints
        ... def train(model, *, clip_norm=1.0):
        ...     return clip_norm
        >>> train("net", max_grad_norm=2.0)
        Traceback (most recent call last):
        dpaudit.vocabulary.errors.InvalidArgument: max_grad_norm must be left out; use clip_norm, \
got 2.0
    """
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in kwargs.items():
            if name not in signature.parameters:
                raise _unknown(name, value, list(signature.parameters))
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            allowed = f"called as {function.__name__}(model, optimizer, data, ...): {error}"
            raise InvalidArgument("arguments", f"{len(args)} positional ones", allowed) from error
        return function(*args, **kwargs)

    return checked


def _unknown(name: str, value: object, known: list[str]) -> InvalidArgument:
    """Return the error for an unknown argument."""
    hint = FOREIGN_NAMES.get(name)
    ending = f"; {hint}" if hint else did_you_mean(name, known)
    given = value if isinstance(value, int | float | str | None) else type(value).__name__
    return InvalidArgument(name, given, f"left out{ending or '; it is no argument'}")
