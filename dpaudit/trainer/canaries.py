"""Canaries: records of our own making, each included by a fair coin, whose trace is measured.

Gradient canaries each own a direction; as a rule a coordinate appended to the released sum.
Their gradient is zero elsewhere, no record's gradient enters theirs, and no parameter moves
by them: they cost no accuracy, and see the clipping, the sampling and the noise that every
coordinate gets. Input canaries are held-out records with a wrong label, trained on like
any other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_arrays, write_secret_arrays
from dpaudit.trainer.added_noise import Sums
from dpaudit.trainer.data import Records, Split
from dpaudit.trainer.directions import (
    Directions,
    OwnCoordinates,
    choose_directions,
    directions_of,
)
from dpaudit.trainer.engine.clipping import clip_factors
from dpaudit.trainer.observations import NOTHING_OBSERVED, Observation
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, require_count
from dpaudit.vocabulary.settings import CanarySettings

# A canary's raw gradient is this much longer than the clip norm: it must be clipped.
EXCESS = 16.0

SECRET_ARRAYS = {
    *("gradient_included", "direction_coordinates", "direction_signs"),
    *("input_features", "input_labels", "inputs_included"),
}


NO_INPUTS = Records(np.zeros((0, 0), np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True)
class GradientCanaries:
    """How many gradient canaries a loop of your own asks for, and where they point.

    Attributes:
        count: How many; each is included by a fair coin of its own.
        directions: ``own`` coordinates beside the parameters, which cannot interfere with
            training; or among the parameters, ``dirac`` (one each) or ``orthogonal``.
    """

    count: int
    directions: str = "own"

    def __post_init__(self) -> None:
        require_count("canaries", self.count)

    def made(self, parameters: int, stream: Keystream) -> Canaries:
        """Return the canaries with their coins tossed.

        Args:
            parameters: How many numbers the model trains.
            stream: Draws coins and directions.

        Raises:
            InvalidArgument: There are fewer parameters than canaries among them.
        """
        return Canaries(
            stream.coins(Purpose.CANARY_COINS, 0, self.count, 0.5),
            NO_INPUTS,
            np.zeros(0, dtype=np.bool_),
            choose_directions(self.directions, self.count, parameters, stream),
        )


@dataclass(frozen=True)
class Canaries:
    """All canaries of a run, with their inclusion bits.

    Attributes:
        gradient_included: Shape ``(m,)``, the bit of each gradient canary.
        inputs: The mislabelled records.
        inputs_included: Shape ``(k,)``, the bit of each of them.
        directions: Where the gradient canaries point.
    """

    gradient_included: NDArray[np.bool_]
    inputs: Records
    inputs_included: NDArray[np.bool_]
    directions: Directions = field(default_factory=OwnCoordinates)

    @property
    def in_gradients(self) -> bool:
        """Whether there is any gradient canary."""
        return len(self.gradient_included) > 0

    @property
    def beside_parameters(self) -> bool:
        """Whether gradient canaries have coordinates of their own."""
        return isinstance(self.directions, OwnCoordinates)

    def joined(self, stream: Keystream, step: int, sampling_rate: float) -> NDArray[np.bool_]:
        """Return the gradient canaries in the batch of ``step``, shape ``(m,)``.

        They are drawn like records: by a coin of bias ``sampling_rate`` each.
        """
        included = self.gradient_included
        coins = stream.coins(Purpose.CANARY_SAMPLING, step, len(included), sampling_rate)
        return included & coins

    def add(self, sums: Sums, joined: NDArray[np.bool_], clip_norm: float) -> Sums:
        """Return the sums with the clipped gradients of the canaries that joined."""
        if not self.in_gradients:
            return sums
        return self.directions.add(sums, gradient_canary_sum(joined, clip_norm))

    def observe(self, noisy: Sums, joined: NDArray[np.bool_], sensitivity: float) -> Observation:
        """Return what noisy sums show along each canary's direction."""
        if not self.in_gradients:
            return NOTHING_OBSERVED
        shown = self.directions.read(noisy) / sensitivity
        return Observation(np.asarray(shown, dtype=np.float32), joined)

    @property
    def trained_inputs(self) -> Records:
        """The input canaries that train."""
        return self.inputs[self.inputs_included]

    def write(self, run: RunDirectory) -> None:
        """Write the included ones for a trainer, and all with their bits for the auditor."""
        trained = self.trained_inputs
        # Their digests stand in the ledger: a salt keeps them from confirming a guess.
        write_secret_arrays(
            run.canaries,
            salt=_salt(),
            gradient_coordinates=np.flatnonzero(self.gradient_included),
            input_features=trained.features,
            input_labels=trained.labels,
        )
        write_secret_arrays(
            run.secret_canaries,
            salt=_salt(),
            gradient_included=self.gradient_included,
            input_features=self.inputs.features,
            input_labels=self.inputs.labels,
            inputs_included=self.inputs_included,
            **self.directions.arrays,
        )

    @classmethod
    def read(cls, run: RunDirectory) -> Canaries:
        """Read all canaries with their bits."""
        arrays = read_arrays(run.secret_canaries)
        missing = SECRET_ARRAYS - set(arrays)
        if missing:
            raise IntegrityError(f"{run.secret_canaries} lacks {sorted(missing)}")
        inputs = Records(arrays["input_features"], arrays["input_labels"])
        return cls(
            arrays["gradient_included"], inputs, arrays["inputs_included"], directions_of(arrays)
        )


def _salt() -> NDArray[np.uint8]:
    return np.frombuffer(os.urandom(32), dtype=np.uint8)


def make_canaries(
    settings: CanarySettings, split: Split, parameters: int, stream: Keystream
) -> tuple[Canaries, Records]:
    """Return the canaries, and the held-out records that are left.

    Args:
        settings: How many of each kind.
        split: Whose held-out records become input canaries.
        parameters: How many parameters the model trains.
        stream: Draws coins, labels and directions.

    Raises:
        InvalidArgument: more than half of the held-out records would become canaries.
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
    wrong = (base.labels + 1 + shifts.astype(np.int64)) % len(split.classes)
    coins = stream.coins(Purpose.CANARY_COINS, 0, settings.gradient + settings.inputs, 0.5)
    canaries = Canaries(
        gradient_included=coins[: settings.gradient],
        inputs=Records(base.features, wrong),
        inputs_included=coins[settings.gradient :],
        directions=choose_directions(settings.directions, settings.gradient, parameters, stream),
    )
    return canaries, split.heldout[~taken]


def gradient_canary_sum(joined: NDArray[np.bool_], clip_norm: float) -> Tensor:
    """Return what the gradient canaries that joined a step add to their coordinates.

    Args:
        joined: Shape ``(m,)``: included, and drawn by this step's sampling.
        clip_norm: Largest norm of one canary's gradient, clipped like any record's.

    Returns:
        Shape ``(m,)``.
    """
    raw = torch.full((len(joined),), EXCESS * clip_norm, dtype=torch.float64)
    # Each row of the canaries' gradient matrix has this one entry, so it is its own norm.
    clipped = clip_factors(raw, clip_norm) * raw
    return (clipped * torch.from_numpy(joined)).float()
