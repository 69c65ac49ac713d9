"""Black-box audits of a run: train models with its settings, and bound epsilon."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace as with_fields
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.attacks.final_model import TrialOutputs, audit_trials
from dpaudit.attacks.final_model.target_records import (
    TargetRecord,
    blank_target,
    crafted_query,
    mislabelled_target,
    optimized_target,
    pretrained_weights,
)
from dpaudit.attacks.membership.private_training import (
    MODELS_PER_STACK,
    PrivateChunk,
    PrivateTraining,
    train_private_chunk,
)
from dpaudit.attacks.membership.reference_training import logits_on_same_records
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.conformance_trainers import RunTrainerFactory
from dpaudit.trainer.data import DatasetSplit
from dpaudit.trainer.models.factories import compute_features
from dpaudit.trainer.private import SLOW_PARAMETERS_PATTERN
from dpaudit.trainer.repeated_run import RepeatedRun
from dpaudit.trainer.run import (
    PreparedRun,
    learning_rate_factor,
    make_optimizer,
    prepare_run,
    stated_learning_rate,
)
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import Progress, RunConfig
from dpaudit.workflow.audit.final_model import train_planned
from dpaudit.workflow.audit.final_model_settings import FinalModelSettings
from dpaudit.workflow.audit.final_model_trials import (
    PairTrainer,
    TrialFiles,
    complete_trials,
    fix_data,
    fix_plan,
)

Array = NDArray[np.float64]

PRETRAINING_EPOCHS = 5
PILOT_PAIRS = 8  # pairs of models that only choose a crafted query
OTHERS_OF_OPTIMIZED_TARGET = 200  # records whose gradients an optimized target takes into account

STACKED_ASSUMPTION = (
    "that the run's trainer does what its settings say: the models were trained by another "
    "implementation of them"
)


# A run's own settings.


@dataclass(frozen=True)
class AuditedRecords:
    """Records that the models of an audit are trained on, as inputs of the trained part.

    Attributes:
        features: Shape ``(records, ...)``.
        labels: Class of each record, shape ``(records,)``.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def with_target(self, target: TargetRecord) -> AuditedRecords:
        """Return the records and the target record."""
        return AuditedRecords(
            np.concatenate([self.features, target.features[None]]),
            np.append(self.labels, target.label).astype(np.int64),
        )


@dataclass(frozen=True)
class RunPairs:
    """Trains the models of a black-box audit of a run.

    Attributes:
        repeated: The run's trainer, with its initial weights.
        records: The records without the target record.
        target: The target record and the query, as inputs of the trained part.
        pairs_at_once: Number of pairs that are trained before their outputs are stored.
    """

    repeated: RepeatedRun
    records: AuditedRecords
    target: TargetRecord
    pairs_at_once: int = 1

    @property
    def label(self) -> int:
        """The class of the target record."""
        return self.target.label

    @cached_property
    def _with_target(self) -> AuditedRecords:
        return self.records.with_target(self.target)

    def models(self, seeds: Sequence[int], *, with_record: bool) -> list[nn.Module]:
        """Train one model per seed by the run's own trainer.

        Args:
            seeds: Seeds of the models.
            with_record: Whether the target record is among their records.

        Returns:
            The models, in evaluation mode.
        """
        taken = self._with_target if with_record else self.records
        return [self.repeated.train(taken.features, taken.labels, seed) for seed in seeds]

    def outputs(self, seeds: Sequence[int], *, with_record: bool) -> Array:
        """Train one model per seed, and return their logits on the query.

        Args:
            seeds: Seeds of the models.
            with_record: Whether the target record is among their records.

        Returns:
            Shape ``(models, classes)``.
        """
        query = torch.from_numpy(self.target.query)[None]
        with torch.no_grad():
            found = [
                model(query)[0].double() for model in self.models(seeds, with_record=with_record)
            ]
        return torch.stack(found).numpy()


