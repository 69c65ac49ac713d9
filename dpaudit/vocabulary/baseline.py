"""Baselines: the releases and results of one run, for comparison with later runs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.audit import AuditResult, MembershipResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_open_unit,
    require_positive,
    require_rate,
)
from dpaudit.vocabulary.mechanism import Release
from dpaudit.vocabulary.privacy_terms import Bound


class ReleaseCount(msgspec.Struct, frozen=True):
    """One kind of release, and how often the ledger records it.

    Attributes:
        what: The name of the release, such as ``gradient sum``.
        mechanism: The mechanism of one release.
        times: Number of such releases; at least 1.

    Raises:
        InvalidArgument: If ``times`` is no whole number of at least 1.
    """

    what: str
    mechanism: Release
    times: int

    def __post_init__(self) -> None:
        require_count("times", self.times)


class AttackRate(msgspec.Struct, frozen=True):
    """The interval of one attack's true-positive rate at a false-positive rate.

    Attributes:
        attack: The name of the attack.
        fpr: The false-positive rate; above 0 and below 1.
        tpr: Interval of the true-positive rate, in [0, 1].
        confidence: Confidence of the interval; above 0 and below 1.

    Raises:
        InvalidArgument: If a number is out of its range.
    """

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
    """The releases, claim and results of one run.

    Attributes:
        run: The name of the run directory.
        claim: The claim of its ledger, at one delta and by one accountant.
        clip_norm: Largest L2 norm of what one record adds to a sum; above 0.
        recorded: The releases that its ledger records, by kind; of a federation, those that the
            claim accounts for.
        schedule_fixed_in_advance: Whether noise and sampling rate of every step were fixed
            before the first.
        versions: Version of each library that trained the model.
        bounds: Lower bounds on epsilon.
        rates: Rates of attacks, without inconclusive ones.
        heldout_accuracy: Accuracy of the model on held-out records, in [0, 1]; None if it was
            not measured.
        heldout_loss: Mean loss of a language model on held-out tokens, in nats, at least 0; None
            for other models, or if it was not measured.
        data: Public properties of the records, such as their source and columns. It has no
            digest and no count, which would confirm a guess of a record.
        model: Properties of the model: architecture, tensors, digest of the weights.
        schema_version: Version of the JSON format.

    Raises:
        InvalidArgument: If a number is out of its range.
    """

    run: str
    claim: Claim
    clip_norm: float
    recorded: tuple[ReleaseCount, ...]
    schedule_fixed_in_advance: bool
    versions: dict[str, str]
    bounds: tuple[AuditResult, ...] = ()
    rates: tuple[AttackRate, ...] = ()
    heldout_accuracy: float | None = None
    heldout_loss: float | None = None
    data: dict[str, str] = {}
    model: dict[str, str] = {}
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require_positive("clip_norm", self.clip_norm)
        if self.heldout_accuracy is not None:
            require_rate("heldout_accuracy", self.heldout_accuracy)
        if self.heldout_loss is not None and not 0 <= self.heldout_loss < math.inf:
            raise InvalidArgument("heldout_loss", self.heldout_loss, "finite and at least 0")


def measured_rates(results: Iterable[MembershipResult]) -> tuple[AttackRate, ...]:
    """Return the rates of all results that are not inconclusive.

    Args:
        results: Results of attacks.

    Returns:
        One entry per attack and false-positive rate, in the order of the results.
    """
    return tuple(
        AttackRate(result.attack, rate.fpr, rate.interval, rate.confidence)
        for result in results
        if result.inconclusive is None
        for rate in result.tpr_at_fpr
    )
