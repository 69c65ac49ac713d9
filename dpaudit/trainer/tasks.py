"""What a run learns from its records: to classify them, or to predict their tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from dpaudit.files.regular_files import DATA_LIMIT, InputFile, open_input
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.canaries.added_canaries import AddedCanaryFile
from dpaudit.trainer.canaries.run_canaries import RunCanaries, make_canaries
from dpaudit.trainer.canaries.text_canaries import last_token_confidences, make_text_canaries
from dpaudit.trainer.data import DatasetSplit, RecordArrays, load_dataset
from dpaudit.trainer.engine.independence import (
    require_independent_losses,
    require_independent_records,
)
from dpaudit.trainer.models.adapters import fill_trained_part, select_trained_part, trained_names
from dpaudit.trainer.models.factories import (
    Evaluation,
    FixedFeatureModel,
    compute_features,
    default_learning_rate,
    evaluate_model,
    make_model,
    trained_part,
)
from dpaudit.trainer.models.language_models import (
    PretrainedFolder,
    TokenEvaluation,
    evaluate_language_model,
    make_language_model,
    mean_token_losses,
    pretrained_folder,
)
from dpaudit.trainer.models.wide_resnet import PAD
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.trainer.token_data import TokenRecords, TokenSplit, load_tokens
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.settings import CanarySettings, DataSettings, ModelSettings, RunConfig

Split = DatasetSplit | TokenSplit
"""Records to train on, and records held out."""

Losses = Callable[[nn.Module, Any], Tensor]
"""From a model and a batch to one loss per record."""


class Task(Protocol):
    """Everything of a run that depends on the kind of its records."""

    @property
    def assumed_public(self) -> tuple[str, ...]:
        """What the ledger lists as public."""

    @property
    def losses(self) -> Losses:
        """The loss of each record."""

    def load(self, settings: DataSettings) -> Split:
        """Read and split the records."""

    def make_model(self, name: str, split: Any, seed: int) -> nn.Module:
        """Return the named model, initialized from ``seed``."""

    def learning_rate(self, name: str, split: Any, optimizer: str) -> float:
        """Return the learning rate that is used if none is set."""

    def require_independent(self, model: nn.Module, split: Any) -> None:
        """Refuse a model that mixes records, by trying it on synthetic ones."""

    def has_images(self, split: Any) -> bool:
        """Return whether records are images, which can be shifted and mirrored."""

    def draw_canaries(
        self, settings: CanarySettings, split: Any, parameters: int, stream: Keystream
    ) -> RunCanaries:
        """Draw the canaries of a run."""

    def with_canary_tokens(self, split: Any, settings: CanarySettings) -> Split:
        """Return the records with one further token for each input canary, if they are text."""

    def with_file_canaries(
        self, split: Any, file: AddedCanaryFile, settings: DataSettings
    ) -> Split:
        """Return the records with the included canaries of a file among those to train on."""

    def canary_scores(self, model: nn.Module, inputs: Any) -> NDArray[np.float64]:
        """Return one score per input canary; larger means included."""

    def inputs(self, model: nn.Module, split: Any, canaries: RunCanaries) -> tuple[Tensor, Tensor]:
        """Return all training records, input canaries included, as a batch."""

    def evaluate(self, model: nn.Module, records: Any) -> Evaluation | TokenEvaluation:
        """Compute the losses of a model on records."""


@dataclass(frozen=True)
class Classification:
    """The records have classes, which the model predicts."""

    assumed_public: tuple[str, ...] = ("feature shape", "label set")

    @property
    def losses(self) -> Losses:
        """Cross-entropy of each record's class."""
        return cross_entropies

    def load(self, settings: DataSettings) -> DatasetSplit:
        """Read and split the records."""
        return load_dataset(settings)

    def make_model(self, name: str, split: DatasetSplit, seed: int) -> nn.Module:
        """Return the named model, initialized from ``seed``."""
        return make_model(name, split.shape, len(split.classes), seed)

    def learning_rate(self, name: str, split: DatasetSplit, optimizer: str) -> float:
        """Return the learning rate that is used if none is set."""
        return default_learning_rate(name, split.shape, optimizer)

    def require_independent(self, model: nn.Module, split: DatasetSplit) -> None:
        """Refuse a model that mixes records."""
        require_independent_records(model, split.shape)
        # A trained part that begins at zero hides whether its features mix records.
        if isinstance(model, FixedFeatureModel):
            require_independent_records(model.features, split.shape)

    def has_images(self, split: DatasetSplit) -> bool:
        """Return whether records have a height and a width."""
        return len(split.shape) in {2, 3} and min(split.shape[-2:]) > PAD

    def draw_canaries(
        self, settings: CanarySettings, split: DatasetSplit, parameters: int, stream: Keystream
    ) -> RunCanaries:
        """Draw gradient canaries, and mislabelled records."""
        return make_canaries(settings, split, parameters, stream)[0]

    def with_canary_tokens(self, split: DatasetSplit, settings: CanarySettings) -> DatasetSplit:
        """Return the records as they are."""
        return split

    def with_file_canaries(
        self, split: DatasetSplit, file: AddedCanaryFile, settings: DataSettings
    ) -> DatasetSplit:
        """Return the records with the canaries, which are records."""
        return file.added_to(split, settings)

    def canary_scores(self, model: nn.Module, inputs: RecordArrays) -> NDArray[np.float64]:
        """Return the confidence in the wrong label of each canary."""
        return evaluate_model(model, inputs).confidences

    def inputs(
        self, model: nn.Module, split: DatasetSplit, canaries: RunCanaries
    ) -> tuple[Tensor, Tensor]:
        """Return features of the fixed part, and labels."""
        extra, train = canaries.trained_inputs, split.train
        assert isinstance(extra, RecordArrays)
        features = np.concatenate([train.features, extra.features.reshape(-1, *split.shape)])
        labels = np.concatenate([train.labels, extra.labels])
        return torch.from_numpy(compute_features(model, features)), torch.from_numpy(labels)

    def evaluate(self, model: nn.Module, records: Any) -> Evaluation:
        """Compute confidences and accuracy."""
        return evaluate_model(model, records)


