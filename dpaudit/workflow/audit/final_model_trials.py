"""Train the models of a black-box audit, store their outputs, and resume.

A plan fixes everything before the first model is trained. The outputs of finished models are
written after every pair or stack, as one file that is replaced at once. An interrupted audit
continues with the same plan and seed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.attacks.bounds import PairTest
from dpaudit.attacks.final_model import OutputView, TrialOutputs
from dpaudit.runs.file_io import (
    PRIVATE,
    read_arrays,
    read_optional_json,
    sha256,
    write_json,
    write_secret_arrays,
)
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, require_count
from dpaudit.vocabulary.settings import NoProgress, Progress

Array = NDArray[np.float64]
TrainModel = Callable[[bool, int], ArrayLike]
"""Trains one model, with the target record or without it, from a seed. Returns the model's
logits on the query, shape ``(classes,)``."""

FINAL_MODELS = "final_models"
"""Role, in an audit's ``files``, of the outputs of models with and without a target record."""

FINAL_MODEL_PLAN = "final_model_plan"
"""Role, in an audit's ``files``, of the plan that these models were trained by."""

SEED_BITS = 59  # of secret seeds: seeds are at most 1e18


class PairTrainer(Protocol):
    """Trains the models of a black-box audit."""

    @property
    def label(self) -> int:
        """The class of the target record."""

    @property
    def pairs_at_once(self) -> int:
        """Number of pairs that are trained before their outputs are stored."""

    def outputs(self, seeds: Sequence[int], *, with_record: bool) -> Array:
        """Train one model per seed.

        Args:
            seeds: Seeds of the models.
            with_record: Whether the target record is among their records.

        Returns:
            Logits of each model on the query, shape ``(models, classes)``.
        """


ALLOWED_LOGITS = (
    "the model's logits on the query, one number per class: a list, an array or a detached "
    "tensor on the CPU"
)
NOT_FINITE = (
    "finite logits: correct the training that gives others, with this seed to repeat it. Models "
    "that were finished before are kept; to leave a model out would void the bounds"
)
MAX_SHOWN = 80  # characters of what a trainer returned


def _shown(returned: object) -> str:
    """Return the type and the first characters of what a trainer returned."""
    text = " ".join(repr(returned).split())
    kept = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
    return f"{type(returned).__name__} {kept}"


@dataclass(frozen=True)
class OneByOne:
    """Trains models by a user's function, one after the other.

    Attributes:
        train: Trains one model and returns its logits on the query.
        label: The class of the target record.
    """

    train: TrainModel
    label: int
    pairs_at_once: int = 1

    def outputs(self, seeds: Sequence[int], *, with_record: bool) -> Array:
        """Train one model per seed.

        Args:
            seeds: Seeds of the models.
            with_record: Whether the target record is among their records.

        Returns:
            Logits of each model on the query, shape ``(models, classes)``.
        """
        return np.stack([self._logits(with_record, seed) for seed in seeds])

    def _logits(self, with_record: bool, seed: int) -> Array:
        """Train one model, and refuse what is no list of one finite number per class."""
        returned = self.train(with_record, seed)
        called = f"trainer(with_record={with_record}, seed={seed})"
        try:
            logits = np.asarray(returned).reshape(-1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidArgument(called, _shown(returned), ALLOWED_LOGITS) from error
        if logits.dtype.kind not in "buif" or len(logits) < 2:
            raise InvalidArgument(called, _shown(returned), ALLOWED_LOGITS)
        row = logits.astype(np.float64)
        if not np.isfinite(row).all():
            raise InvalidArgument(called, _shown(returned), NOT_FINITE)
        return row


class TrialPlan(msgspec.Struct, frozen=True):
    """Everything that is fixed before the first model of a black-box audit is trained.

    Attributes:
        pairs: Number of pairs of models, one without and one with the target record.
        settings: Further settings of the audit, as text by name.
        seed: The secret seed that all seeds of models come from.
        stops_early: Whether training stops when the claim is refuted.
        data: Digest of the records, the target record and the query, or of the data that a user
            names for a trainer of their own; empty before they are read, and without such data.
        schema_version: Version of the file format.

    Raises:
        InvalidArgument: If a number is out of its range.
    """

    pairs: int
    settings: dict[str, str]
    seed: int
    stops_early: bool = False
    data: str = ""
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require_count("pairs", self.pairs, least=2)
        require_count("seed", self.seed, least=0)


@dataclass(frozen=True)
class TrialFiles:
    """Files of a black-box audit.

    Attributes:
        plan: The plan, with the secret seed.
        trials: Outputs of the models that are trained.
    """

    plan: Path
    trials: Path

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of both files, by their roles in an audit."""
        return {FINAL_MODELS: sha256(self.trials), FINAL_MODEL_PLAN: sha256(self.plan)}

    @classmethod
    def within(cls, folder: Path) -> TrialFiles:
        """Return the files in a folder of their own, which is made if it is missing.

        Args:
            folder: The folder.

        Returns:
            The two files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder / "final-models.json", folder / "final-models.npz")


