"""Lower bound on epsilon for a random split into classes of fixed sizes.

A train/test split is not a list of fair coins. The sizes n1 of the members and n0 of the
non-members are given, and each set of n1 of the n = n1 + n0 records is equally likely to be the
set S of members. From the scores, and without reading S, the auditor chooses disjoint sets of
records: G (g records, guessed to be members) and H (h records, guessed to be non-members). The
other records are not guessed. Write K = |S in G|, R = |S in (G or H)|, and P_S for the law of
the mechanism's output y on the members S.

**delta = 0.** Fix y, and the members outside of G and H. For a member a in G and a non-member b
in H, P_S(y) <= omega P_{S - a + b}(y). Under add-or-remove-one this takes two steps, so
omega = e^(2 epsilon); under replace-one omega = e^epsilon. Let A_j be the sum of P_S(y) over
the S with K = j. Each S with K = j + 1 has (j + 1)(h - R + j + 1) such exchanges, and each S
with K = j is reached by (g - j)(R - j) of them. Counting both ways,

    c_(j+1) A_(j+1) <= omega d_j A_j,    c_(j+1) = (j + 1)(h - R + j + 1),  d_j = (g - j)(R - j).

These are the ratios of Fisher's noncentral hypergeometric law f with odds omega, so
P(K >= k) <= F_k = sum of f_j over j >= k, for each y. G and H may therefore be any functions
of y: no threshold has to be fixed before the scores are read.

**delta > 0.** Take the exchange as two steps: T = S - a, then T + b. With A'_j the same sum over
the sets T of n1 - 1 records with j of them in G and R - 1 in G or H,

    (j + 1) A_(j+1)       <= e^epsilon (g - j) A'_j + D_j,
    (h - R + j + 1) A'_j  <= e^epsilon (R - j) A_j  + D'_j,

where D_j collects (P_S - e^epsilon P_T)^+ over S and a, and D'_j collects (P_T - e^epsilon
P_S)^+ over T and b, both integrated over y. With each S weighted by 1 / C(n, n1), all D_j
together are at most n1 delta, and so are all D'_j: C(n, n1 - 1)(n0 + 1) = C(n, n1) n1. Hence

    c_(j+1) A_(j+1) <= omega d_j A_j + (h - R + j + 1) D_j + e^epsilon (g - j) D'_j.

Write A_j = p f_j u_j with p the total, and x_j = max(0, u_(j+1) - u_j), so that u_i is at most
u_l plus the x_j with l <= j < i. Weight this with f_i f_l, sum it over l < k <= i, and use that
the f_j u_j add up to 1:

    P(K >= k) / p <= F_k + sum over j of x_j F_(max(k, j+1)) (1 - F_(min(j+1, k))).

The last two terms of the inequality above, over c_(j+1) f_(j+1), bound p x_j. As f is
log-concave, F_j/f_j falls and (1 - F_(j+1))/f_j rises with j. With c_(j+1) f_(j+1) =
omega d_j f_j, the factor of each unit of D_j and of D'_j rises with j below k and falls from
k on. Its largest value, at j = k - 1, gives

    X  = delta n1 F_k / (k f_k)                                for D,
    X' = X e^epsilon (g - k + 1) / (h - R + k)                 for D'.

P(K >= k) is at most F_k + X + X' if g, h and R are constants. Here they depend on the scores
and on S, and the D may all fall on one value of (g, h, R). The test therefore rejects where
F_k <= alpha - 2 beta, X <= beta and X' <= beta: summed over the values of (g, h, R), F is at
most alpha - 2 beta, and D and D' add at most beta each. All three rise with epsilon and fall
with k, so that the largest rejected epsilon is a lower bound with confidence 1 - alpha.

The same holds with members and non-members exchanged (T = S + b, then T - a). The smaller class
has the smaller budget, so its version is used; this choice depends on the sizes alone. Under
replace-one there is one step, with a budget of n1 n0 delta:

    X = delta n1 n0 F_k / (k (h - R + k) f_k),    X' = 0.

As a check: if all records are guessed, g = n1, and all guesses are right, then X is about delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.bounds.lower_bound import LowerBound, bisect_largest, require_delta_or_zero
from dpaudit.vocabulary.audit import BoundKind, ClassGuesses
from dpaudit.vocabulary.errors import require_open_unit
from dpaudit.vocabulary.privacy_terms import Adjacency

Array = NDArray[np.float64]

ASSUMES_RANDOM_SPLIT = (
    "that the members are a uniformly random choice of this size among the records, and that "
    "scores were computed without reading the membership"
)

DELTA_SHARE = 0.1  # beta over alpha, for each of the two terms of delta
SUMMED_DEVIATIONS = 12.0  # standard deviations of K around k over which probabilities are summed
MAX_EXPONENT = 700.0  # of exp, short of overflow
MAX_FIXED_SIZES_EPSILON = 60.0  # in nats, end of the search
LOG_SUM_ROUNDING = 1e-9  # relative, of a sum of exponentials of sums of logarithms, with room


def fixed_sizes(
    guesses: ClassGuesses,
    *,
    delta: float,
    confidence: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> LowerBound:
    """Compute the lower bound on epsilon for a random split of fixed class sizes.

    Args:
        guesses: Class sizes, and the numbers of guesses and of correct guesses of each class.
        delta: In [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).
        adjacency: The neighbor relation of epsilon.

    Returns:
        The bound. It is conditional on the random split, which the counts do not show.

    Raises:
        InvalidArgument: If a number is out of range.

    References:
        Derived in this module. Fisher's noncentral hypergeometric law: Harkness (1965).

    Example:
        >>> guesses = ClassGuesses(
        ...     members=1000, nonmembers=500,
        ...     guessed_in=1000, right_in=950, guessed_out=500, right_out=450,
        ... )
        >>> round(fixed_sizes(guesses, delta=0.0, confidence=0.95).epsilon, 2)
        2.39
    """
    epsilon = fixed_sizes_epsilon(
        members=guesses.members,
        nonmembers=guesses.nonmembers,
        guessed_in=guesses.guessed_in,
        right_in=guesses.right_in,
        guessed_out=guesses.guessed_out,
        right_out=guesses.right_out,
        delta=delta,
        confidence=confidence,
        adjacency=adjacency,
    )
    return LowerBound(epsilon, BoundKind.CONDITIONAL, confidence, ASSUMES_RANDOM_SPLIT)


def fixed_sizes_epsilon(
    *,
    members: int,
    nonmembers: int,
    guessed_in: int,
    right_in: int,
    guessed_out: int,
    right_out: int,
    delta: float,
    confidence: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> float:
    """Compute the epsilon of ``fixed_sizes`` from the counts.

    Args:
        members: Number of members, n1.
        nonmembers: Number of non-members, n0.
        guessed_in: Number of records guessed to be members, g.
        right_in: Number of members among these, K.
        guessed_out: Number of records guessed to be non-members, h.
        right_out: Number of non-members among these.
        delta: In [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).
        adjacency: The neighbor relation of epsilon.

    Returns:
        The largest rejected epsilon in nats; 0 where none is rejected.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.
    """
    guesses = ClassGuesses(members, nonmembers, guessed_in, right_in, guessed_out, right_out)
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)
    test = _FixedSizesTest(guesses, delta, 1 - confidence, adjacency)
    return bisect_largest(test.rejects, 0.0, MAX_FIXED_SIZES_EPSILON) if test.rejects(0.0) else 0.0


def is_rejected(
    guesses: ClassGuesses,
    *,
    epsilon: float,
    delta: float,
    confidence: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> bool:
    """Test whether the correct guesses refute ``epsilon``.

    Args:
        guesses: Class sizes, and the numbers of guesses and of correct guesses of each class.
        epsilon: The tested epsilon in nats, at least 0.
        delta: In [0, 1).
        confidence: 1 minus the level of the test, in (0, 1).
        adjacency: The neighbor relation of epsilon.

    Returns:
        Whether ``epsilon`` is refuted: ``fixed_sizes`` gives no smaller bound.
    """
    return _FixedSizesTest(guesses, delta, 1 - confidence, adjacency).rejects(epsilon)


def greatest_epsilon(
    *,
    members: int,
    nonmembers: int,
    guessed_in: int,
    guessed_out: int,
    delta: float,
    confidence: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> float:
    """Compute the largest epsilon that ``fixed_sizes`` can give for these numbers of guesses.

    The guesses are then as correct as the class sizes allow: members fill the records guessed
    to be members first, then the records without a guess, and the records guessed to be
    non-members last.

    Args:
        members: Number of members, n1.
        nonmembers: Number of non-members, n0.
        guessed_in: Number of records guessed to be members, g.
        guessed_out: Number of records guessed to be non-members, h.
        delta: In [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).
        adjacency: The neighbor relation of epsilon.

    Returns:
        The largest attainable bound, in nats.

    Raises:
        InvalidArgument: If the counts contradict each other, or a number is out of range.

    Example:
        >>> epsilon = greatest_epsilon(
        ...     members=1000, nonmembers=500, guessed_in=1000, guessed_out=500,
        ...     delta=0.0, confidence=0.95,
        ... )
        >>> round(epsilon, 2)
        5.72
    """
    unguessed = members + nonmembers - guessed_in - guessed_out
    right_in = min(guessed_in, members)
    return fixed_sizes_epsilon(
        members=members,
        nonmembers=nonmembers,
        guessed_in=guessed_in,
        right_in=right_in,
        guessed_out=guessed_out,
        right_out=guessed_out - max(0, members - right_in - unguessed),
        delta=delta,
        confidence=confidence,
        adjacency=adjacency,
    )


@dataclass(frozen=True)
class _FixedSizesTest:
    """The test of the hypothesis "the mechanism is (epsilon, delta)-DP" at level ``alpha``."""

    guesses: ClassGuesses
    delta: float
    alpha: float
    adjacency: Adjacency

    def rejects(self, epsilon: float) -> bool:
        """Return whether F_k <= alpha - 2 beta, X <= beta and X' <= beta at ``epsilon``."""
        beta = DELTA_SHARE * self.alpha if self.delta > 0 else 0.0
        tail, *excesses = self.terms(epsilon)
        return tail <= self.alpha - 2 * beta and max(excesses) <= beta

    def terms(self, epsilon: float) -> tuple[float, float, float]:
        """Compute upper bounds on F_k, X and X'.

        Args:
            epsilon: The tested epsilon in nats, at least 0.

        Returns:
            The three bounds. Where k is below the mode they are trivial: 1 and infinity.
        """
        upper = self._upper_terms(self._log_odds(epsilon))
        if upper is None:
            return 1.0, math.inf, math.inf
        tail = upper / (upper + self._below(epsilon))
        return tail, *self._excesses(epsilon, upper)

    def _log_odds(self, epsilon: float) -> float:
        """Return ln omega: epsilon under replace-one, 2 epsilon under add-or-remove-one."""
        return epsilon if self.adjacency is Adjacency.REPLACE_ONE else 2 * epsilon

    def _upper_terms(self, log_odds: float) -> float | None:
        """Return an upper bound on F_k / f_k; None where k is below the mode, so no rejection."""
        steps = self._ratios_above
        if len(steps) == 0:
            return 1.0
        if steps[0] + log_odds > 0:
            return None
        exponents = np.cumsum(steps + log_odds)
        # The ratios fall, so that a geometric series bounds the rest of the sum.
        last = math.exp(min(0.0, steps[-1] + log_odds))
        beyond = 0.0 if self._reaches_end else last / max(1 - last, LOG_SUM_ROUNDING)
        total = 1.0 + float(np.exp(exponents).sum()) + math.exp(exponents[-1]) * beyond
        return total * (1 + LOG_SUM_ROUNDING)

    def _below(self, epsilon: float) -> float:
        """Return a lower bound on (1 - F_k) / f_k: probabilities far below k are dropped."""
        exponents = np.cumsum(-self._ratios_below - self._log_odds(epsilon))
        # Rounding of the exponents is absolute, of each power relative.
        powers = np.exp(np.minimum(exponents, MAX_EXPONENT))
        return float(powers.sum()) * (1 - LOG_SUM_ROUNDING)

    def _excesses(self, epsilon: float, upper: float) -> tuple[float, float]:
        """Return X and X' of the module's derivation, given an upper bound on F_k / f_k."""
        g = self.guesses
        if self.delta == 0:
            return 0.0, 0.0
        if g.right_in == 0 or g.right_out == 0:
            return math.inf, math.inf
        if self.adjacency is Adjacency.REPLACE_ONE:
            pairs = (g.members / g.right_in) * (g.nonmembers / g.right_out)
            return self.delta * pairs * upper, 0.0
        size, right, other_wrong, other_right = (
            (g.members, g.right_in, g.guessed_in - g.right_in, g.right_out)
            if g.members <= g.nonmembers
            else (g.nonmembers, g.right_out, g.guessed_out - g.right_out, g.right_in)
        )
        first = self.delta * size / right * upper
        return first, first * math.exp(epsilon) * (other_wrong + 1) / other_right

    @cached_property
    def _bounds(self) -> tuple[int, int, int]:
        """Return the least and the largest possible K, and the summed distance from k."""
        g = self.guesses
        inside = g.right_in + g.guessed_out - g.right_out  # R
        smallest = min(g.guessed_in, g.guessed_out, inside, g.guessed_in + g.guessed_out - inside)
        # The variance of a noncentral hypergeometric law is at most a quarter of each margin.
        reach = int(SUMMED_DEVIATIONS * (math.sqrt(max(smallest, 0)) / 2 + 5))
        return max(0, inside - g.guessed_out), min(g.guessed_in, inside), reach

    def _log_ratios(self, j: Array) -> Array:
        """Return ln(d_j / c_(j+1)), central: f_(j+1) / f_j without the odds."""
        g = self.guesses
        inside = g.right_in + g.guessed_out - g.right_out
        gained = np.log(g.guessed_in - j) + np.log(inside - j)
        return np.asarray(gained - np.log(j + 1) - np.log(g.guessed_out - inside + j + 1))

    @cached_property
    def _ratios_above(self) -> Array:
        """Central log ratios f_(j+1) / f_j for j = k, k + 1, ..."""
        _, highest, reach = self._bounds
        k = self.guesses.right_in
        return self._log_ratios(np.arange(k, min(highest, k + reach), dtype=np.float64))

    @cached_property
    def _ratios_below(self) -> Array:
        """Central log ratios f_(j+1) / f_j for j = k - 1, k - 2, ..."""
        lowest, _, reach = self._bounds
        k = self.guesses.right_in
        return self._log_ratios(np.arange(k - 1, max(lowest, k - reach) - 1, -1, dtype=np.float64))

    @property
    def _reaches_end(self) -> bool:
        """Whether the sum above k includes the largest possible K."""
        _, highest, reach = self._bounds
        return self.guesses.right_in + reach >= highest
