"""Steps of a training loop in JAX: optax, JAX Privacy, or the user's own.

``step(include=indices)`` stacks these records and takes the user's step on them. ``step()`` takes
the next of the loop's ``batches``. Without them it takes all records, and the sampler is not
tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.trainer_protocol import Record
from dpaudit.attacks.conformance.wrappers.parts import JaxLoop
from dpaudit.vocabulary.errors import InvalidArgument

PADDED = (
    "the training loop pads every batch to {} rows with gradients of zero, so the divisor does not "
    "depend on the records"
)
NOISY_GRADIENTS = "what the loop does with the noisy gradients is post-processing of them"
LOSSES_IN_MEMORY = 16  # compiled gradients that are kept, one for each loss


class JaxTrainer:
    """A trainer that takes the steps of a ``JaxLoop``.

    Args:
        loop: The user's loop.
        records: Pairs of features and label, each of the same shape.

    Attributes:
        sampled: Indices of the records of the last step; None if they are not known.
        groups: Slices of coordinates by the path of each array.
        assumptions: What is assumed about the loop.
    """

    def __init__(self, loop: JaxLoop, records: Sequence[Record]) -> None:
        self._loop, self._state, self.assumptions = loop, loop.state, loop.assumptions
        self._records = stack_records(records)
        self._batches: Iterator[Sequence[int]] | None = (
            None if loop.batches is None else iter(loop.batches)
        )
        self.sampled: list[int] | None = None
        self.groups = array_slices(loop.parameters(loop.state))

    def step(self, include: Sequence[int] | None = None) -> NDArray[np.float64]:
        """Take one step on the loop's next batch, or on the given records.

        Args:
            include: Indices of the records; None for those that the loop draws, or for all.

        Returns:
            The change of the observed arrays, flat, shape ``(d,)``.
        """
        known = include is not None or self._batches is not None
        chosen = self._next_batch() if include is None else include
        indices = np.asarray(chosen, dtype=np.int64).ravel()
        before = flat_arrays(self._loop.parameters(self._state))
        batch = (self._records[0][indices], self._records[1][indices])
        self._state = self._loop.train_step(self._state, batch)
        self.sampled = indices.tolist() if known else None
        return np.asarray(flat_arrays(self._loop.parameters(self._state)) - before)

    def _next_batch(self) -> Sequence[int]:
        if self._batches is None:
            return range(len(self._records[0]))
        batch = next(self._batches, None)
        if batch is None:
            raise InvalidArgument(
                "batches", "fewer batches than steps of the claim", "at least one for each step"
            )
        return batch


def loop_of_optax(
    params: Any,
    optimizer: Any,
    loss: Callable[[Any, Any, Any], Any],
    batches: Iterable[Sequence[int]] | None = None,
    *,
    batch_size: int | None = None,
) -> JaxLoop:
    """Return the loop of ``optax.contrib.dpsgd``, or of a chain with its aggregation.

    Args:
        params: Pytree of the parameters.
        optimizer: A gradient transformation whose updates have a leading axis of records.
        loss: From parameters, features and label of one record to its loss.
        batches: Indices of the records of each step; None if they are not known.
        batch_size: Rows of every batch; missing ones have a gradient of zero. None: no padding.

    Returns:
        The loop, which observes the parameters.
    """
    gradients, apply_updates = per_record_gradients(loss), import_module("optax").apply_updates

    def train_step(state: tuple[Any, Any], batch: tuple[Any, Any]) -> tuple[Any, Any]:
        rows = batch[0].shape[0]
        whole = gradients(state[0], *padded(batch, batch_size or few_shapes(rows)))
        kept = first_rows(whole, rows) if batch_size is None else keep_rows(whole, rows)
        updates, inner = optimizer.update(kept, state[1], state[0])
        return apply_updates(state[0], updates), inner

    assumed = () if batch_size is None else (PADDED.format(batch_size),)
    state = params, optimizer.init(params)
    return JaxLoop(state, train_step, lambda state: state[0], batches, assumed)


def loop_of_jax_privacy(
    params: Any,
    clipped_grad: Any,
    noise: Any,
    batches: Iterable[Sequence[int]] | None = None,
    *,
    batch_size: int | None = None,
) -> JaxLoop:
    """Return the loop that adds up what JAX Privacy releases.

    Args:
        params: Pytree of the parameters.
        clipped_grad: What ``jax_privacy.clipped_grad`` returned, for a loss of parameters, features
            and labels.
        noise: The gradient transformation that adds noise.
        batches: Indices of the records of each step; None if they are not known.
        batch_size: Rows of every batch; missing ones are marked as padding. None: padding to the
            next power of two, which compiles few shapes.

    Returns:
        The loop. It observes the sum of the noisy gradients so far, and subtracts them from the
        parameters.
    """
    jax, gradients = import_module("jax"), compiled(clipped_grad)
    add: Any = lambda one, other: one + other  # noqa: E731
    subtract: Any = lambda one, other: one - other  # noqa: E731

    def train_step(state: tuple[Any, Any, Any], batch: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        rows = batch[0].shape[0]
        whole = padded(batch, batch_size or few_shapes(rows))
        padding = np.arange(whole[0].shape[0]) >= rows
        found = gradients(state[0], *whole, is_padding_example=padding)
        found = found[0] if clipped_grad.has_aux else found
        noisy, inner = noise.update(found, state[1])
        return (
            jax.tree.map(subtract, state[0], noisy),
            inner,
            jax.tree.map(add, state[2], noisy),
        )

    nothing = jax.tree.map(lambda part: part * 0, params)
    return JaxLoop(
        (params, noise.init(params), nothing), train_step, lambda state: state[2], batches
    )


@lru_cache(maxsize=LOSSES_IN_MEMORY)
def per_record_gradients(loss: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """Return the compiled gradients of each record of a batch, of shape ``(records, ...)``.

    Args:
        loss: From parameters, features and label of one record to its loss.

    Returns:
        A function of parameters, features and labels.
    """
    jax = import_module("jax")
    return compiled(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))


@lru_cache(maxsize=LOSSES_IN_MEMORY)
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled function; the same one for each call, which compiles it once."""
    found: Callable[..., Any] = import_module("jax").jit(function)
    return found


