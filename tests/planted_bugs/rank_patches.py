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

from dpaudit.trainer.conformance_trainers import PrivateTrainer, gather_from_ranks
from dpaudit.trainer.distributed import DistributedRanks
from dpaudit.trainer.noise.gaussian_draws import normals
from dpaudit.trainer.noise.gradient_noise import (
    GradientSums,
    Independent,
    NoiseContext,
    count_coordinates,
)
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from tests.planted_bugs import patches
from tests.planted_bugs.patches import Patch, honest_noise

honest_bench_step = PrivateTrainer.step


@dataclass(frozen=True)
class PlantedInRanks:
    """A bug and the check that detects it; an empty ``check`` is no bug, and the trainer passes."""

    patch: Patch
    check: str = ""
    word: str = ""


@contextmanager
def each_rank_adds_its_share(key_of: Callable[[Keystream, int], Keystream]) -> Iterator[None]:
    """Each rank adds noise of variance 1 / ranks, from the key that ``key_of`` returns."""
    own: list[NDArray[np.float64]] = []

    def add_noise(
        self: Independent,
        sums: GradientSums,
        context: NoiseContext,
        noise_multiplier: float,
        norm: float,
    ) -> GradientSums:
        world, stream = distributed.get_world_size(), key_of(context.stream, distributed.get_rank())
        drawn = normals(stream, Purpose.GRADIENT_NOISE, context.step, count_coordinates(sums))
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

    def step(self: PrivateTrainer) -> NDArray[np.float64]:
        update = honest_bench_step(self)
        scale = -self._factory.learning_rate / self._factory.expected_batch_size
        self.rank_updates = np.array(gather_from_ranks(own[0])) * scale
        return update

    with (
        patch.object(Independent, "add_noise", add_noise),
        patch.object(PrivateTrainer, "step", step),
    ):
        yield


def of_its_own(stream: Keystream, rank: int) -> Keystream:
    return Keystream.seeded(stream.seed_for(Purpose.DEVICE_KEY) + rank)


def of_all(stream: Keystream, rank: int) -> Keystream:
    return stream


def missing_on_the_last(
    sums: GradientSums, context: NoiseContext, noise: float, norm: float
) -> GradientSums:
    if distributed.get_rank() == distributed.get_world_size() - 1:
        return sums
    return honest_noise(Independent(), sums, context, noise, norm)


def padded(self: DistributedRanks, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pad the shares to equal sizes by repeating the first records."""
    missing = -len(drawn) % self.world
    return np.concatenate([drawn, drawn[:missing]])[self.rank :: self.world]


def by_the_world(context: NoiseContext, norm: float) -> float:
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
        lambda: patch.object(DistributedRanks, "share", padded), "replay", "counts 2 times"
    ),
}
