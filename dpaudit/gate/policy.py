"""What a project demands of a run; unknown keys are refused."""

from __future__ import annotations

import hashlib
import math
from datetime import date

import msgspec

from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_open_unit,
    require_positive,
)
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.unit import Released, Unit

RULES = (
    "claim.max_epsilon",
    "claim.adjacency",
    "claim.unit",
    "claim.released",
    "claim.sampling",
    "claim.require_secure_randomness",
    "claim.may_leave_out",
    "audit.evidence",
    "audit.require_conformance",
    "audit.lower_bound",
    "audit.min_power_epsilon",
    "audit.max_tpr_at_fpr",
    "regression.baseline",
    "regression.max_epsilon_increase",
    "regression.max_tpr_increase",
    "regression.max_lower_bound_increase",
)
"""Every rule that a verdict may hold; of ``audit.max_tpr_at_fpr``, one a rate."""

LONGEST_WAIVER = 3650
"""The largest ``waiver_max_days``, in days."""


class ClaimPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the claim must say.

    Attributes:
        max_epsilon: The claim's upper end may not lie above it.
        delta: The delta at which epsilon counts.
        accountant: Whose upper bound counts.
        adjacency: Which data sets must count as neighbours.
        unit: What neighbouring data sets must differ by.
        released: Which releases the claim must cover.
        sampling: Which kinds of sampling are allowed.
        require_secure_randomness: Refuse runs whose noise a seed reproduces.
        may_leave_out: What the claim may leave out.
        dataset_size: Number of records, if it is public; a delta above its inverse is a
            warning.
    """

    max_epsilon: float
    delta: float
    accountant: str = "pld"
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    unit: Unit = Unit.RECORD
    released: Released = Released.EVERY_STEP
    sampling: tuple[Sampling, ...] = (Sampling.POISSON, Sampling.FULL_BATCH)
    require_secure_randomness: bool = True
    may_leave_out: tuple[str, ...] = ()
    dataset_size: int | None = None

    def __post_init__(self) -> None:
        require_positive("claim.max_epsilon", self.max_epsilon)
        require_delta("claim.delta", self.delta)
        if not self.sampling:
            raise InvalidArgument("claim.sampling", [], "a list of at least one kind")
        if self.accountant not in {"naive", "rdp", "pld"}:
            raise InvalidArgument("claim.accountant", self.accountant, "naive, rdp or pld")
        if self.dataset_size is not None:
            require_count("claim.dataset_size", self.dataset_size)


class AuditPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the audit must show.

    Attributes:
        confidence: Least joint confidence of the audit's bounds.
        count: Kinds of lower bound whose excess over the claim violates; another kind's
            excess leaves the run inconclusive.
        require_conformance: Demand that the trainer's steps were tested for conformance.
        min_power_epsilon: The audit counts only if a true epsilon this far above the claim
            would have been seen 95 times in 100.
        max_tpr_at_fpr: Largest true-positive rate of any attack, by false-positive rate;
            the upper end of its interval counts.
    """

    confidence: float = 0.95
    count: tuple[BoundKind, ...] = (BoundKind.CERTIFIED,)
    require_conformance: bool = False
    min_power_epsilon: float | None = None
    max_tpr_at_fpr: dict[str, float] = {}

    def __post_init__(self) -> None:
        require_open_unit("audit.confidence", self.confidence)
        if not self.count:
            raise InvalidArgument("audit.count", [], "a list of at least one kind of bound")
        if len({_number(fpr) for fpr in self.max_tpr_at_fpr}) < len(self.max_tpr_at_fpr):
            given = ", ".join(self.max_tpr_at_fpr)
            raise InvalidArgument("audit.max_tpr_at_fpr", given, "one limit a rate")
        if self.min_power_epsilon is not None:
            require_positive("audit.min_power_epsilon", self.min_power_epsilon)
        for fpr, tpr in self.max_tpr_at_fpr.items():
            require_open_unit("audit.max_tpr_at_fpr", _number(fpr))
            if not 0 <= tpr <= 1:
                raise InvalidArgument(f"audit.max_tpr_at_fpr.{fpr}", tpr, "between 0 and 1")


class RegressionPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much worse than its baseline a run may be; what is None is not compared.

    Attributes:
        max_epsilon_increase: Of the claim's upper end.
        max_tpr_increase: Of each attack's true-positive rate, upper end against upper end.
        max_lower_bound_increase: Of each of the audit's lower bounds on epsilon.
    """

    max_epsilon_increase: float | None = None
    max_tpr_increase: float | None = None
    max_lower_bound_increase: float | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InvalidArgument(f"regression.{name}", value, "at least 0 and finite")
        if all(getattr(self, name) is None for name in self.__struct_fields__):
            names = ", ".join(self.__struct_fields__)
            raise InvalidArgument("regression", "no key", f"a section with one of {names}")


class Waiver(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rule that need not hold, why, and the last day (in UTC) on which it need not.

    ``rule`` is a rule's name, such as ``audit.max_tpr_at_fpr.0.01``; or the key, or section,
    that several rules come from.
    """

    rule: str
    reason: str
    expires: date

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise InvalidArgument("waiver.reason", self.reason, "some words")
        if not any(self.covers(rule) or _is_of(self.rule, rule) for rule in RULES):
            raise InvalidArgument("waiver.rule", self.rule, f"one of {', '.join(RULES)}")

    def covers(self, rule: str) -> bool:
        """Return whether ``rule`` is the named one, or one that comes from it."""
        return rule == self.rule or rule.startswith(f"{self.rule}.")


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All demands; without a section nothing of its kind is demanded.

    Attributes:
        claim: What the claim must say.
        audit: What the audit must show.
        regression: How much worse than its baseline a run may be.
        waiver: Rules that need not hold for a time.
        waiver_max_days: How far ahead, in days, a waiver may expire.
    """

    claim: ClaimPolicy | None = None
    audit: AuditPolicy | None = None
    regression: RegressionPolicy | None = None
    waiver: tuple[Waiver, ...] = ()
    waiver_max_days: int = 365

    def __post_init__(self) -> None:
        require_count("waiver_max_days", self.waiver_max_days)
        if self.waiver_max_days > LONGEST_WAIVER:
            allowed = f"at most {LONGEST_WAIVER} days"
            raise InvalidArgument("waiver_max_days", self.waiver_max_days, allowed)

    @property
    def digest(self) -> str:
        """SHA-256 of every key with its value, sorted, defaults included."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def _is_of(rule: str, key: str) -> bool:
    """Return whether ``rule`` is one of those that ``key`` makes, one a rate."""
    return key == "audit.max_tpr_at_fpr" and 0 < _number(rule.removeprefix(f"{key}.")) < 1


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
