"""What a wrapped build function may return: the parts of a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader

Observed = Literal["parameters", "gradients"]
"""What a step returns: the change of the parameters, or the gradients that the optimizer gets."""


@dataclass(frozen=True)
class TorchLoop:
    """The user's own training loop in torch.

    Attributes:
        model: The model whose trainable parameters are observed.
        loader: The data loader. Its data set, batch sampler and collate function are used.
        train_step: Takes one step on a batch of the loader.
        optimizer: The optimizer; None if only the change of the parameters is observed.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> from dpaudit.attacks.conformance import TorchLoop
        >>> model = torch.nn.Linear(2, 1)
        >>> loop = TorchLoop(model, DataLoader([(torch.zeros(2), 0.0)]), lambda batch: None)
        >>> loop.optimizer is None
        True
    """

    model: nn.Module
    loader: DataLoader[Any]
    train_step: Callable[[Any], Any]
    optimizer: Any = None


@dataclass(frozen=True)
class JaxLoop:
    """The user's own training loop in JAX, or in any library of arrays.

    Attributes:
        state: The state before the first step, such as parameters and optimizer state.
        train_step: From the state and a batch to the next state. A batch is a pair of arrays, the
            features and the labels of its records.
        parameters: From a state to the observed arrays, as a pytree. Their change is what a step
            returns.
        batches: The indices of the records of each step, as the loop draws them; None if they are
            not known, and the sampler is not tested.

    Example:
        >>> from dpaudit.attacks.conformance import JaxLoop
        >>> loop = JaxLoop(0.0, lambda state, batch: state + batch[0].sum())
        >>> loop.parameters(2.5)
        2.5
    """

    state: Any
    train_step: Callable[[Any, tuple[Any, Any]], Any]
    parameters: Callable[[Any], Any] = lambda state: state
    batches: Iterable[Sequence[int]] | None = None
    assumptions: tuple[str, ...] = ()
