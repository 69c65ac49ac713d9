"""Membership inference on a run, on a model file, or on models trained on given data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from dpaudit.attacks.membership.attack_registry import (
    ATTACKS,
    AttackTarget,
    ReferenceSignals,
    need_references,
)
from dpaudit.attacks.membership.output_signals import classifier_features, logit_scaled_confidence
from dpaudit.attacks.membership.reference_models import ReferenceConfidences, random_halves
from dpaudit.attacks.membership.reference_training import (
    Executor,
    JoblibExecutor,
    ModelSignals,
    ReferenceModelSettings,
    ReferenceSpeedSettings,
    SerialExecutor,
    StackedModel,
    model_signals,
    train_references,
)
from dpaudit.attacks.membership.target_models import TargetModel
from dpaudit.attacks.membership.target_models.model_files import open_model
from dpaudit.attacks.membership.target_models.torch_model import TorchModel
from dpaudit.files.archives import Arrays, open_npz
from dpaudit.files.regular_files import DATA_LIMIT, InputFile, utf8_name
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import PRIVATE, write_json
from dpaudit.trainer.data import DatasetSplit, RecordArrays, load_dataset, require_classes
from dpaudit.trainer.models.factories import (
    compute_features,
    make_model,
    trained_part,
)
from dpaudit.trainer.run import heldout_records
from dpaudit.trainer.tasks import load_trained_model
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.settings import DataSettings, NoProgress, Progress
from dpaudit.workflow.attack.federated_attacks import members_of_federation
from dpaudit.workflow.attack.score_evaluation import AttackOutcome, evaluate_scores

# The records that targets and reference models are trained on.

PACKED_ARRAYS = {"x_packed", "n_features", "y"}
FLOATS_PER_PACKED_BYTE = 32  # bytes per packed byte: its eight bits become eight float32


def load_population(
    data: DataSettings, *, max_records: int | None, seed: int
) -> tuple[RecordArrays, int]:
    """Read and scale the records that targets and reference models are trained on.

    Args:
        data: The records; training and held-out records are joined.
        max_records: Largest number of records, drawn at random; None: all.
        seed: Seed of the draw.

    Returns:
        The records and the number of classes.

    Raises:
        InvalidArgument: If the data cannot be used.
    """
    records, classes = _read(data)
    return _scaled(records[draw_indices(len(records), max_records=max_records, seed=seed)]), classes


def draw_indices(records: int, *, max_records: int | None, seed: int) -> NDArray[np.int64]:
    """Draw indices of records at random.

    Args:
        records: Number of records.
        max_records: Largest number of indices; None: all.
        seed: Seed of the draw.

    Returns:
        Sorted indices without repetition, shape ``(min(records, max_records),)``.
    """
    return np.sort(np.random.default_rng([seed, 0]).permutation(records)[:max_records])


def _read(data: DataSettings) -> tuple[RecordArrays, int]:
    if data.source.endswith(".npz") and (packed := _packed(Path(data.source))) is not None:
        return packed, int(packed.labels.max()) + 1
    split = load_dataset(data)
    parts = (split.train, split.heldout)
    records = RecordArrays(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    return records, len(split.classes)


def _packed(path: Path) -> RecordArrays | None:
    """Read binary records that are stored as bits in ``x_packed``; None for other archives."""
    with open_npz(InputFile(path, "data", DATA_LIMIT)) as archive:
        headers = archive.headers
        if not set(headers) >= PACKED_ARRAYS:
            return None
        bits, labels, number = (headers[name] for name in ("x_packed", "y", "n_features"))
        if (
            bits.dtype != np.uint8
            or len(bits.shape) != 2
            or number.shape != ()
            or number.dtype.kind not in "iu"
            or bits.shape[:1] != labels.shape
        ):
            allowed = "bits x_packed, (records, bytes), n_features and as many labels y"
            raise InvalidArgument("data", str(path), allowed)
        archive.require_room(bits.size * FLOATS_PER_PACKED_BYTE)
        arrays = archive.read(PACKED_ARRAYS)
    return _unpacked(arrays)


def _unpacked(arrays: Arrays) -> RecordArrays:
    features = np.unpackbits(arrays["x_packed"], axis=1)[:, : int(arrays["n_features"])]
    require_classes(arrays["y"], "y")
    labels = np.unique(arrays["y"], return_inverse=True)[1]
    return RecordArrays(features.astype(np.float32), labels.astype(np.int64))


def _scaled(records: RecordArrays) -> RecordArrays:
    """Scale features to mean 0 and deviation 1, unless all lie in [0, 1].

    The scaling needs no privacy: nothing of these models is released.
    """
    features = records.features
    if features.min() >= 0 and features.max() <= 1:
        return records
    deviation = features.std(axis=0, dtype=np.float64)
    scaled = (features - features.mean(axis=0, dtype=np.float64)) / np.where(
        deviation > 0, deviation, 1
    )
    return RecordArrays(scaled.astype(np.float32), records.labels)


# The attacker knows this share of a target's non-members, as Bertran et al. need; no attack
# is scored on them, so that all attacks are compared on the same records.
KNOWN_NONMEMBER_SHARE = 0.2

# With more steps per epoch, training on large data takes longer and fits no better.
MIN_BATCH_SIZE, MAX_STEPS_PER_EPOCH = 64, 64


@dataclass(frozen=True)
class AttackSettings:
    """Settings of a membership inference attack.

    Attributes:
        attacks: Names of the attacks.
        references: Number of reference (shadow) models that are trained.
        targets: Number of models that are attacked, where none is given.
        model: Architecture of targets and references: a built-in name, or
            ``package.module:factory``.
        epochs: Training epochs of each model.
        batch_size: Of each model; None for 64, or more where an epoch would have over 64 steps.
        learning_rate: Of Adam.
        records: Largest number of records that are used, drawn at random; None for all.
        confidence: Of each interval, in (0, 1).
        seed: Seeds everything that is drawn.
        workers: Processes that train references; 1 for this one.

    Raises:
        InvalidArgument: If an attack is unknown or a value is out of range.
    """

    attacks: tuple[str, ...]
    seed: int
    references: int = 16
    targets: int = 4
    model: str = "mlp"
    epochs: int = 30
    batch_size: int | None = None
    learning_rate: float = 0.005
    records: int | None = None
    confidence: float = 0.95
    workers: int = 1

    def __post_init__(self) -> None:
        if not self.attacks or not set(self.attacks) <= set(ATTACKS):
            raise InvalidArgument("attack", list(self.attacks), f"some of {', '.join(ATTACKS)}")
        require_count("references", self.references, least=int(need_references(self.attacks)))
        require_count("targets", self.targets)
        require_count("workers", self.workers)
        if self.records is not None:
            require_count("records", self.records, least=4)
        require_open_unit("confidence", self.confidence)

    @property
    def executor(self) -> Executor:
        """The executor that trains reference models."""
        return SerialExecutor() if self.workers == 1 else JoblibExecutor(self.workers)


@dataclass(frozen=True)
class AttackedTarget:
    """A target model, and the membership of its records.

    Attributes:
        target: What the attacks read.
        member: Whether the model was trained on each record, shape ``(records,)``.
    """

    target: AttackTarget
    member: NDArray[np.bool_]

    def with_references(self, models: int) -> AttackedTarget:
        """Restrict the attack to the first reference models.

        Args:
            models: Number of reference models.

        Returns:
            The same target, attacked with these references only.
        """
        shadows = self.target.require_references().first(models)
        return AttackedTarget(replace(self.target, reference_signals=shadows), self.member)


def attack_data(
    data: DataSettings, settings: AttackSettings, *, progress: Progress | None = None
) -> AttackOutcome:
    """Train targets and references on halves of the data, and attack the targets.

    Args:
        data: The records.
        settings: The attacks and how models are trained.
        progress: Receives finished steps; None: not reported.

    Returns:
        The report and every score.

    Raises:
        InvalidArgument: If the data or a setting cannot be used.
    """
    records, classes = load_population(data, max_records=settings.records, seed=settings.seed)
    described = (
        f"{settings.targets} models ({settings.model}) trained on halves of {len(records)} "
        f"records, with {settings.references} references"
    )
    targets = train_targets(records, classes, settings, progress)
    return evaluate_attacks(targets, settings, described, progress)


def attack_run(
    run: RunDirectory, settings: AttackSettings, *, progress: Progress | None = None
) -> AttackOutcome:
    """Attack the model of a finished run, and write the report into the run.

    References have the run's architecture and are trained without noise. In a federation, members
    are the records of all participants.

    Args:
        run: A finished run; its data must still be there.
        settings: The attacks; their ``model`` is replaced by the run's.
        progress: Receives finished steps; None: not reported.

    Returns:
        The report and every score.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If the run's data are gone, or a setting cannot be used.
    """
    ledger = run.read_finished()
    config = run.read_settings()
    split = load_dataset(config.data)
    model = load_trained_model(run, split).eval()
    if isinstance(config, FederatedConfig):
        members, others = members_of_federation(config, split)
    else:
        members, others = split.train, heldout_records(run, split)
    own = replace(settings, model=config.model.model)
    target = _single(TorchModel(model), members, others, len(split.classes), own, progress)
    found = evaluate_attacks([target], own, _described("the run's model", own), progress)
    report = msgspec.structs.replace(found.report, ledger_head=ledger.head)
    write_json(run.attack, report, PRIVATE)
    return replace(found, report=report)


def attack_checkpoint(
    checkpoint: Path,
    data: DataSettings,
    settings: AttackSettings,
    *,
    trust_model_code: bool = False,
    progress: Progress | None = None,
) -> AttackOutcome:
    """Attack the model in a file.

    Args:
        checkpoint: The model.
        data: The records: its training set are members, its test set non-members.
        settings: The attacks; their ``model`` is also the factory of the file's model, where the
            file needs one.
        trust_model_code: Whether code in the file may run.
        progress: Receives finished steps; None: not reported.

    Returns:
        The report and every score.

    Raises:
        InvalidArgument: If the data have no test set of their own, or a file cannot be used.
        MissingExtra: If the kind of file needs a library that is not installed.
    """
    split = load_dataset(data)
    _require_own_test_set(data, split)
    model = open_model(
        checkpoint,
        factory=settings.model,
        shape=split.shape,
        classes=len(split.classes),
        trust_model_code=trust_model_code,
    )
    width = model.predict(split.train.features[:1]).shape[1]
    if width != len(split.classes):
        allowed = f"a model of the data's {len(split.classes)} classes"
        raise InvalidArgument("checkpoint", f"{width} outputs", allowed)
    target = _single(model, split.train, split.heldout, len(split.classes), settings, progress)
    return evaluate_attacks(
        [target], settings, _described(utf8_name(checkpoint), settings), progress
    )


def train_targets(
    records: RecordArrays,
    classes: int,
    settings: AttackSettings,
    progress: Progress | None = None,
) -> list[AttackedTarget]:
    """Train targets and references together, each on a half of the records.

    Args:
        records: The records.
        classes: Number of classes.
        settings: Numbers of models, and how they are trained.
        progress: Receives finished steps; None: not reported.

    Returns:
        The targets, each with the references' signals on all records.
    """
    count = settings.targets + (settings.references if need_references(settings.attacks) else 0)
    # Halves of targets are drawn separately, so that references come in complementary pairs.
    member = np.concatenate(
        [
            random_halves(models, len(records), seed=settings.seed + offset)
            for offset, models in enumerate((settings.targets, count - settings.targets))
            if models
        ]
    )
    stack = train_references(
        training_recipe(records, classes, settings),
        records.features,
        records.labels,
        member,
        speed=ReferenceSpeedSettings(chunks=settings.workers),
        executor=settings.executor,
        progress=progress,
    )
    signals = model_signals(stack, records.features, records.labels, classes=classes)
    references = signals[settings.targets :]
    return [
        _case(
            StackedModel(stack, place),
            records,
            signals[place : place + 1],
            member[place],
            _shadows(references, member[settings.targets :]),
            settings.seed + place,
        )
        for place in range(settings.targets)
    ]


def training_recipe(
    records: RecordArrays, classes: int, settings: AttackSettings
) -> ReferenceModelSettings:
    """Return the training settings of a model on a half of the records.

    Args:
        records: The records; their number sets the default batch size.
        classes: Number of classes.
        settings: The attack's settings.

    Returns:
        Settings of each target and reference.
    """
    return ReferenceModelSettings(
        make_model=partial(_make, settings.model, records.features.shape[1:], classes),
        epochs=settings.epochs,
        batch_size=settings.batch_size
        or max(MIN_BATCH_SIZE, len(records) // 2 // MAX_STEPS_PER_EPOCH),
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )


def evaluate_attacks(
    targets: Sequence[AttackedTarget],
    settings: AttackSettings,
    attacked: str,
    progress: Progress | None = None,
) -> AttackOutcome:
    """Run every attack on every target, and evaluate each on all targets together.

    Args:
        targets: The targets, at least one.
        settings: Names of the attacks, and the confidence.
        attacked: Description of the targets, for the report.
        progress: Receives each finished attack on a target; None: not reported.

    Returns:
        The report and every score; records known to the attacker are not scored.
    """
    progress = progress or NoProgress()
    progress.start("running attacks", len(settings.attacks) * len(targets))
    frames = []
    for name in settings.attacks:
        for place, one in enumerate(targets):
            frames.append(_frame(name, place, one))
            progress.advance()
    frame = pd.concat(frames, ignore_index=True)
    return evaluate_scores(frame, attacked, confidence=settings.confidence)


def _frame(attack: str, place: int, one: AttackedTarget) -> pd.DataFrame:
    scored = np.flatnonzero(~one.target.known_nonmembers)
    scores = ATTACKS[attack](one.target).values[scored]
    columns = {"id": scored, "score": scores, "member": one.member[scored].astype(int)}
    return pd.DataFrame({"attack": attack, "target": place, **columns})


def _case(
    model: TargetModel,
    records: RecordArrays,
    signals: ModelSignals,
    member: NDArray[np.bool_],
    shadows: ReferenceSignals | None,
    seed: int,
) -> AttackedTarget:
    target = AttackTarget(
        model=model,
        features=records.features,
        labels=records.labels,
        confidences=signals.confidences[0],
        outputs=signals.outputs[0],
        known_nonmembers=_known_outside(member, seed),
        reference_signals=shadows,
        seed=seed,
    )
    return AttackedTarget(target, member)


def _known_outside(member: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    draw = np.random.default_rng([seed, 1]).permutation(np.flatnonzero(~member))
    outside = np.zeros(len(member), dtype=bool)
    outside[draw[: int(KNOWN_NONMEMBER_SHARE * len(draw))]] = True
    return outside


def _shadows(signals: ModelSignals, member: NDArray[np.bool_]) -> ReferenceSignals | None:
    if len(member) == 0:
        return None
    return ReferenceSignals(ReferenceConfidences(signals.confidences, member), signals.outputs)


def _single(
    model: TargetModel,
    members: RecordArrays,
    others: RecordArrays,
    classes: int,
    settings: AttackSettings,
    progress: Progress | None,
) -> AttackedTarget:
    """Return one given model, with references that are trained here."""
    records = RecordArrays(
        np.concatenate([members.features, others.features]),
        np.concatenate([members.labels, others.labels]),
    )
    which = draw_indices(len(records), max_records=settings.records, seed=settings.seed)
    records, member = records[which], (np.arange(len(records)) < len(members))[which]
    logits = model.predict(records.features)
    signals = ModelSignals(
        logit_scaled_confidence(logits, records.labels)[None],
        classifier_features(logits, records.labels)[None],
    )
    shadows = None
    if need_references(settings.attacks):
        shadows = _trained_shadows(records, classes, settings, progress)
    return _case(model, records, signals, member, shadows, settings.seed)


def _trained_shadows(
    records: RecordArrays, classes: int, settings: AttackSettings, progress: Progress | None
) -> ReferenceSignals | None:
    member = random_halves(settings.references, len(records), seed=settings.seed)
    whole = make_model(settings.model, records.features.shape[1:], classes, settings.seed)
    # The output of the frozen part is computed once, not in every epoch.
    features = compute_features(whole, records.features)
    stack = train_references(
        training_recipe(records, classes, settings),
        features,
        records.labels,
        member,
        speed=ReferenceSpeedSettings(chunks=settings.workers),
        executor=settings.executor,
        progress=progress,
    )
    return _shadows(model_signals(stack, features, records.labels, classes=classes), member)


def _make(name: str, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    return trained_part(make_model(name, shape, classes, seed))


def _described(what: str, settings: AttackSettings) -> str:
    if not need_references(settings.attacks):
        return what
    return f"{what}, with {settings.references} references ({settings.model}) trained without noise"


def _require_own_test_set(data: DataSettings, split: DatasetSplit) -> None:
    """Refuse records held out by our split: another trainer's model may have trained on them."""
    other = load_dataset(_with_other_coins(data))
    if not np.array_equal(other.heldout.labels, split.heldout.labels):
        allowed = "records with a test set of their own, which the model did not train on"
        raise InvalidArgument("data", data.source, allowed)


def _with_other_coins(data: DataSettings) -> DataSettings:
    return DataSettings(
        data.source, data.label, data.feature_range, 0.5 * data.test_fraction, data.split_seed + 1
    )
