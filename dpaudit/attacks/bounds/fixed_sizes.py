"""Lower bound on epsilon for a random split into classes of fixed sizes.

A train/test split is not a list of fair coins: the sizes n1 of the members and n0 of the
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

from dpaudit.attacks.bounds.result import LowerBound, require_delta_or_zero
from dpaudit.attacks.bounds.search import largest
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import require_open_unit
from dpaudit.vocabulary.estimators import ClassGuesses

Array = NDArray[np.float64]

RANDOM_SPLIT = (
    "that the members are a uniformly random choice of as many of the records, and scores that "
    "were computed without reading who was a member"
)

DELTA_SHARE = 0.1  # beta over alpha, for each of the two terms of delta
DEVIATIONS = 12.0  # of K: how far from k probabilities are summed
LARGEST_EXPONENT = 700.0
LARGEST_EPSILON = 60.0
ROUNDING = 1e-9  # relative, of a sum of exponentials of sums of logarithms, with room


def fixed_sizes(
    guesses: ClassGuesses,
    *,
    delta: float,
    confidence: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> LowerBound:
    """Compute the lower bound on epsilon for a random split of fixed class sizes.

    Args:
        guesses: Class sizes, and how many records were guessed, and rightly, in each class.
        delta: In [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).
        adjacency: The relation that epsilon is for.

    Returns:
        The bound. It is conditional on the random split, which the counts do not show.

    Raises:
        InvalidArgument: A number is out of range.

    References:
        Derived in this module. Fisher's noncentral hypergeometric law: Harkness (1965).
    """
    epsilon = epsilon_lower(
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
    return LowerBound(epsilon, BoundKind.CONDITIONAL, confidence, RANDOM_SPLIT)


def epsilon_lower(
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
    """Compute the bound from counts alone.

    Args:
        members: How many members there are, n1.
        nonmembers: How many non-members there are, n0.
        guessed_in: How many records were guessed to be members, g.
        right_in: How many of these are members, K.
        guessed_out: How many records were guessed to be non-members, h.
        right_out: How many of these are non-members.
        delta: In [0, 1).
        confidence: In (0, 1).
        adjacency: The relation that epsilon is for.

    Returns:
        The largest epsilon that is rejected, in nats; 0 where none is.

    Raises:
        InvalidArgument: The counts contradict each other, or a number is out of range.
    """
    guesses = ClassGuesses(members, nonmembers, guessed_in, right_in, guessed_out, right_out)
    require_delta_or_zero(delta)
    require_open_unit("confidence", confidence)
    test = _Test(guesses, delta, 1 - confidence, adjacency)
    return largest(test.rejects, 0.0, LARGEST_EPSILON) if test.rejects(0.0) else 0.0


def is_rejected(
    guesses: ClassGuesses,
    *,
    epsilon: float,
    delta: float,
    confidence: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> bool:
    """Return whether so many right guesses refute ``epsilon``: the bound is above it.

    Arguments as for ``fixed_sizes``.
    """
    return _Test(guesses, delta, 1 - confidence, adjacency).rejects(epsilon)


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
    """Compute the bound that no membership of these guessed records could exceed.

    Members fill G first, then what is not guessed, and H last. Arguments as for
    ``epsilon_lower``.
    """
    unguessed = members + nonmembers - guessed_in - guessed_out
    right_in = min(guessed_in, members)
    return epsilon_lower(
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
class _Test:
    """The test of "epsilon is at most this" at level ``alpha``."""

    guesses: ClassGuesses
    delta: float
    alpha: float
    adjacency: Adjacency

    def rejects(self, epsilon: float) -> bool:
        """Return whether so many right guesses refute ``epsilon``."""
        beta = DELTA_SHARE * self.alpha if self.delta > 0 else 0.0
        tail, *excesses = self.terms(epsilon)
        return tail <= self.alpha - 2 * beta and max(excesses) <= beta

    def terms(self, epsilon: float) -> tuple[float, float, float]:
        """Return F_k, X and X', each from above; F_k is 1 where k is below the mode."""
        upper = self._upper_terms(self._log_odds(epsilon))
        if upper is None:
            return 1.0, math.inf, math.inf
        tail = upper / (upper + self._below(epsilon))
        return tail, *self._excesses(epsilon, upper)

    def _log_odds(self, epsilon: float) -> float:
        return epsilon if self.adjacency is Adjacency.REPLACE_ONE else 2 * epsilon

    def _upper_terms(self, log_odds: float) -> float | None:
        """Return F_k / f_k from above; None where k is below the mode: nothing is rejected."""
        steps = self._ratios_above
        if len(steps) == 0:
            return 1.0
        if steps[0] + log_odds > 0:
            return None
        exponents = np.cumsum(steps + log_odds)
        # Ratios fall, so that what lies beyond the last is less than a geometric series.
        last = math.exp(min(0.0, steps[-1] + log_odds))
        beyond = 0.0 if self._reaches_end else last / max(1 - last, ROUNDING)
        total = 1.0 + float(np.exp(exponents).sum()) + math.exp(exponents[-1]) * beyond
        return total * (1 + ROUNDING)

    def _below(self, epsilon: float) -> float:
        """Return (1 - F_k) / f_k from below: what lies far below is left out."""
        exponents = np.cumsum(-self._ratios_below - self._log_odds(epsilon))
        # Rounding of the exponents is absolute, of each power relative.
        powers = np.exp(np.minimum(exponents, LARGEST_EXPONENT))
        return float(powers.sum()) * (1 - ROUNDING)

    def _excesses(self, epsilon: float, upper: float) -> tuple[float, float]:
        """Return X and X'."""
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
        """Return the least and largest possible K, and how far from k to sum."""
        g = self.guesses
        inside = g.right_in + g.guessed_out - g.right_out  # R
        smallest = min(g.guessed_in, g.guessed_out, inside, g.guessed_in + g.guessed_out - inside)
        # The variance of a noncentral hypergeometric law is at most a quarter of each margin.
        reach = int(DEVIATIONS * (math.sqrt(max(smallest, 0)) / 2 + 5))
        return max(0, inside - g.guessed_out), min(g.guessed_in, inside), reach

    def _log_ratios(self, j: Array) -> Array:
        """Return ln(d_j / c_(j+1)), central: f_(j+1) / f_j without the odds."""
        g = self.guesses
        inside = g.right_in + g.guessed_out - g.right_out
        gained = np.log(g.guessed_in - j) + np.log(inside - j)
        return np.asarray(gained - np.log(j + 1) - np.log(g.guessed_out - inside + j + 1))

    @cached_property
    def _ratios_above(self) -> Array:
        _, highest, reach = self._bounds
        k = self.guesses.right_in
        return self._log_ratios(np.arange(k, min(highest, k + reach), dtype=np.float64))

    @cached_property
    def _ratios_below(self) -> Array:
        lowest, _, reach = self._bounds
        k = self.guesses.right_in
        return self._log_ratios(np.arange(k - 1, max(lowest, k - reach) - 1, -1, dtype=np.float64))

    @property
    def _reaches_end(self) -> bool:
        _, highest, reach = self._bounds
        return self.guesses.right_in + reach >= highest
