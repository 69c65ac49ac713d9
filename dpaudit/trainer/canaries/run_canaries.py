"""Canaries of a run: synthetic records, each included by a fair coin, whose effect is measured.

Each gradient canary has a direction, by default a coordinate appended to the released sum.
Its gradient is zero elsewhere, no record's gradient has a part along it, and no parameter
depends on it. Such canaries cost no accuracy. They undergo the same clipping, sampling and
noise as every coordinate. Input canaries are held-out records with a wrong label, which are
trained on like any other record.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_arrays, write_secret_arrays
from dpaudit.trainer.data import DatasetSplit, RecordArrays
from dpaudit.trainer.engine.clipping import clip_factors
from dpaudit.trainer.noise.gradient_noise import GradientSums
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.token_data import TokenRecords
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, require_count
from dpaudit.vocabulary.settings import CanarySettings

# Observations of gradient canaries: what each step released along their directions.


@dataclass(frozen=True)
class Observation:
    """The observation of one step.

    Attributes:
        shown: The noisy sum along each canary's direction, in clip norms, shape ``(m,)``; NaN
            if the step was interrupted.
        joined: Whether each canary was in the batch, shape ``(m,)``. As secret as its
            inclusion bit.
    """

    shown: NDArray[np.float32]
    joined: NDArray[np.bool_]


NOTHING_OBSERVED = Observation(np.zeros(0, np.float32), np.zeros(0, np.bool_))
"""The observation of a step without gradient canaries."""


def not_observed(canaries: int) -> Observation:
    """Return the observation of a step that was interrupted after its noise was drawn.

    Args:
        canaries: Number of gradient canaries, m.

    Returns:
        NaN for each canary, and no canary in the batch.
    """
    return Observation(np.full(canaries, np.nan, np.float32), np.zeros(canaries, np.bool_))


def observations_to_arrays(observations: Sequence[Observation]) -> dict[str, NDArray[np.generic]]:
    """Return the arrays in which a file stores observations.

    A random salt keeps the file's digest, which the ledger holds, from confirming a guess of
    its content.

    Args:
        observations: One per step.

    Returns:
        ``rows``, shape ``(steps, m)``; ``joined``, packed into bits; and ``salt``.
    """
    shown = np.array([one.shown for one in observations], dtype=np.float32)
    joined = np.array([one.joined for one in observations], dtype=np.bool_)
    salt = np.frombuffer(os.urandom(32), dtype=np.uint8)
    return {"rows": shown, "joined": np.packbits(joined, axis=-1), "salt": salt}


def sampled_canaries(arrays: Mapping[str, NDArray[np.generic]]) -> NDArray[np.bool_] | None:
    """Return which canaries were in the batch of each step.

    Args:
        arrays: The arrays of an observations file.

    Returns:
        Shape ``(steps, m)``; None if the file does not hold it.
    """
    if "joined" not in arrays:
        return None
    canaries = arrays["rows"].shape[-1]
    packed = np.asarray(arrays["joined"], dtype=np.uint8)
    return np.unpackbits(packed, axis=-1, count=canaries).astype(np.bool_)


def observations_from_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> list[Observation]:
    """Return the observations that a file stores.

    Args:
        arrays: The arrays of an observations file.

    Returns:
        One observation per step.

    Raises:
        KeyError: If ``rows`` or ``joined`` is missing.
    """
    rows = np.asarray(arrays["rows"], dtype=np.float32)
    if len(rows) == 0:
        return []
    joined = sampled_canaries(arrays)
    if joined is None:
        raise KeyError("joined")
    return [Observation(*step) for step in zip(rows, joined, strict=True)]


# Directions of gradient canaries: coordinates beside the parameters, or among them.

CANARY_COORDINATES = "canaries"

Indices = NDArray[np.int64]
Signs = NDArray[np.int8]


class CanaryDirections(Protocol):
    """Orthogonal directions, one per canary."""

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays in which a file stores the directions."""

    def add(self, sums: GradientSums, lengths: Tensor) -> GradientSums:
        """Add the canaries' parts to the sums.

        Args:
            sums: Sums per parameter.
            lengths: Length along each direction, shape ``(m,)``.

        Returns:
            The sums with ``lengths`` along the directions.
        """

    def read(self, noisy: GradientSums) -> Tensor:
        """Return the component of noisy sums along each direction.

        Args:
            noisy: Noisy sums per parameter.

        Returns:
            Shape ``(m,)``, on the CPU.
        """