def fix_plan(
    files: TrialFiles, *, pairs: int, settings: dict[str, str], stops_early: bool
) -> TrialPlan:
    """Write the plan of an audit, or read that of an interrupted one.

    Args:
        files: Where plan and outputs are.
        pairs: Number of pairs of models.
        settings: Further settings, as text by name.
        stops_early: Whether training stops when the claim is refuted.

    Returns:
        The plan.

    Raises:
        InvalidArgument: If models of another plan are there already.
        IntegrityError: If the plan is broken.
    """
    found = read_optional_json(files.plan, TrialPlan)
    if found is None:
        plan = TrialPlan(pairs, settings, secrets.randbits(SEED_BITS), stops_early)
        write_json(files.plan, plan, PRIVATE)
        return plan
    asked = TrialPlan(pairs, settings, found.seed, stops_early, found.data, found.schema_version)
    if asked != found:
        differing = [
            name
            for name in (*sorted({*settings, *found.settings}), "pairs", "stops_early")
            if _setting(asked, name) != _setting(found, name)
        ]
        allowed = (
            f"the settings of the audit that {files.plan} began; another number of models, chosen "
            "after scores were seen, would void its bounds. To start again, remove this file and "
            f"{files.trials.name}"
        )
        raise InvalidArgument(*_named(differing[0], _setting(asked, differing[0])), allowed)
    return found


def _named(setting: str, value: str) -> tuple[str, str]:
    """Return the name and the value under which a user gave a setting of a plan."""
    if setting == "pairs":
        return "models", str(2 * int(value))
    return ("stop_when_refuted", value) if setting == "stops_early" else (setting, value)


def fix_data(files: TrialFiles, plan: TrialPlan, data: str) -> TrialPlan:
    """Write the digest of the data into a plan, or require that it is the same.

    Args:
        files: Where plan and outputs are.
        plan: The plan.
        data: Digest of the records, the target record and the query.

    Returns:
        The plan, with the digest.

    Raises:
        InvalidArgument: If models were trained on other data.
    """
    if plan.data == data:
        return plan
    if plan.data or files.trials.exists():
        allowed = (
            f"those that the models of {files.trials} were trained on and asked: restore the data. "
            f"To start again, remove this file and {files.plan.name}"
        )
        given = f"digest {data[:12]}" if data else "no data"
        raise InvalidArgument("records, target record or query", given, allowed)
    fixed = msgspec.structs.replace(plan, data=data)
    write_json(files.plan, fixed, PRIVATE)
    return fixed


def _setting(plan: TrialPlan, name: str) -> str:
    return plan.settings.get(name, str(getattr(plan, name, "not set")))


def read_trials(files: TrialFiles, label: int | None = None) -> TrialOutputs | None:
    """Read the outputs of the models that are trained.

    Args:
        files: Where plan and outputs are.
        label: The class of the target record; None: any.

    Returns:
        The outputs; None if no model is trained yet.

    Raises:
        IntegrityError: If the file is broken, or is of another target record.
    """
    if not files.trials.exists():
        return None
    arrays = read_arrays(files.trials)
    missing = {"with_record", "without_record", "label"} - arrays.keys()
    if missing:
        why = f"lacks {', '.join(sorted(missing))}"
        raise IntegrityError(f"{files.trials} {why}: remove it and audit again")
    whole = arrays["label"].shape == () and arrays["label"].dtype.kind in "iu"
    if not whole or any(
        arrays[name].dtype.kind != "f" for name in ("with_record", "without_record")
    ):
        raise IntegrityError(
            f"{files.trials} is broken: logits must be numbers, and the label a whole number"
        )
    if label not in {None, int(arrays["label"])}:
        raise IntegrityError(
            f"{files.trials} is of another target record: remove it and audit again"
        )
    try:
        return TrialOutputs(arrays["with_record"], arrays["without_record"], int(arrays["label"]))
    except InvalidArgument as error:
        raise IntegrityError(f"{files.trials} is broken: {error}") from error


