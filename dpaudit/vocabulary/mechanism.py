"""What can be released: a frozen tree of mechanisms, validated when it is built.

Mechanisms say what happened; accountants say what it costs. Each converts to and
from JSON by msgspec, tagged with the field ``kind``.

Elementary    Gaussian, Laplace, DiscreteGaussian, DiscreteLaplace, RandomizedResponse
Known by a    Exponential, PureDP, ApproximateDP, ZCDP: of these an accountant knows the
guarantee     guarantee alone, and prices the worst mechanism that has it
Subsampled    PoissonSampled, TruncatedPoisson, SampledWithoutReplacement, RandomAllocation
Reduced       TreeAggregation, BandedMatrixFactorization: dearer ones stand in for them
Selected      the best of a random number of runs
Combined      Repeated, Composed
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_open_unit,
    require_positive,
    require_sampling_rate,
)


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


class _Tagged(
    msgspec.Struct, frozen=True, tag_field="kind", tag=_kebab, forbid_unknown_fields=True
):
    """A type that names itself in JSON."""


class Gaussian(_Tagged, frozen=True, omit_defaults=True):
    """A sum of vectors, each of L2 norm at most C, plus N(0, (noise_multiplier * C)^2).

    Replacing a record moves that sum by up to 2 C. Where the noise was set for replaced
    records, that is, where ``noise_multiplier`` is over 2 C, ``set_for`` says so; what such
    noise hides of a record added or removed nobody can say.
    """

    noise_multiplier: float
    set_for: Adjacency = Adjacency.ADD_OR_REMOVE_ONE

    def __post_init__(self) -> None:
        require_positive("noise_multiplier", self.noise_multiplier)


class Laplace(_Tagged, frozen=True):
    """A number plus noise of density exp(-|x|/scale) / (2 scale).

    ``sensitivity`` is by how much one record moves the number, under the adjacency that the
    question is asked for.
    """

    scale: float
    sensitivity: float = 1.0

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)
        require_positive("sensitivity", self.sensitivity)


class DiscreteGaussian(_Tagged, frozen=True):
    """A whole number plus noise on the integers of mass proportional to exp(-x^2 / 2 scale^2).

    ``sensitivity`` is by how much one record moves the number at most, a whole number.
    """

    scale: float
    sensitivity: int = 1

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)
        require_count("sensitivity", self.sensitivity)


class DiscreteLaplace(_Tagged, frozen=True):
    """A whole number plus noise on the integers of mass proportional to exp(-|x| / scale).

    ``sensitivity`` is by how much one record moves the number at most, a whole number.
    """

    scale: float
    sensitivity: int = 1

    def __post_init__(self) -> None:
        require_positive("scale", self.scale)
        require_count("sensitivity", self.sensitivity)


class RandomizedResponse(_Tagged, frozen=True):
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


class Exponential(_Tagged, frozen=True):
    """A choice with probability proportional to exp(epsilon * score / (2 * sensitivity))."""

    epsilon: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)


class PureDP(_Tagged, frozen=True):
    """Anything that is (epsilon, 0)-DP."""

    epsilon: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)


class ApproximateDP(_Tagged, frozen=True):
    """Anything that is (epsilon, delta)-DP."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < float("inf"):
            raise InvalidArgument("epsilon", self.epsilon, "at least 0 and finite")
        require_open_unit("delta", self.delta)


class ZCDP(_Tagged, frozen=True):
    """Anything that is rho-zCDP: its divergence of order a is at most a rho."""

    rho: float

    def __post_init__(self) -> None:
        require_positive("rho", self.rho)


Noise = Gaussian | Laplace | DiscreteGaussian | DiscreteLaplace
Guarantee = Exponential | PureDP | ApproximateDP | ZCDP
Elementary = Noise | RandomizedResponse | Guarantee


class PoissonSampled(_Tagged, frozen=True):
    """A mechanism on a batch that each record joins by its own coin of bias ``sampling_rate``."""

    mechanism: Elementary
    sampling_rate: float

    def __post_init__(self) -> None:
        require_sampling_rate("sampling_rate", self.sampling_rate)
        _require_kind("mechanism", self.mechanism, Elementary)


class TruncatedPoisson(_Tagged, frozen=True):
    """A mechanism on a Poisson batch of which at most ``largest_batch`` records are kept.

    ``dataset_size`` is the number of records, taken as public.
    """

    mechanism: Gaussian
    sampling_rate: float
    dataset_size: int
    largest_batch: int

    def __post_init__(self) -> None:
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_count("dataset_size", self.dataset_size)
        require_count("largest_batch", self.largest_batch)
        _require_kind("mechanism", self.mechanism, Gaussian)