@dataclass(frozen=True)
class SeparateCoordinates:
    """One further coordinate, beside the parameters, for each canary."""

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Empty arrays: these directions have no choice to store."""
        return {"direction_coordinates": np.zeros((0, 0), np.int64),
                "direction_signs": np.zeros((0, 0), np.int8)}  # fmt: skip

    def add(self, sums: GradientSums, lengths: Tensor) -> GradientSums:
        """Add a part to the sums that holds the canaries' lengths.

        Args:
            sums: Sums per parameter.
            lengths: Length along each direction, shape ``(m,)``.

        Returns:
            The sums, and a part of shape ``(m,)`` by the name ``CANARY_COORDINATES``.
        """
        return {**sums, CANARY_COORDINATES: lengths.to(next(iter(sums.values())).device)}

    def read(self, noisy: GradientSums) -> Tensor:
        """Return the part of the sums that belongs to the canaries.

        Args:
            noisy: Noisy sums per parameter.

        Returns:
            Shape ``(m,)``, on the CPU.
        """
        return noisy[CANARY_COORDINATES].cpu()


@dataclass(frozen=True)
class ParameterDirections:
    """Directions among the parameters: each canary has some coordinates for itself, with signs.

    Attributes:
        coordinates: Positions among all parameters, each at most once, shape ``(m, k)``.
        signs: 1 or -1 for each position, shape ``(m, k)``.
    """

    coordinates: Indices
    signs: Signs

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The coordinates and signs, by the names that a file uses."""
        return {"direction_coordinates": self.coordinates, "direction_signs": self.signs}

    def add(self, sums: GradientSums, lengths: Tensor) -> GradientSums:
        """Add each length, spread evenly over the canary's coordinates.

        Args:
            sums: Sums per parameter.
            lengths: Length along each direction, shape ``(m,)``.

        Returns:
            The sums by the same names.
        """
        flat = torch.cat([part.flatten() for part in sums.values()])
        # Canary i adds length_i * sign / sqrt(k) to each of its k coordinates.
        along = lengths[:, None].float() * torch.from_numpy(self.signs) / self._root
        where = torch.from_numpy(self.coordinates.ravel()).to(flat.device)
        flat.index_add_(0, where, along.flatten().to(flat))
        parts = torch.split(flat, [part.numel() for part in sums.values()])
        named = zip(sums.items(), parts, strict=True)
        return {name: own.view_as(part) for (name, part), own in named}

    def read(self, noisy: GradientSums) -> Tensor:
        """Return the inner products of noisy sums with the unit directions.

        Args:
            noisy: Noisy sums per parameter.

        Returns:
            Shape ``(m,)``, on the CPU.
        """
        flat = torch.cat([part.flatten() for part in noisy.values()]).cpu()
        along = flat[torch.from_numpy(self.coordinates)] * torch.from_numpy(self.signs)
        return along.sum(dim=1) / self._root

    @property
    def _root(self) -> float:
        """The square root of k, which makes the directions unit vectors."""
        return math.sqrt(self.coordinates.shape[1])


