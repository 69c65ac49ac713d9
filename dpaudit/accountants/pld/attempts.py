"""Evaluations of a profile of which some may fail, and how fine their cells become."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from dpaudit.accountants.numerics import CertifiedInterval
from dpaudit.accountants.pld.allocation.cell_widths import COARSE_CELLS
from dpaudit.accountants.pld.laws.loss_query import LossQuery
from dpaudit.vocabulary.errors import Unresolvable

OTHER_METHOD = "bounds of other accountants"

IntervalFunction = Callable[[LossQuery], CertifiedInterval]
"""Returns the interval of a query."""


class Attempts:
    """Evaluations of which some may fail, where another bound may take their place.

    Args:
        largest: The trivial upper end of a failed evaluation.
        likely_delta: Function from the interval by dominating pairs to about its delta, for
            which attained pairs are chosen.
        finer: Function from an interval and the width of cells to a smaller width, or to the same
            one where the interval is narrow enough. See ``cell_widths``.
    """

    def __init__(
        self,
        largest: float,
        *,
        likely_delta: Callable[[CertifiedInterval], float],
        finer: Callable[[CertifiedInterval, float], float],
    ) -> None:
        self._largest = largest
        self._error: Unresolvable | None = None
        self._finer = finer
        self.likely_delta = likely_delta
        self._finest = COARSE_CELLS
        self.sufficient_upper = 0.0

    def refine(self, answer: CertifiedInterval, query: LossQuery) -> LossQuery | None:
        """Return a query with smaller cells of random allocations, or None if that cannot help.

        Args:
            answer: The interval so far.
            query: The query that gave it.

        Returns:
            The query, or None.
        """
        if answer.upper <= self.sufficient_upper:
            return None
        finer = self._finer(answer, query.fineness)
        if not finer < query.fineness:
            return None
        # The laws by the cells of the other direction exist already.
        self._finest = finer if query.fineness <= self._finest else self._finest
        return replace(query, fineness=self._finest, least_delta=self.likely_delta(answer))

    def evaluate(self, solve: IntervalFunction, query: LossQuery) -> CertifiedInterval:
        """Return the interval of a query; where the evaluation fails, the trivial one.

        Args:
            solve: Evaluates the query.
            query: Releases, adjacency, direction and side.

        Returns:
            The interval.
        """
        try:
            return solve(query)
        except Unresolvable as error:
            self._error = self._error or error
        except (OverflowError, ZeroDivisionError) as error:
            self._error = self._error or Unresolvable(
                f"the computation leaves the range of floats: {error}"
            )
        return CertifiedInterval(0.0, self._largest, OTHER_METHOD)

    def require_upper_ends(
        self, answers: Iterable[CertifiedInterval], reason: Callable[[], str]
    ) -> None:
        """Raise the error of an evaluation whose place no other bound took.

        Args:
            answers: The intervals of all directions.
            reason: Names what is missing where no evaluation failed.

        Raises:
            Unresolvable: If an upper end is trivial.
        """
        trivial = any(answer.upper >= self._largest for answer in answers)
        if trivial and self._error is not None:
            raise self._error
        if trivial and self._largest == math.inf:
            raise Unresolvable(
                f"no accountant gives an upper bound of epsilon at this delta: {reason()}; add "
                "noise, or use a larger delta"
            )
