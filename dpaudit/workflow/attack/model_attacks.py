"""Membership inference on a run, on a model file, or on models trained on given data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
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
)
from dpaudit.attacks.membership.augmented_queries import query_copies
from dpaudit.attacks.membership.evaluation import measure
from dpaudit.attacks.membership.output_signals import classifier_features, logit_scaled_confidence
from dpaudit.attacks.membership.reference_models import ReferenceConfidences, random_halves
from dpaudit.attacks.membership.reference_training import (
    ModelSignals,
    ModelStack,
    ReferenceModelSettings,
    ReferenceSpeedSettings,
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
from dpaudit.trainer.data import (
    DatasetSplit,
    RecordArrays,
    load_column,
    load_dataset,
    require_classes,
)
from dpaudit.trainer.models.factories import (
    compute_features,
    make_model,
    trained_part,
)
from dpaudit.trainer.run import heldout_records
from dpaudit.trainer.tasks import load_trained_model
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.settings import DataSettings, NoProgress, Progress, RunConfig
from dpaudit.workflow.attack.attack_settings import CLASS_SLICES, AttackSettings
from dpaudit.workflow.attack.attacked_target import AttackedTarget
from dpaudit.workflow.attack.federated_attacks import members_of_federation
from dpaudit.workflow.attack.further_findings import with_findings
from dpaudit.workflow.attack.imitating_references import (
    ImitatingReferences,
    require_reference_training,
)
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

RESERVED_COLUMNS = frozenset({"attack", "target", "id", "score", "member"})

# With more steps per epoch, training on large data takes longer and fits no better.
MIN_BATCH_SIZE, MAX_STEPS_PER_EPOCH = 64, 64


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
        f"{settings.targets} {_noun('model', settings.targets)} ({settings.model}) trained on "
        f"halves of {len(records)} records, with {settings.references} "
        f"{_noun('reference', settings.references)}"
    )
    values = _population_column(data, settings)
    targets = train_targets(records, classes, settings, progress)
    return evaluate_attacks(
        [replace(one, slices=values) for one in targets], settings, described, progress
    )


def _population_column(data: DataSettings, settings: AttackSettings) -> NDArray[np.generic] | None:
    """Return the column of a table that defines slices, for the records of the population."""
    if settings.by in (None, CLASS_SLICES):
        return None
    if settings.by in RESERVED_COLUMNS:
        raise InvalidArgument("by", settings.by, f"none of {sorted(RESERVED_COLUMNS)}")
    values = np.concatenate(load_column(data, settings.by, "by"))
    return np.asarray(
        values[draw_indices(len(values), max_records=settings.records, seed=settings.seed)]
    )


def attack_run(
    run: RunDirectory,
    settings: AttackSettings,
    *,
    reference_training: str = "plain",
    progress: Progress | None = None,
) -> AttackOutcome:
    """Attack the model of a finished run, and write the report into the run.

    References have the run's architecture. In a federation, members are the records of all
    participants.

    Args:
        run: A finished run; its data must still be there.
        settings: The attacks; their ``model`` is replaced by the run's.
        reference_training: ``plain``: references are trained without noise. ``dp-sgd``: they
            imitate the run, with its noise, clip norm, optimizer and steps.
        progress: Receives finished steps; None: not reported.

    Returns:
        The report and every score.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If the run's data are gone, or a setting cannot be used.
    """
    settings.require_class_slices()
    ledger = run.read_finished()
    config = run.read_settings()
    split = load_dataset(config.data)
    model = load_trained_model(run, split).eval()
    if isinstance(config, FederatedConfig):
        members, others = members_of_federation(config, split)
    else:
        members, others = split.train, heldout_records(run, split)
    own = replace(settings, model=config.model.model)
    classes, imitation = len(split.classes), None
    require_reference_training(reference_training)
    if reference_training == "dp-sgd":
        imitation = _imitation(config, own)
    target, method = _single(TorchModel(model), members, others, classes, own, progress, imitation)
    described = _described("the run's model", own, method)
    found = evaluate_attacks([target], own, described, progress)
    report = msgspec.structs.replace(
        found.report,
        ledger_head=ledger.head,
        reference_training=reference_training if own.need_references else None,
    )
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
    settings.require_class_slices()
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
    classes = len(split.classes)
    target, _ = _single(model, split.train, split.heldout, classes, settings, progress)
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
    count = settings.targets + (settings.references if settings.need_references else 0)
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
    queries = list(query_copies(records.features, settings.queries, seed=settings.seed))

    def signals(labels: NDArray[np.int64]) -> list[ModelSignals]:
        return [model_signals(stack, query, labels, classes=classes) for query in queries]

    known = signals(records.labels) if settings.labels_known else None
    cases = []
    for place in range(settings.targets):
        target = StackedModel(stack, place)
        labels = _labels_of_attacker(target, records, settings)
        cases.append(
            _stacked_case(target, records, labels, known or signals(labels), member, settings)
        )
    return cases


def _stacked_case(
    target: StackedModel,
    records: RecordArrays,
    labels: NDArray[np.int64],
    queries: Sequence[ModelSignals],
    member: NDArray[np.bool_],
    settings: AttackSettings,
) -> AttackedTarget:
    """Return one model of a stack as the target; those behind the targets are the references."""
    place, first, shadows = target.index, settings.targets, None
    if len(member) > first:
        models = [StackedModel(target.stack, number) for number in range(first, len(member))]
        shadows = _shadows([one[slice(first, None)] for one in queries], member[first:])
        shadows = replace(shadows, models=tuple(models))
    return _case(
        target,
        records,
        labels,
        [one[slice(place, place + 1)] for one in queries],
        member[place],
        shadows,
        settings.seed + place,
    )


def _labels_of_attacker(
    model: TargetModel, records: RecordArrays, settings: AttackSettings
) -> NDArray[np.int64]:
    """Return the labels, or the classes that the target predicts if the attacker has none."""
    if settings.labels_known:
        return records.labels
    return np.asarray(model.predict(records.features).argmax(axis=1), dtype=np.int64)


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
            frames.append(_frame(name, place, one, settings.by))
            progress.advance()
    frame = pd.concat(frames, ignore_index=True)
    # Scores of our own attacks have the right sign: worse than chance, they are inconclusive.
    found = evaluate_scores(
        frame, attacked, confidence=settings.confidence, by=settings.by, judge=measure
    )
    return with_findings(found, targets, settings)


def _frame(attack: str, place: int, one: AttackedTarget, by: str | None) -> pd.DataFrame:
    scored = np.flatnonzero(~one.target.known_nonmembers)
    scores = ATTACKS[attack](one.target).values[scored]
    columns = {"id": scored, "score": scores, "member": one.member[scored].astype(int)}
    if by is not None:
        columns[by] = _slice_values(one, by)[scored]
    return pd.DataFrame({"attack": attack, "target": place, **columns})


def _slice_values(one: AttackedTarget, by: str) -> NDArray[np.generic]:
    """Return the value that each record is sliced by."""
    if by == CLASS_SLICES and one.classes is not None:
        return one.classes
    if one.slices is None:
        raise InvalidArgument("by", by, "left out: these records have no such value")
    return one.slices


def _case(
    model: TargetModel,
    records: RecordArrays,
    labels: NDArray[np.int64],
    queries: Sequence[ModelSignals],
    member: NDArray[np.bool_],
    shadows: ReferenceSignals | None,
    seed: int,
) -> AttackedTarget:
    target = AttackTarget(
        model=model,
        features=records.features,
        labels=labels,
        confidences=queries[0].confidences[0],
        outputs=queries[0].outputs[0],
        known_nonmembers=known_nonmembers(member, seed),
        reference_signals=shadows,
        seed=seed,
        copies=np.concatenate([one.confidences for one in queries[1:]])
        if len(queries) > 1
        else None,
    )
    return AttackedTarget(target, member, records.labels)


def known_nonmembers(member: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Draw the non-members that an attacker knows.

    Args:
        member: Whether the target was trained on each record, shape ``(records,)``.
        seed: Seed of the draw.

    Returns:
        Whether the attacker knows the record, shape ``(records,)``.
    """
    draw = np.random.default_rng([seed, 1]).permutation(np.flatnonzero(~member))
    outside = np.zeros(len(member), dtype=bool)
    outside[draw[: int(KNOWN_NONMEMBER_SHARE * len(draw))]] = True
    return outside


