"""Mechanisms on samples of the data, on shuffled reports, and with correlated noise."""

from __future__ import annotations

from dpaudit.vocabulary.elementary_mechanisms import (
    ElementaryMechanism,
    Gaussian,
    PureDP,
    RandomizedResponse,
)
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_sampling_rate
from dpaudit.vocabulary.tagged import Tagged, require_kind


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
        require_kind("mechanism", self.mechanism, ElementaryMechanism)


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
        require_kind("mechanism", self.mechanism, Gaussian)


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
        require_kind("mechanism", self.mechanism, ElementaryMechanism)


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
        require_kind("mechanism", self.mechanism, Gaussian)


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
        require_kind("mechanism", self.mechanism, Gaussian)


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
        require_kind("mechanism", self.mechanism, Gaussian)


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
        require_kind("mechanism", self.mechanism, Gaussian)


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
        require_kind("mechanism", self.mechanism, PureDP | RandomizedResponse)