TEXT_LEARNING_RATE, TEXT_ADAM_LEARNING_RATE = 0.5, 0.003

TRIED_RECORDS = 6
"""Number of synthetic token sequences on which a model is tried."""


@dataclass(frozen=True)
class LanguageModeling:
    """The records are token sequences, whose next tokens the model predicts."""

    assumed_public: tuple[str, ...] = ("sequence length", "vocabulary")

    @property
    def losses(self) -> Losses:
        """Mean cross-entropy over the tokens of each record."""
        return mean_token_losses

    def load(self, settings: DataSettings) -> TokenSplit:
        """Read, tokenize and split the records."""
        return load_tokens(settings)

    def make_model(self, name: str, split: TokenSplit, seed: int) -> nn.Module:
        """Return the named model, initialized from ``seed``."""
        return make_language_model(name, split.shape[0], split.vocabulary, seed)

    def learning_rate(self, name: str, split: TokenSplit, optimizer: str) -> float:
        """Return the learning rate that is used if none is set."""
        return TEXT_LEARNING_RATE if optimizer == "sgd" else TEXT_ADAM_LEARNING_RATE

    def require_independent(self, model: nn.Module, split: TokenSplit) -> None:
        """Refuse a model that mixes records."""
        generator = torch.Generator().manual_seed(0)
        shape = (TRIED_RECORDS, *split.shape)
        tokens = torch.randint(split.vocabulary, shape, generator=generator)
        batch = (tokens, torch.full((TRIED_RECORDS,), split.shape[0]))
        require_independent_losses(model, mean_token_losses, batch)

    def has_images(self, split: TokenSplit) -> bool:
        """Return False: tokens have an order."""
        return False

    def draw_canaries(
        self, settings: CanarySettings, split: TokenSplit, parameters: int, stream: Keystream
    ) -> RunCanaries:
        """Draw gradient canaries, and sequences that end with a token of their own."""
        return make_text_canaries(settings, split, parameters, stream)

    def with_canary_tokens(self, split: TokenSplit, settings: CanarySettings) -> TokenSplit:
        """Return the records with a vocabulary that has one token for each input canary."""
        return replace(split, canary_tokens=settings.inputs)

    def with_file_canaries(
        self, split: TokenSplit, file: AddedCanaryFile, settings: DataSettings
    ) -> TokenSplit:
        """Return the sequences with the canaries, which are texts."""
        return file.added_to_texts(split, settings)

    def canary_scores(self, model: nn.Module, inputs: TokenRecords) -> NDArray[np.float64]:
        """Return the log-probability of each canary's own token."""
        return last_token_confidences(model, inputs)

    def inputs(
        self, model: nn.Module, split: TokenSplit, canaries: RunCanaries
    ) -> tuple[Tensor, Tensor]:
        """Return tokens and lengths."""
        extra, train = canaries.trained_inputs, split.train
        if not isinstance(extra, TokenRecords):  # none, in runs of earlier versions
            return torch.from_numpy(train.tokens), torch.from_numpy(train.lengths)
        tokens = np.concatenate([train.tokens, extra.tokens])
        lengths = np.concatenate([train.lengths, extra.lengths])
        return torch.from_numpy(tokens), torch.from_numpy(lengths)

    def evaluate(self, model: nn.Module, records: Any) -> TokenEvaluation:
        """Compute losses and perplexity."""
        return evaluate_language_model(model, records)