@dataclass(frozen=True)
class StackedPairs:
    """Trains the models of a black-box audit by the run's settings, many at once.

    Attributes:
        training: The settings; its seed is replaced by those of the models.
        records: The records without the target record.
        target: The target record and the query, as inputs of the trained part.
    """

    training: PrivateTraining
    records: AuditedRecords
    target: TargetRecord
    pairs_at_once: int = field(default=MODELS_PER_STACK)

    @property
    def label(self) -> int:
        """The class of the target record."""
        return self.target.label

    def outputs(self, seeds: Sequence[int], *, with_record: bool) -> Array:
        """Train one model per seed in one stack, and return their logits on the query.

        Args:
            seeds: Seeds of the models.
            with_record: Whether the target record is among their records.

        Returns:
            Shape ``(models, classes)``.
        """
        taken = self.records.with_target(self.target) if with_record else self.records
        member = np.ones((len(seeds), len(taken.labels)), dtype=np.bool_)
        chunk = PrivateChunk(self.training, taken.features, taken.labels, member, tuple(seeds))
        stack = train_private_chunk(chunk)
        logits = logits_on_same_records(stack, torch.from_numpy(self.target.query)[None])
        return logits[:, 0].double().numpy()


@dataclass(frozen=True)
class FinalModelOutcome:
    """Result of a black-box audit of a run.

    Attributes:
        bounds: The lower bounds.
        files: SHA-256 of the plan, and of the outputs of all models, by role.
    """

    bounds: tuple[AuditResult, ...]
    files: dict[str, str]


def audit_run_models(
    run: RunDirectory,
    settings: FinalModelSettings,
    *,
    claimed_epsilon: float,
    delta: float,
    confidence: float,
    assumed: Sequence[str] = (),
    progress: Progress | None = None,
) -> FinalModelOutcome:
    """Train models with a run's settings, with and without a target record, and bound epsilon.

    The outputs of finished models are stored in the run directory; an interrupted audit resumes.

    Args:
        run: A finished run of ``dpaudit train`` on records with classes.
        settings: Settings of the audit.
        claimed_epsilon: The claim, in nats.
        delta: The delta of the claim.
        confidence: Probability with which all bounds hold together.
        assumed: Further assumptions, which make every bound conditional.
        progress: Receives each finished model.

    Returns:
        The bounds, and the digests of plan and outputs.

    Raises:
        InvalidArgument: If the run has no settings, its data are gone, or another audit of the
            run began with other settings.
        IntegrityError: If a file is broken.
    """
    files = TrialFiles(run.final_model_plan, run.final_model_trials)
    config = run.read_config()
    plan = fix_plan(
        files,
        pairs=settings.pairs,
        settings=settings.by_name,
        stops_early=settings.stops_early,
    )
    view = settings.outputs
    with warnings.catch_warnings():
        # The run has warned of slow parameters; here, every model would do so again.
        warnings.filterwarnings("ignore", SLOW_PARAMETERS_PATTERN)
        trainer, data = run_pair_trainer(config, settings, plan.seed)
        plan = fix_data(files, plan, data)
        trials = train_planned(
            trainer, files, plan, claimed_epsilon, delta, confidence, view, progress
        )
    found = _bounds(trials, settings, assumed, claimed_epsilon, delta, confidence)
    return FinalModelOutcome(found, files.digests)


def audit_stored_models(
    run: RunDirectory,
    *,
    claimed_epsilon: float,
    delta: float,
    confidence: float,
    assumed: Sequence[str] = (),
) -> FinalModelOutcome | None:
    """Bound epsilon by the models of a finished black-box audit of a run; none is trained.

    Args:
        run: A finished run of ``dpaudit train``.
        claimed_epsilon: The claim, in nats.
        delta: The delta of the claim.
        confidence: Probability with which all bounds hold together.
        assumed: Further assumptions, which make every bound conditional.

    Returns:
        The bounds, and the digests of plan and outputs; None without a finished audit.

    Raises:
        IntegrityError: If a file is broken.
    """
    files = TrialFiles(run.final_model_plan, run.final_model_trials)
    found = complete_trials(files)
    if found is None:
        return None
    plan, trials = found
    settings = FinalModelSettings.of_names(plan.pairs, plan.settings, stops_early=plan.stops_early)
    again = _bounds(trials, settings, assumed, claimed_epsilon, delta, confidence)
    return FinalModelOutcome(again, files.digests)


