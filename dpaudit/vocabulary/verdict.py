"""A verdict and its exit code, from one object: they cannot disagree."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from enum import Enum

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import ExitCode


class Outcome(Enum):
    """What can be said of a rule, and of a run."""

    HOLDS = "HOLDS"
    VIOLATED = "VIOLATED"
    INCONCLUSIVE = "INCONCLUSIVE"


class OnInconclusive(Enum):
    """What becomes of a verdict that cannot be told."""

    FAIL = "fail"
    WARN = "warn"


class Waived(msgspec.Struct, frozen=True):
    """Why a rule need not hold for now, and the last day on which it need not."""

    reason: str
    expires: date


class RuleOutcome(msgspec.Struct, frozen=True):
    """One rule of the policy, its outcome and why, in words.

    ``waived`` is the waiver in force that keeps a rule that does not hold from counting.
    """

    rule: str
    outcome: Outcome
    why: str
    waived: Waived | None = None

    @property
    def counts(self) -> bool:
        """Whether the outcome enters the verdict."""
        return self.waived is None


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of every rule; no rules at all are no evidence.

    ``run`` is the name of what was judged, ``measured`` the digest of what was measured of it
    by then; empty without a run. ``inconclusive`` is what the caller wished for where nothing is
    violated and something cannot be told.
    """

    rules: tuple[RuleOutcome, ...]
    ledger_head: str
    run: str = ""
    inconclusive: OnInconclusive = OnInconclusive.FAIL
    measured: str = ""
    schema_version: str = SCHEMA_VERSION

    @property
    def outcome(self) -> Outcome:
        """What the rules that are not waived say together; where all are, nothing was shown."""
        counted = [rule.outcome for rule in self.rules if rule.counts]
        return together(counted) if counted else Outcome.INCONCLUSIVE

    @property
    def warns(self) -> bool:
        """Whether something cannot be told, and the caller wished for no failure."""
        asked = self.inconclusive is OnInconclusive.WARN
        counts = any(rule.counts for rule in self.rules)
        return asked and counts and self.outcome is Outcome.INCONCLUSIVE

    @property
    def exit_code(self) -> ExitCode:
        """The process's exit code for this outcome."""
        return ExitCode.HOLDS if self.warns else _EXIT_CODES[self.outcome]


class WrittenVerdict(msgspec.Struct, frozen=True):
    """A verdict as JSON, with what follows from it written out for other programs.

    What reads a verdict back reads a ``Verdict``, and works the rest out again.
    """

    outcome: Outcome
    exit_code: int
    rules: tuple[RuleOutcome, ...]
    ledger_head: str
    run: str
    inconclusive: OnInconclusive
    measured: str
    schema_version: str = SCHEMA_VERSION

    @classmethod
    def of(cls, verdict: Verdict) -> WrittenVerdict:
        """Return ``verdict`` with its outcome and its exit code."""
        return cls(
            outcome=verdict.outcome,
            exit_code=int(verdict.exit_code),
            rules=verdict.rules,
            ledger_head=verdict.ledger_head,
            run=verdict.run,
            inconclusive=verdict.inconclusive,
            measured=verdict.measured,
        )


def together(outcomes: Iterable[Outcome]) -> Outcome:
    """VIOLATED if any is, else INCONCLUSIVE if any is, else HOLDS."""
    found = set(outcomes)
    if Outcome.VIOLATED in found:
        return Outcome.VIOLATED
    return Outcome.INCONCLUSIVE if Outcome.INCONCLUSIVE in found else Outcome.HOLDS


_EXIT_CODES = {
    Outcome.HOLDS: ExitCode.HOLDS,
    Outcome.VIOLATED: ExitCode.VIOLATED,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}
