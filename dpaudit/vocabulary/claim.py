"""A privacy claim: epsilon and delta, and everything without which they mean nothing."""

from __future__ import annotations

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.answers import Explanation
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.ledger import Randomness, Sampling
from dpaudit.vocabulary.unit import Released, Unit


class EpsilonAnswer(msgspec.Struct, frozen=True):
    """What one accountant says; ``methods`` holds its variants, the best of which it says.

    ``sampling`` is how batches were drawn; null where the mechanism alone says it.
    ``explanation`` is there where it was asked for. ``unit`` and ``released`` say what is
    protected, and which releases the answer covers.
    """

    accountant: str
    adjacency: Adjacency
    delta: float
    epsilon: Bound
    methods: dict[str, Bound]
    sampling: Sampling | None
    explanation: tuple[Explanation, ...] = ()
    unit: Unit = Unit.RECORD
    released: Released = Released.EVERY_STEP
    schema_version: str = SCHEMA_VERSION


class Claim(msgspec.Struct, frozen=True):
    """The epsilon of a ledger at a delta, by one accountant, with its assumptions.

    ``unit`` is what neighbours differ by; ``released`` says which releases are covered.
    """

    epsilon: Bound
    delta: float
    accountant: str
    adjacency: Adjacency
    sampling: Sampling
    randomness: Randomness
    releases: int
    ledger_head: str
    dpaudit_version: str
    leaves_out: tuple[str, ...] = ()
    takes_as_public: tuple[str, ...] = ()
    unit: Unit = Unit.RECORD
    released: Released = Released.EVERY_STEP
    schema_version: str = SCHEMA_VERSION
