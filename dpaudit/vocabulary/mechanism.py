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
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from dpaudit.vocabulary.errors import (
    InvalidArgument,
    is_number,
    require_above,
    require_count,
    require_not_negative,
    require_open_unit,
    require_positive,
    require_sampling_rate,
)
from dpaudit.vocabulary.pairs import DominatingPair, MixtureOfGaussians
from dpaudit.vocabulary.privacy_terms import Adjacency, require_adjacency
from dpaudit.vocabulary.tagged import Tagged

MOST_NAMED_KINDS = 20
"""Kinds of mechanisms up to which a message names them all."""


class Gaussian(Tagged, frozen=True, omit_defaults=True):
    """Gaussian mechanism: a sum of vectors of L2 norm at most C, plus normal noise.

    Every coordinate gets noise of law N(0, (noise_multiplier * C)^2). Adding or removing one
    record moves the sum by at most C in L2 norm, replacing one by at most 2 C.

    Attributes:
        noise_multiplier: Standard deviation of the noise, in units of C; above 0 and finite. In
            units of 2 C where ``set_for`` is REPLACE_ONE.
        set_for: The adjacency whose sensitivity ``noise_multiplier`` is relative to. With
            REPLACE_ONE, no guarantee for a record added or removed is known.

    Raises:
        InvalidArgument: If ``noise_multiplier`` is not above 0 and finite.

    Example:
        >>> msgspec.json.encode(Gaussian(noise_multiplier=1.1))
        b'{"kind":"gaussian","noise_multiplier":1.1}'
    """

    noise_multiplier: float
    set_for: Adjacency = Adjacency.ADD_OR_REMOVE_ONE

    def _require_valid(self) -> None:
        require_positive("noise_multiplier", self.noise_multiplier)
        require_adjacency("set_for", self.set_for)


class Laplace(Tagged, frozen=True):
    """Laplace mechanism: a number plus noise of density exp(-|x| / scale) / (2 scale).

    Attributes:
        scale: Scale of the noise, in units of the number; above 0 and finite. The standard
            deviation is sqrt(2) times the scale.
        sensitivity: Largest change of the number between neighbors, under the adjacency that
            epsilon is computed for; above 0 and finite. Epsilon is ``sensitivity / scale``.

    Raises:
        InvalidArgument: If ``scale`` or ``sensitivity`` is not above 0 and finite.

    Example:
        >>> msgspec.json.encode(Laplace(scale=2.0))
        b'{"kind":"laplace","scale":2.0,"sensitivity":1.0}'
    """

    scale: float
    sensitivity: float = 1.0

    def _require_valid(self) -> None:
        require_positive("scale", self.scale)
        require_positive("sensitivity", self.sensitivity)


class DiscreteGaussian(Tagged, frozen=True):
    """Discrete Gaussian mechanism: a whole number plus noise on the integers.

    The mass at x is proportional to exp(-x^2 / (2 scale^2)).

    Attributes:
        scale: Parameter of the noise, close to its standard deviation; above 0 and finite.
        sensitivity: Largest change of the number between neighbors, under the adjacency that
            epsilon is computed for; at least 1. Replacing a record changes a sum of values
            clipped to C by up to 2 C: give 2 C for replace-one. ``Gaussian``, whose multiplier
            refers to C, is doubled there by the accountants.

    Raises:
        InvalidArgument: If ``scale`` is not above 0 and finite, or ``sensitivity`` is no whole
            number of at least 1.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010, Definition 1.

    Example:
        >>> DiscreteGaussian(scale=10.0).sensitivity
        1
    """

    scale: float
    sensitivity: int = 1

    def _require_valid(self) -> None:
        require_positive("scale", self.scale)
        require_count("sensitivity", self.sensitivity)


