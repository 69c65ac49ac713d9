"""Records of several rows, whose losses are averaged before the gradient is clipped.

Two uses share this code. K augmented views of one record: De et al. (2022),
arXiv:2204.13650, section 3.2. Users, all of whose records are protected together: McMahan
et al. (2018), arXiv:1710.06963. The clipped gradient is that of the average loss. So a
record or user moves the sum by at most the clip norm, whatever the number of rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.trainer.engine.batch_structure import (
    Batch,
    batch_columns,
    batch_tensors,
    count_records,
    fold_rows,
    map_tensors,
    take_records,
    unfold_rows,
)
from dpaudit.trainer.engine.model_state import seed_torch, values_equal
from dpaudit.trainer.engine.per_record_gradients import PerSampleLoss
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count


@dataclass(frozen=True)
class RecordGroups:
    """A batch of records, or users, of several rows each.

    Attributes:
        rows: A batch whose tensors have shape ``(records, rows, ...)``; a column has a list of
            ``rows`` entries per record.
        weights: Weight of each row's loss in its record's loss, shape ``(records, rows)``; the
            weights of each record sum to 1. A row of weight 0 is padding.

    Example:
        >>> import torch
        >>> rows = (torch.zeros(2, 3, 5), torch.zeros(2, 3))
        >>> groups = RecordGroups(rows, torch.full((2, 3), 1 / 3))
        >>> groups.weights.sum(dim=1).tolist()
        [1.0, 1.0]
    """

    rows: Batch
    weights: Tensor


def average_row_losses(per_sample_loss: PerSampleLoss) -> PerSampleLoss:
    """Return the per-record loss of ``RecordGroups``: the weighted sum of the losses of its rows.

    Args:
        per_sample_loss: (model, batch) to losses of shape ``(rows,)``.

    Returns:
        A function of (model, groups) to losses of shape ``(records,)``. It raises
        ``InvalidArgument`` if ``per_sample_loss`` does not return one loss per row.
    """

    def loss(model: nn.Module, groups: RecordGroups) -> Tensor:
        losses = per_sample_loss(model, unfold_rows(groups.rows))
        if losses.numel() != groups.weights.numel():
            raise InvalidArgument(
                "per_sample_loss",
                tuple(losses.shape),
                f"a function that returns one loss per row, shape ({groups.weights.numel()},): "
                "reduction='none'",
            )
        weights = groups.weights.to(losses.device)
        return (losses.reshape(weights.shape) * weights).sum(dim=1)

    return loss


class Views:
    """Makes ``RecordGroups`` of random augmented views of each record.

    Args:
        augment: Maps a batch to a batch of the same records, each changed at random. It draws
            from torch's generator, so that it can be called twice with the same random numbers.
        views: Number of views per record.

    Raises:
        InvalidArgument: If ``views`` is not a whole number of at least 1.

    Example:
        >>> import torch
        >>> views = Views(lambda batch: (batch[0] + torch.randn_like(batch[0]), batch[1]), 4)
        >>> groups = views((torch.zeros(3, 2), torch.zeros(3)))
        >>> groups.weights.shape
        torch.Size([3, 4])
    """

    def __init__(self, augment: Callable[[Batch], Batch], views: int) -> None:
        require_count("views", views)
        self._augment, self._views = augment, views
        self._records_are_apart = False

    def __call__(self, batch: Batch) -> RecordGroups:
        """Return the views of a batch's records.

        The first batch of two or more records is also a test of ``augment``: views of a record
        must not depend on other records.

        Args:
            batch: Records, as ``private.batches`` yields them.

        Returns:
            Groups of ``views`` rows per record, of equal weight.

        Raises:
            InvalidArgument: If ``augment`` changes the number of records, or mixes records.
        """
        records = count_records(batch)
        if records > 1 and not self._records_are_apart:
            self._require_apart(batch, records)
        each = take_records(batch, torch.arange(records).repeat_interleave(self._views))
        views = self._augment(each)
        if count_records(views) != records * self._views:
            raise self._refused("it changed the number of records")
        weights = torch.full((records, self._views), 1 / self._views)
        return RecordGroups(fold_rows(views, records, self._views), weights)

    def _require_apart(self, batch: Batch, records: int) -> None:
        """Refuse an augmentation whose views of one record depend on another record.

        With the same random numbers, some records are replaced by their neighbors; the views of
        all others must stay equal. For every bit of the records' numbers, those with the bit are
        replaced, then those without it. So each pair of records is separated at least once.
        """
        numbers = torch.arange(records)
        for bit in range((records - 1).bit_length()):
            for seed, kept in enumerate(((numbers >> bit) & 1 == 0, (numbers >> bit) & 1 == 1)):
                source = torch.where(kept, numbers, numbers.roll(1))
                coins = 2 * bit + seed
                one = self._drawn(batch, coins)
                other = self._drawn(take_records(batch, source), coins)
                for a, b in zip(batch_tensors(one), batch_tensors(other), strict=True):
                    if len(a) != records:
                        raise self._refused("it changed the number of records")
                    own = kept.to(a.device)
                    if not torch.equal(a[own].nan_to_num(), b[own].nan_to_num()):
                        raise self._refused("the views of one record depend on another")
                for a, b in zip(batch_columns(one), batch_columns(other), strict=True):
                    if any(not values_equal(a[n], b[n]) for n in numbers[kept].tolist()):
                        raise self._refused("the views of one record depend on another")
        self._records_are_apart = True

    def _refused(self, why: str) -> InvalidArgument:
        """Return the error that names the augmentation and the reason."""
        name = getattr(self._augment, "__name__", type(self._augment).__name__)
        return InvalidArgument(
            "augment", name, f"a function that changes each record independently: {why}"
        )

    def _drawn(self, batch: Batch, coins: int) -> Batch:
        """Return the views of a copy of ``batch``, under torch seeds from ``coins``."""
        with torch.random.fork_rng():
            seed_torch(coins)
            # The augmentation may change its argument in place, so it gets a copy.
            return self._augment(map_tensors(batch, Tensor.clone, copy.deepcopy))


class Users:
    """The owner of each record, for sampling and protecting whole users.

    Args:
        owners: The owner of each record, shape ``(records,)``: values that numpy can sort.
        rows: Largest number of records of one user in one step. Of a user with more, this many
            are drawn in each step.

    Raises:
        InvalidArgument: If ``rows`` is not a whole number of at least 1.

    Example:
        >>> users = Users(["ann", "bob", "ann", "cy"], rows=2)
        >>> len(users), users.records
        (3, 4)
    """

    def __init__(self, owners: Sequence[object] | NDArray[np.generic], rows: int) -> None:
        require_count("rows", rows)
        names, whose = np.unique(np.asarray(owners), return_inverse=True)
        order = np.argsort(whose, kind="stable")
        self._records = np.split(order, np.cumsum(np.bincount(whose))[:-1]) if len(names) else []
        self.records, self.rows = len(whose), rows

    def __len__(self) -> int:
        return len(self._records)

    def rows_of(
        self, users: NDArray[np.int64], stream: Keystream, step: int
    ) -> tuple[NDArray[np.int64], Tensor]:
        """Return the records of the drawn users, and the weights of their losses.

        A user with fewer than ``rows`` records is padded with its first record at weight 0.

        Args:
            users: Positions of the drawn users, shape ``(users,)``.
            stream: Keystream that decides which records of a large user are taken.
            step: Number of the step, from 0.

        Returns:
            Positions of records and weights, both of shape ``(users, rows)``; the weights of each
            user sum to 1.
        """
        chosen = np.zeros((len(users), self.rows), dtype=np.int64)
        weights = torch.zeros(len(users), self.rows)
        for place, user in enumerate(users):
            own = self._records[user]
            if len(own) > self.rows:
                own = own[self._drawn(stream, step, int(user), len(own))]
            chosen[place] = own[0]
            chosen[place, : len(own)] = own
            weights[place, : len(own)] = 1 / len(own)
        return chosen, weights

    def _drawn(self, stream: Keystream, step: int, user: int, records: int) -> NDArray[np.int64]:
        """Return which of a user's records are taken, from the key, the step and the user alone."""
        seed = stream.seed_for(Purpose.USER_ROWS, step)
        generator = np.random.Generator(np.random.Philox(key=[seed, user]))
        return generator.permutation(records)[: self.rows]
