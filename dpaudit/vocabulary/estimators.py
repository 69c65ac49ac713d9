"""The statistics that a lower bound is a function of: a reader recomputes the bound from them.

Beside each of these types, an ``AuditResult`` holds trials, guesses, correct guesses, delta and
confidence. Bounds over the claimed family need the claimed steps as well, which the run's ledger
holds.
"""

from __future__ import annotations

import msgspec

from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_not_negative,
    require_part,
    require_positive,
)


class Sample(msgspec.Struct, frozen=True):
    """The sufficient statistics of normal observations.

    Attributes:
        count: How many observations there are.
        mean: Their mean; 0 where there is none.
        variance: Their mean squared distance from the mean.
    """

    count: int
    mean: float
    variance: float

    def __post_init__(self) -> None:
        require_count("count", self.count, least=0)
        require_not_negative("size of the mean", abs(self.mean))
        require_not_negative("variance", self.variance)


class Guessed(msgspec.Struct, frozen=True):
    """Right guesses at one registered number of guesses."""

    guesses: int
    correct: int

    def __post_init__(self) -> None:
        require_count("guesses", self.guesses, least=0)
        require_part("correct", self.correct, self.guesses)


class OneRun(msgspec.Struct, frozen=True, tag_field="kind", tag="one-run"):
    """Right guesses of fair coins (Steinke, Nasr & Jagielski 2023).

    ``also`` holds the results at the other registered numbers of guesses. All of them share the
    failure probability equally, and the stated bound is the largest.
    """

    also: tuple[Guessed, ...] = ()


class ClaimedCurve(msgspec.Struct, frozen=True, tag_field="kind", tag="claimed-curve"):
    """Right guesses against the claimed trade-off curve (Mahloujifar, Melis & Chaudhuri 2024).

    ``noise_factor`` is the least factor on the claimed noise that is refuted; None: none is.
    """

    noise_factor: float | None = None

    def __post_init__(self) -> None:
        _require_factor(self.noise_factor)


class TotalVariation(msgspec.Struct, frozen=True, tag_field="kind", tag="total-variation"):
    """Right guesses of all canaries, against the claimed total variation.

    ``noise_factor`` is as in ``ClaimedCurve``.
    """

    noise_factor: float | None = None

    def __post_init__(self) -> None:
        _require_factor(self.noise_factor)


class BatchRates(msgspec.Struct, frozen=True, tag_field="kind", tag="batch-rates"):
    """Observations above the registered threshold, with the canary in the batch and without.

    Attributes:
        hits: Those above it with the canary in the batch.
        in_batch: All with the canary in the batch.
        false_alarms: Those above it without the canary.
        out_of_batch: All without the canary.
    """

    hits: int
    in_batch: int
    false_alarms: int
    out_of_batch: int

    def __post_init__(self) -> None:
        require_part("hits", self.hits, self.in_batch)
        require_part("false_alarms", self.false_alarms, self.out_of_batch)


class BatchMeans(msgspec.Struct, frozen=True, tag_field="kind", tag="batch-means"):
    """Observations with the canary in the batch, and without."""

    in_batch: Sample
    out_of_batch: Sample


class ClassGuesses(msgspec.Struct, frozen=True, tag_field="kind", tag="fixed-sizes"):
    """Right guesses of a random split, given the numbers of members and non-members.

    Attributes:
        members: Records that are members.
        nonmembers: Records that are not.
        guessed_in: Records guessed to be members.
        right_in: Of these, members.
        guessed_out: Other records, guessed to be non-members.
        right_out: Of these, non-members.
    """

    members: int
    nonmembers: int
    guessed_in: int
    right_in: int
    guessed_out: int
    right_out: int

    def __post_init__(self) -> None:
        require_count("members", self.members)
        require_count("nonmembers", self.nonmembers)
        require_count("guessed_in", self.guessed_in, least=0)
        require_count("guessed_out", self.guessed_out, least=0)
        require_part("right_in", self.right_in, self.guessed_in)
        require_part("right_out", self.right_out, self.guessed_out)
        wrong_in, wrong_out = self.guessed_in - self.right_in, self.guessed_out - self.right_out
        if self.right_in + wrong_out > self.members:
            allowed = f"one of guesses that hold at most the {self.members} members"
            raise InvalidArgument("right_in", self.right_in, allowed)
        if self.right_out + wrong_in > self.nonmembers:
            allowed = f"one of guesses that hold at most the {self.nonmembers} non-members"
            raise InvalidArgument("right_out", self.right_out, allowed)


class GaussianPivot(msgspec.Struct, frozen=True, tag_field="kind", tag="gaussian-pivot"):
    """Scores of included canaries, and of the others."""

    members: Sample
    nonmembers: Sample


class GaussianBand(msgspec.Struct, frozen=True, tag_field="kind", tag="gaussian-band"):
    """Errors at every threshold, falling.

    Attributes:
        members: How many canaries were included.
        nonmembers: How many were not.
        missed: Included canaries at or below each threshold.
        accused: Other canaries above each threshold.
    """

    members: int
    nonmembers: int
    missed: tuple[int, ...]
    accused: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.missed) != len(self.accused):
            raise InvalidArgument("missed", len(self.missed), "one for each threshold of accused")
        for name, counts, whole in (
            ("missed", self.missed, self.members),
            ("accused", self.accused, self.nonmembers),
        ):
            require_part(name, min(counts, default=0), whole)
            require_part(name, max(counts, default=0), whole)


Estimator = (
    OneRun
    | ClassGuesses
    | ClaimedCurve
    | TotalVariation
    | BatchRates
    | BatchMeans
    | GaussianPivot
    | GaussianBand
)
"""Which function of the data a bound is, with the statistics that it reads."""


def _require_factor(factor: float | None) -> None:
    if factor is not None:
        require_positive("noise_factor", factor)