def choose_directions(
    kind: str, canaries: int, parameters: int, stream: Keystream
) -> CanaryDirections:
    """Draw the directions of gradient canaries.

    Args:
        kind: ``own``: coordinates beside the parameters. ``dirac``: one parameter each.
            ``orthogonal``: random signs on parameters // m parameters each.
        canaries: Number of canaries, m.
        parameters: Number of trainable parameters.
        stream: Keystream of the draw.

    Returns:
        The directions.

    Raises:
        InvalidArgument: If there are more canaries than parameters, or the kind is unknown.
    """
    if kind == "own" or canaries == 0:
        return SeparateCoordinates()
    if canaries > parameters:
        raise InvalidArgument("canaries", canaries, f"at most the {parameters} parameters")
    each = {"dirac": 1, "orthogonal": parameters // canaries}.get(kind)
    if each is None:
        raise InvalidArgument("canary_directions", kind, "own, dirac or orthogonal")
    order = np.argsort(stream.words(Purpose.CANARY_DIRECTIONS, 0, parameters))
    signs = 2 * stream.coins(Purpose.CANARY_DIRECTIONS, 1, canaries * each, 0.5).astype(np.int8) - 1
    chosen = order[: canaries * each].reshape(canaries, each)
    return ParameterDirections(chosen, signs.reshape(canaries, each).astype(np.int8))


def directions_from_arrays(arrays: dict[str, NDArray[np.generic]]) -> CanaryDirections:
    """Return the directions that a canary file stores.

    Args:
        arrays: The arrays of the auditor's canary file.

    Returns:
        The directions; separate coordinates if the file stores none.
    """
    coordinates = np.asarray(arrays["direction_coordinates"], dtype=np.int64)
    if coordinates.size == 0:
        return SeparateCoordinates()
    return ParameterDirections(coordinates, np.asarray(arrays["direction_signs"], dtype=np.int8))


# Norm of a canary's gradient before clipping, in clip norms: above 1, so that clipping acts.
RAW_NORM_FACTOR = 16.0

SECRET_ARRAYS = {
    *("gradient_included", "direction_coordinates", "direction_signs"),
    *("input_features", "input_labels", "inputs_included"),
}


InputCanaries = RecordArrays | TokenRecords
"""Records with a wrong label, or token sequences that end with a token of their own."""

NO_INPUT_CANARIES = RecordArrays(np.zeros((0, 0), np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True)
class GradientCanaries:
    """How many gradient canaries to add to your own training loop, and their directions.

    Attributes:
        count: Number of canaries; each is included by an independent fair coin.
        directions: ``own``: coordinates beside the parameters, which cannot interfere with
            training. ``dirac`` (one parameter each) or ``orthogonal``: directions among the
            parameters.

    Example:
        >>> from dpaudit.trainer.noise.randomness import Keystream
        >>> canaries = GradientCanaries(1000).draw(parameters=50, stream=Keystream.seeded(0))
        >>> canaries.gradient_included.shape
        (1000,)
    """

    count: int
    directions: str = "own"

    def __post_init__(self) -> None:
        require_count("canaries", self.count)

    def draw(self, parameters: int, stream: Keystream) -> RunCanaries:
        """Draw the inclusion bits and directions.

        Args:
            parameters: Number of trainable parameters.
            stream: Keystream of the draw.

        Returns:
            The canaries of a run; it has no input canaries.

        Raises:
            InvalidArgument: If directions among the parameters need more parameters, or the kind of
                directions is unknown.
        """
        return RunCanaries(
            stream.coins(Purpose.CANARY_COINS, 0, self.count, 0.5),
            NO_INPUT_CANARIES,
            np.zeros(0, dtype=np.bool_),
            choose_directions(self.directions, self.count, parameters, stream),
        )


@dataclass(frozen=True)
class RunCanaries:
    """All canaries of a run, with their inclusion bits.

    Attributes:
        gradient_included: Inclusion bit of each gradient canary, shape ``(m,)``.
        inputs: The input canaries.
        inputs_included: Inclusion bit of each input canary, shape ``(k,)``.
        directions: Directions of the gradient canaries.
    """

    gradient_included: NDArray[np.bool_]
    inputs: InputCanaries
    inputs_included: NDArray[np.bool_]
    directions: CanaryDirections = field(default_factory=SeparateCoordinates)

    @property
    def has_gradient_canaries(self) -> bool:
        """Whether the run has at least one gradient canary."""
        return len(self.gradient_included) > 0

    @property
    def in_separate_coordinates(self) -> bool:
        """Whether gradient canaries have coordinates beside the parameters."""
        return isinstance(self.directions, SeparateCoordinates)

    def joined(self, stream: Keystream, step: int, sampling_rate: float) -> NDArray[np.bool_]:
        """Draw the gradient canaries in the batch of ``step``, as records are drawn.

        Args:
            stream: Keystream of the draw.
            step: Number of the step, from 0.
            sampling_rate: Probability with which each included canary joins.

        Returns:
            True for each included canary that joins, shape ``(m,)``.
        """
        included = self.gradient_included
        coins = stream.coins(Purpose.CANARY_SAMPLING, step, len(included), sampling_rate)
        return included & coins

    def add(self, sums: GradientSums, joined: NDArray[np.bool_], clip_norm: float) -> GradientSums:
        """Add the clipped gradients of the canaries that joined to the sums.

        Args:
            sums: Clipped sums per parameter.
            joined: Which gradient canaries are in the batch, shape ``(m,)``.
            clip_norm: The clip norm of a record's gradient.

        Returns:
            The sums with the canaries' parts.
        """
        if not self.has_gradient_canaries:
            return sums
        return self.directions.add(sums, gradient_canary_sum(joined, clip_norm))

    def observe(
        self, noisy: GradientSums, joined: NDArray[np.bool_], sensitivity: float
    ) -> Observation:
        """Return the observation of a step's noisy sums.

        Args:
            noisy: Noisy sums per parameter.
            joined: Which gradient canaries were in the batch, shape ``(m,)``.
            sensitivity: The unit of the observation: the largest norm of what one record adds.

        Returns:
            The noisy sums along each canary's direction, over ``sensitivity``.
        """
        if not self.has_gradient_canaries:
            return NOTHING_OBSERVED
        shown = self.directions.read(noisy) / sensitivity
        return Observation(np.asarray(shown, dtype=np.float32), joined)

    @property
    def trained_inputs(self) -> InputCanaries:
        """The included input canaries, which are trained on."""
        return self.inputs[self.inputs_included]

    def write(self, run: RunDirectory) -> None:
        """Write the trainer's file (included canaries) and the auditor's (all, with their bits).

        Args:
            run: The run directory.
        """
        features, labels = _input_arrays(self.inputs)
        # The ledger holds the files' digests: a salt keeps them from confirming a guess.
        write_secret_arrays(
            run.canaries,
            salt=_salt(),
            gradient_coordinates=np.flatnonzero(self.gradient_included),
            input_features=features[self.inputs_included],
            input_labels=labels[self.inputs_included],
        )
        write_secret_arrays(
            run.secret_canaries,
            salt=_salt(),
            gradient_included=self.gradient_included,
            input_features=features,
            input_labels=labels,
            inputs_included=self.inputs_included,
            **self.directions.arrays,
        )

    @classmethod
    def read(cls, run: RunDirectory) -> RunCanaries:
        """Read all canaries of a run with their bits.

        Args:
            run: The run directory.

        Returns:
            The canaries.

        Raises:
            IntegrityError: If the auditor's file is missing or broken, or lacks an array.
        """
        arrays = read_arrays(run.secret_canaries)
        missing = SECRET_ARRAYS - set(arrays)
        if missing:
            raise IntegrityError(f"{run.secret_canaries} lacks {sorted(missing)}")
        return cls(
            arrays["gradient_included"],
            _inputs_from_arrays(arrays["input_features"], arrays["input_labels"]),
            arrays["inputs_included"],
            directions_from_arrays(arrays),
        )


def _input_arrays(inputs: InputCanaries) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Return features and labels, or tokens and lengths, by which a file stores canaries."""
    match inputs:
        case TokenRecords(tokens, lengths):
            return tokens, lengths
        case RecordArrays(features, labels):
            return features, labels


def _inputs_from_arrays(features: NDArray[Any], labels: NDArray[Any]) -> InputCanaries:
    """Return the canaries that a file stores: integers are tokens."""
    if features.dtype.kind == "i":
        return TokenRecords(features, labels)
    return RecordArrays(features, labels)


def _salt() -> NDArray[np.uint8]:
    """Return 32 random bytes, which keep a file's digest from confirming a guess of its content."""
    return np.frombuffer(os.urandom(32), dtype=np.uint8)


def make_canaries(
    settings: CanarySettings, split: DatasetSplit, parameters: int, stream: Keystream
) -> tuple[RunCanaries, RecordArrays]:
    """Draw the canaries of a run.

    Args:
        settings: Number of canaries of each kind, and the kind of directions.
        split: The data set whose held-out records become input canaries.
        parameters: Number of trainable parameters.
        stream: Keystream of bits, labels and directions.

    Returns:
        The canaries, and the held-out records that did not become canaries.

    Raises:
        InvalidArgument: If more than half of the held-out records would become canaries, or the
            directions do not fit the parameters.
    """
    most = len(split.heldout) // 2
    if settings.inputs > most:
        raise InvalidArgument(
            "input_canaries", settings.inputs, f"at most {most}, half of the held-out records"
        )
    taken = np.arange(len(split.heldout)) < settings.inputs
    base = split.heldout[taken]
    shifts = stream.words(Purpose.CANARY_LABELS, 0, settings.inputs) % np.uint64(
        len(split.classes) - 1
    )
    # A shift of 1 to classes - 1, so that the label is wrong and uniform among the others.
    wrong = (base.labels + 1 + shifts.astype(np.int64)) % len(split.classes)
    coins = stream.coins(Purpose.CANARY_COINS, 0, settings.gradient + settings.inputs, 0.5)
    canaries = RunCanaries(
        gradient_included=coins[: settings.gradient],
        inputs=RecordArrays(base.features, wrong),
        inputs_included=coins[settings.gradient :],
        directions=choose_directions(settings.directions, settings.gradient, parameters, stream),
    )
    return canaries, split.heldout[~taken]


def gradient_canary_sum(joined: NDArray[np.bool_], clip_norm: float) -> Tensor:
    """Return what the gradient canaries of a batch add along their directions.

    Args:
        joined: Included and in the batch of this step, shape ``(m,)``.
        clip_norm: Largest norm of one canary's gradient, which is clipped like any record's.

    Returns:
        Length along each direction, shape ``(m,)``, float32.
    """
    raw = torch.full((len(joined),), RAW_NORM_FACTOR * clip_norm, dtype=torch.float64)
    # Each row of the canaries' gradient matrix has one entry, so that entry is its norm.
    clipped = clip_factors(raw, clip_norm) * raw
    return (clipped * torch.from_numpy(joined)).float()
