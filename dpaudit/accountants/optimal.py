"""Optimal composition of (epsilon, 0)-DP releases: exact for equal ones, from above for others.

The worst releases are randomized responses with losses +-epsilon; composed, their loss is a
sum, and with P and Q its law with and without the record (Kairouz, Oh & Viswanath 2015,
arXiv:1311.0776, Theorem 3.3)

    delta(epsilon) = largest over thresholds x of P[loss >= x] - e^epsilon Q[loss >= x],

so that epsilon at delta is the largest log((P[loss >= x] - delta)/Q[loss >= x]). For k equal
releases the loss is (k - 2 l) epsilon with l binomial. For different ones the exact answer is
#P-hard (Murtagh & Vadhan 2016, arXiv:1507.03113): each group's law is spread onto a lattice
with P and Q kept, which can only raise delta, and the groups are convolved by sums of
positive numbers, whose relative error is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.special import log_gamma

Array = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-53
NEGLIGIBLE = 45.0  # what is cut off is below exp(-NEGLIGIBLE) of delta
MOST_ATOMS = 2_000_000
MOST_PRODUCTS = 2e9
LEAST_DELTA = 1e-270  # below, products underflow
CELLS_A_DEVIATION = 50.0
FEW_ATOMS = 8
WEIGHT_ROUNDING = 1e-11


@dataclass(frozen=True)
class Law:
    """Losses in falling order, the logarithms of their probabilities under P, and errors.

    ``lost`` bounds the probability of larger losses, left out; ``rounding`` the relative
    error of each probability. Losses below the last are left out, too, as likely as ``rest``.
    """

    loss: Array
    log_mass: Array
    lost: float
    rounding: float
    rest: float = 0.0


def compose(epsilons: Mapping[float, int], delta: float) -> float:
    """Return an upper bound of epsilon at ``delta`` of that many releases of each epsilon.

    Infinite where it would take too long to find one: other theorems have to stand in.
    """
    groups = {epsilon: times for epsilon, times in epsilons.items() if epsilon > 0}
    if not groups:
        return 0.0
    if not (delta >= LEAST_DELTA and max(groups) < math.inf):
        return math.inf
    laws = [equal(epsilon, times, delta) for epsilon, times in groups.items()]
    if any(law is None for law in laws):
        return math.inf
    known = [law for law in laws if law is not None]
    law = known[0] if len(known) == 1 else _different(groups, known, delta)
    return math.inf if law is None else epsilon_of(law, delta)


def equal(epsilon: float, times: int, delta: float) -> Law | None:
    """Return the law of ``times`` equal releases; None where it has too many atoms."""
    log_low = -float(np.logaddexp(0.0, epsilon))
    log_high = -math.log1p(math.exp(-epsilon))
    mean = times * math.exp(log_low)
    # Hoeffding's inequality: fewer low answers, and so a larger loss, or more, are as good
    # as impossible.
    reach = math.sqrt(times * (NEGLIGIBLE - math.log(delta)) / 2) + 1
    first, last = max(0, math.floor(mean - reach)), min(times, math.ceil(mean + reach))
    if last - first > MOST_ATOMS:
        return None
    low = np.arange(first, last + 1, dtype=np.float64)
    parts = [log_gamma(times + 1.0), log_gamma(low + 1), log_gamma(times - low + 1)]
    log_mass = parts[0] - parts[1] - parts[2] + (times - low) * log_high + low * log_low
    rounding = 8 * UNIT_ROUNDOFF * (4 + float(parts[0]) * 3 + times * -log_high + last * -log_low)
    cut = delta * math.exp(-NEGLIGIBLE)
    return Law(
        (times - 2 * low) * epsilon,
        log_mass,
        cut if first > 0 else 0.0,
        rounding,
        cut if last < times else 0.0,
    )


def epsilon_of(law: Law, delta: float) -> float:
    """Return an upper bound of epsilon at ``delta`` of a law."""
    rounding = law.rounding + 4 * UNIT_ROUNDOFF * (len(law.loss) + float(np.abs(law.loss).max()))
    if not rounding < 1:  # losses so large that nothing is known of them
        return math.inf
    log_p = np.logaddexp.accumulate(law.log_mass) + rounding
    log_q = np.logaddexp.accumulate(law.log_mass - law.loss) - rounding
    # No threshold below the last has more than all of P above it, or less of Q.
    above = np.append(np.minimum(1.0, np.exp(log_p) + law.lost), 1.0 if law.rest > 0 else 0.0)
    beneath = np.append(log_q, log_q[-1])
    spare = above - delta * (1 - 1e-15)
    if not spare.max() > 0:
        return 0.0
    log_ratio = np.log(spare[spare > 0]) - beneath[spare > 0]
    return max(0.0, float(log_ratio.max()) * (1 + 1e-14) + 1e-14)


def _different(groups: Mapping[float, int], laws: list[Law], delta: float) -> Law | None:
    """Return a law on a lattice that dominates the composition of several groups."""
    spread = math.sqrt(sum(times * e * e for e, times in groups.items()))
    spacing = spread / (CELLS_A_DEVIATION * math.sqrt(len(laws)))
    cut = delta * 1e-13 / len(laws)
    total, products = _Lattice(0, np.ones(1), 0.0, 0.0), 0.0
    # Large groups last: what is convolved first stays short.
    for law in sorted(laws, key=lambda law: len(law.loss)):
        if not (law.loss[0] - law.loss[-1]) / spacing < MOST_ATOMS:
            return None
        part = _on_lattice(law, spacing).trimmed(cut)
        atoms = int(np.count_nonzero(part.mass))
        products += len(total.mass) * (atoms if atoms <= FEW_ATOMS else len(part.mass))
        if products > MOST_PRODUCTS:
            return None
        total = total.plus(part).trimmed(cut)
    with np.errstate(divide="ignore"):
        log_mass = np.asarray(np.log(total.mass[::-1]), dtype=np.float64)
    loss = spacing * (total.first + np.arange(len(total.mass), dtype=np.float64)[::-1])
    return Law(loss, log_mass, total.lost, total.rounding)


@dataclass(frozen=True)
class _Lattice:
    """Probabilities under P of the losses first, first + 1, ..; errors as in ``Law``."""

    first: int
    mass: Array
    lost: float
    rounding: float

    def plus(self, other: _Lattice) -> _Lattice:
        """Return the law of the sum of two independent losses."""
        atoms = np.flatnonzero(other.mass)
        if len(atoms) <= FEW_ATOMS:
            mass = np.zeros(len(self.mass) + len(other.mass) - 1)
            for atom in atoms:
                mass[atom : atom + len(self.mass)] += other.mass[atom] * self.mass
        else:
            mass = np.convolve(self.mass, other.mass)
        terms = 2 + min(len(self.mass), len(other.mass))
        return _Lattice(
            self.first + other.first,
            mass,
            self.lost + other.lost + 1e-290,  # with what underflows
            self.rounding + other.rounding + 2 * terms * UNIT_ROUNDOFF,
        )

    def trimmed(self, cut: float) -> _Lattice:
        """Return the law without ends as unlikely as ``cut``: large losses lost, small raised."""
        last = len(self.mass) - int(np.searchsorted(np.cumsum(self.mass[::-1]), cut))
        start = min(int(np.searchsorted(np.cumsum(self.mass), cut)), last - 1)
        mass = self.mass[start:last].copy()
        mass[0] += self.mass[:start].sum()
        lost = self.lost + float(self.mass[last:].sum()) * (1 + 1e-9)
        return _Lattice(self.first + start, mass, lost, self.rounding + 1e-15)


def _on_lattice(law: Law, spacing: float) -> _Lattice:
    """Spread each atom onto the lattice points around it, with its P and its Q kept."""
    at = np.floor(law.loss / spacing)
    offset = law.loss - at * spacing
    upper = np.expm1(-offset) / math.expm1(-spacing) + WEIGHT_ROUNDING
    upper = np.clip(upper, 0.0, 1.0)
    first = int(at.min())
    index = (at - first).astype(np.int64)
    weight = np.exp(law.log_mass)
    mass = np.zeros(int(index.max()) + 2)
    np.add.at(mass, index, weight * (1 - upper))
    np.add.at(mass, index + 1, weight * upper)
    mass[0] += law.rest
    return _Lattice(first, mass, law.lost, law.rounding + 1e-13)
