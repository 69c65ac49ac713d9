"""Compute optimal composition of (epsilon, 0)-DP releases.

The worst (epsilon, 0)-DP releases are randomized responses with losses +-epsilon. The loss of a
composition is the sum of theirs. With P and Q its distribution with and without the record,

    delta(epsilon) = max over thresholds x of P[loss >= x] - e^epsilon Q[loss >= x],

(Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, Theorem 3.3). Hence epsilon at delta is the
largest log((P[loss >= x] - delta)/Q[loss >= x]).

For k equal releases the loss is (k - 2 l) epsilon, where l is binomial; the result is exact up to
rounding. For different releases the exact result is #P-hard (Murtagh & Vadhan 2016,
arXiv:1507.03113), and the result is an upper bound. Each group's distribution is spread onto a
lattice with its P and Q masses kept, which can only raise delta. Then the groups are convolved
by sums of positive numbers, whose relative error is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.numerics import log_gamma
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF

Array = NDArray[np.float64]

NEGLIGIBLE_LOG_MASS = 45.0  # omitted masses are below exp(-NEGLIGIBLE_LOG_MASS) of delta
MOST_ATOMS = 2_000_000
MOST_PRODUCTS = 2e9
LEAST_DELTA = 1e-270  # below it products underflow
CELLS_PER_DEVIATION = 50.0  # lattice points per standard deviation of the composed loss
FEW_ATOMS = 8  # up to here a direct sum over atoms beats a convolution
WEIGHT_ROUNDING = 1e-11


@dataclass(frozen=True)
class ComposedLosses:
    """The distribution of a composed privacy loss, with error bounds.

    Attributes:
        loss: Losses in descending order, in nats, shape ``(n,)``.
        log_mass: Logarithms of their probabilities under P, shape ``(n,)``.
        lost: Upper bound on the probability of larger losses, which are omitted.
        rounding: Upper bound on the relative error of each probability.
        rest: Upper bound on the probability of smaller losses, which are omitted.
    """

    loss: Array
    log_mass: Array
    lost: float
    rounding: float
    rest: float = 0.0


def optimal_epsilon(epsilons: Mapping[float, int], delta: float) -> float:
    """Compute an upper bound of epsilon at ``delta`` for counted pure releases.

    Args:
        epsilons: The number of releases for each epsilon, in nats.
        delta: Above 0 and below 1.

    Returns:
        The upper bound in nats; infinite where it would take too long, so that other theorems
        have to be used.

    References:
        Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorem 3.3.
    """
    groups = {epsilon: times for epsilon, times in epsilons.items() if epsilon > 0}
    if not groups:
        return 0.0
    if not (delta >= LEAST_DELTA and max(groups) < math.inf):
        return math.inf
    distributions = [compose_equal(epsilon, times, delta) for epsilon, times in groups.items()]
    if any(losses is None for losses in distributions):
        return math.inf
    known = [losses for losses in distributions if losses is not None]
    losses = known[0] if len(known) == 1 else _compose_different(groups, known, delta)
    return math.inf if losses is None else epsilon_from_losses(losses, delta)


def compose_equal(epsilon: float, times: int, delta: float) -> ComposedLosses | None:
    """Compute the loss distribution of ``times`` equal releases.

    With l the number of low answers, P[l] = C(k, l) p_high^(k - l) p_low^l, where p_high =
    1/(1 + e^-epsilon), p_low = 1/(1 + e^epsilon), and the loss is (k - 2 l) epsilon.

    Args:
        epsilon: Epsilon of one release, in nats, above 0.
        times: Number of releases k.
        delta: Omitted masses are negligible next to it.

    Returns:
        The distribution; None where it has too many atoms.
    """
    log_low = -float(np.logaddexp(0.0, epsilon))
    log_high = -math.log1p(math.exp(-epsilon))
    mean = times * math.exp(log_low)
    # Hoeffding: |l - k p_low| exceeds r with probability at most 2 exp(-2 r^2/k). Fewer low
    # answers, that is, larger losses, count as lost; more count as rest.
    reach = math.sqrt(times * (NEGLIGIBLE_LOG_MASS - math.log(delta)) / 2) + 1
    first, last = max(0, math.floor(mean - reach)), min(times, math.ceil(mean + reach))
    if last - first > MOST_ATOMS:
        return None
    low = np.arange(first, last + 1, dtype=np.float64)
    parts = [log_gamma(times + 1.0), log_gamma(low + 1), log_gamma(times - low + 1)]
    log_mass = parts[0] - parts[1] - parts[2] + (times - low) * log_high + low * log_low
    rounding = 8 * UNIT_ROUNDOFF * (4 + float(parts[0]) * 3 + times * -log_high + last * -log_low)
    cut = delta * math.exp(-NEGLIGIBLE_LOG_MASS)
    return ComposedLosses(
        (times - 2 * low) * epsilon,
        log_mass,
        cut if first > 0 else 0.0,
        rounding,
        cut if last < times else 0.0,
    )


def epsilon_from_losses(losses: ComposedLosses, delta: float) -> float:
    """Compute an upper bound of epsilon at ``delta`` from a loss distribution.

    Args:
        losses: The distribution of the composed loss.
        delta: Above 0 and below 1.

    Returns:
        The upper bound in nats; infinite where rounding exceeds the probabilities.
    """
    rounding = losses.rounding + 4 * UNIT_ROUNDOFF * (
        len(losses.loss) + float(np.abs(losses.loss).max())
    )
    if not rounding < 1:  # losses so large that rounding exceeds the probabilities
        return math.inf
    log_p = np.logaddexp.accumulate(losses.log_mass) + rounding
    log_q = np.logaddexp.accumulate(losses.log_mass - losses.loss) - rounding
    # The lost mass counts for P at every threshold, and never for Q: both raise epsilon.
    # A threshold below the last loss has at most all of P above it, and no less of Q.
    above = np.append(np.minimum(1.0, np.exp(log_p) + losses.lost), 1.0 if losses.rest > 0 else 0.0)
    beneath = np.append(log_q, log_q[-1])
    spare = above - delta * (1 - 1e-15)
    if not spare.max() > 0:
        return 0.0
    log_ratio = np.log(spare[spare > 0]) - beneath[spare > 0]
    return max(0.0, float(log_ratio.max()) * (1 + 1e-14) + 1e-14)


def _compose_different(
    groups: Mapping[float, int], distributions: list[ComposedLosses], delta: float
) -> ComposedLosses | None:
    """Return a distribution on a lattice that dominates the composition of several groups."""
    spread = math.sqrt(sum(times * e * e for e, times in groups.items()))
    spacing = spread / (CELLS_PER_DEVIATION * math.sqrt(len(distributions)))
    cut = delta * 1e-13 / len(distributions)
    total, products = _Lattice(0, np.ones(1), 0.0, 0.0), 0.0
    # Large groups last, so that intermediate results stay short.
    for losses in sorted(distributions, key=lambda losses: len(losses.loss)):
        if not (losses.loss[0] - losses.loss[-1]) / spacing < MOST_ATOMS:
            return None
        part = _on_lattice(losses, spacing).trimmed(cut)
        atoms = int(np.count_nonzero(part.mass))
        products += len(total.mass) * (atoms if atoms <= FEW_ATOMS else len(part.mass))
        if products > MOST_PRODUCTS:
            return None
        total = total.plus(part).trimmed(cut)
    with np.errstate(divide="ignore"):
        log_mass = np.asarray(np.log(total.mass[::-1]), dtype=np.float64)
    loss = spacing * (total.first + np.arange(len(total.mass), dtype=np.float64)[::-1])
    return ComposedLosses(loss, log_mass, total.lost, total.rounding)


@dataclass(frozen=True)
class _Lattice:
    """Masses under P at the losses first, first + 1, .. spacings; errors as in ComposedLosses."""

    first: int
    mass: Array
    lost: float
    rounding: float

    def plus(self, other: _Lattice) -> _Lattice:
        """Return the distribution of the sum of two independent losses."""
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
            self.lost + other.lost + 1e-290,  # including underflow
            self.rounding + other.rounding + 2 * terms * UNIT_ROUNDOFF,
        )

    def trimmed(self, cut: float) -> _Lattice:
        """Return it without ends of mass ``cut``: large losses are lost, small ones are raised."""
        last = len(self.mass) - int(np.searchsorted(np.cumsum(self.mass[::-1]), cut))
        start = min(int(np.searchsorted(np.cumsum(self.mass), cut)), last - 1)
        mass = self.mass[start:last].copy()
        mass[0] += self.mass[:start].sum()
        lost = self.lost + float(self.mass[last:].sum()) * (1 + 1e-9)
        return _Lattice(self.first + start, mass, lost, self.rounding + 1e-15)


def _on_lattice(losses: ComposedLosses, spacing: float) -> _Lattice:
    """Spread each atom onto the lattice points around it, with its P and Q masses kept.

    An atom of loss y = l s + o between lattice points has Q mass e^-y per P mass. Both are kept
    if the upper point gets the share w with (1 - w) + w e^-s = e^-o: w = (1 - e^-o)/(1 - e^-s).
    """
    # WEIGHT_ROUNDING moves mass to larger losses, so that rounding never lowers delta.
    at = np.floor(losses.loss / spacing)
    offset = losses.loss - at * spacing
    upper = np.expm1(-offset) / math.expm1(-spacing) + WEIGHT_ROUNDING
    upper = np.clip(upper, 0.0, 1.0)
    first = int(at.min())
    index = (at - first).astype(np.int64)
    weight = np.exp(losses.log_mass)
    mass = np.zeros(int(index.max()) + 2)
    np.add.at(mass, index, weight * (1 - upper))
    np.add.at(mass, index + 1, weight * upper)
    mass[0] += losses.rest
    return _Lattice(first, mass, losses.lost, losses.rounding + 1e-13)