def few_shapes(rows: int) -> int:
    """Return the next power of two: few shapes are compiled for batches of many sizes."""
    return 1 << max(0, rows - 1).bit_length()


def first_rows(gradients: Any, rows: int) -> Any:
    """Return the gradients of the first rows only."""
    return import_module("jax").tree.map(lambda part: part[:rows], gradients)


def padded(batch: tuple[Any, Any], rows: int | None) -> tuple[Any, Any]:
    """Repeat or invent rows of a batch until it has as many as asked for.

    Args:
        batch: Features and labels.
        rows: Number of rows; None for those that the batch has.

    Returns:
        The batch. Rows that were added are zeros; their gradients are dropped or set to zero.
    """
    missing = 0 if rows is None else rows - batch[0].shape[0]
    if missing < 0:
        raise InvalidArgument("batch_size", rows, f"at least {batch[0].shape[0]}, as in this batch")
    whole = [
        np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) for part in batch
    ]
    return whole[0], whole[1]


def keep_rows(gradients: Any, rows: int) -> Any:
    """Set the gradients of all rows from a number on to zero; NaN included."""
    jax = import_module("jax")

    def kept(part: Any) -> Any:
        real = (np.arange(part.shape[0]) < rows).reshape((-1,) + (1,) * (part.ndim - 1))
        return jax.numpy.where(real, part, 0)

    return jax.tree.map(kept, gradients)


# Records and arrays.


def stack_records(records: Sequence[Record]) -> tuple[Any, Any]:
    """Stack records to features of shape ``(n, ...)`` and labels of shape ``(n, ...)``."""
    return np.stack([np.asarray(x) for x, _ in records]), np.stack(
        [np.asarray(y) for _, y in records]
    )


def flat_arrays(tree: Any) -> NDArray[np.float64]:
    """Return all arrays of a pytree, flat, in float64, shape ``(d,)``."""
    leaves = import_module("jax").tree.leaves(tree)
    return np.concatenate([np.asarray(leaf, dtype=np.float64).ravel() for leaf in leaves])


def array_slices(tree: Any) -> dict[str, slice]:
    """Return the slice of each array of a pytree in an update, by its path."""
    tree_util, groups, start = import_module("jax").tree_util, {}, 0
    for path, leaf in tree_util.tree_flatten_with_path(tree)[0]:
        size = int(np.size(leaf))
        groups[tree_util.keystr(path) or "all"] = slice(start, start + size)
        start += size
    return groups
