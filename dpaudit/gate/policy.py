"""The policy of a project: demands on claim, audit and regressions; unknown keys are refused."""

from __future__ import annotations

import hashlib
import math
from datetime import date

import msgspec

from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_open_unit,
    require_positive,
)
from dpaudit.vocabulary.federation import OBSERVERS
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.privacy_terms import SAMPLING_ACCOUNTANTS, Adjacency, ReleaseScope, Unit

RULE_NAMES = (
    "claim.max_epsilon",
    "claim.adjacency",
    "claim.unit",
    "claim.protects_against",
    "claim.released",
    "claim.sampling",
    "claim.require_secure_randomness",
    "claim.allow_unaccounted",
    "audit.evidence",
    "audit.require_conformance",
    "audit.require_imitation",
    "audit.lower_bound",
    "audit.min_power_epsilon",
    "audit.max_tpr_at_fpr",
    "regression.baseline",
    "regression.max_epsilon_increase",
    "regression.max_tpr_increase",
    "regression.max_lower_bound_increase",
)
"""Every rule that a verdict may hold; of ``audit.max_tpr_at_fpr``, one per rate."""

MAX_WAIVER_DAYS = 3650
"""The largest ``waiver_max_days``, in days."""


class ClaimPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Demands on the claim.

    Attributes:
        max_epsilon: Largest allowed upper bound of the claim, in nats.
        delta: The delta at which epsilon is computed.
        accountant: The accountant whose upper bound counts.
        adjacency: The adjacency that the claim must have.
        unit: The unit of privacy: what neighboring data sets differ by.
        protects_against: Observers that the claim must hold against: ``server``,
            ``other participants`` (of a federation) and ``readers of the final model``. Empty:
            not demanded.
        released: The releases that the claim must cover.
        sampling: The kinds of sampling that are allowed.
        require_secure_randomness: Whether runs whose noise a seed reproduces fail.
        allow_unaccounted: Uses of the records that the claim need not account for.
        dataset_size: Number of records, if it is public; a delta above its inverse is a
            warning.
    """

    max_epsilon: float
    delta: float
    accountant: str = "pld"
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    unit: Unit = Unit.RECORD
    protects_against: tuple[str, ...] = ()
    released: ReleaseScope = ReleaseScope.EVERY_STEP
    sampling: tuple[Sampling, ...] = (Sampling.POISSON, Sampling.FULL_BATCH)
    require_secure_randomness: bool = True
    allow_unaccounted: tuple[str, ...] = ()
    dataset_size: int | None = None

    def __post_init__(self) -> None:
        require_positive("claim.max_epsilon", self.max_epsilon)
        require_delta("claim.delta", self.delta)
        if not self.sampling:
            raise InvalidArgument("claim.sampling", [], "a list of at least one kind")
        for observer in self.protects_against:
            if observer not in OBSERVERS:
                allowed = f"some of {', '.join(OBSERVERS)}"
                raise InvalidArgument("claim.protects_against", observer, allowed)
        if self.accountant not in SAMPLING_ACCOUNTANTS:
            allowed = f"one of {', '.join(SAMPLING_ACCOUNTANTS)}"
            raise InvalidArgument("claim.accountant", self.accountant, allowed)
        if self.dataset_size is not None:
            require_count("claim.dataset_size", self.dataset_size)


class AuditPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Demands on measurements.

    Attributes:
        confidence: Least joint confidence of the audit's bounds.
        count: Kinds of lower bound whose excess over the claim is a FAIL; the excess of
            another kind is INCONCLUSIVE.
        require_conformance: Demand that the trainer's steps were tested for conformance.
        require_imitation: Demand an attack whose references were trained by DP-SGD with the run's
            settings.
        min_power_epsilon: The audit counts only if a true epsilon this far above the claim is
            detectable at 95% power.
        max_tpr_at_fpr: Largest true-positive rate of any attack, by false-positive rate;
            the upper end of its interval counts.
    """

    confidence: float = 0.95
    count: tuple[BoundKind, ...] = (BoundKind.CERTIFIED,)
    require_conformance: bool = False
    min_power_epsilon: float | None = None
    max_tpr_at_fpr: dict[str, float] = {}
    require_imitation: bool = False

    def __post_init__(self) -> None:
        require_open_unit("audit.confidence", self.confidence)
        if not self.count:
            raise InvalidArgument("audit.count", [], "a list of at least one kind of bound")
        if len({_number(fpr) for fpr in self.max_tpr_at_fpr}) < len(self.max_tpr_at_fpr):
            given = ", ".join(self.max_tpr_at_fpr)
            raise InvalidArgument("audit.max_tpr_at_fpr", given, "one limit per rate")
        if self.min_power_epsilon is not None:
            require_positive("audit.min_power_epsilon", self.min_power_epsilon)
        for fpr, tpr in self.max_tpr_at_fpr.items():
            require_open_unit("audit.max_tpr_at_fpr", _number(fpr))
            if not 0 <= tpr <= 1:
                raise InvalidArgument(f"audit.max_tpr_at_fpr.{fpr}", tpr, "between 0 and 1")


class RegressionPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Allowed increases over the baseline; None means not compared.

    Attributes:
        max_epsilon_increase: Of the claim's upper bound, in nats.
        max_tpr_increase: Of each attack's true-positive rate, upper end against upper end.
        max_lower_bound_increase: Of each of the audit's lower bounds on epsilon, in nats.
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
    """A rule that need not hold until a given day.

    Attributes:
        rule: Name of a rule, such as ``audit.max_tpr_at_fpr.0.01``; or the key or section that
            several rules come from.
        reason: Why the rule is waived; not empty.
        expires: The last day, in UTC, on which the rule is waived.
    """

    rule: str
    reason: str
    expires: date

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise InvalidArgument("waiver.reason", self.reason, "a reason that is not empty")
        if not any(self.covers(rule) or _is_of(self.rule, rule) for rule in RULE_NAMES):
            raise InvalidArgument("waiver.rule", self.rule, f"one of {', '.join(RULE_NAMES)}")

    def covers(self, rule: str) -> bool:
        """Return whether ``rule`` is the waived rule, or comes from the waived key or section."""
        return rule == self.rule or rule.startswith(f"{self.rule}.")


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A project's policy; a section that is absent demands nothing.

    Attributes:
        claim: Demands on the claim.
        audit: Demands on measurements.
        regression: Allowed increases over the baseline.
        waiver: Rules that need not hold until a given day.
        waiver_max_days: How far ahead, in days, a waiver may expire.
    """

    claim: ClaimPolicy | None = None
    audit: AuditPolicy | None = None
    regression: RegressionPolicy | None = None
    waiver: tuple[Waiver, ...] = ()
    waiver_max_days: int = 365

    def __post_init__(self) -> None:
        require_count("waiver_max_days", self.waiver_max_days)
        if self.waiver_max_days > MAX_WAIVER_DAYS:
            allowed = f"at most {MAX_WAIVER_DAYS} days"
            raise InvalidArgument("waiver_max_days", self.waiver_max_days, allowed)

    @property
    def digest(self) -> str:
        """SHA-256 of every key with its value, sorted, defaults included."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def _is_of(rule: str, key: str) -> bool:
    """Return whether ``rule`` is one of those that ``key`` makes, one per false-positive rate."""
    return key == "audit.max_tpr_at_fpr" and 0 < _number(rule.removeprefix(f"{key}.")) < 1


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