def _bounds(
    trials: TrialOutputs,
    settings: FinalModelSettings,
    assumed: Sequence[str],
    claimed_epsilon: float,
    delta: float,
    confidence: float,
) -> tuple[AuditResult, ...]:
    """Return the bounds, with the settings that the models were trained by."""
    more = [*assumed, *([STACKED_ASSUMPTION] if settings.trainer == "stacked" else [])]
    found = audit_trials(
        trials,
        delta=delta,
        confidence=confidence,
        view=settings.outputs,
        stops_early=settings.stops_early,
        claimed_epsilon=claimed_epsilon,
        assumed="; ".join(more),
    )
    how = (
        f"target record: {settings.target}; initial weights: {settings.initial_weights}; trainer: "
        f"{settings.trainer}"
    )
    return tuple(with_fields(one, method=f"{one.method}; {how}") for one in found)


def run_pair_trainer(
    config: RunConfig, settings: FinalModelSettings, seed: int
) -> tuple[PairTrainer, str]:
    """Return what trains the models of a black-box audit of a run.

    Args:
        config: The run's settings.
        settings: Settings of the audit.
        seed: The secret seed of the audit; it gives the initial weights and pilot models.

    Returns:
        The trainer, with the target record chosen, and a digest of all records that were read,
        of the target record and of the query.

    Raises:
        InvalidArgument: If the run's records have no classes, or a setting cannot be stacked.
    """
    config = with_fields(config, privacy=with_fields(config.privacy, seed=seed))
    prepared = prepare_run(config.without_canary_file())
    factory = RunTrainerFactory.of(prepared)
    split: Any = prepared.split  # of records with classes, as ``of`` requires
    every = _inputs(prepared, split, settings.records)
    weights, records = _initial_weights(prepared, every, settings.initial_weights, seed)
    repeated = RepeatedRun(prepared, factory.expected_batch_size, weights)
    pairs = RunPairs(repeated, records, _simple_target(repeated, split, settings.target))
    if settings.target == "optimized":
        pairs = RunPairs(repeated, records, _optimized(pairs))
    if settings.target == "crafted":
        pairs = RunPairs(repeated, records, _crafted(pairs, seed))
    data = _digest_of_data(every, pairs.target)
    if settings.trainer == "own":
        return pairs, data
    training = imitated_training(prepared, factory.expected_batch_size, seed, weights)
    return StackedPairs(training, records, pairs.target), data


def _digest_of_data(records: AuditedRecords, target: TargetRecord) -> str:
    """Return the SHA-256 of records, target record and query, with their shapes."""
    digest = hashlib.sha256()
    label = np.array(target.label)
    for values in (records.features, records.labels, target.features, label, target.query):
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _inputs(prepared: PreparedRun, split: DatasetSplit, most: int | None) -> AuditedRecords:
    """Return the first training records, as inputs of the trained part."""
    train = split.train[np.arange(len(split.train))[:most]]
    features = compute_features(prepared.model, train.features)
    return AuditedRecords(features, train.labels.astype(np.int64))


def _initial_weights(
    prepared: PreparedRun, records: AuditedRecords, kind: str, seed: int
) -> tuple[dict[str, Tensor] | None, AuditedRecords]:
    """Return the initial weights, None for the run's own, and the records that are audited."""
    if kind == "own":
        return None, records
    half = len(records.labels) // 2
    own = RepeatedRun(prepared, 1.0)
    weights = pretrained_weights(
        lambda _: own.initial_model(),
        records.features[half:],
        records.labels[half:],
        epochs=PRETRAINING_EPOCHS,
        seed=seed,
    )
    return weights, AuditedRecords(records.features[:half], records.labels[:half])


