"""Verdicts of the gate, with the exit code that follows from the outcome."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date, datetime
from enum import Enum

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import (
    ExitCode,
    InvalidArgument,
    require_count,
    require_delta,
    require_open_unit,
)
from dpaudit.vocabulary.privacy_terms import Adjacency

# The basis of a verdict: the policy, the sources of its values, and the evidence.


class PolicySource(msgspec.Struct, frozen=True):
    """One source of a policy's values.

    Attributes:
        source: The file name as it was given, ``$VARIABLE``, or ``--set KEY``.
        sha256: Digest of the file's bytes, or of the text of the variable or option.
    """

    source: str
    sha256: str


class PolicyOverride(msgspec.Struct, frozen=True):
    """A value of the policy that the environment or the command line set.

    Attributes:
        key: A key of the policy, such as ``claim.max_epsilon``; or an option of the command.
        value: The value, as text.
        source: The variable or option that set it.
    """

    key: str
    value: str
    source: str


class VerdictBasis(msgspec.Struct, frozen=True, kw_only=True):
    """The policy and the evidence of a verdict.

    Attributes:
        policy_digest: SHA-256 of the policy in force: all keys with their values, sorted.
        dpaudit_version: The version that computed the verdict.
        judged: Time of the verdict, with its offset from UTC.
        project_digest: The same digest of the project's policy files alone. Empty if the
            working directory has none, ``unreadable`` if they are not valid.
        layers: Sources of the policy; later layers take precedence.
        overrides: Every value that the environment or the command line set.
        model_digest: SHA-256 of the model, as in the ledger's seal; empty without a run.

    Raises:
        InvalidArgument: If ``judged`` has no offset from UTC.
    """

    policy_digest: str
    dpaudit_version: str
    judged: datetime
    project_digest: str = ""
    layers: tuple[PolicySource, ...] = ()
    overrides: tuple[PolicyOverride, ...] = ()
    model_digest: str = ""

    def __post_init__(self) -> None:
        if self.judged.utcoffset() is None:
            raise InvalidArgument("judged", self.judged.isoformat(), "a time with its offset")

    def is_of_project(self, project_digest: str = "") -> bool:
        """Return whether the policy in force was the policy of the project.

        Args:
            project_digest: Digest of the project's policy now; empty if there is none.

        Returns:
            True if the policy in force equals the project's policy at the time of the
            verdict and now. A project without policy files contradicts no policy.
        """
        known = {self.project_digest, project_digest} - {""}
        return known <= {self.policy_digest}


class Outcome(Enum):
    """The outcome of a rule, a test or a verdict.

    Attributes:
        PASS: The evidence supports the rule.
        FAIL: The evidence violates the rule.
        INCONCLUSIVE: The evidence is missing or too weak.
    """

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


class InconclusiveHandling(Enum):
    """The exit code of an inconclusive verdict.

    Attributes:
        FAIL: Exit code 3.
        WARN: Exit code 0, with a warning.
    """

    FAIL = "fail"
    WARN = "warn"


class AppliedWaiver(msgspec.Struct, frozen=True):
    """A waiver: a rule that fails or is inconclusive does not count until a date.

    Attributes:
        reason: The reason, as text.
        expires: The last day on which the waiver applies.
    """

    reason: str
    expires: date


class RuleOutcome(msgspec.Struct, frozen=True):
    """The outcome of one rule of the policy.

    Attributes:
        rule: Key of the rule, such as ``claim.max_epsilon``.
        outcome: PASS, FAIL or INCONCLUSIVE.
        why: The reason, as text.
        waived: The waiver in force that excludes the outcome from the verdict; None if the
            outcome counts.
    """

    rule: str
    outcome: Outcome
    why: str
    waived: AppliedWaiver | None = None

    @property
    def counts(self) -> bool:
        """Whether the outcome enters the verdict: no waiver applies."""
        return self.waived is None


class Verdict(msgspec.Struct, frozen=True):
    """The outcomes of all rules of a policy; without a rule the verdict is inconclusive.

    Attributes:
        rules: The outcome of each rule.
        ledger_head: Hash of the last line of the run's ledger; empty without a run.
        run: The name of the run; empty without a run.
        inconclusive: The requested handling of an inconclusive verdict.
        measured: Digest of the measurements of the run at that time; empty without a run.
        claim: The claim of the ledger, at the policy's delta and by its accountant; None
            without a ledger.
        basis: The policy and the evidence; None if they were not recorded.
        warnings: Warnings that change no outcome, as text.
        schema_version: Version of the JSON format.

    Example:
        >>> rule = decided_outcome("claim.max_epsilon", 2.9 <= 3.0, "epsilon is at most 2.9")
        >>> verdict = Verdict((rule,), ledger_head="")
        >>> verdict.outcome, int(verdict.exit_code)
        (<Outcome.PASS: 'PASS'>, 0)
    """

    rules: tuple[RuleOutcome, ...]
    ledger_head: str
    run: str = ""
    inconclusive: InconclusiveHandling = InconclusiveHandling.FAIL
    measured: str = ""
    claim: Claim | None = None
    basis: VerdictBasis | None = None
    warnings: tuple[str, ...] = ()
    schema_version: str = SCHEMA_VERSION

    @property
    def outcome(self) -> Outcome:
        """The outcome of all rules without a waiver; INCONCLUSIVE if there is none."""
        counted = [rule.outcome for rule in self.rules if rule.counts]
        return combined_outcome(counted) if counted else Outcome.INCONCLUSIVE

    @property
    def warns(self) -> bool:
        """Whether the verdict is inconclusive, and the caller requested a warning instead."""
        requested = self.inconclusive is InconclusiveHandling.WARN
        counts = any(rule.counts for rule in self.rules)
        return requested and counts and self.outcome is Outcome.INCONCLUSIVE

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of the process for this outcome; 0 if the verdict only warns."""
        return ExitCode.PASS if self.warns else _EXIT_CODES[self.outcome]


