"""What is remembered of a run once it was judged: one line of a history."""

from __future__ import annotations

import math
from datetime import datetime

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_open_unit,
)
from dpaudit.vocabulary.verdict import Outcome


class PastRun(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict on one run, with the figures of that day.

    Attributes:
        run: The name of its directory.
        ledger_head: Hash of its ledger's last line.
        judged: When, with its offset from UTC.
        outcome: What the gate said.
        epsilon_upper: Upper end of the claim, in nats.
        delta: Of the claim.
        epsilon_lower: The largest lower bound on epsilon at ``delta`` that was measured,
            estimates aside; None where none was.
        fpr: The smallest false-positive rate at which attacks were measured.
        tpr: Upper end of the interval of the strongest attack's true-positive rate at ``fpr``.
        accuracy: On held-out records, in [0, 1].
        steps: How many steps are booked.
        accountant: Whose upper bound the claim is.
        adjacency: Of the claim.
        dpaudit_version: Of the claim.
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
        if (self.fpr is None) is not (self.tpr is None):
            raise InvalidArgument("tpr", self.tpr, "given together with fpr, or neither")
        if self.fpr is not None:
            require_open_unit("fpr", self.fpr)
        for name, rate in (("tpr", self.tpr), ("accuracy", self.accuracy)):
            if rate is not None and not 0 <= rate <= 1:
                raise InvalidArgument(name, rate, "between 0 and 1")


class History(msgspec.Struct, frozen=True):
    """Past verdicts, the oldest first."""

    runs: tuple[PastRun, ...]
    schema_version: str = SCHEMA_VERSION