def _shadows(queries: Sequence[ModelSignals], member: NDArray[np.bool_]) -> ReferenceSignals:
    """Return the references' signals of each query; the first is of the records themselves."""
    confidences = [ReferenceConfidences(one.confidences, member) for one in queries]
    return ReferenceSignals(confidences[0], queries[0].outputs, copies=tuple(confidences[1:]))


def _single(
    model: TargetModel,
    members: RecordArrays,
    others: RecordArrays,
    classes: int,
    settings: AttackSettings,
    progress: Progress | None,
    imitation: ImitatingReferences | None = None,
) -> tuple[AttackedTarget, str]:
    """Return one given model with references that are trained here, and how they were trained."""
    records = RecordArrays(
        np.concatenate([members.features, others.features]),
        np.concatenate([members.labels, others.labels]),
    )
    which = draw_indices(len(records), max_records=settings.records, seed=settings.seed)
    records, member = records[which], (np.arange(len(records)) < len(members))[which]
    labels = _labels_of_attacker(model, records, settings)
    queries = list(query_copies(records.features, settings.queries, seed=settings.seed))
    found = [_signals_of(model, query, labels) for query in queries]
    shadows, method = None, WITHOUT_NOISE
    if settings.need_references:
        shadows, method = _trained_shadows(
            records, queries, labels, classes, settings, progress, imitation
        )
    return _case(model, records, labels, found, member, shadows, settings.seed), method