class DiscreteLaplace(Tagged, frozen=True):
    """Discrete Laplace mechanism: a whole number plus noise on the integers.

    The mass at x is proportional to exp(-|x| / scale).

    Attributes:
        scale: Parameter of the noise; above 0 and finite.
        sensitivity: Largest change of the number between neighbors, under the adjacency that
            epsilon is computed for (see ``DiscreteGaussian``); at least 1. Epsilon is
            ``sensitivity / scale``.

    Raises:
        InvalidArgument: If ``scale`` is not above 0 and finite, or ``sensitivity`` is no whole
            number of at least 1.

    Example:
        >>> DiscreteLaplace(scale=0.5, sensitivity=2)
        DiscreteLaplace(scale=0.5, sensitivity=2)
    """

    scale: float
    sensitivity: int = 1

    def _require_valid(self) -> None:
        require_positive("scale", self.scale)
        require_count("sensitivity", self.sensitivity)


LARGEST_INTEGER_SCALE, LARGEST_CHANGE = 1e100, 1e15


class VectorDiscreteGaussian(Tagged, frozen=True):
    """Vector discrete Gaussian: an integer vector plus independent noise on every coordinate.

    The mass of the noise at x is proportional to exp(-x^2 / (2 scale^2)), on the integers. Both
    sensitivities hold under the adjacency that epsilon is computed for.

    Attributes:
        scale: Parameter of the noise of one coordinate, close to its standard deviation; from
            1e-100 to 1e100.
        l2_sensitivity: Largest L2 norm of the change of the vector between neighbors, under the
            adjacency that epsilon is computed for (see ``DiscreteGaussian``); from 1
            to 1e15.
        l1_sensitivity: Largest L1 norm of this change; at least 1. The square of
            ``l2_sensitivity`` always holds, because the change is an integer vector.
        dimension: Number of coordinates; at least 1.

    Raises:
        InvalidArgument: If ``scale`` or a sensitivity is out of its range, or ``dimension`` is no
            whole number of at least 1.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010; Kairouz, Liu & Steinke (2021),
        arXiv:2102.06387.

    Example:
        >>> VectorDiscreteGaussian(40.0, l2_sensitivity=4.0, l1_sensitivity=16.0, dimension=1000)
        VectorDiscreteGaussian(scale=40.0, l2_sensitivity=4.0, l1_sensitivity=16.0, dimension=1000)
    """

    scale: float
    l2_sensitivity: float
    l1_sensitivity: float
    dimension: int

    def _require_valid(self) -> None:
        require_positive("scale", self.scale)
        _require_integer_change(self)


class DistributedDiscreteGaussian(Tagged, frozen=True):
    """An integer vector plus the sum of several participants' discrete Gaussian noise.

    Every coordinate gets ``shares`` independent draws, each with mass proportional to
    exp(-x^2 / (2 scale^2)). Their sum is no discrete Gaussian. Both sensitivities hold under the
    adjacency that epsilon is computed for.

    Attributes:
        scale: Parameter of one share's noise on one coordinate; from 1e-100 to 1e100.
        shares: Number of draws that are surely added: honest participants that did not drop out;
            at least 1.
        l2_sensitivity: Largest L2 norm of the change of the vector between neighbors, under the
            adjacency that epsilon is computed for (see ``DiscreteGaussian``); from 1
            to 1e15.
        l1_sensitivity: Largest L1 norm of this change; at least 1.
        dimension: Number of coordinates; at least 1.

    Raises:
        InvalidArgument: If ``scale`` or a sensitivity is out of its range, or a count is no whole
            number of at least 1.

    References:
        Kairouz, Liu & Steinke (2021), arXiv:2102.06387.

    Example:
        >>> noise = DistributedDiscreteGaussian(
        ...     4.0, shares=100, l2_sensitivity=4.0, l1_sensitivity=16.0, dimension=1000
        ... )
        >>> noise.shares
        100
    """

    scale: float
    shares: int
    l2_sensitivity: float
    l1_sensitivity: float
    dimension: int

    def _require_valid(self) -> None:
        require_positive("scale", self.scale)
        require_count("shares", self.shares)
        _require_integer_change(self)


