"""What one run did and what was found of it, as later runs are compared with it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.audit import AuditResult, MembershipResult
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import (
    require_count,
    require_open_unit,
    require_positive,
    require_rate,
)
from dpaudit.vocabulary.mechanism import Release


class Booked(msgspec.Struct, frozen=True):
    """One kind of release, and how often the ledger books it."""

    what: str
    mechanism: Release
    times: int

    def __post_init__(self) -> None:
        require_count("times", self.times)


class AttackRate(msgspec.Struct, frozen=True):
    """The interval of one attack's true-positive rate at a false-positive rate."""

    attack: str
    fpr: float
    tpr: Bound
    confidence: float

    def __post_init__(self) -> None:
        require_open_unit("fpr", self.fpr)
        require_rate("tpr.lower", self.tpr.lower)
        require_rate("tpr.upper", self.tpr.upper)
        require_open_unit("confidence", self.confidence)


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one run.

    Attributes:
        run: The name of its directory.
        claim: By its ledger, at one delta and by one accountant.
        clip_norm: Largest L2 norm of what one record adds to a sum.
        booked: What its ledger books.
        schedule_fixed_in_advance: Whether no step's noise or rate was chosen on the way.
        versions: Of the libraries that trained it.
        bounds: Lower bounds on its epsilon.
        rates: What attacks could tell.
        heldout_accuracy: Of its model, where it was measured.
        data: What is public of its records, by name: where they come from, their columns. No
            digest and no count: either would confirm a guess of a record.
        model: What its model is, by name: architecture, tensors, digest of the weights.
    """

    run: str
    claim: Claim
    clip_norm: float
    booked: tuple[Booked, ...]
    schedule_fixed_in_advance: bool
    versions: dict[str, str]
    bounds: tuple[AuditResult, ...] = ()
    rates: tuple[AttackRate, ...] = ()
    heldout_accuracy: float | None = None
    data: dict[str, str] = {}
    model: dict[str, str] = {}
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        if self.heldout_accuracy is not None:
            require_rate("heldout_accuracy", self.heldout_accuracy)


def rates_of(results: Iterable[MembershipResult]) -> tuple[AttackRate, ...]:
    """Return every rate that is evidence; what is inconclusive is none."""
    return tuple(
        AttackRate(result.attack, rate.fpr, rate.interval, rate.confidence)
        for result in results
        if result.inconclusive is None
        for rate in result.tpr_at_fpr
    )