def _signals_of(
    model: TargetModel, features: NDArray[np.float32], labels: NDArray[np.int64]
) -> ModelSignals:
    """Return the signals of one model on records."""
    logits = model.predict(features)
    return ModelSignals(
        logit_scaled_confidence(logits, labels)[None], classifier_features(logits, labels)[None]
    )


def _trained_shadows(
    records: RecordArrays,
    queries: Sequence[NDArray[np.float32]],
    labels: NDArray[np.int64],
    classes: int,
    settings: AttackSettings,
    progress: Progress | None,
    imitation: ImitatingReferences | None,
) -> tuple[ReferenceSignals, str]:
    """Return the signals of references that are trained here, and how they were trained.

    The attacker's ``labels`` define the signals; references learn the true ones.
    """
    member = random_halves(settings.references, len(records), seed=settings.seed)
    whole = make_model(settings.model, records.features.shape[1:], classes, settings.seed)
    # The output of the frozen part is computed once, not in every epoch.
    features = compute_features(whole, records.features)
    copies = [features, *(compute_features(whole, query) for query in queries[1:])]

    def shadows_of(stack: ModelStack) -> ReferenceSignals:
        return _shadows(
            [model_signals(stack, one, labels, classes=classes) for one in copies], member
        )

    if imitation is not None:
        imitated = imitation.train(features, records.labels, member, progress)
        method = f"by DP-SGD with the run's settings ({imitated.method})"
        return shadows_of(imitated.stack), method
    stack = train_references(
        training_recipe(records, classes, settings),
        features,
        records.labels,
        member,
        speed=ReferenceSpeedSettings(chunks=settings.workers),
        executor=settings.executor,
        progress=progress,
    )
    return shadows_of(stack), WITHOUT_NOISE


def _imitation(
    config: RunConfig | FederatedConfig, settings: AttackSettings
) -> ImitatingReferences:
    """Return what trains references as the run was trained."""
    if isinstance(config, FederatedConfig):
        raise InvalidArgument("reference_training", "dp-sgd", "plain for a federation")
    processes = settings.workers if settings.workers > 0 else os.cpu_count() or 1
    return ImitatingReferences(config, settings.seed, settings.executor, processes)


def _make(name: str, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    return trained_part(make_model(name, shape, classes, seed))


WITHOUT_NOISE = "without noise"


def _described(what: str, settings: AttackSettings, method: str = WITHOUT_NOISE) -> str:
    if not settings.need_references:
        return what
    return f"{what}, with {settings.references} references ({settings.model}) trained {method}"


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


def _noun(singular: str, count: int) -> str:
    return singular if count == 1 else f"{singular}s"