class Skellam(Tagged, frozen=True):
    """Skellam mechanism: an integer vector plus a difference of two Poisson draws per coordinate.

    Both Poisson draws have the mean variance / 2. The sum of independent Skellam noise is Skellam
    noise, and variances add up: shares of several participants are one ``Skellam``. Both
    sensitivities hold under the adjacency that epsilon is computed for.

    Attributes:
        variance: Variance of the noise of one coordinate; from 1e-100 to 1e100.
        l1_sensitivity: Largest L1 norm of the change of the vector between neighbors, under the
            adjacency that epsilon is computed for (see ``DiscreteGaussian``); at least 1.
        l2_sensitivity: Largest L2 norm of this change; from 1 to 1e15.
        dimension: Number of coordinates; at least 1.

    Raises:
        InvalidArgument: If ``variance`` or a sensitivity is out of its range, or ``dimension`` is
            no whole number of at least 1.

    References:
        Agarwal, Kairouz & Liu (2021), arXiv:2110.04995.

    Example:
        >>> Skellam(100.0, l1_sensitivity=16.0, l2_sensitivity=4.0, dimension=1000).variance
        100.0
    """

    variance: float
    l1_sensitivity: float
    l2_sensitivity: float
    dimension: int

    def _require_valid(self) -> None:
        require_positive("variance", self.variance)
        _require_integer_change(self)


def _require_integer_change(
    mechanism: VectorDiscreteGaussian | DistributedDiscreteGaussian | Skellam,
) -> None:
    """Refuse sensitivities below 1, which no integer vector has, and an invalid dimension.

    Squares of noise and sensitivities must neither overflow nor vanish.
    """
    limits = {"l2_sensitivity": LARGEST_CHANGE, "l1_sensitivity": LARGEST_INTEGER_SCALE}
    for name, limit in limits.items():
        value = getattr(mechanism, name)
        if not is_number(value) or not 1 <= value <= limit:
            raise InvalidArgument(name, value, f"from 1 to {limit:g}: integers are released")
    for name in ("scale", "variance"):
        noise = getattr(mechanism, name, 1.0)
        if not 1 / LARGEST_INTEGER_SCALE <= noise <= LARGEST_INTEGER_SCALE:
            raise InvalidArgument(name, noise, "from 1e-100 to 1e100")
    require_count("dimension", mechanism.dimension)


class RandomizedResponse(Tagged, frozen=True):
    """Randomized response: the true answer, or one of the others drawn uniformly.

    Defined for neighbors that replace one record alone: without a record there is no answer.
    With p the ``truth_probability``, epsilon is ln(p (categories - 1) / (1 - p)).

    Attributes:
        truth_probability: Probability of the true answer; at least 1/categories (which reveals
            nothing) and below 1.
        categories: Number of possible answers; at least 2.

    Raises:
        InvalidArgument: If ``categories`` is no whole number of at least 2, or
            ``truth_probability`` is out of its range.

    Example:
        >>> RandomizedResponse(truth_probability=0.75).categories
        2
    """

    truth_probability: float
    categories: int = 2

    def _require_valid(self) -> None:
        require_count("categories", self.categories, least=2)
        require_open_unit("truth_probability", self.truth_probability)
        if self.truth_probability < 1 / self.categories:
            raise InvalidArgument(
                "truth_probability",
                self.truth_probability,
                f"at least 1/categories = {1 / self.categories:g} and below 1",
            )


class Exponential(Tagged, frozen=True):
    """Exponential mechanism: a choice among candidates by their scores.

    A candidate has probability proportional to exp(epsilon * score / (2 * sensitivity)), where
    the sensitivity is the largest change of a score between neighbors.

    Attributes:
        epsilon: The parameter of the choice, in nats; above 0 and finite. The choice is
            (epsilon, 0)-DP, and its privacy losses span a range of at most epsilon.

    Raises:
        InvalidArgument: If ``epsilon`` is not above 0 and finite.

    References:
        Durfee & Rogers (2019), arXiv:1905.04273 (bounded range).

    Example:
        >>> msgspec.json.encode(Exponential(epsilon=0.5))
        b'{"kind":"exponential","epsilon":0.5}'
    """

    epsilon: float

    def _require_valid(self) -> None:
        require_positive("epsilon", self.epsilon)


