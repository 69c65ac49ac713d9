"""An interval, how it was come by, and what its width is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import AccountingError


@dataclass(frozen=True)
class Answer:
    """A certified interval with its story.

    Attributes:
        lower: The lower end; 0 says nothing.
        upper: The upper end; infinite says nothing.
        method: How it was come by.
        budget: Errors that are inside the interval, each relative to delta.
        direction: Which neighbour's output it is about; empty where both agree.
    """

    lower: float
    upper: float
    method: str
    budget: Mapping[str, float] = field(default_factory=dict)
    direction: str = ""

    @classmethod
    def closed(cls, bound: Bound, method: str) -> Answer:
        """Return an answer by a closed form, whose only error is rounding."""
        return cls(bound.lower, bound.upper, method)

    def narrow_enough(self, relative: float, absolute: float) -> bool:
        """Return whether nothing more is asked of the interval."""
        return self.upper - self.lower <= max(relative * self.upper, absolute)

    def meet(self, other: Answer) -> Answer:
        """Return what both say, as both are certain.

        Raises:
            AccountingError: they contradict each other, which only a fault of ours can cause.
        """
        lower, upper = max(self.lower, other.lower), min(self.upper, other.upper)
        if not lower <= upper:
            raise AccountingError(
                f"two certified intervals of one value do not meet: [{self.lower!r}, "
                f"{self.upper!r}] and [{other.lower!r}, {other.upper!r}]"
            )
        return replace(other, lower=lower, upper=upper)

    def with_lower(self, below: Answer) -> Answer:
        """Return this upper end with the lower end of what is attained."""
        return replace(self, lower=min(below.lower, self.upper))

    def at_most(self, upper: float) -> Answer:
        """Return the same, known to be at most ``upper``."""
        if upper >= self.upper:
            return self
        return replace(self, lower=min(self.lower, upper), upper=upper)


def worst(answers: Iterable[Answer]) -> Bound:
    """Return the interval of the largest of several values."""
    found = list(answers)
    return Bound(max(answer.lower for answer in found), max(answer.upper for answer in found))
