"""Mechanisms that a run can release: a frozen tree, validated when it is built.

A mechanism describes what was released. An accountant computes what it costs. Each type
converts to and from JSON with msgspec, tagged with the field ``kind``.

Elementary      Gaussian, Laplace, DiscreteGaussian, DiscreteLaplace, RandomizedResponse
Vector noise    VectorDiscreteGaussian, DistributedDiscreteGaussian, Skellam: integer vectors,
                as in secure aggregation
By a guarantee  Exponential, PureDP, ApproximateDP, ZCDP: accountants use the guarantee alone
                and compute the cost of the worst mechanism that has it
By a pair       MixtureOfGaussians, DominatingPair: the output distributions of the worst
                neighbors
Subsampled      PoissonSampled, TruncatedPoisson, SampledWithoutReplacement, RandomAllocation
Shuffled        reports of many participants through a local mechanism, in random order
Multi-step      TreeAggregation, BandedMatrixFactorization and BinnedMatrixFactorization:
                accountants replace them by simpler mechanisms that cost at least as much
Sparse vector   SparseVector, MonotoneSparseVector, FixedThresholdSparseVector and
                NumericSparseVector: a stream of comparisons with a threshold
Selected        the best result of a random number of runs
Combined        Repeated, Composed

The types of all but selection and composition are in ``elementary_mechanisms``,
``sampled_mechanisms`` and ``sparse_vector_mechanisms``; import them from here.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dpaudit.vocabulary.elementary_mechanisms import (
    ZCDP,
    AdditiveNoise,
    ApproximateDP,
    DiscreteGaussian,
    DiscreteLaplace,
    DistributedDiscreteGaussian,
    ElementaryMechanism,
    Exponential,
    Gaussian,
    GivenPair,
    Guarantee,
    IntegerVectorNoise,
    Laplace,
    PureDP,
    RandomizedResponse,
    Skellam,
    VectorDiscreteGaussian,
)
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_above,
    require_count,
    require_open_unit,
    require_positive,
)
from dpaudit.vocabulary.pairs import DominatingPair, MixtureOfGaussians
from dpaudit.vocabulary.sampled_mechanisms import (
    BandedMatrixFactorization,
    BinnedMatrixFactorization,
    MultiStepMechanism,
    PoissonSampled,
    RandomAllocation,
    SampledMechanism,
    SampledWithoutReplacement,
    Shuffled,
    TreeAggregation,
    TruncatedPoisson,
)
from dpaudit.vocabulary.sparse_vector_mechanisms import (
    FixedThresholdSparseVector,
    MonotoneSparseVector,
    NumericSparseVector,
    SparseVector,
    SparseVectorMechanism,
    ThresholdComparison,
)
from dpaudit.vocabulary.tagged import Tagged, require_kind

__all__ = [
    "ZCDP",
    "AdditiveNoise",
    "ApproximateDP",
    "BandedMatrixFactorization",
    "BinnedMatrixFactorization",
    "Composed",
    "DiscreteGaussian",
    "DiscreteLaplace",
    "DistributedDiscreteGaussian",
    "DominatingPair",
    "ElementaryMechanism",
    "Exponential",
    "FixedThresholdSparseVector",
    "Gaussian",
    "GivenPair",
    "Guarantee",
    "IntegerVectorNoise",
    "Laplace",
    "Mechanism",
    "MixtureOfGaussians",
    "MonotoneSparseVector",
    "MultiStepMechanism",
    "NegativeBinomialTrials",
    "NumericSparseVector",
    "PoissonSampled",
    "PoissonTrials",
    "PureDP",
    "RandomAllocation",
    "RandomizedResponse",
    "Release",
    "Repeated",
    "SampledMechanism",
    "SampledWithoutReplacement",
    "Selected",
    "Shuffled",
    "Skellam",
    "SparseVector",
    "SparseVectorMechanism",
    "ThresholdComparison",
    "TreeAggregation",
    "TrialCount",
    "TruncatedPoisson",
    "VectorDiscreteGaussian",
]


class NegativeBinomialTrials(Tagged, frozen=True):
    """Number of trials of a selection: the truncated negative binomial law on K >= 1.

    Attributes:
        shape: Shape of the law, above -1 and finite: 1 is the geometric law, 0 the logarithmic
            one. A larger shape concentrates K.
        success: The second parameter of the law; above 0 and below 1. A smaller one gives more
            trials.

    Raises:
        InvalidArgument: If ``shape`` or ``success`` is out of its range.

    References:
        Papernot & Steinke (2022), arXiv:2110.03620, Definition 1.

    Example:
        >>> NegativeBinomialTrials(shape=1.0, success=0.1)
        NegativeBinomialTrials(shape=1.0, success=0.1)
    """

    shape: float
    success: float

    def _require_valid(self) -> None:
        require_above("shape", self.shape, -1)
        require_open_unit("success", self.success)


class PoissonTrials(Tagged, frozen=True):
    """Number of trials of a selection: a Poisson law; no trial at all returns a fixed result.

    Attributes:
        mean: Expected number of trials; above 0 and finite.

    Raises:
        InvalidArgument: If ``mean`` is not above 0 and finite.

    References:
        Papernot & Steinke (2022), arXiv:2110.03620, Theorem 6.

    Example:
        >>> PoissonTrials(mean=10.0).mean
        10.0
    """

    mean: float

    def _require_valid(self) -> None:
        require_positive("mean", self.mean)


TrialCount = NegativeBinomialTrials | PoissonTrials
"""Law of the number of trials of a selection."""


class Selected(Tagged, frozen=True):
    """The best result of a random number of runs of one mechanism: private model selection.

    Each trial runs ``mechanism`` with fresh randomness. The number of trials is drawn before
    the first and kept secret, and only the best result is released.

    Attributes:
        mechanism: The mechanism of one trial.
        trials: The law of the number of trials.

    Raises:
        InvalidArgument: If ``mechanism`` is no mechanism, or ``trials`` no law of a number.

    References:
        Papernot & Steinke (2022), arXiv:2110.03620.

    Example:
        >>> one_run = Repeated(PoissonSampled(Gaussian(1.0), 0.01), times=500)
        >>> tuning = Selected(one_run, NegativeBinomialTrials(shape=1.0, success=0.1))
        >>> tuning.mechanism.times
        500
    """

    mechanism: Mechanism
    trials: TrialCount

    def _require_valid(self) -> None:
        require_kind("mechanism", self.mechanism, Mechanism)
        require_kind("trials", self.trials, TrialCount)


class Repeated(Tagged, frozen=True):
    """The same mechanism ``times`` times, with fresh and independent randomness.

    Attributes:
        mechanism: The mechanism that is repeated.
        times: Number of repetitions; at least 1.

    Raises:
        InvalidArgument: If ``times`` is no whole number of at least 1, or ``mechanism`` is no
            mechanism.

    Example:
        >>> Repeated(PoissonSampled(Gaussian(1.0), 0.01), times=1000).times
        1000
    """

    mechanism: Mechanism
    times: int

    def _require_valid(self) -> None:
        require_count("times", self.times)
        require_kind("mechanism", self.mechanism, Mechanism)


class Composed(Tagged, frozen=True):
    """Several mechanisms on the same data, chosen in advance; their order has no meaning.

    Attributes:
        mechanisms: The parts; at least one. A list is accepted and becomes a tuple.

    Raises:
        InvalidArgument: If there is no part, or a part is no mechanism.

    Example:
        >>> run = Composed([Gaussian(50.0), Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000)])
        >>> len(run.mechanisms)
        2
    """

    mechanisms: tuple[Mechanism, ...]

    def _require_valid(self) -> None:
        # A list is accepted. Accountants hash mechanisms, so it becomes a tuple.
        parts = tuple(self.mechanisms) if isinstance(self.mechanisms, Iterable) else ()
        if not parts:
            raise InvalidArgument("mechanisms", self.mechanisms, "a list of at least one mechanism")
        msgspec.structs.force_setattr(self, "mechanisms", parts)
        for part in self.mechanisms:
            require_kind("mechanisms", part, Mechanism)


Release = (
    ElementaryMechanism
    | SampledMechanism
    | Shuffled
    | MultiStepMechanism
    | SparseVectorMechanism
    | Selected
)
"""What one line of a ledger records: no repetition and no composition."""

Mechanism = Release | Repeated | Composed
"""Any mechanism that an accountant reads; a tree of the types of this module.

Example:
    >>> text = b'{"kind":"repeated","mechanism":{"kind":"gaussian","noise_multiplier":2},"times":3}'
    >>> msgspec.json.decode(text, type=Mechanism).times
    3
"""
