"""Settings of a training run: the content of config.toml.

Settings that can change privacy and settings that only change speed are different types.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_noise_within_float32,
    require_open_unit,
    require_positive,
    require_sampling_rate,
    require_text,
)

OPTIMIZERS = ("sgd", "adam", "adamw", "adam-corrected")
LEARNING_RATE_SCHEDULES = ("constant", "cosine")
NOISE_DISTRIBUTIONS = ("auto", "grid", "normal")
CANARY_DIRECTIONS = ("own", "dirac", "orthogonal")
DEVICES = ("auto", "cpu", "cuda")
TEXT_SUFFIXES = (".txt", ".bytes")
TEXT_DATA = "a .txt or .bytes file, or a table with a column of text"


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not in ``allowed``."""
    if value not in allowed:
        raise InvalidArgument(name, value, f"one of {', '.join(allowed)}")


class DataSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The records, and the split into training and held-out records.

    Attributes:
        source: ``digits``, or the absolute path of a file or folder.
        label: Label column of a table. None selects the column ``label``, or else the last.
        feature_range: Public range (minimum, maximum) of the features, which is scaled to
            [0, 1]. None selects the range of the format (0 to 255 for bytes), or else no
            scaling.
        test_fraction: Probability with which each record is held out, unless the source has a
            test set; above 0 and below 1.
        split_seed: Seed of the split, at least 0. The coin of record i depends on the seed and
            on i alone.
        text: Column of a table whose texts are the records, as token sequences. None for other
            records; a text file needs none.
        tokenizer: Absolute path of a folder with a Hugging Face ``tokenizer.json``. None for
            bytes as tokens.
        sequence_length: Number of tokens of a record of text; at least 2.

    Raises:
        InvalidArgument: If a setting is out of its range, or is not for records of this kind.

    Example:
        >>> DataSettings(test_fraction=0.1).source
        'digits'
    """

    source: str = "digits"
    label: str | None = None
    feature_range: tuple[float, float] | None = None
    test_fraction: float = 0.2
    split_seed: int = 0
    text: str | None = None
    tokenizer: str | None = None
    sequence_length: int = 128

    @property
    def has_tokens(self) -> bool:
        """Whether the records are token sequences, for a language model."""
        return self.text is not None or self.source.removesuffix(".gz").endswith(TEXT_SUFFIXES)

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
        require_count("sequence_length", self.sequence_length, least=2)
        if self.text is not None:
            require_text("text", self.text)
        if self.tokenizer is not None:
            require_text("tokenizer", self.tokenizer)
        self._require_one_kind()

    def _require_one_kind(self) -> None:
        """Refuse settings of classified records for text, and the other way round."""
        if self.has_tokens:
            for name, value in (("label", self.label), ("feature_range", self.feature_range)):
                if value is not None:
                    raise InvalidArgument(name, value, "left out for records of text")
        elif self.tokenizer is not None:
            allowed = f"left out, unless the data are text: {TEXT_DATA}"
            raise InvalidArgument("tokenizer", self.tokenizer, allowed)


class PrivacySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings that the privacy guarantee depends on.

    Attributes:
        sampling_rate: Probability with which each record joins each step; above 0 and at most
            1.
        noise_multiplier: Standard deviation of the noise over ``clip_norm``; above 0.
        clip_norm: Largest L2 norm of one record's gradient; above 0.
        steps: Number of noisy steps; at least 1.
        delta: The delta of the claimed epsilon; at least 1e-300 and below 1.
        expected_batch_size: Public constant by which the noisy sum is divided, in records;
            above 0. With None, a noisy record count is released, recorded in the ledger and
            used instead.
        count_noise_multiplier: Standard deviation of the noise of that count, in records;
            above 0.
        seed: None for secure randomness. A number, at least 0, makes the run reproducible; a
            gate that requires secure randomness then rejects the claim.
        unaccounted: Other uses of the records, which the claim does not cover.
        noise: ``grid``: exactly rounded normals on a grid, whose floating-point representation
            leaks nothing. ``normal``: normals in float32. ``auto``: ``grid`` on a CPU with the
            compiled kernels, else ``normal``; a run's settings say which one was used.

    Raises:
        InvalidArgument: If a setting is NaN, infinite or out of its range.

    Example:
        >>> settings = PrivacySettings(
        ...     sampling_rate=0.01, noise_multiplier=1.1, clip_norm=1.0, steps=1000, delta=1e-5
        ... )
        >>> settings.noise
        'normal'
    """

    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    delta: float
    expected_batch_size: float | None = None
    count_noise_multiplier: float = 50.0
    seed: int | None = None
    unaccounted: tuple[str, ...] = ()
    noise: str = "normal"

    def __post_init__(self) -> None:
        _require_one_of("noise", self.noise, NOISE_DISTRIBUTIONS)
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_positive("noise_multiplier", self.noise_multiplier)
        require_positive("clip_norm", self.clip_norm)
        require_noise_within_float32(self.clip_norm, self.noise_multiplier)
        require_count("steps", self.steps)
        require_delta("delta", self.delta)
        require_positive("count_noise_multiplier", self.count_noise_multiplier)
        if self.expected_batch_size is not None:
            require_positive("expected_batch_size", self.expected_batch_size)
        if self.seed is not None:
            require_count("seed", self.seed, least=0)


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Model and optimizer; no value of these settings changes the guarantee.

    Attributes:
        model: ``auto``, ``linear``, ``mlp``, ``cnn``, ``scattering``, ``wrn-16-4``, or
            ``package.module:factory``, which is called with the shape of one record and the
            number of classes. For text: ``auto`` or ``gpt2-tiny``, the path of a folder with
            ``config.json`` and safetensors weights, or a factory, which is called with
            ``(sequence_length,)`` and the size of the vocabulary.
        optimizer: ``sgd``, ``adam``, ``adamw``, or ``adam-corrected``, which subtracts the
            variance of the noise from the second moment.
        learning_rate: Learning rate of the optimizer, above 0; None for the model's default.
        momentum: Momentum of ``sgd``; at least 0 and below 1.
        learning_rate_schedule: ``constant``, or ``cosine``, which falls to 0 after the last
            step; in a federation, after the last local step of the last round.
        average_decay: Decay per step of an exponential average of the weights, which is then
            the published model; above 0 and below 1. None publishes the last weights.
        lora_rank: Rank of the adapters that are trained beside frozen linear layers, at least
            1. None trains the model itself.
        freeze_body: Whether only the last linear layer is trained.
        views: Number of views of each image, shifted and mirrored at random, whose losses are
            averaged before clipping; at least 1. With 1, images are used as they are.

    Raises:
        InvalidArgument: If a setting is unknown or out of its range, or if adapters are asked
            for together with a frozen body.

    Example:
        >>> ModelSettings(optimizer="adam", learning_rate=1e-3).model
        'auto'
    """

    model: str = "auto"
    optimizer: str = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    learning_rate_schedule: str = "constant"
    average_decay: float | None = None
    lora_rank: int | None = None
    freeze_body: bool = False
    views: int = 1

    def __post_init__(self) -> None:
        require_text("model", self.model)
        require_count("views", self.views)
        if self.lora_rank is not None:
            require_count("lora", self.lora_rank)
            if self.freeze_body:
                allowed = "left out with lora, which freezes every layer and trains adapters"
                raise InvalidArgument("freeze_body", self.freeze_body, allowed)
        if self.learning_rate is not None:
            require_positive("learning_rate", self.learning_rate)
        _require_one_of("optimizer", self.optimizer, OPTIMIZERS)
        _require_one_of(
            "learning_rate_schedule", self.learning_rate_schedule, LEARNING_RATE_SCHEDULES
        )
        if self.average_decay is not None:
            require_open_unit("average_decay", self.average_decay)
        if not 0 <= self.momentum < 1:
            raise InvalidArgument("momentum", self.momentum, "at least 0 and below 1")


class CanarySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers and kind of the canaries; each is included by its own fair coin.

    Attributes:
        gradient: Number of canaries in gradient space, each with one direction; at least 0.
        inputs: Number of mislabelled records among the training records, or, on text, of
            sequences that end with a token of their own; at least 0.
        directions: ``own``: coordinates outside of the parameters, so canaries do not
            interfere. ``dirac``: one parameter per canary. ``orthogonal``: the parameters
            are divided evenly among the canaries, with a random sign each.
        file: The trainer's file of ``dpaudit canaries make``, whose included canaries are added to
            the training records; None: there is none.

    Raises:
        InvalidArgument: If a number is negative or ``directions`` is unknown.

    Example:
        >>> CanarySettings(gradient=1000).directions
        'own'
    """

    gradient: int = 0
    inputs: int = 0
    directions: str = "own"
    file: str | None = None

    def __post_init__(self) -> None:
        require_count("canaries", self.gradient, least=0)
        require_count("input_canaries", self.inputs, least=0)
        _require_one_of("canary_directions", self.directions, CANARY_DIRECTIONS)


class SpeedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings that change speed and memory alone, not the distribution of the result.

    Attributes:
        physical_batch_size: Records whose gradients are in memory at once; at least 1.
        checkpoint_every: Steps between checkpoints; at least 1.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.

    Raises:
        InvalidArgument: If a number is below 1 or ``device`` is unknown.

    Example:
        >>> SpeedSettings().physical_batch_size
        128
    """

    physical_batch_size: int = 128
    checkpoint_every: int = 100
    device: str = "auto"

    def __post_init__(self) -> None:
        _require_one_of("device", self.device, DEVICES)
        require_count("physical_batch_size", self.physical_batch_size)
        require_count("checkpoint_every", self.checkpoint_every)


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of one run.

    Attributes:
        data: The records.
        privacy: Settings that the guarantee depends on.
        model: Model and optimizer.
        canaries: Canaries for the audit.
        speed: Settings that change speed and memory alone.
        preset: Name of the preset that the run started from; None without one.
        schema_version: Version of the file format.
    """

    data: DataSettings
    privacy: PrivacySettings
    model: ModelSettings
    canaries: CanarySettings
    speed: SpeedSettings
    preset: str | None = None
    schema_version: str = SCHEMA_VERSION

    def without_canary_file(self) -> RunConfig:
        """Return the settings without the canary file: other trainings do not add its canaries.

        Returns:
            The same settings otherwise.
        """
        canaries = msgspec.structs.replace(self.canaries, file=None)
        return msgspec.structs.replace(self, canaries=canaries)


