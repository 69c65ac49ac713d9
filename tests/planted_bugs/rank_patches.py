"""Bugs of several ranks, and the ways of adding noise on several ranks that they are bugs of.

Ours adds noise once, from one key, after the sums are added up. In another honest design each
rank adds its share, from a key of its own; that one stands here to be broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from dpaudit.trainer.added_noise import Independent, Moment, Sums, size
from dpaudit.trainer.conforming import Bench, gathered
from dpaudit.trainer.noise import normals
from dpaudit.trainer.peers import Ranks
from dpaudit.trainer.randomness import Keystream, Purpose
from tests.planted_bugs import patches
from tests.planted_bugs.patches import Patch, honest_noise

honest_bench_step = Bench.step


@dataclass(frozen=True)
class PlantedInRanks:
    """A bug, or none: then ``check`` is empty, and the trainer must hold."""

    patch: Patch
    check: str = ""
    word: str = ""


@contextmanager
def each_rank_adds_its_share(key_of: Callable[[Keystream, int], Keystream]) -> Iterator[None]:
    """Each rank adds noise of variance 1 / ranks, from the key that ``key_of`` gives it."""
    own: list[NDArray[np.float64]] = []

    def added(
        self: Independent, sums: Sums, moment: Moment, noise_multiplier: float, norm: float
    ) -> Sums:
        world, stream = distributed.get_world_size(), key_of(moment.stream, distributed.get_rank())
        drawn = normals(stream, Purpose.GRADIENT_NOISE, moment.step, size(sums))
        share = drawn * (noise_multiplier * norm / world**0.5)
        clean = torch.cat([part.flatten() for part in sums.values()])
        # Who holds which records shows in the rows alone, and not in their sum.
        rank = distributed.get_rank()
        own[:] = [(share + clean * (1.0 if rank == 0 else 0.0)).double().numpy()]
        total = share.clone()
        distributed.all_reduce(total)
        parts = torch.split(clean + total, [part.numel() for part in sums.values()])
        named = zip(sums.items(), parts, strict=True)
        return {name: flat.view_as(part) for (name, part), flat in named}

    def step(self: Bench) -> NDArray[np.float64]:
        update = honest_bench_step(self)
        scale = -self._bench.learning_rate / self._bench.expected_batch_size
        self.rank_updates = np.array(gathered(own[0])) * scale
        return update

    with patch.object(Independent, "added", added), patch.object(Bench, "step", step):
        yield


def of_its_own(stream: Keystream, rank: int) -> Keystream:
    return Keystream.seeded(stream.seed_for(Purpose.DEVICE_KEY) + rank)


def of_all(stream: Keystream, rank: int) -> Keystream:
    return stream


def missing_on_the_last(sums: Sums, moment: Moment, noise: float, norm: float) -> Sums:
    if distributed.get_rank() == distributed.get_world_size() - 1:
        return sums
    return honest_noise(Independent(), sums, moment, noise, norm)


def padded(self: Ranks, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Every rank gets as many records: the first ones are taken again."""
    missing = -len(drawn) % self.world
    return np.concatenate([drawn, drawn[:missing]])[self.rank :: self.world]


def by_the_world(moment: Moment, norm: float) -> float:
    return 1 / distributed.get_world_size()


CASES: dict[str, PlantedInRanks] = {
    "clean": PlantedInRanks(nullcontext),
    "clean, each rank adds its share": PlantedInRanks(lambda: each_rank_adds_its_share(of_its_own)),
    "noise divided by the world size": PlantedInRanks(
        patches.scales_noise(by_the_world), "noise", "0.5"
    ),
    "noise missing on one rank": PlantedInRanks(
        patches.adds(missing_on_the_last), "correlation", "rank 1 has the least noise"
    ),
    "same seed on every rank": PlantedInRanks(
        lambda: each_rank_adds_its_share(of_all), "correlation", "rank 0 and rank 1"
    ),
    "DDP padding duplicates records": PlantedInRanks(
        lambda: patch.object(Ranks, "share", padded), "replay", "counts 2 times"
    ),
}
