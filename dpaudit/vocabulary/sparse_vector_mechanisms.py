"""Sparse vector techniques: streams of comparisons with a threshold."""

from __future__ import annotations

from dpaudit.vocabulary.errors import require_count, require_positive
from dpaudit.vocabulary.tagged import Tagged, require_kind


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
        require_kind("comparison", self.comparison, ThresholdComparison)

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