class PureDP(Tagged, frozen=True):
    """Any mechanism of which it is known that it is (epsilon, 0)-DP.

    Attributes:
        epsilon: The guarantee, in nats; above 0 and finite.

    Raises:
        InvalidArgument: If ``epsilon`` is not above 0 and finite.

    Example:
        >>> msgspec.json.encode(PureDP(epsilon=1.0))
        b'{"kind":"pure-dp","epsilon":1.0}'
    """

    epsilon: float

    def _require_valid(self) -> None:
        require_positive("epsilon", self.epsilon)


class ApproximateDP(Tagged, frozen=True):
    """Any mechanism of which it is known that it is (epsilon, delta)-DP.

    Attributes:
        epsilon: The guarantee, in nats; at least 0 and finite.
        delta: The probability that the guarantee leaves out; above 0 and below 1.

    Raises:
        InvalidArgument: If ``epsilon`` or ``delta`` is out of its range.

    Example:
        >>> ApproximateDP(epsilon=1.0, delta=1e-6)
        ApproximateDP(epsilon=1.0, delta=1e-06)
    """

    epsilon: float
    delta: float

    def _require_valid(self) -> None:
        require_not_negative("epsilon", self.epsilon)
        require_open_unit("delta", self.delta)


class ZCDP(Tagged, frozen=True):
    """Any mechanism of which it is known that it is rho-zCDP.

    Its Renyi divergence of every order a > 1 is at most a * rho.

    Attributes:
        rho: The guarantee, in nats per order; above 0 and finite.

    Raises:
        InvalidArgument: If ``rho`` is not above 0 and finite.

    References:
        Bun & Steinke (2016), arXiv:1605.02065, Definition 1.1.

    Example:
        >>> msgspec.json.encode(ZCDP(rho=0.1))
        b'{"kind":"zcdp","rho":0.1}'
    """

    rho: float

    def _require_valid(self) -> None:
        require_positive("rho", self.rho)


# Groups of mechanisms. They are unions, so isinstance and match accept them.

IntegerVectorNoise = VectorDiscreteGaussian | DistributedDiscreteGaussian | Skellam
"""Independent noise on every coordinate of an integer vector."""

AdditiveNoise = Gaussian | Laplace | DiscreteGaussian | DiscreteLaplace | IntegerVectorNoise
Guarantee = Exponential | PureDP | ApproximateDP | ZCDP
GivenPair = MixtureOfGaussians | DominatingPair
"""Mechanisms that are given by a pair of output distributions."""

ElementaryMechanism = AdditiveNoise | RandomizedResponse | Guarantee | GivenPair
"""Mechanisms on the whole data set, which can be applied to a sample."""


class PoissonSampled(Tagged, frozen=True):
    """A mechanism on a Poisson sample: each record joins by its own coin.

    Attributes:
        mechanism: The mechanism that is applied to the sample.
        sampling_rate: Probability with which each record joins, independently of the others;
            above 0 and at most 1.

    Raises:
        InvalidArgument: If ``sampling_rate`` is out of its range, or ``mechanism`` is not an
            elementary mechanism.

    Example:
        >>> step = PoissonSampled(Gaussian(noise_multiplier=1.0), sampling_rate=0.01)
        >>> step.sampling_rate
        0.01
    """

    mechanism: ElementaryMechanism
    sampling_rate: float

    def _require_valid(self) -> None:
        require_sampling_rate("sampling_rate", self.sampling_rate)
        _require_kind("mechanism", self.mechanism, ElementaryMechanism)