# Presets: settings that are known to work on a benchmark.

HYPERPARAMETER_TUNING = "hyperparameter-tuning"
"""Name, in ledgers and policies, of the use of the records that a preset leaves unaccounted."""


class Preset(msgspec.Struct, frozen=True):
    """Settings of a run without its records.

    Attributes:
        data: The records for which the settings were tuned, as text.
        source: The origin of the hyper-parameters, as text.
        model: Model and optimizer.
        clip_norm: Largest L2 norm of one record's gradient.
        dataset_size: Public number of records.
        batch_size: Expected number of records in a batch.
        epochs: Expected passes over the records.
        target_epsilon: Epsilon for which the noise is calibrated, in nats.
        delta: The delta of that epsilon.
        physical_batch_size: Records whose gradients are in memory at once.
        figure: What was measured with these settings, as text.
        sequence_length: Number of tokens of a record of text; None for other records.
        file_names: Names, without suffix, of files that usually hold these records.
    """

    data: str
    source: str
    model: ModelSettings
    clip_norm: float
    dataset_size: int
    batch_size: int
    epochs: float
    target_epsilon: float = 3.0
    delta: float = 1e-5
    physical_batch_size: int = 1024
    figure: str = ""
    sequence_length: int | None = None
    file_names: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings by section and key of a configuration file."""
        length = self.sequence_length
        return {
            **({} if length is None else {"data": {"sequence_length": length}}),
            "privacy": {
                "target_epsilon": self.target_epsilon,
                "delta": self.delta,
                "clip_norm": self.clip_norm,
                "dataset_size": self.dataset_size,
                "batch_size": self.batch_size,
                "epochs": self.epochs,
                "unaccounted": (HYPERPARAMETER_TUNING,),
            },
            "model": msgspec.structs.asdict(self.model),
            "speed": {"physical_batch_size": self.physical_batch_size},
        }


PRESETS = {
    "fashion-mnist-scattering": Preset(
        data="Fashion-MNIST, 60,000 images of 28 x 28",
        source="Tramer & Boneh 2021, arXiv:2011.11660 (linear model on scattering features); "
        "epochs (40 there) and averaged weights by our own trials",
        model=ModelSettings(
            "scattering", "sgd", learning_rate=16.0, momentum=0.9, average_decay=0.98
        ),
        clip_norm=0.1,
        dataset_size=60_000,
        batch_size=8192,
        epochs=55,
        figure="89.74% of the test set, mean of 5 seeds",
        file_names=("fashion-mnist", "fashionmnist", "fmnist"),
    ),
    "mnist-scattering": Preset(
        data="MNIST, 60,000 images of 28 x 28",
        source="Tramer & Boneh 2021, arXiv:2011.11660 (linear model on scattering features); "
        "batch (4096 there), learning rate (8) and epochs (40) by our own trials",
        model=ModelSettings("scattering", "sgd", learning_rate=6.0, momentum=0.9),
        clip_norm=0.1,
        dataset_size=60_000,
        batch_size=8192,
        epochs=60,
        figure="98.62% of the test set, mean of 5 seeds",
        file_names=("mnist",),
    ),
    "mnist-cnn": Preset(
        data="MNIST, 60,000 images of 28 x 28",
        source="network: Papernot et al. 2020, arXiv:2007.14191; the rest: Tramer & Boneh 2021, "
        "arXiv:2011.11660",
        model=ModelSettings("cnn", "sgd", learning_rate=0.5, momentum=0.9),
        clip_norm=0.1,
        dataset_size=60_000,
        batch_size=512,
        epochs=40,
        physical_batch_size=512,
        figure="98.02% of the test set, mean of 3 seeds",
    ),
    "cifar10-scattering": Preset(
        data="CIFAR-10, 50,000 images of 3 x 32 x 32, channels first",
        source="Tramer & Boneh 2021, arXiv:2011.11660 (linear model on scattering features); "
        "group normalization in place of their noisy batch normalization",
        model=ModelSettings("scattering", "sgd", learning_rate=4.0, momentum=0.9),
        clip_norm=0.1,
        dataset_size=50_000,
        batch_size=8192,
        epochs=60,
        figure="not measured yet",
        file_names=("cifar10", "cifar-10"),
    ),
    "cifar10-wrn": Preset(
        data="CIFAR-10, 50,000 images of 3 x 32 x 32, channels first; needs a GPU",
        source="De et al. 2022, arXiv:2204.13650 (WRN-16-4, group normalization, standardized "
        "weights, 16 views, batch, learning rate, 725 steps); weights averaged with decay 0.99 "
        "(0.9999 with a warm-up there)",
        model=ModelSettings(
            "wrn-16-4", "sgd", learning_rate=2.0, momentum=0.0, average_decay=0.99, views=16
        ),
        clip_norm=1.0,
        dataset_size=50_000,
        batch_size=4096,
        epochs=59.39,
        target_epsilon=1.0,
        physical_batch_size=64,
        figure="no accuracy; a step takes about 2,700 CPU seconds, so it needs a GPU",
    ),
    "adult-mlp": Preset(
        data="UCI Adult, 32,561 records, as benchmarks/utility.py --prepare writes them",
        source="our own trials on 5/6 of the training records",
        model=ModelSettings("mlp", "sgd", learning_rate=4.0, momentum=0.9, average_decay=0.98),
        clip_norm=0.1,
        dataset_size=32_561,
        batch_size=1024,
        epochs=40,
        figure="84.67% of the test set, mean of 5 seeds",
        file_names=("adult",),
    ),
    "shakespeare-gpt": Preset(
        data="the plays of Shakespeare, 1.1 MB of text in blocks of 64 bytes",
        source="our own trials; the network is a small GPT-2 (Radford et al. 2019)",
        model=ModelSettings("gpt2-tiny", "adam", learning_rate=0.003),
        clip_norm=1.0,
        dataset_size=13_900,
        batch_size=512,
        epochs=5,
        physical_batch_size=128,
        sequence_length=64,
        figure="not measured yet",
        file_names=("tinyshakespeare", "shakespeare"),
    ),
}


def preset_for(source: str) -> str | None:
    """Return the preset for a file of records, by the file's name alone.

    Args:
        source: Path of the records.

    Returns:
        The name of the preset with the best figure for such records; None if none is for them.

    Example:
        >>> preset_for("data/mnist.npz")
        'mnist-scattering'
    """
    stem = source.replace("\\", "/").rstrip("/").rpartition("/")[2].partition(".")[0]
    plain = stem.lower().replace("_", "-")
    return next((name for name, one in PRESETS.items() if plain in one.file_names), None)


# Progress of a long computation, as its caller shows it.


class Progress(Protocol):
    """Receives the progress of a computation, stage by stage."""

    def start(self, what: str, total: int) -> None:
        """Begin a stage of ``total`` units of work; the stage before it has ended."""

    def advance(self, units: int = 1) -> None:
        """Report that ``units`` more units of the stage are done."""


class NoProgress:
    """Shows nothing."""

    def start(self, what: str, total: int) -> None:
        """Ignore the stage."""

    def advance(self, units: int = 1) -> None:
        """Ignore the units."""