class VerdictDocument(msgspec.Struct, frozen=True):
    """A verdict as JSON, with the outcome and the exit code for other programs.

    dpaudit reads the file as a ``Verdict`` and computes outcome and exit code again.

    Attributes:
        outcome: The outcome of all rules.
        exit_code: The exit code of the gate.
        rules: As in ``Verdict``.
        ledger_head: As in ``Verdict``.
        run: As in ``Verdict``.
        inconclusive: As in ``Verdict``.
        measured: As in ``Verdict``.
        claim: As in ``Verdict``.
        basis: As in ``Verdict``.
        warnings: As in ``Verdict``.
        schema_version: Version of the JSON format.
    """

    outcome: Outcome
    exit_code: int
    rules: tuple[RuleOutcome, ...]
    ledger_head: str
    run: str
    inconclusive: InconclusiveHandling
    measured: str
    claim: Claim | None
    basis: VerdictBasis | None
    warnings: tuple[str, ...]
    schema_version: str = SCHEMA_VERSION

    @classmethod
    def of(cls, verdict: Verdict) -> VerdictDocument:
        """Return the JSON form of ``verdict``.

        Args:
            verdict: The verdict; it is not changed.

        Returns:
            A copy with its outcome and its exit code.
        """
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


def combined_outcome(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of several rules together.

    Args:
        outcomes: Outcomes of rules; callers treat an empty list first.

    Returns:
        FAIL if any outcome is, otherwise INCONCLUSIVE if any is, otherwise PASS.

    Example:
        >>> combined_outcome([Outcome.PASS, Outcome.INCONCLUSIVE])
        <Outcome.INCONCLUSIVE: 'INCONCLUSIVE'>
    """
    found = set(outcomes)
    if Outcome.FAIL in found:
        return Outcome.FAIL
    return Outcome.INCONCLUSIVE if Outcome.INCONCLUSIVE in found else Outcome.PASS


_EXIT_CODES = {
    Outcome.PASS: ExitCode.PASS,
    Outcome.FAIL: ExitCode.FAIL,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}


# Constructors of outcomes.


def decided_outcome(rule: str, holds: bool, why: str) -> RuleOutcome:
    """Return the outcome of a rule that the evidence decides.

    Args:
        rule: Key of the rule.
        holds: Whether the rule holds; a comparison that is false with NaN.
        why: The reason, as text.

    Returns:
        PASS if ``holds``, otherwise FAIL.
    """
    return RuleOutcome(rule, Outcome.PASS if holds else Outcome.FAIL, why)


def inconclusive_outcome(rule: str, why: str) -> RuleOutcome:
    """Return the outcome of a rule whose evidence is missing, too weak or of another run.

    Args:
        rule: Key of the rule.
        why: The reason, as text.

    Returns:
        INCONCLUSIVE.
    """
    return RuleOutcome(rule, Outcome.INCONCLUSIVE, why)


# The history of verdicts: one entry per run and verdict.


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict on one run, with the results at that time.

    Attributes:
        run: The name of the run directory.
        ledger_head: Hash of the last line of the run's ledger.
        judged: Time of the verdict, with its offset from UTC.
        outcome: The outcome of the gate.
        epsilon_upper: Upper end of the claimed epsilon, in nats; at least 0.
        delta: The delta of the claim.
        steps: Number of recorded steps; at least 0.
        accountant: The accountant of the claim.
        adjacency: The adjacency of the claim.
        dpaudit_version: The version that computed the claim.
        epsilon_lower: The largest measured lower bound on epsilon at ``delta``, in nats,
            without estimates; None if there is none.
        fpr: The smallest false-positive rate at which attacks were measured; None without an
            attack.
        tpr: Upper end of the interval of the strongest attack's true-positive rate at ``fpr``;
            None without an attack.
        accuracy: Accuracy on held-out records, in [0, 1]; None if it was not measured.

    Raises:
        InvalidArgument: If ``judged`` has no offset, a number is out of its range, or only one
            of ``fpr`` and ``tpr`` is given.
    """

    run: str
    ledger_head: str
    judged: datetime
    outcome: Outcome
    epsilon_upper: float
    delta: float
    steps: int
    accountant: str
    adjacency: Adjacency
    dpaudit_version: str
    epsilon_lower: float | None = None
    fpr: float | None = None
    tpr: float | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.judged.utcoffset() is None:
            raise InvalidArgument("judged", self.judged.isoformat(), "a time with its offset")
        require_delta("delta", self.delta)
        require_count("steps", self.steps, least=0)
        if not 0 <= self.epsilon_upper < math.inf:
            raise InvalidArgument("epsilon_upper", self.epsilon_upper, "at least 0 and finite")
        if self.epsilon_lower is not None and not 0 <= self.epsilon_lower < math.inf:
            raise InvalidArgument("epsilon_lower", self.epsilon_lower, "at least 0 and finite")
        self._require_rates()

    def _require_rates(self) -> None:
        """Refuse rates out of range, and ``fpr`` without ``tpr`` or the reverse."""
        if (self.fpr is None) is not (self.tpr is None):
            raise InvalidArgument("tpr", self.tpr, "given together with fpr, or neither")
        if self.fpr is not None:
            require_open_unit("fpr", self.fpr)
        for name, rate in (("tpr", self.tpr), ("accuracy", self.accuracy)):
            if rate is not None and not 0 <= rate <= 1:
                raise InvalidArgument(name, rate, "between 0 and 1")


class RunHistory(msgspec.Struct, frozen=True):
    """Past verdicts.

    Attributes:
        runs: One entry per verdict, the oldest first.
        schema_version: Version of the JSON format.
    """

    runs: tuple[PastRun, ...]
    schema_version: str = SCHEMA_VERSION