class TruncatedPoisson(Tagged, frozen=True):
    """A Gaussian on a Poisson sample that is cut to at most ``largest_batch`` records.

    Attributes:
        mechanism: The Gaussian that is applied to the sample.
        sampling_rate: Probability with which each record joins; above 0 and at most 1.
        dataset_size: Number of records, which counts as public; at least 1.
        largest_batch: Largest number of records that are kept; at least 1.

    Raises:
        InvalidArgument: If ``sampling_rate`` is out of its range, a count is no whole number of
            at least 1, or ``mechanism`` is not a Gaussian.

    Example:
        >>> noise = Gaussian(noise_multiplier=1.0)
        >>> step = TruncatedPoisson(noise, 0.01, dataset_size=10_000, largest_batch=150)
        >>> step.largest_batch
        150
    """

    mechanism: Gaussian
    sampling_rate: float
    dataset_size: int
    largest_batch: int

    def _require_valid(self) -> None:
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_count("dataset_size", self.dataset_size)
        require_count("largest_batch", self.largest_batch)
        _require_kind("mechanism", self.mechanism, Gaussian)


class SampledWithoutReplacement(Tagged, frozen=True):
    """A mechanism on a batch of fixed size; every such batch is equally likely.

    Attributes:
        mechanism: The mechanism that is applied to the batch.
        batch_size: Number of records in the batch; at least 1.
        dataset_size: Number of records in the data set; at least ``batch_size``.

    Raises:
        InvalidArgument: If a size is no whole number or out of its range, or ``mechanism`` is
            not an elementary mechanism.

    Example:
        >>> step = SampledWithoutReplacement(Gaussian(1.0), batch_size=100, dataset_size=10_000)
        >>> step.batch_size / step.dataset_size
        0.01
    """

    mechanism: ElementaryMechanism
    batch_size: int
    dataset_size: int

    def _require_valid(self) -> None:
        require_count("batch_size", self.batch_size)
        require_count("dataset_size", self.dataset_size, least=self.batch_size)
        _require_kind("mechanism", self.mechanism, ElementaryMechanism)


class RandomAllocation(Tagged, frozen=True, omit_defaults=True):
    """One pass of ``steps`` noisy sums; each record joins ``selected`` of them, drawn uniformly.

    Attributes:
        mechanism: The Gaussian that is added to every sum.
        steps: Number of sums in the pass; at least 1.
        selected: Number of different sums that each record joins, from 1 to ``steps``. Every set
            of so many sums is equally likely.

    Raises:
        InvalidArgument: If a count is no whole number or out of its range, or ``mechanism`` is not
            a Gaussian.

    References:
        Feldman & Shenfeld (2025), arXiv:2502.08202.

    Example:
        >>> RandomAllocation(Gaussian(noise_multiplier=1.0), steps=100).steps
        100
    """

    mechanism: Gaussian
    steps: int
    selected: int = 1

    def _require_valid(self) -> None:
        require_count("steps", self.steps)
        require_count("selected", self.selected)
        if self.selected > self.steps:
            raise InvalidArgument("selected", self.selected, f"at most steps, {self.steps}")
        _require_kind("mechanism", self.mechanism, Gaussian)


class TreeAggregation(Tagged, frozen=True):
    """All prefix sums of ``steps`` batches, from a binary tree whose nodes are noisy sums.

    A record joins at most one batch, and so one node of each level.

    Attributes:
        mechanism: The Gaussian that is added to every node.
        steps: Number of batches, which are the leaves of the tree; at least 1.

    Raises:
        InvalidArgument: If ``steps`` is no whole number of at least 1, or ``mechanism`` is not
            a Gaussian.

    References:
        Kairouz et al. (2021), arXiv:2103.00039, Theorem 4.1.

    Example:
        >>> TreeAggregation(Gaussian(noise_multiplier=5.0), steps=1000).steps
        1000
    """

    mechanism: Gaussian
    steps: int

    def _require_valid(self) -> None:
        require_count("steps", self.steps)
        _require_kind("mechanism", self.mechanism, Gaussian)