def cross_entropies(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return each record's cross-entropy.

    Args:
        model: The model; of a model with fixed features, its trained part is used.
        batch: Inputs of the trained part and labels, of shapes ``(records, ...)`` and
            ``(records,)``.

    Returns:
        Losses in nats, shape ``(records,)``.
    """
    features, labels = batch
    outputs = trained_part(model)(features)
    return nn.functional.cross_entropy(outputs, labels, reduction="none")


CLASSIFICATION, LANGUAGE_MODELING = Classification(), LanguageModeling()


def task_of(settings: DataSettings) -> Task:
    """Return the task that a run's records are for.

    Args:
        settings: The records.

    Returns:
        The task.
    """
    return LANGUAGE_MODELING if settings.has_tokens else CLASSIFICATION


# Models of a run, with the part that is trained.


def split_of_run(settings: RunConfig | FederatedConfig, split: Split) -> Split:
    """Return a run's records as its model was made for: with the tokens of its canaries.

    Args:
        settings: The settings of the run.
        split: Its records, with or without these tokens.

    Returns:
        The records.
    """
    if isinstance(settings, FederatedConfig):  # a federation has no canaries among its records
        return split
    return task_of(settings.data).with_canary_tokens(split, settings.canaries)


def make_run_model(task: Task, settings: ModelSettings, split: Split, seed: int) -> nn.Module:
    """Return a run's model, of which the part that settings name is trained.

    Args:
        task: What the model learns.
        settings: The model's name, adapters and frozen layers.
        split: The records, for their shape.
        seed: Seed of torch's generator while the model is made.

    Returns:
        The model, on the CPU.

    Raises:
        InvalidArgument: If there is no such model, or it has no trainable parameter.
        UserCodeError: If a factory, or its model, raised an error.
    """
    model = task.make_model(settings.model, split, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = select_trained_part(model, settings)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InvalidArgument("model", settings.model, "a model with a trainable parameter")
    return model


def public_base(settings: ModelSettings) -> PretrainedFolder | None:
    """Return the folder of the pre-trained weights that a run starts from.

    Args:
        settings: The model of the run.

    Returns:
        The folder; None if the run starts from weights that it draws itself.
    """
    return pretrained_folder(settings.model)


def released_names(settings: ModelSettings, model: nn.Module) -> frozenset[str] | None:
    """Return the names of the parameters that a run releases.

    Frozen pre-trained weights are public and stay in their folder, which the ledger names.

    Args:
        settings: The model of the run.
        model: The model.

    Returns:
        The names; None for every parameter and buffer.
    """
    if public_base(settings) is None or (settings.lora_rank is None and not settings.freeze_body):
        return None
    return trained_names(model)


def load_trained_model(run: RunDirectory, split: Split) -> nn.Module:
    """Return a run's model with its released weights.

    Args:
        run: The run directory of one trainer, or of a federation.
        split: Its records, for their shape.

    Returns:
        The model.

    Raises:
        IntegrityError: If the weights are missing, broken or of another model, or if the
            pre-trained weights are not those that the ledger names.
    """
    config = run.read_settings()
    split = split_of_run(config, split)
    model = make_run_model(task_of(config.data), config.model, split, seed=0)
    base = public_base(config.model)
    if base is not None and base.description not in run.read_ledger().header.assumed_public:
        raise IntegrityError(f"{base.path} does not hold the weights that {run.ledger} names")
    with open_input(InputFile(run.model, limit=DATA_LIMIT)):
        pass  # refuses anything but a regular file: safetensors opens the path itself
    try:
        if released_names(config.model, model) is None:
            load_model(model, run.model)
        else:
            fill_trained_part(model, load_file(run.model))
    except Exception as error:  # safetensors raises its own errors and torch's
        raise IntegrityError(f"{run.model} does not fit the run's model: {error}") from error
    return model
