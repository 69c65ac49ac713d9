"""Where gradient canaries point: coordinates of their own, or directions among the parameters.

Coordinates of their own are added to what a step releases. They cannot interfere with
records, and no parameter moves by them. Directions among the parameters see what parameters
see, the records' gradients included: they cost accuracy, and only bounds that allow for
interference hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.trainer.added_noise import Sums
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument

CANARIES = "canaries"

Indices = NDArray[np.int64]
Signs = NDArray[np.int8]


class Directions(Protocol):
    """Directions at right angles to each other, one a canary."""

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What a file keeps of them."""

    def add(self, sums: Sums, lengths: Tensor) -> Sums:
        """Return the sums with ``lengths``, shape ``(m,)``, along the directions."""

    def read(self, noisy: Sums) -> Tensor:
        """Return how far the noisy sums go along each direction, shape ``(m,)``."""


@dataclass(frozen=True)
class OwnCoordinates:
    """A coordinate beside the parameters for each canary."""

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Nothing: there is no choice."""
        return {"direction_coordinates": np.zeros((0, 0), np.int64),
                "direction_signs": np.zeros((0, 0), np.int8)}  # fmt: skip

    def add(self, sums: Sums, lengths: Tensor) -> Sums:
        """Return the sums with a part of the canaries' own."""
        return {**sums, CANARIES: lengths.to(next(iter(sums.values())).device)}

    def read(self, noisy: Sums) -> Tensor:
        """Return that part."""
        return noisy[CANARIES].cpu()


@dataclass(frozen=True)
class ParameterDirections:
    """Each canary has some coordinates of the parameters for itself, with signs.

    Attributes:
        coordinates: Positions among all parameters, none twice, shape ``(m, k)``.
        signs: 1 or -1 each, shape ``(m, k)``.
    """

    coordinates: Indices
    signs: Signs

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Both, by name."""
        return {"direction_coordinates": self.coordinates, "direction_signs": self.signs}

    def add(self, sums: Sums, lengths: Tensor) -> Sums:
        """Return the sums with each length spread evenly over the canary's coordinates."""
        flat = torch.cat([part.flatten() for part in sums.values()])
        along = lengths[:, None].float() * torch.from_numpy(self.signs) / self._root
        where = torch.from_numpy(self.coordinates.ravel()).to(flat.device)
        flat.index_add_(0, where, along.flatten().to(flat))
        parts = torch.split(flat, [part.numel() for part in sums.values()])
        named = zip(sums.items(), parts, strict=True)
        return {name: own.view_as(part) for (name, part), own in named}

    def read(self, noisy: Sums) -> Tensor:
        """Return the inner products."""
        flat = torch.cat([part.flatten() for part in noisy.values()]).cpu()
        along = flat[torch.from_numpy(self.coordinates)] * torch.from_numpy(self.signs)
        return along.sum(dim=1) / self._root

    @property
    def _root(self) -> float:
        return math.sqrt(self.coordinates.shape[1])


def choose_directions(kind: str, canaries: int, parameters: int, stream: Keystream) -> Directions:
    """Return directions for ``canaries``.

    Args:
        kind: ``own``: coordinates beside the parameters; ``dirac``: one parameter each;
            ``orthogonal``: random signs on as many parameters each as there are for all.
        canaries: How many, m.
        parameters: How many parameters the model trains.
        stream: Draws them.

    Raises:
        InvalidArgument: more canaries than parameters, or another kind.
    """
    if kind == "own" or canaries == 0:
        return OwnCoordinates()
    if canaries > parameters:
        raise InvalidArgument("canaries", canaries, f"at most the {parameters} parameters")
    each = {"dirac": 1, "orthogonal": parameters // canaries}.get(kind)
    if each is None:
        raise InvalidArgument("canary_directions", kind, "own, dirac or orthogonal")
    order = np.argsort(stream.words(Purpose.CANARY_DIRECTIONS, 0, parameters))
    signs = 2 * stream.coins(Purpose.CANARY_DIRECTIONS, 1, canaries * each, 0.5).astype(np.int8) - 1
    chosen = order[: canaries * each].reshape(canaries, each)
    return ParameterDirections(chosen, signs.reshape(canaries, each).astype(np.int8))


def directions_of(arrays: dict[str, NDArray[np.generic]]) -> Directions:
    """Return the directions that a file keeps."""
    coordinates = np.asarray(arrays["direction_coordinates"], dtype=np.int64)
    if coordinates.size == 0:
        return OwnCoordinates()
    return ParameterDirections(coordinates, np.asarray(arrays["direction_signs"], dtype=np.int8))