class BandedMatrixFactorization(Tagged, frozen=True):
    """``steps`` sums with noise that a banded strategy matrix correlates.

    The columns of the matrix have norm 1. Records are split into ``bands`` groups in advance.
    Step t draws from group t mod bands, so a record joins at steps that are ``bands`` apart.

    Attributes:
        mechanism: The Gaussian noise, before it is correlated.
        steps: Number of sums; at least 1.
        bands: Number of bands of the matrix, and of groups of records; at least 1.
        sampling_rate: Probability with which each record of the group joins the step; above 0
            and at most 1, which takes the whole group.

    Raises:
        InvalidArgument: If a count is no whole number of at least 1, ``sampling_rate`` is out of
            its range, or ``mechanism`` is not a Gaussian.

    References:
        Choquette-Choo et al. (2023), arXiv:2306.08153, Theorem 4.

    Example:
        >>> BandedMatrixFactorization(Gaussian(1.0), steps=1000, bands=10).sampling_rate
        1.0
    """

    mechanism: Gaussian
    steps: int
    bands: int
    sampling_rate: float = 1.0

    def _require_valid(self) -> None:
        require_count("steps", self.steps)
        require_count("bands", self.bands)
        require_sampling_rate("sampling_rate", self.sampling_rate)
        _require_kind("mechanism", self.mechanism, Gaussian)


class BinnedMatrixFactorization(Tagged, frozen=True):
    """``steps`` sums with noise that a banded matrix correlates; records are in random bins.

    Each record draws one of ``bins`` bins, uniformly and once, and joins the steps t with t mod
    ``bins`` equal to it. The matrix is lower triangular without negative entries, and its columns
    have norm 1; the last ones, which the end of the run cuts off, may have a smaller norm.

    Attributes:
        mechanism: The Gaussian noise, before it is correlated.
        steps: Number of sums; at least 1.
        bands: Number of bands of the matrix; at least 1.
        bins: Number of bins; at least ``bands``, so that a record's columns do not overlap.

    Raises:
        InvalidArgument: If a count is no whole number of at least 1, ``bins`` is below ``bands``,
            or ``mechanism`` is not a Gaussian.

    References:
        Choquette-Choo et al. (2024), arXiv:2410.06266, Lemma 3.2.

    Example:
        >>> BinnedMatrixFactorization(Gaussian(1.0), steps=1000, bands=4, bins=100).bins
        100
    """

    mechanism: Gaussian
    steps: int
    bands: int
    bins: int

    def _require_valid(self) -> None:
        require_count("steps", self.steps)
        require_count("bands", self.bands)
        require_count("bins", self.bins)
        if self.bins < self.bands:
            raise InvalidArgument(
                "bins", self.bins, f"at least bands, {self.bands}: otherwise columns of one record "
                "overlap, which only Monte Carlo accounts for (arXiv:2410.06266)",
            )  # fmt: skip
        _require_kind("mechanism", self.mechanism, Gaussian)


SampledMechanism = PoissonSampled | TruncatedPoisson | SampledWithoutReplacement | RandomAllocation
MultiStepMechanism = TreeAggregation | BandedMatrixFactorization | BinnedMatrixFactorization
"""Mechanisms that release several sums at once, with noise that they share."""


class Shuffled(Tagged, frozen=True):
    """Shuffled reports: every participant runs a local mechanism, and only their order is lost.

    Neighbors replace the value of one participant. All participants use the same mechanism with
    randomness of their own. The shuffler reveals the reports, not who sent which.

    Attributes:
        mechanism: The local mechanism of one report, by its guarantee or randomized response.
            ``PureDP`` covers any local mechanism with this epsilon, such as Laplace noise.
        participants: Number of participants whose reports are surely shuffled; at least 1.

    Raises:
        InvalidArgument: If ``participants`` is no whole number of at least 1, or ``mechanism`` is
            neither ``PureDP`` nor ``RandomizedResponse``.

    References:
        Feldman, McMillan & Talwar (2021), arXiv:2012.12803.

    Example:
        >>> Shuffled(PureDP(epsilon=1.0), participants=100_000).participants
        100000
    """

    mechanism: PureDP | RandomizedResponse
    participants: int

    def _require_valid(self) -> None:
        require_count("participants", self.participants)
        _require_kind("mechanism", self.mechanism, PureDP | RandomizedResponse)


