"""A verdict and its exit code, from one object: they cannot disagree."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from enum import Enum

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.basis import Basis
from dpaudit.vocabulary.claim import Claim
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

    Attributes:
        rules: The outcome of each rule.
        ledger_head: Hash of the last line of the run's ledger; empty without a run.
        run: The name of what was judged; empty without a run.
        inconclusive: What the caller asked for where no rule is violated and one is
            inconclusive.
        measured: Digest of what was measured of the run by then; empty without a run.
        claim: What the ledger claims, at the policy's delta and by its accountant; None
            without a ledger.
        basis: The policy and the evidence that the verdict was reached by; None if they
            were not recorded.
        warnings: What deserves attention and changes no outcome, in words.
    """

    rules: tuple[RuleOutcome, ...]
    ledger_head: str
    run: str = ""
    inconclusive: OnInconclusive = OnInconclusive.FAIL
    measured: str = ""
    claim: Claim | None = None
    basis: Basis | None = None
    warnings: tuple[str, ...] = ()
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
    claim: Claim | None
    basis: Basis | None
    warnings: tuple[str, ...]
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
            claim=verdict.claim,
            basis=verdict.basis,
            warnings=verdict.warnings,
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
