"""What a training run was asked to do: the content of config.toml.

Settings that can change privacy and settings that only change speed are different types.
"""

from __future__ import annotations

import math

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_open_unit,
    require_positive,
    require_sampling_rate,
    require_text,
)

OPTIMIZERS = ("sgd", "adam", "adamw", "adam-corrected")
SCHEDULES = ("constant", "cosine")
NOISES = ("normal", "grid")
DIRECTIONS = ("own", "dirac", "orthogonal")
DEVICES = ("auto", "cpu", "cuda")


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InvalidArgument(name, value, f"one of {', '.join(allowed)}")


class DataSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which records, and which of them train.

    Attributes:
        source: ``digits``, or the absolute path of a file or folder.
        label: Column of the label in a table; None for ``label``, else the last column.
        feature_range: Public range (least, greatest) that features are scaled from, to
            [0, 1]; None for that of the format (0 to 255 for bytes), else no scaling.
        test_fraction: Probability with which each record is held out, unless the source
            has a test set of its own.
        split_seed: Seed of the held-out coins; record i's coin depends on it and on i alone.
    """

    source: str = "digits"
    label: str | None = None
    feature_range: tuple[float, float] | None = None
    test_fraction: float = 0.2
    split_seed: int = 0

    def __post_init__(self) -> None:
        require_text("data", self.source)
        if self.label is not None:
            require_text("label", self.label)
        require_open_unit("test_fraction", self.test_fraction)
        require_count("split_seed", self.split_seed, least=0)
        if self.feature_range is not None:
            least, greatest = self.feature_range
            if not -math.inf < least < greatest < math.inf:
                raise InvalidArgument("feature_range", self.feature_range, "two rising numbers")


class PrivacySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that the guarantee depends on.

    Attributes:
        sampling_rate: Probability with which each record joins each step.
        noise_multiplier: Standard deviation of the noise over ``clip_norm``.
        clip_norm: Largest L2 norm of one record's gradient.
        steps: Number of noisy steps.
        delta: The delta that epsilon is claimed at.
        expected_batch_size: Public constant that the noisy sum is divided by. None: the
            record count is released with noise, booked in the ledger, and used instead.
        count_noise_multiplier: Standard deviation of that release's noise, in records.
        seed: None for secure randomness; a number makes the run reproducible and no claim
            about it pass a gate that demands secure randomness.
        leaves_out: What else was done with the records that the claim does not cover.
        noise: ``normal``, or ``grid``: rounded normals on a grid, whose own floats leak
            nothing.
    """

    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    delta: float
    expected_batch_size: float | None = None
    count_noise_multiplier: float = 50.0
    seed: int | None = None
    leaves_out: tuple[str, ...] = ()
    noise: str = "normal"

    def __post_init__(self) -> None:
        _require_one_of("noise", self.noise, NOISES)
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_positive("noise_multiplier", self.noise_multiplier)
        require_positive("clip_norm", self.clip_norm)
        require_count("steps", self.steps)
        require_delta("delta", self.delta)
        require_positive("count_noise_multiplier", self.count_noise_multiplier)
        if self.expected_batch_size is not None:
            require_positive("expected_batch_size", self.expected_batch_size)
        if self.seed is not None:
            require_count("seed", self.seed, least=0)


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is trained and how; any value is equally private.

    Attributes:
        model: ``auto``, ``linear``, ``mlp``, ``cnn``, ``scattering``, or
            ``package.module:factory``, called with the shape of one record and the number
            of classes.
        optimizer: ``sgd``, ``adam``, ``adamw``, or ``adam-corrected``, which takes the noise's
            share off the second moment.
        learning_rate: Of the optimizer; None for the model's default.
        momentum: Of ``sgd``.
        learning_rate_schedule: ``constant``, or ``cosine``: down to 0 after the last step.
        average_decay: What ships is an exponential average of the weights over the steps, of
            which each step keeps this much; None: the last weights.
    """

    model: str = "auto"
    optimizer: str = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    learning_rate_schedule: str = "constant"
    average_decay: float | None = None

    def __post_init__(self) -> None:
        require_text("model", self.model)
        if self.learning_rate is not None:
            require_positive("learning_rate", self.learning_rate)
        _require_one_of("optimizer", self.optimizer, OPTIMIZERS)
        _require_one_of("learning_rate_schedule", self.learning_rate_schedule, SCHEDULES)
        if self.average_decay is not None:
            require_open_unit("average_decay", self.average_decay)
        if not 0 <= self.momentum < 1:
            raise InvalidArgument("momentum", self.momentum, "at least 0 and below 1")


class CanarySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many canaries are made; each is included by a fair coin of its own.

    Attributes:
        gradient: Canaries in gradient space, a direction each.
        inputs: Mislabelled records among the training records.
        directions: ``own`` coordinates beside the parameters, which cannot interfere; or
            among the parameters, ``dirac`` (one each) or ``orthogonal`` (all of them).
    """

    gradient: int = 0
    inputs: int = 0
    directions: str = "own"

    def __post_init__(self) -> None:
        require_count("canaries", self.gradient, least=0)
        require_count("input_canaries", self.inputs, least=0)
        _require_one_of("canary_directions", self.directions, DIRECTIONS)


class SpeedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What changes speed and memory alone, never the result's law.

    Attributes:
        physical_batch_size: Records whose gradients are in memory at once.
        checkpoint_every: Steps between checkpoints.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.
    """

    physical_batch_size: int = 128
    checkpoint_every: int = 100
    device: str = "auto"

    def __post_init__(self) -> None:
        _require_one_of("device", self.device, DEVICES)
        require_count("physical_batch_size", self.physical_batch_size)
        require_count("checkpoint_every", self.checkpoint_every)


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was asked of one run; ``preset`` is the name of the one that it started from."""

    data: DataSettings
    privacy: PrivacySettings
    model: ModelSettings
    canaries: CanarySettings
    speed: SpeedSettings
    preset: str | None = None
    schema_version: str = SCHEMA_VERSION
