"""A lower bound as an audit prints it."""

from __future__ import annotations

from dpaudit.attacks.bounds import LowerBound
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.estimators import Estimator


def audit_result(
    bound: LowerBound,
    *,
    name: str,
    method: str,
    delta: float,
    canaries: int,
    thresholds: str,
    registered: str,
    guesses: int = 0,
    correct: int = 0,
    detectable_epsilon: float | None = None,
    greatest_epsilon: float | None = None,
    estimator: Estimator | None = None,
) -> AuditResult:
    """Return what ``bound`` says, rests on and assumes, with where it comes from.

    Args:
        bound: The lower bound.
        name: Which canaries were read, and how.
        method: The estimator and its source.
        delta: The delta that it is for.
        canaries: How many were read.
        thresholds: How guesses or thresholds were fixed, in words.
        registered: Digest of what was fixed before a score was read.
        guesses: How many canaries were guessed; 0 where none is.
        correct: How many guesses were right.
        detectable_epsilon: The power of the audit, where it is known.
        greatest_epsilon: The bound had every guess been right.
        estimator: Which function of the data the bound is, with the statistics that it reads.
    """
    return AuditResult(
        name=name,
        method=method,
        kind=bound.kind,
        epsilon_lower=bound.epsilon,
        delta=delta,
        confidence=bound.confidence,
        assumes=bound.assumes,
        states=bound.states,
        trials=canaries,
        guesses=guesses,
        correct=correct,
        thresholds=thresholds,
        registered=registered,
        detectable_epsilon=detectable_epsilon,
        greatest_epsilon=greatest_epsilon,
        estimator=estimator,
    )
