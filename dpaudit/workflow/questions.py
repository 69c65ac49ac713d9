"""What ``dpaudit epsilon`` asks: from rates and steps, sizes and epochs, or a run's ledger."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dpaudit.accountants.answers import ACCOUNTANTS, epsilon_by, require_priceable
from dpaudit.runs.directory import open_run
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.claim import EpsilonAnswer
from dpaudit.vocabulary.errors import (
    IntegrityError,
    InvalidArgument,
    UnsupportedMechanism,
    require_count,
    require_delta,
    require_positive,
    require_sampling_rate,
)
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import Gaussian, Mechanism, PoissonSampled, Repeated


@dataclass(frozen=True)
class Question:
    """What is to be priced, and where it came from."""

    mechanism: Mechanism
    delta: float
    adjacency: Adjacency
    sampling: Sampling
    finished: bool = True


def question_of_run(path: Path, delta: float | None) -> Question:
    """Return the question that a run's ledger poses, at its own delta unless another is given.

    Raises:
        IntegrityError: the ledger is missing, torn or altered, or books nothing yet.
    """
    run = open_run(path)
    ledger = run.read_ledger()
    if ledger.seal is not None:
        run.read_finished()  # a finished run must also have the files that it was sealed with
    if not ledger.releases:
        raise IntegrityError(f"{run.ledger} books no release yet")
    require_priceable(ledger)
    at = run.read_config().privacy.delta if delta is None else delta
    require_delta("delta", at)
    header = ledger.header
    return Question(
        ledger.mechanism, at, header.adjacency, header.sampling, ledger.seal is not None
    )


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
        epsilon_by(name, question.mechanism, question.delta, question.adjacency, question.sampling)
        for name in names
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


def training_mechanism(
    *,
    sampling: Sampling,
    sampling_rate: float,
    noise_multiplier: float,
    steps: int,
    adjacency: Adjacency,
) -> Mechanism:
    """Return what ``steps`` noisy sums release, under the sampling that was really used.

    Raises:
        InvalidArgument: a number is out of range.
        UnsupportedMechanism: shuffled batches under add-or-remove-one: a record more moves
            other records between batches, and nothing certified is known here.
    """
    require_sampling_rate("sampling_rate", sampling_rate)
    require_count("steps", steps)
    require_positive("noise_multiplier", noise_multiplier)
    release = Gaussian(noise_multiplier)
    match sampling:
        case Sampling.POISSON:
            return Repeated(PoissonSampled(release, sampling_rate), steps)
        case Sampling.FULL_BATCH:
            if sampling_rate != 1:
                raise InvalidArgument("sampling_rate", sampling_rate, "1 for full batches")
            return Repeated(release, steps)
        case Sampling.SHUFFLED:
            if adjacency is Adjacency.ADD_OR_REMOVE_ONE:
                raise UnsupportedMechanism(
                    release,
                    "shuffled batches under add-or-remove-one: a record more moves others "
                    "between batches; use --adjacency zero-out or replace-one",
                )
            # A record is in one batch a pass, and the batches of a pass are disjoint:
            # a pass costs one release on all records, and no amplification is claimed.
            # steps are whole and a pass is 1/rate of them: 1e-9 is rounding.
            return Repeated(release, max(1, math.ceil(steps * sampling_rate - 1e-9)))
