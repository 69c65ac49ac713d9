"""Records of several rows whose losses are averaged before anything is clipped.

Two things are this one: K augmented views of a record (De et al. 2022, arXiv:2204.13650,
section 3.2), and users, whose every record is protected together (McMahan et al. 2018,
arXiv:1710.06963). What is clipped is the gradient of the average, so that a record, or a
user, moves the sum by the clip norm however many rows there are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.trainer.engine.batches import (
    Batch,
    columns,
    count,
    folded,
    mapped,
    taken,
    tensors,
    unfolded,
)
from dpaudit.trainer.engine.comparison import same
from dpaudit.trainer.engine.functional import PerSampleLoss
from dpaudit.trainer.engine.seeding import seed_torch
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count


@dataclass(frozen=True)
class Bags:
    """Records, or users, of several rows each.

    Attributes:
        rows: A batch whose tensors have shape ``(records, rows, ...)``; a column has a list
            of ``rows`` entries per record.
        weights: Of each row's loss in its record's, shape ``(records, rows)``; each record's
            add up to 1. A row of weight 0 only fills the place.
    """

    rows: Batch
    weights: Tensor


def averaged(per_sample_loss: PerSampleLoss) -> PerSampleLoss:
    """Return the loss of ``Bags``: each record's rows' losses, weighted and added up."""

    def loss(model: nn.Module, bags: Bags) -> Tensor:
        losses = per_sample_loss(model, unfolded(bags.rows))
        if losses.numel() != bags.weights.numel():
            raise InvalidArgument(
                "per_sample_loss",
                tuple(losses.shape),
                f"a function that returns a loss a row, shape ({bags.weights.numel()},): "
                "reduction='none'",
            )
        weights = bags.weights.to(losses.device)
        return (losses.reshape(weights.shape) * weights).sum(dim=1)

    return loss


class Views:
    """Makes ``Bags`` of some random views of each record.

    Args:
        augment: From a batch to one of the same records, each changed at random; its coins
            are torch's, so that it can be tried twice with the same ones.
        views: How many of each record.
    """

    def __init__(self, augment: Callable[[Batch], Batch], views: int) -> None:
        require_count("views", views)
        self._augment, self._views = augment, views
        self._records_are_apart = False

    def __call__(self, batch: Batch) -> Bags:
        """Return the views.

        Raises:
            InvalidArgument: ``augment`` changes the number of records, or mixes them.
        """
        records = count(batch)
        if records > 1 and not self._records_are_apart:
            self._require_apart(batch, records)
        each = taken(batch, torch.arange(records).repeat_interleave(self._views))
        seen = self._augment(each)
        if count(seen) != records * self._views:
            raise self._refused("it changed how many there are")
        weights = torch.full((records, self._views), 1 / self._views)
        return Bags(folded(seen, records, self._views), weights)

    def _require_apart(self, batch: Batch, records: int) -> None:
        """Replace records: under the same coins, all others' views stay the same.

        For every bit of their numbers, those that have it and then those that have not, each
        by its neighbour: so any two records are told apart once.
        """
        numbers = torch.arange(records)
        for bit in range((records - 1).bit_length()):
            for seed, kept in enumerate(((numbers >> bit) & 1 == 0, (numbers >> bit) & 1 == 1)):
                source = torch.where(kept, numbers, numbers.roll(1))
                coins = 2 * bit + seed
                one = self._drawn(batch, coins)
                other = self._drawn(taken(batch, source), coins)
                for a, b in zip(tensors(one), tensors(other), strict=True):
                    if len(a) != records:
                        raise self._refused("it changed how many there are")
                    own = kept.to(a.device)
                    if not torch.equal(a[own].nan_to_num(), b[own].nan_to_num()):
                        raise self._refused("another record's views moved with it")
                for a, b in zip(columns(one), columns(other), strict=True):
                    if any(not same(a[n], b[n]) for n in numbers[kept].tolist()):
                        raise self._refused("another record's views moved with it")
        self._records_are_apart = True

    def _refused(self, why: str) -> InvalidArgument:
        name = getattr(self._augment, "__name__", type(self._augment).__name__)
        return InvalidArgument("augment", name, f"one that changes each record by itself: {why}")

    def _drawn(self, batch: Batch, coins: int) -> Batch:
        with torch.random.fork_rng():
            seed_torch(coins)
            # It may change what it is given.
            return self._augment(mapped(batch, Tensor.clone, copy.deepcopy))


class Users:
    """Which records are whose, and how many of each user's are looked at in one step.

    Args:
        owners: Whose each record is, shape ``(records,)``: anything that numpy can sort.
        rows: The most records of one user in one step; of more, so many are drawn.
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
        """Return the records of some users, shape ``(users, rows)``, and their weights.

        A user of few records fills up with the first one, which counts for nothing there.
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
        """Return which of a user's records are looked at: it depends on key, step and user."""
        seed = stream.seed_for(Purpose.USER_ROWS, step)
        generator = np.random.Generator(np.random.Philox(key=[seed, user]))
        return generator.permutation(records)[: self.rows]
