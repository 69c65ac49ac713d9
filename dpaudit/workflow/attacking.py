"""Membership inference on a run, on a model file, or on data alone."""

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

from dpaudit.attacks.membership.battery import ATTACKS, Shadows, Target, need_references
from dpaudit.attacks.membership.confidence import features_for_classifier, logit_scaled
from dpaudit.attacks.membership.executors import Executor, InProcess, Joblib
from dpaudit.attacks.membership.halves import halves
from dpaudit.attacks.membership.models import Model
from dpaudit.attacks.membership.models.module import Module
from dpaudit.attacks.membership.models.opening import open_model
from dpaudit.attacks.membership.references import References
from dpaudit.attacks.membership.shadows import Recipe, Speed, train_references
from dpaudit.attacks.membership.signals import OfStack, Signals, signals_of
from dpaudit.files.opening import name_in_text
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import PRIVATE, write_json
from dpaudit.trainer.data import Records, Split, load
from dpaudit.trainer.evaluate import load_trained_model
from dpaudit.trainer.models import features_of, make_model, trained_part
from dpaudit.trainer.run import heldout_records
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit
from dpaudit.vocabulary.settings import DataSettings
from dpaudit.workflow.populations import drawn, population
from dpaudit.workflow.scoring import Attacked, evaluated

# The attacker knows this share of a target's non-members, as Bertran et al. need; no attack
# is scored on them, so that all attacks are compared on the same records.
KNOWN_OUTSIDE = 0.2

# With more steps an epoch, large data would train for long and fit no better.
LEAST_BATCH, MOST_STEPS = 64, 64