class SparseVector(Tagged, frozen=True):
    """Sparse vector technique: which queries of a stream exceed a threshold, up to a number.

    A query is compared with the threshold, with Laplace noise on both. The stream ends with the
    last of ``answers`` positive results. The noise of the threshold is drawn again after every
    positive result, the noise of a query for every query. Later queries may depend on earlier
    results. Every positive result, with the negative ones before it, is (e, 0)-DP with
    e = sensitivity (1 / threshold_scale + 2 / query_scale), in nats.

    Attributes:
        threshold_scale: Scale of the Laplace noise on the threshold; above 0 and finite.
        query_scale: Scale of the Laplace noise on each query; above 0 and finite.
        answers: Number of positive results after which the stream ends; at least 1.
        sensitivity: Largest change of a query, or of query minus threshold, between neighbors,
            under the adjacency that epsilon is computed for; above 0 and finite.

    Raises:
        InvalidArgument: If a scale or ``sensitivity`` is not above 0 and finite, or ``answers`` is
            no whole number of at least 1.

    References:
        Dwork & Roth (2014), doi:10.1561/0400000042, Algorithm 2 and Theorem 3.25.

    Example:
        >>> SparseVector(threshold_scale=20.0, query_scale=40.0, answers=10).sensitivity
        1.0
    """

    threshold_scale: float
    query_scale: float
    answers: int
    sensitivity: float = 1.0

    def _require_valid(self) -> None:
        _require_sparse_vector(self)


class MonotoneSparseVector(Tagged, frozen=True):
    """Sparse vector technique on monotone queries, as ``SparseVector`` otherwise.

    Monotone: between any two neighbors, all queries change in the same direction, or not at all.
    Counts are an example where a record is added or removed. Every positive result, with the
    negative ones before it, is (e, 0)-DP with
    e = sensitivity (1 / threshold_scale + 1 / query_scale), in nats.

    Attributes:
        threshold_scale: Scale of the Laplace noise on the threshold; above 0 and finite.
        query_scale: Scale of the Laplace noise on each query; above 0 and finite.
        answers: Number of positive results after which the stream ends; at least 1.
        sensitivity: Largest change of a query between neighbors; above 0 and finite.

    Raises:
        InvalidArgument: If a scale or ``sensitivity`` is not above 0 and finite, or ``answers`` is
            no whole number of at least 1.

    References:
        Lyu, Su & Li (2017), arXiv:1603.01699, Theorem 5.

    Example:
        >>> MonotoneSparseVector(threshold_scale=20.0, query_scale=20.0, answers=10).answers
        10
    """

    threshold_scale: float
    query_scale: float
    answers: int
    sensitivity: float = 1.0

    def _require_valid(self) -> None:
        _require_sparse_vector(self)


class FixedThresholdSparseVector(Tagged, frozen=True):
    """Sparse vector technique whose threshold noise is drawn once, for all positive results.

    The whole stream is (e, 0)-DP with
    e = sensitivity (1 / threshold_scale + 2 answers / query_scale), in nats. The positive results
    share the threshold's noise, so no composition theorem improves on this.

    Attributes:
        threshold_scale: Scale of the Laplace noise on the threshold; above 0 and finite.
        query_scale: Scale of the Laplace noise on each query; above 0 and finite.
        answers: Number of positive results after which the stream ends; at least 1.
        sensitivity: Largest change of a query between neighbors; above 0 and finite.

    Raises:
        InvalidArgument: If a scale or ``sensitivity`` is not above 0 and finite, or ``answers`` is
            no whole number of at least 1.

    References:
        Lyu, Su & Li (2017), arXiv:1603.01699, Algorithm 1 and Theorem 2.

    Example:
        >>> FixedThresholdSparseVector(threshold_scale=2.0, query_scale=40.0, answers=10).answers
        10
    """

    threshold_scale: float
    query_scale: float
    answers: int
    sensitivity: float = 1.0

    def _require_valid(self) -> None:
        _require_sparse_vector(self)


