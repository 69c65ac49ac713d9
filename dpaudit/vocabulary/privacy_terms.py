"""Terms of a privacy statement: neighbors, unit, covered releases, bounds, accountants.

Adjacency is a field of every claim and never a convention.
"""

from __future__ import annotations

import math
from enum import Enum, StrEnum

import msgspec

from dpaudit.vocabulary.errors import AccountingError, InvalidArgument
from dpaudit.vocabulary.notebooks import table_html
from dpaudit.vocabulary.rounding import round_down, round_up


class Adjacency(Enum):
    """The relation between neighbors under which a privacy statement holds.

    A noise multiplier is the standard deviation of the noise divided by the clip norm. The clip
    norm is the L2 sensitivity of a sum if one record is added, removed or zeroed out.

    Attributes:
        ADD_OR_REMOVE_ONE: One data set has one record more than the other.
        REPLACE_ONE: Both have the same size, and one record differs.
        ZERO_OUT: Both have the same size, and one record contributes zero in one of them.

    Example:
        >>> Adjacency("replace-one")
        <Adjacency.REPLACE_ONE: 'replace-one'>
    """

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    """One data set has one record more: a clipped sum moves by at most the clip norm."""

    REPLACE_ONE = "replace-one"
    """Equal sizes, one record differs: a clipped sum moves by at most twice the clip norm."""

    ZERO_OUT = "zero-out"
    """Equal sizes, one record contributes zero: a clipped sum moves by at most the clip norm."""


def require_adjacency(name: str, value: object) -> None:
    """Refuse what is no ``Adjacency``: text would compare unequal to every relation.

    Args:
        name: The argument, for the message.
        value: What was given.

    Raises:
        InvalidArgument: If it is no member of ``Adjacency``.
    """
    if not isinstance(value, Adjacency):
        allowed = " or ".join(f"Adjacency.{one.name}" for one in Adjacency)
        raise InvalidArgument(name, value, allowed)


# Unit of privacy, and releases that a claim covers.


class Unit(StrEnum):
    """The unit of privacy: what two neighboring data sets differ by.

    Attributes:
        RECORD: One record.
        USER: One user with all of their records.
        PARTICIPANT: One participant of a federation with all of their records.

    Example:
        >>> Unit("user").value
        'user'
    """

    RECORD = "record"
    """One record, that is, one example."""

    USER = "user"
    """One user with all of their records."""

    PARTICIPANT = "participant"
    """One participant of a federation with all of their records."""


class ReleaseScope(StrEnum):
    """Which releases of a run a claim covers.

    Attributes:
        EVERY_STEP: Every noisy sum, and so every intermediate model.
        FINAL_MODEL: The final model alone.

    Example:
        >>> ReleaseScope.EVERY_STEP.covers(ReleaseScope.FINAL_MODEL)
        True
        >>> ReleaseScope.FINAL_MODEL.covers(ReleaseScope.EVERY_STEP)
        False
    """

    EVERY_STEP = "every-step"
    """Every noisy sum, and so every intermediate model."""

    FINAL_MODEL = "final-model"
    """The final model alone; intermediate models must stay secret."""

    def covers(self, promised: ReleaseScope) -> bool:
        """Return whether a claim for these releases also holds for those of ``promised``.

        The final model is computed from the steps, so a claim for every step covers it
        (post-processing).

        Args:
            promised: The releases that must be covered, for example by a policy.

        Returns:
            True if both scopes are equal, or if this one is EVERY_STEP.
        """
        return self is promised or self is ReleaseScope.EVERY_STEP


# A closed interval that certainly contains a true value.


class Bound(msgspec.Struct, frozen=True):
    """Lower and upper bound of one true value: ``lower <= truth <= upper``.

    Both ends are finite, so NaN is never accepted. The unit is that of the value: nats for an
    epsilon, a probability for a delta or a rate.

    Attributes:
        lower: The lower bound.
        upper: The upper bound; at least ``lower``.

    Raises:
        AccountingError: If an end is NaN or infinite, or ``lower`` exceeds ``upper``.

    Example:
        >>> Bound(lower=0.5, upper=0.75).width
        0.25
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        if not -math.inf < self.lower <= self.upper < math.inf:
            raise AccountingError(f"no interval: lower {self.lower!r}, upper {self.upper!r}")

    def _repr_html_(self) -> str:
        """Return both ends as a table for notebooks, rounded outward."""
        ends = (("lower bound", round_down(self.lower)), ("upper bound", round_up(self.upper)))
        return table_html("Bound", ends)

    @property
    def width(self) -> float:
        """The difference of both ends, in the unit of the value."""
        return self.upper - self.lower


# Names of the accountants, for policies and command-line options that must not import them.
#
# ``dpaudit.accountants.registry`` holds the accountants themselves; a test compares the two.

SAMPLING_ACCOUNTANTS = ("naive", "rdp", "pld")
"""Accountants that accept sampled mechanisms; a policy and a claim name one of these."""

UNSAMPLED_ACCOUNTANTS = ("zcdp", "gdp")
"""Accountants that refuse sampled mechanisms."""

ACCOUNTANTS = (*SAMPLING_ACCOUNTANTS, *UNSAMPLED_ACCOUNTANTS)
"""Every accountant."""
