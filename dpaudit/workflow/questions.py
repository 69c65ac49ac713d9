"""What ``dpaudit epsilon`` asks: from rates and steps, sizes and epochs, a run's ledger, or
what another library wrote down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

import dpaudit
from dpaudit.accountants import answers, calibrate, naive, pld, rdp
from dpaudit.accountants.answers import ACCOUNTANTS, epsilon_by, require_priceable
from dpaudit.accountants.importers import from_dp_event, from_opacus
from dpaudit.accountants.schedules import training_mechanism
from dpaudit.files.documents import read_json_document
from dpaudit.files.opening import InputFile
from dpaudit.gate.warnings import delta_warning, smallest_dataset
from dpaudit.runs.directory import open_run
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.answers import DeltaAnswer, NoiseAnswer, RiskAnswer
from dpaudit.vocabulary.claim import EpsilonAnswer
from dpaudit.vocabulary.errors import (
    IntegrityError,
    InvalidArgument,
    require_count,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.unit import Unit
from dpaudit.workflow.claims import claim_delta

UNFINISHED = "the run is not finished: this is what it has spent so far"
AS_IF_POISSON = (
    "an Opacus history does not say how batches were drawn: this holds for Poisson sampling alone"
)


class Source(Enum):
    """Whose file it is."""

    OPACUS = "opacus"
    """The history of an Opacus accountant, or its state_dict."""

    DP_EVENT = "dp-event"
    """The named tuple of a dp_accounting event."""


@dataclass(frozen=True)
class Question:
    """What is to be priced, and where it came from.

    Attributes:
        mechanism: What was released.
        delta: The delta of the statement.
        adjacency: Which data sets are neighbours.
        sampling: How batches were drawn; None where the mechanism alone says it.
        caveat: What the reader of the answer must know besides.
        unit: What neighbours differ by.
    """

    mechanism: Mechanism
    delta: float
    adjacency: Adjacency
    sampling: Sampling | None
    caveat: str | None = None
    unit: Unit = Unit.RECORD


def question_of_run(path: Path, delta: float | None) -> Question:
    """Return the question that a run's ledger poses, at its own delta unless another is given.

    Raises:
        IntegrityError: the ledger is missing, damaged or altered, another file of the run
            contradicts it, or it books nothing yet.
    """
    run = open_run(path)
    ledger = run.read_unfinished()
    if ledger.seal is not None or run.claim.exists():
        run.read_finished()  # a run that has ended must have its seal, and the files sealed with
    if not ledger.releases:
        raise IntegrityError(f"{run.ledger} books no release yet")
    require_priceable(ledger)
    at = claim_delta(run) if delta is None else delta
    require_delta("delta", at)
    header = ledger.header
    caveat = None if ledger.seal is not None else UNFINISHED
    return Question(ledger.mechanism, at, header.adjacency, header.sampling, caveat, header.unit)


def question_of_file(
    source: Source,
    path: Path,
    *,
    adjacency: Adjacency,
    noise_set_for: Adjacency,
    delta: float,
) -> Question:
    """Return the question that the JSON of another library poses.

    Raises:
        InvalidArgument: the file cannot be read, is no JSON, or not what ``source`` writes.
        UnsupportedMechanism: it holds an event that has no counterpart here.
    """
    require_delta("delta", delta)
    document = _read_json(path)
    match source:
        case Source.OPACUS:
            mechanism = from_opacus(document)
            return Question(mechanism, delta, adjacency, Sampling.POISSON, AS_IF_POISSON)
        case Source.DP_EVENT:
            mechanism = from_dp_event(document, adjacency=adjacency, noise_set_for=noise_set_for)
            return Question(mechanism, delta, adjacency, None)


def _read_json(path: Path) -> Any:
    # Infinity is legal in an event (a Poisson number of trials): so msgspec cannot read it.
    return read_json_document(InputFile(path, "FILE"))


def question_of_plan(
    *,
    rate: tuple[float, int],
    noise_multiplier: float,
    sampling: Sampling,
    adjacency: Adjacency,
    delta: float,
) -> Question:
    """Return the question of a plan: ``rate`` is (sampling rate, steps)."""
    require_delta("delta", delta)
    sampling_rate, steps = rate
    mechanism = training_mechanism(
        sampling=sampling,
        sampling_rate=sampling_rate,
        noise_multiplier=noise_multiplier,
        steps=steps,
        adjacency=adjacency,
    )
    return Question(mechanism, delta, adjacency, sampling)


def answer(question: Question, accountant: str) -> tuple[EpsilonAnswer, ...]:
    """Return what ``accountant`` says, or for ``all`` what every one says."""
    names = tuple(ACCOUNTANTS) if accountant == "all" else (accountant,)
    return tuple(
        epsilon_by(
            name,
            question.mechanism,
            question.delta,
            question.adjacency,
            question.sampling,
            question.unit,
        )
        for name in names
    )


def delta_warnings(question: Question, dataset_size: int | None) -> Iterator[str]:
    """Yield a warning if delta is too large for the data set, whose size may be public."""
    size = dataset_size or smallest_dataset(question.mechanism)
    return delta_warning(question.delta, size)


def explained(question: Question, given: tuple[EpsilonAnswer, ...]) -> tuple[EpsilonAnswer, ...]:
    """Return the answers, that of the PLD accountant with how it was come by."""
    return tuple(
        msgspec.structs.replace(
            one,
            explanation=answers.explanation(question.mechanism, question.delta, question.adjacency),
        )
        if one.accountant == "pld"
        else one
        for one in given
    )


def delta_at(question: Question, epsilon: float) -> DeltaAnswer:
    """Return the interval of delta at ``epsilon``."""
    return answers.delta_at(epsilon, question.mechanism, question.adjacency)


def risk_of(question: Question, fpr: tuple[float, ...]) -> RiskAnswer:
    """Return what the best attacker can do."""
    return answers.risk_of(question.mechanism, question.adjacency, fpr)


PROFILES: dict[str, calibrate.Accountant] = {
    "pld": pld.profile,
    "rdp": rdp.profile,
    "naive": naive.profile,
}


def least_noise(
    *,
    rate: tuple[float, int],
    sampling: Sampling,
    adjacency: Adjacency,
    target_epsilon: float,
    delta: float,
    accountant: str,
) -> NoiseAnswer:
    """Return the least noise multiplier with which a plan was seen to meet the target."""
    require_positive("target_epsilon", target_epsilon)
    require_delta("delta", delta)
    sampling_rate, steps = rate

    def build(noise_multiplier: float) -> Mechanism:
        return training_mechanism(
            sampling=sampling,
            sampling_rate=sampling_rate,
            noise_multiplier=noise_multiplier,
            steps=steps,
            adjacency=adjacency,
        )

    found = calibrate.noise_multiplier(
        build,
        target_epsilon=target_epsilon,
        delta=delta,
        adjacency=adjacency,
        accountant=PROFILES[accountant],
    )
    return NoiseAnswer(
        noise_multiplier=found.value,
        target_epsilon=target_epsilon,
        delta=delta,
        epsilon=found.epsilon,
        accountant=accountant,
        adjacency=adjacency,
        mechanism=build(found.value),
        dpaudit_version=dpaudit.__version__,
    )


def rate_and_steps(dataset_size: int, batch_size: int, epochs: float) -> tuple[float, int]:
    """Return the sampling rate B/N and the number of steps ceil(E N / B)."""
    require_count("dataset_size", dataset_size)
    require_count("batch_size", batch_size)
    require_positive("epochs", epochs)
    if batch_size > dataset_size:
        raise InvalidArgument(
            "batch_size", batch_size, f"at most the dataset_size of {dataset_size}"
        )
    return batch_size / dataset_size, math.ceil(epochs * dataset_size / batch_size)
