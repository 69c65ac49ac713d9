"""What can be released: a frozen tree of mechanisms, validated when it is built.

Mechanisms say what happened; accountants say what it costs. Each converts to and
from JSON by msgspec, tagged with the field ``kind``.
"""

from __future__ import annotations

import msgspec

from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_positive,
    require_sampling_rate,
)


class Gaussian(
    msgspec.Struct,
    frozen=True,
    tag_field="kind",
    tag="gaussian",
    forbid_unknown_fields=True,
):
    """A sum of vectors, each of L2 norm at most C, plus N(0, (noise_multiplier * C)^2)."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        require_positive("noise_multiplier", self.noise_multiplier)


class RandomizedResponse(
    msgspec.Struct,
    frozen=True,
    tag_field="kind",
    tag="randomized-response",
    forbid_unknown_fields=True,
):
    """One of ``categories`` answers: the truth with ``truth_probability``, else another one.

    Defined for neighbours that replace one record alone: without a record there is
    no answer.
    """

    truth_probability: float
    categories: int = 2

    def __post_init__(self) -> None:
        require_count("categories", self.categories, least=2)
        if not 1 / self.categories <= self.truth_probability < 1:
            raise InvalidArgument(
                "truth_probability",
                self.truth_probability,
                f"at least 1/categories = {1 / self.categories:g} and below 1",
            )


class PoissonSampled(
    msgspec.Struct,
    frozen=True,
    tag_field="kind",
    tag="poisson-sampled",
    forbid_unknown_fields=True,
):
    """A mechanism on a batch that each record joins by its own coin of bias ``sampling_rate``."""

    mechanism: Gaussian | RandomizedResponse
    sampling_rate: float

    def __post_init__(self) -> None:
        require_sampling_rate("sampling_rate", self.sampling_rate)


class Repeated(
    msgspec.Struct,
    frozen=True,
    tag_field="kind",
    tag="repeated",
    forbid_unknown_fields=True,
):
    """The same mechanism ``times`` over, with fresh and independent randomness."""

    mechanism: Mechanism
    times: int

    def __post_init__(self) -> None:
        require_count("times", self.times)


class Composed(
    msgspec.Struct,
    frozen=True,
    tag_field="kind",
    tag="composed",
    forbid_unknown_fields=True,
):
    """Several mechanisms on the same data, chosen in advance; their order does not matter."""

    mechanisms: tuple[Mechanism, ...]

    def __post_init__(self) -> None:
        if not self.mechanisms:
            raise InvalidArgument("mechanisms", self.mechanisms, "at least one mechanism")


Release = Gaussian | RandomizedResponse | PoissonSampled
Mechanism = Gaussian | RandomizedResponse | PoissonSampled | Repeated | Composed