ThresholdComparison = SparseVector | MonotoneSparseVector | FixedThresholdSparseVector
"""Sparse vector techniques that release comparisons alone."""


class NumericSparseVector(Tagged, frozen=True):
    """Sparse vector technique that also releases the value of every query above the threshold.

    After each positive result, the value of this query is released with fresh Laplace noise. The
    noise of the comparison is not used again.

    Attributes:
        comparison: The comparisons with the threshold.
        value_scale: Scale of the Laplace noise on a released value; above 0 and finite. The
            sensitivity of a value is that of the comparison.

    Raises:
        InvalidArgument: If ``value_scale`` is not above 0 and finite, or ``comparison`` is no
            sparse vector technique.

    References:
        Dwork & Roth (2014), doi:10.1561/0400000042, Algorithm 3 and Theorem 3.28.

    Example:
        >>> choice = SparseVector(threshold_scale=20.0, query_scale=40.0, answers=10)
        >>> NumericSparseVector(choice, value_scale=90.0).comparison.answers
        10
    """

    comparison: ThresholdComparison
    value_scale: float

    def _require_valid(self) -> None:
        require_positive("value_scale", self.value_scale)
        _require_kind("comparison", self.comparison, ThresholdComparison)

    @classmethod
    def from_epsilon(
        cls, epsilon: float, answers: int, sensitivity: float = 1.0
    ) -> NumericSparseVector:
        """Return the scales of Dwork & Roth's NumericSparse for a total epsilon at delta 0.

        With c answers and s the sensitivity: 2 c s / (8 epsilon / 9) on the threshold, twice that
        on a query, and 2 c s / (2 epsilon / 9) on a value. The comparisons take 8/9 of epsilon,
        the values 1/9.

        Args:
            epsilon: Epsilon of the whole stream, in nats; above 0 and finite.
            answers: Number of positive results; at least 1.
            sensitivity: Largest change of a query between neighbors; above 0 and finite.

        Returns:
            The mechanism.

        Raises:
            InvalidArgument: If an argument is out of its range.

        References:
            Dwork & Roth (2014), doi:10.1561/0400000042, Algorithm 3.

        Example:
            >>> NumericSparseVector.from_epsilon(9.0, answers=4).value_scale
            4.0
        """
        require_positive("epsilon", epsilon)
        unit = 2 * answers * sensitivity / epsilon
        comparison = SparseVector(unit * 9 / 8, unit * 9 / 4, answers, sensitivity)
        return cls(comparison, unit * 9 / 2)


SparseVectorMechanism = ThresholdComparison | NumericSparseVector


def _require_sparse_vector(mechanism: ThresholdComparison) -> None:
    """Refuse scales or a sensitivity that are not above 0, and an invalid number of answers."""
    require_positive("threshold_scale", mechanism.threshold_scale)
    require_positive("query_scale", mechanism.query_scale)
    require_count("answers", mechanism.answers)
    require_positive("sensitivity", mechanism.sensitivity)


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
        _require_kind("mechanism", self.mechanism, Mechanism)
        _require_kind("trials", self.trials, TrialCount)


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
        _require_kind("mechanism", self.mechanism, Mechanism)


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
            _require_kind("mechanisms", part, Mechanism)


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


def _require_kind(name: str, value: object, kind: Any) -> None:
    """Refuse a value that is not of a class, or of a union of classes."""
    if not isinstance(value, kind):
        members = getattr(kind, "__args__", (kind,))
        names = " or ".join(member.__name__ for member in members)
        many = len(members) > MOST_NAMED_KINDS
        raise InvalidArgument(name, value, "a mechanism, as Gaussian(1.0)" if many else names)
