"""What the questions of the command line are answered with, besides epsilon."""

from __future__ import annotations

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.mechanism import Mechanism


class Explanation(msgspec.Struct, frozen=True):
    """How an interval was come by.

    Attributes:
        direction: ``removed`` or ``added``: which neighbour's output it is about; empty
            where both agree.
        method: The form that was used.
        lower: The interval's lower end.
        upper: The interval's upper end.
        budget: Errors inside the interval, each relative to delta.
    """

    direction: str
    method: str
    lower: float
    upper: float
    budget: dict[str, float]


class DeltaAnswer(msgspec.Struct, frozen=True):
    """The delta at an epsilon."""

    mechanism: Mechanism
    adjacency: Adjacency
    epsilon: float
    delta: Bound
    accountant: str
    dpaudit_version: str
    explanation: tuple[Explanation, ...] = ()
    schema_version: str = SCHEMA_VERSION


class NoiseAnswer(msgspec.Struct, frozen=True):
    """The least noise multiplier that was seen to meet a target, and what it costs."""

    noise_multiplier: float
    target_epsilon: float
    delta: float
    epsilon: Bound
    accountant: str
    adjacency: Adjacency
    mechanism: Mechanism
    dpaudit_version: str
    schema_version: str = SCHEMA_VERSION


class RiskAnswer(msgspec.Struct, frozen=True):
    """What an attacker who knows all but one record can do, at most and at least.

    Attributes:
        fpr: False-positive rates.
        tpr: True-positive rates that the best attacker reaches at those.
        advantage: Largest difference of both rates.
        accuracy: Of the best guess whether a record that is in half of the time is in.
    """

    mechanism: Mechanism
    adjacency: Adjacency
    fpr: tuple[float, ...]
    tpr: tuple[Bound, ...]
    advantage: Bound
    accuracy: Bound
    accountant: str
    dpaudit_version: str
    schema_version: str = SCHEMA_VERSION