class SampledWithoutReplacement(_Tagged, frozen=True):
    """A mechanism on ``batch_size`` of ``dataset_size`` records, every such batch as likely."""

    mechanism: Elementary
    batch_size: int
    dataset_size: int

    def __post_init__(self) -> None:
        require_count("batch_size", self.batch_size)
        require_count("dataset_size", self.dataset_size, least=self.batch_size)
        _require_kind("mechanism", self.mechanism, Elementary)


class RandomAllocation(_Tagged, frozen=True):
    """One pass of ``steps`` noisy sums; each record joins one of them, drawn uniformly."""

    mechanism: Gaussian
    steps: int

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        _require_kind("mechanism", self.mechanism, Gaussian)


class TreeAggregation(_Tagged, frozen=True):
    """All prefix sums of ``steps`` batches from a binary tree whose nodes are noisy sums.

    A record joins one batch at most, and so one node of each level.
    """

    mechanism: Gaussian
    steps: int

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        _require_kind("mechanism", self.mechanism, Gaussian)


class BandedMatrixFactorization(_Tagged, frozen=True):
    """``steps`` sums with noise correlated by a strategy of ``bands`` bands, columns of norm 1.

    Records are split into ``bands`` groups in advance; step t draws from group t mod bands,
    each record of it by its own coin of bias ``sampling_rate`` (1: the whole group). So a
    record joins at steps that are ``bands`` apart.
    """

    mechanism: Gaussian
    steps: int
    bands: int
    sampling_rate: float = 1.0

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_count("bands", self.bands)
        require_sampling_rate("sampling_rate", self.sampling_rate)
        _require_kind("mechanism", self.mechanism, Gaussian)


Sampled = PoissonSampled | TruncatedPoisson | SampledWithoutReplacement | RandomAllocation
Reduced = TreeAggregation | BandedMatrixFactorization


class NegativeBinomialTrials(_Tagged, frozen=True):
    """A number of trials K >= 1 of the truncated negative binomial law D(shape, success).

    shape 1 is the geometric law, shape 0 the logarithmic one; a larger shape concentrates.
    """

    shape: float
    success: float

    def __post_init__(self) -> None:
        if not -1 < self.shape < float("inf"):
            raise InvalidArgument("shape", self.shape, "above -1 and finite")
        require_open_unit("success", self.success)


class PoissonTrials(_Tagged, frozen=True):
    """A Poisson number of trials; none at all returns a fixed result."""

    mean: float

    def __post_init__(self) -> None:
        require_positive("mean", self.mean)


Trials = NegativeBinomialTrials | PoissonTrials


class Selected(_Tagged, frozen=True):
    """The best result of a random number of runs of one mechanism: private model selection.

    Each trial runs ``mechanism`` afresh; the number of trials is drawn before the first and
    kept secret, and only the best result is released.
    """

    mechanism: Mechanism
    trials: Trials

    def __post_init__(self) -> None:
        _require_kind("mechanism", self.mechanism, Mechanism)
        _require_kind("trials", self.trials, Trials)


class Repeated(_Tagged, frozen=True):
    """The same mechanism ``times`` over, with fresh and independent randomness."""

    mechanism: Mechanism
    times: int

    def __post_init__(self) -> None:
        require_count("times", self.times)
        _require_kind("mechanism", self.mechanism, Mechanism)


class Composed(_Tagged, frozen=True):
    """Several mechanisms on the same data, chosen in advance; their order does not matter."""

    mechanisms: tuple[Mechanism, ...]

    def __post_init__(self) -> None:
        if not self.mechanisms:
            raise InvalidArgument("mechanisms", self.mechanisms, "at least one mechanism")
        # A list is taken as well, and becomes what can be hashed.
        msgspec.structs.force_setattr(self, "mechanisms", tuple(self.mechanisms))
        for part in self.mechanisms:
            _require_kind("mechanisms", part, Mechanism)


Release = Elementary | Sampled | Reduced | Selected
Mechanism = Release | Repeated | Composed


def _require_kind(name: str, value: object, kind: Any) -> None:
    if not isinstance(value, kind):
        members = getattr(kind, "__args__", (kind,))
        raise InvalidArgument(name, value, " or ".join(member.__name__ for member in members))