@dataclass(frozen=True)
class AttackSettings:
    """What is asked of the attacks.

    Attributes:
        attacks: Their names.
        references: How many reference models are trained.
        targets: How many models are attacked, where none is given.
        model: Of targets and references: the name of a built-in one, or
            ``package.module:factory``.
        epochs: Of each of them.
        batch_size: Of each; None for 64, or more where an epoch would have over 64 steps.
        learning_rate: Of Adam.
        records: How many records to use at most, drawn at random; None for all.
        confidence: Of each interval.
        seed: Of everything that is drawn.
        workers: Processes that train references; 1 for this one.
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
        """Who trains reference models."""
        return InProcess() if self.workers == 1 else Joblib(self.workers)


@dataclass(frozen=True)
class Case:
    """A target, and what is true of its records."""

    target: Target
    member: NDArray[np.bool_]

    def with_references(self, models: int) -> Case:
        """Return the same target attacked with the first ``models`` references alone."""
        shadows = self.target.require_shadows().first(models)
        return Case(replace(self.target, shadows=shadows), self.member)


def attack_data(data: DataSettings, asked: AttackSettings) -> Attacked:
    """Train targets and references on halves of ``data``, and attack the targets.

    Raises:
        InvalidArgument: the data cannot be used, or a setting.
    """
    records, classes = population(data, most=asked.records, seed=asked.seed)
    described = (
        f"{asked.targets} models ({asked.model}) trained on halves of {len(records)} records, "
        f"with {asked.references} references"
    )
    return judged(targets_of(records, classes, asked), asked, described)


def attack_run(run: RunDirectory, asked: AttackSettings) -> Attacked:
    """Attack the model of a finished run, write the report into it and return all.

    References have the run's architecture and are trained without noise.

    Raises:
        IntegrityError: the run is unfinished, or a file is missing or altered.
        InvalidArgument: the run's data are gone, or a setting cannot be used.
    """
    ledger = run.read_finished()
    config = run.read_config()
    split = load(config.data)
    model = load_trained_model(run, split).eval()
    heldout = heldout_records(run, split)
    own = replace(asked, model=config.model.model)
    target = _single(Module(model), split.train, heldout, len(split.classes), own)
    found = judged([target], own, _described("the run's model", own))
    report = msgspec.structs.replace(found.report, ledger_head=ledger.head)
    write_json(run.attack, report, PRIVATE)
    return replace(found, report=report)


def attack_checkpoint(
    checkpoint: Path,
    data: DataSettings,
    asked: AttackSettings,
    *,
    trust_model_code: bool = False,
) -> Attacked:
    """Attack the model in a file; ``data`` says which records it trained on, and which not.

    Raises:
        InvalidArgument: the data have no test set of their own, or a file cannot be used.
        MissingExtra: the kind of file needs a library that is not installed.
    """
    split = load(data)
    _require_own_test_set(data, split)
    model = open_model(
        checkpoint,
        factory=asked.model,
        shape=split.shape,
        classes=len(split.classes),
        trust_model_code=trust_model_code,
    )
    width = model.predict(split.train.features[:1]).shape[1]
    if width != len(split.classes):
        allowed = f"a model of the data's {len(split.classes)} classes"
        raise InvalidArgument("checkpoint", f"{width} outputs", allowed)
    target = _single(model, split.train, split.heldout, len(split.classes), asked)
    return judged([target], asked, _described(name_in_text(checkpoint), asked))


def targets_of(records: Records, classes: int, asked: AttackSettings) -> list[Case]:
    """Train targets and references together, each on a half of the records."""
    count = asked.targets + (asked.references if need_references(asked.attacks) else 0)
    # Targets have halves of their own, so that references come in complete pairs.
    member = np.concatenate(
        [
            halves(models, len(records), seed=asked.seed + offset)
            for offset, models in enumerate((asked.targets, count - asked.targets))
            if models
        ]
    )
    stack = train_references(
        recipe(records, classes, asked),
        records.features,
        records.labels,
        member,
        speed=Speed(chunks=asked.workers),
        executor=asked.executor,
    )
    signals = signals_of(stack, records.features, records.labels, classes=classes)
    references = signals[asked.targets :]
    return [
        _case(
            OfStack(stack, place),
            records,
            signals[place : place + 1],
            member[place],
            _shadows(references, member[asked.targets :]),
            asked.seed + place,
        )
        for place in range(asked.targets)
    ]


def recipe(records: Records, classes: int, asked: AttackSettings) -> Recipe:
    """Return how each model is trained on a half of ``records``."""
    return Recipe(
        make_model=partial(_make, asked.model, records.features.shape[1:], classes),
        epochs=asked.epochs,
        batch_size=asked.batch_size or max(LEAST_BATCH, len(records) // 2 // MOST_STEPS),
        learning_rate=asked.learning_rate,
        seed=asked.seed,
    )


def judged(targets: Sequence[Case], asked: AttackSettings, attacked: str) -> Attacked:
    """Run every attack on every target, and evaluate it on all of them together."""
    frames = [
        _frame(name, place, one) for name in asked.attacks for place, one in enumerate(targets)
    ]
    frame = pd.concat(frames, ignore_index=True)
    return evaluated(frame, attacked, confidence=asked.confidence)


def _frame(attack: str, place: int, one: Case) -> pd.DataFrame:
    asked_for = np.flatnonzero(~one.target.outside)
    scores = ATTACKS[attack](one.target).values[asked_for]
    columns = {"id": asked_for, "score": scores, "member": one.member[asked_for].astype(int)}
    return pd.DataFrame({"attack": attack, "target": place, **columns})


def _case(
    model: Model,
    records: Records,
    signals: Signals,
    member: NDArray[np.bool_],
    shadows: Shadows | None,
    seed: int,
) -> Case:
    target = Target(
        model=model,
        features=records.features,
        labels=records.labels,
        confidences=signals.confidences[0],
        outputs=signals.outputs[0],
        outside=_known_outside(member, seed),
        shadows=shadows,
        seed=seed,
    )
    return Case(target, member)


def _known_outside(member: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    draw = np.random.default_rng([seed, 1]).permutation(np.flatnonzero(~member))
    outside = np.zeros(len(member), dtype=bool)
    outside[draw[: int(KNOWN_OUTSIDE * len(draw))]] = True
    return outside


def _shadows(signals: Signals, member: NDArray[np.bool_]) -> Shadows | None:
    if len(member) == 0:
        return None
    return Shadows(References(signals.confidences, member), signals.outputs)


def _single(
    model: Model, members: Records, others: Records, classes: int, asked: AttackSettings
) -> Case:
    """Return one given model with references that are trained here."""
    records = Records(
        np.concatenate([members.features, others.features]),
        np.concatenate([members.labels, others.labels]),
    )
    which = drawn(len(records), most=asked.records, seed=asked.seed)
    records, member = records[which], (np.arange(len(records)) < len(members))[which]
    logits = model.predict(records.features)
    signals = Signals(
        logit_scaled(logits, records.labels)[None],
        features_for_classifier(logits, records.labels)[None],
    )
    shadows = _trained_shadows(records, classes, asked) if need_references(asked.attacks) else None
    return _case(model, records, signals, member, shadows, asked.seed)


def _trained_shadows(records: Records, classes: int, asked: AttackSettings) -> Shadows | None:
    member = halves(asked.references, len(records), seed=asked.seed)
    whole = make_model(asked.model, records.features.shape[1:], classes, asked.seed)
    # What a fixed part makes of the records is computed once, not in every epoch.
    seen = features_of(whole, records.features)
    stack = train_references(
        recipe(records, classes, asked),
        seen,
        records.labels,
        member,
        speed=Speed(chunks=asked.workers),
        executor=asked.executor,
    )
    return _shadows(signals_of(stack, seen, records.labels, classes=classes), member)


def _make(name: str, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    return trained_part(make_model(name, shape, classes, seed))


def _described(what: str, asked: AttackSettings) -> str:
    if not need_references(asked.attacks):
        return what
    return f"{what}, with {asked.references} references ({asked.model}) trained without noise"


def _require_own_test_set(data: DataSettings, split: Split) -> None:
    """Refuse records that are held out by our coins: a foreign model knows nothing of them."""
    other = load(_with_other_coins(data))
    if not np.array_equal(other.heldout.labels, split.heldout.labels):
        allowed = "records with a test set of their own, which the model did not train on"
        raise InvalidArgument("data", data.source, allowed)


def _with_other_coins(data: DataSettings) -> DataSettings:
    return DataSettings(
        data.source, data.label, data.feature_range, 0.5 * data.test_fraction, data.split_seed + 1
    )