def complete_trials(files: TrialFiles) -> tuple[TrialPlan, TrialOutputs] | None:
    """Read a finished audit; one that stops early may be read at any time.

    Args:
        files: Where plan and outputs are.

    Returns:
        The plan and the outputs; None if a model is missing, or nothing is there.

    Raises:
        IntegrityError: If a file is broken.
    """
    plan = read_optional_json(files.plan, TrialPlan)
    done = None if plan is None else read_trials(files)
    if plan is None or done is None or (len(done) < plan.pairs and not plan.stops_early):
        return None
    if len(done) > plan.pairs:
        raise IntegrityError(
            f"{files.trials} holds {len(done)} pairs of models, {files.plan} fixed {plan.pairs}"
        )
    return plan, done


def train_trials(
    trainer: PairTrainer,
    files: TrialFiles,
    plan: TrialPlan,
    *,
    refutes: Callable[[TrialOutputs], bool] = lambda _: False,
    progress: Progress | None = None,
) -> TrialOutputs:
    """Train the models that are still missing.

    Args:
        trainer: Trains the models.
        files: Where plan and outputs are.
        plan: The fixed plan.
        refutes: Whether the outputs so far refute the claim; asked only if the plan stops early.
        progress: Receives each finished model.

    Returns:
        The outputs of all models, in the order of training.

    Raises:
        InvalidArgument: If a model's outputs are not finite numbers.
        IntegrityError: If the stored outputs are broken.
    """
    progress = progress or NoProgress()
    progress.start("training models with and without the target record", 2 * plan.pairs)
    done = read_trials(files, trainer.label)
    progress.advance(2 * (0 if done is None else len(done)))
    while (0 if done is None else len(done)) < plan.pairs:
        if done is not None and plan.stops_early and refutes(done):
            return done
        first = 0 if done is None else len(done)
        numbers = range(first, min(plan.pairs, first + trainer.pairs_at_once))
        found = [
            trainer.outputs([_seed(plan, number, place) for number in numbers], with_record=joins)
            for place, joins in enumerate((False, True))
        ]
        more = TrialOutputs(found[1], found[0], trainer.label)
        done = more if done is None else _joined(done, more)
        write_secret_arrays(
            files.trials,
            with_record=done.with_record,
            without_record=done.without_record,
            label=np.array(done.label),
        )
        progress.advance(2 * len(numbers))
    assert done is not None  # a plan has at least two pairs
    return done


def _seed(plan: TrialPlan, number: int, place: int) -> int:
    """Return the seed of one model: independent of those of all others."""
    state = np.random.SeedSequence([plan.seed, number, place]).generate_state(2)
    return int(state[0]) << (SEED_BITS - 32) | int(state[1]) >> (64 - SEED_BITS)


def _joined(done: TrialOutputs, more: TrialOutputs) -> TrialOutputs:
    before, classes = done.with_record.shape[1], more.with_record.shape[1]
    if before != classes:
        raise InvalidArgument("outputs", f"{classes} logits", f"{before}, as of the models before")
    return TrialOutputs(
        np.concatenate([done.with_record, more.with_record]),
        np.concatenate([done.without_record, more.without_record]),
        done.label,
    )


def refutation_of(
    claimed_epsilon: float, *, delta: float, confidence: float, view: OutputView
) -> Callable[[TrialOutputs], bool]:
    """Return the stopping rule of an audit that stops when the claim is refuted.

    Args:
        claimed_epsilon: The claim, in nats.
        delta: The delta of the claim.
        confidence: Probability with which a true claim is never refuted.
        view: What is read of each model.

    Returns:
        Whether the outputs so far refute the claim; each pair is tested once.
    """
    test = PairTest(delta, confidence)

    def refutes(outputs: TrialOutputs) -> bool:
        members, nonmembers = outputs.scores(view)
        for member, nonmember in list(zip(members, nonmembers, strict=True))[test.pairs :]:
            test.update(float(member), float(nonmember))
        return test.epsilon > claimed_epsilon and outputs.shows_nothing(view) is None

    return refutes
