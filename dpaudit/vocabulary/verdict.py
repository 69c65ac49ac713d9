"""A verdict and its exit code, from one object: they cannot disagree."""

from __future__ import annotations

from enum import Enum

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import ExitCode


class Outcome(Enum):
    """What can be said of a rule, and of a run."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    INCONCLUSIVE = "INCONCLUSIVE"


_EXIT_CODES = {
    Outcome.HOLDS: ExitCode.HOLDS,
    Outcome.VIOLATED: ExitCode.VIOLATED,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}


class RuleOutcome(msgspec.Struct, frozen=True):
    """One rule of the policy, its outcome and why, in words."""

    rule: str
    outcome: Outcome
    why: str


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of every rule; no rules at all are no evidence."""

    rules: tuple[RuleOutcome, ...]
    ledger_head: str
    schema_version: str = SCHEMA_VERSION

    @property
    def outcome(self) -> Outcome:
        """VIOLATED if any rule is; else INCONCLUSIVE if any rule is, or there is none."""
        outcomes = {rule.outcome for rule in self.rules}
        if Outcome.VIOLATED in outcomes:
            return Outcome.VIOLATED
        return Outcome.HOLDS if outcomes == {Outcome.HOLDS} else Outcome.INCONCLUSIVE

    @property
    def exit_code(self) -> ExitCode:
        """The process's exit code for this outcome."""
        return _EXIT_CODES[self.outcome]