def _simple_target(repeated: RepeatedRun, split: DatasetSplit, kind: str) -> TargetRecord:
    """Return a blank record, or a mislabelled one, under the initial weights."""
    model = repeated.initial_model().eval()
    inputs = partial(compute_features, repeated.prepared.model)
    if kind == "mislabelled" and len(split.heldout):
        record = split.heldout[np.arange(1)]
        return mislabelled_target(model, inputs(record.features)[0], int(record.labels[0]))
    if kind == "mislabelled":
        raise InvalidArgument("target_record", kind, "blank, as the run has no held-out records")
    blank = inputs(np.zeros((1, *split.shape), dtype=np.float32))[0]
    found = blank_target(model, blank.shape)
    return TargetRecord(blank, found.label, blank)


def _optimized(pairs: RunPairs) -> TargetRecord:
    """Return a target record that is optimized through noiseless training."""
    config = pairs.repeated.prepared.config
    first = slice(0, OTHERS_OF_OPTIMIZED_TARGET)
    rate = stated_learning_rate(pairs.repeated.prepared) / pairs.repeated.expected_batch_size
    return optimized_target(
        pairs.repeated.initial_model().eval(),
        pairs.target,
        (pairs.records.features[first], pairs.records.labels[first]),
        clip_norm=config.privacy.clip_norm,
        learning_rate=rate,
    )


def _crafted(pairs: RunPairs, seed: int) -> TargetRecord:
    """Return the target record with a query that is optimized on pilot models."""
    seeds = np.random.SeedSequence([seed, 2**20]).generate_state(2 * PILOT_PAIRS).tolist()
    return crafted_query(
        pairs.target,
        pairs.models(seeds[:PILOT_PAIRS], with_record=True),
        pairs.models(seeds[PILOT_PAIRS:], with_record=False),
    )


def imitated_training(
    prepared: PreparedRun,
    expected_batch_size: float,
    seed: int,
    weights: dict[str, Tensor] | None = None,
) -> PrivateTraining:
    """Return a run's settings for DP-SGD on stacked models.

    Args:
        prepared: The prepared run.
        expected_batch_size: The public constant that noisy sums are divided by, in records.
        seed: Seed of the models.
        weights: Initial parameters and buffers of every model; None: the run's own.

    Returns:
        The settings.

    Raises:
        InvalidArgument: If the run's optimizer or views cannot be stacked.
    """
    config = prepared.config
    if config.model.optimizer == "adam-corrected" or config.model.views > 1:
        given = f"{config.model.optimizer}, {config.model.views} views"
        raise InvalidArgument("trainer", given, "own: these settings cannot be stacked")
    repeated = RepeatedRun(prepared, expected_batch_size, weights)
    return PrivateTraining(
        make_model=lambda _: repeated.initial_model(),
        make_optimizer=partial(_optimizer, config.model.optimizer, prepared),
        noise_multiplier=config.privacy.noise_multiplier,
        clip_norm=config.privacy.clip_norm,
        sampling_rate=config.privacy.sampling_rate,
        steps=config.privacy.steps,
        expected_batch_size=expected_batch_size,
        seed=seed,
        learning_rate_factor=partial(learning_rate_factor, config),
        average_decay=config.model.average_decay,
    )


def _optimizer(name: str, prepared: PreparedRun, tensors: list[Tensor]) -> torch.optim.Optimizer:
    """Return the run's optimizer over stacked parameters."""
    holder = nn.Module()
    for number, tensor in enumerate(tensors):
        holder.register_parameter(f"stacked_{number}", nn.Parameter(tensor))
    rate, momentum = stated_learning_rate(prepared), prepared.config.model.momentum
    found = make_optimizer(holder, name, rate, momentum)
    for group in found.param_groups:
        group["params"] = tensors
    return found
