"""Input canaries: records that train like any other, scored by the final model."""

from __future__ import annotations

from functools import partial

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from dpaudit.attacks import bounds
from dpaudit.attacks.one_run.certified import ONE_RUN
from dpaudit.attacks.one_run.guesses import Guesses, digest
from dpaudit.attacks.one_run.results import audit_result
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.estimators import OneRun

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

NAME = "input canaries, final model"


def without_evidence(canaries: int, *, delta: float, confidence: float) -> AuditResult:
    """Return the bound of canaries that have one score for all: it says nothing.

    Args:
        canaries: How many there are.
        delta: In [0, 1).
        confidence: In (0, 1).
    """
    bound = bounds.one_run(
        canaries=canaries, guesses=0, correct=0, delta=delta, confidence=confidence
    )
    result = audit_result(
        bound,
        name=NAME,
        method=ONE_RUN,
        delta=delta,
        canaries=canaries,
        greatest_epsilon=0.0,
        thresholds="none is guessed",
        registered=digest(audit=ONE_RUN, canaries=canaries, guesses=0),
        estimator=OneRun(),
    )
    return replace(result, inconclusive="every canary has the same loss")


def audit_input_canaries(
    scores: Array, included: Bits, *, delta: float, confidence: float
) -> AuditResult:
    """Return the certified lower bound from one score of each canary.

    Every canary is guessed: in where its score is above the median of all, else out.

    Args:
        scores: Shape ``(m,)``, finite; larger means included.
        included: Shape ``(m,)``: fair, independent coins.
        delta: In [0, 1).
        confidence: In (0, 1).

    Raises:
        InvalidArgument: shapes differ, a score is not finite, or all are equal.
    """
    if scores.shape != included.shape or len(scores) == 0 or not np.isfinite(scores).all():
        raise InvalidArgument("scores", f"shape {scores.shape}", "finite, one for each canary")
    if np.ptp(scores) == 0:
        raise InvalidArgument("scores", "one value for all", "different for different canaries")
    guesses = Guesses(len(scores))
    correct = guesses.correct(scores - np.median(scores), included)
    of_correct = partial(
        bounds.one_run,
        canaries=len(scores),
        guesses=guesses.count,
        delta=delta,
        confidence=confidence,
    )
    return audit_result(
        of_correct(correct=correct),
        name=NAME,
        method=ONE_RUN,
        delta=delta,
        canaries=len(scores),
        guesses=guesses.count,
        correct=correct,
        greatest_epsilon=of_correct(correct=guesses.count).epsilon,
        thresholds="all are guessed: in where the score is above the median, else out",
        registered=digest(audit=ONE_RUN, canaries=len(scores), guesses=guesses.count),
        estimator=OneRun(),
    )
