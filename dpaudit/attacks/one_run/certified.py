"""The certified audit: right guesses among canaries with fair coins, nothing assumed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks import bounds
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.guesses import Guesses, digest, fewest, register
from dpaudit.attacks.one_run.results import audit_result
from dpaudit.attacks.one_run.seen import Scored
from dpaudit.attacks.one_run.simulation import REPETITIONS, Audits, detectable_epsilon
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.estimators import Guessed, OneRun

ONE_RUN = "one run (Steinke, Nasr & Jagielski 2023, Theorem 5.2)"


@dataclass(frozen=True)
class CertifiedAudit:
    """Steinke's bound at two registered numbers of guesses, each at half the failure budget."""

    claimed: Claimed
    canaries: int
    confidence: float
    simulation: Audits

    reads = OneRun

    @staticmethod
    def name_of(observed: str) -> str:
        """Return how its bound is called, by what was observed."""
        return f"gradient canaries, {observed}"

    @cached_property
    def registered(self) -> tuple[Guesses, Guesses]:
        """The numbers of guesses, from the claim alone."""
        return register(self.simulation, self.canaries, self.claimed, self._epsilon)

    def result(self, seen: Scored) -> AuditResult:
        """Return the larger of both bounds."""
        counts = [guesses.count for guesses in self.registered]  # before a score is read
        found = [
            (self._epsilon(guesses.count, correct), guesses.count, correct)
            for guesses in self.registered
            for correct in [guesses.correct(seen.scores, seen.included)]
        ]
        *others, (_, guessed, correct) = sorted(found)
        # Each bound by itself is surer than that: the budget is that of both.
        bound = replace(self._bound(guessed, correct), confidence=self.confidence)
        return audit_result(
            bound,
            name=self.name_of(seen.name),
            method=ONE_RUN,
            delta=self.claimed.delta,
            canaries=self.canaries,
            guesses=guessed,
            correct=correct,
            thresholds=f"the surest {counts[0]} and {counts[1]} canaries, fixed by simulating "
            "the claim",
            registered=digest(audit=ONE_RUN, canaries=self.canaries, guesses=counts),
            detectable_epsilon=self.power(),
            greatest_epsilon=max(self._epsilon(count, count) for count in counts),
            estimator=OneRun(tuple(Guessed(count, right) for _, count, right in others)),
        )

    def _bound(self, guesses: int, correct: int) -> bounds.LowerBound:
        return bounds.one_run(
            canaries=self.canaries,
            guesses=guesses,
            correct=correct,
            delta=self.claimed.delta,
            confidence=1 - (1 - self.confidence) / 2,
        )

    def _epsilon(self, guesses: int, correct: int) -> float:
        return self._bound(guesses, correct).epsilon

    def power(self) -> float | None:
        """Return the least true epsilon at which the claim is refuted 95 times in 100."""
        return detectable_epsilon(self.claimed, self._share_refuted)

    def _share_refuted(self, noise_factor: float) -> float:
        counts = [guesses.count for guesses in self.registered]
        found = self.simulation.right_guesses(noise_factor, REPETITIONS, counts)
        return float(np.mean((found >= self._fewest).any(axis=1)))

    @cached_property
    def _fewest(self) -> NDArray[np.int64]:
        """How many right guesses refute the claim, of each registered number."""
        return np.array([self._fewest_refuting(guesses.count) for guesses in self.registered])

    def _fewest_refuting(self, guesses: int) -> int:
        """Return how many right guesses refute the claim; one more than there are: none do."""
        p_value = partial(
            bounds.one_run_p_value,
            epsilon=self.claimed.epsilon,
            canaries=self.canaries,
            guesses=guesses,
            delta=self.claimed.delta,
        )
        level = (1 - self.confidence) / 2
        return fewest(lambda correct: p_value(correct=correct) <= level, guesses)
