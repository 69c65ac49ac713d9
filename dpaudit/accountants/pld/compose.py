"""A multiset of releases as laws of losses: which pair stands for which release.

Two ledgers may stand for one mechanism: one that dominates it, for upper bounds, and one
that some pair of neighbours attains, for lower bounds. Where the worst pair is known they
are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from dpaudit.accountants.pld.cumulants import Ledger
from dpaudit.accountants.pld.losses import LossLaw, Way, replaced_losses, sampled_losses
from dpaudit.accountants.pld.pairs import pair_of
from dpaudit.accountants.releases import Releases, shift_over_noise
from dpaudit.accountants.truncation import truncation_probability
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    Gaussian,
    PoissonSampled,
    RandomAllocation,
    Release,
    SampledWithoutReplacement,
    TruncatedPoisson,
)

# Of delta: what the tails that are cut from the laws may cost, over all releases.
TAIL_SHARE = 1e-9
LEAST_TAIL = 1e-290
UNSAMPLED = 1.0


class Role(Enum):
    """What a ledger's answer is for."""

    ABOVE = "dominates the mechanism"
    BELOW = "is attained by neighbours of the mechanism"


@dataclass(frozen=True)
class Question:
    """Releases under an adjacency, from one neighbour's side, for one of both bounds."""

    releases: Releases
    adjacency: Adjacency
    way: Way
    role: Role

    def ledger(self, delta: float) -> Ledger:
        """Return the laws, cut where less than a tiny share of ``delta`` lies beyond."""
        steps = sum(self.releases.values())
        tail = max(TAIL_SHARE * delta / steps, LEAST_TAIL)
        laws, gaussian = [], 0.0
        for release, times in self.releases.items():
            law = self._law(release, tail)
            if isinstance(law, float):
                gaussian += times * law * law
            else:
                laws.append((law, times))
        cut = sum(times * law.cut for law, times in laws) * (1 + 1e-12)
        never = sum(times * math.log1p(-law.infinite) for law, times in laws)
        return Ledger(tuple(laws), gaussian, cut, abs(math.expm1(never)))

    @property
    def exact(self) -> bool:
        """Whether the laws are attained, not dominating alone."""
        replaces = self.adjacency is Adjacency.REPLACE_ONE
        return not any(
            isinstance(release, RandomAllocation)
            or (replaces and isinstance(release, PoissonSampled | TruncatedPoisson))
            for release in self.releases
        )

    @property
    def altered(self) -> float:
        """Bound the probability that any batch was cut, and so was not what is priced."""
        return sum(
            times * truncation_probability(release, self.adjacency)
            for release, times in self.releases.items()
            if isinstance(release, TruncatedPoisson)
        )

    def _law(self, release: Release, tail: float) -> LossLaw | float:
        """Return a release's law, or a Gaussian's shift."""
        match release:
            case Gaussian():
                return shift_over_noise(release, self.adjacency)
            case RandomAllocation(inner, steps):
                return self._allocated(inner, steps, tail)
            case PoissonSampled(inner, rate):
                return self._poisson(inner, rate, tail)
            case TruncatedPoisson(inner, rate):
                return self._poisson(inner, rate, tail)
            case SampledWithoutReplacement(inner, batch, size):
                return replaced_losses(pair_of(inner, self.adjacency, tail), batch / size, tail)
            case _:
                pair = pair_of(release, self.adjacency, tail)
                return sampled_losses(pair, UNSAMPLED, Way.REMOVED, tail)

    def _poisson(self, inner: Release, rate: float, tail: float) -> LossLaw:
        """Replacing a record of a Poisson sample is bounded from both sides, not known.

        From above by advanced joint convexity (Balle, Barthe & Gaboardi 2018,
        arXiv:1807.01647, Theorem 2), as without replacement; from below by replacing the
        record with one that contributes nothing.
        """
        if self.adjacency is not Adjacency.REPLACE_ONE:
            return sampled_losses(pair_of(inner, self.adjacency, tail), rate, self.way, tail)
        if not isinstance(inner, Gaussian):
            raise UnsupportedMechanism(
                PoissonSampled(inner, rate),  # type: ignore[arg-type]
                "of Poisson samples under replace-one, Gaussians alone are priced",
            )
        if self.role is Role.ABOVE:
            return replaced_losses(pair_of(inner, self.adjacency, tail), rate, tail)
        alone = pair_of(inner, Adjacency.ZERO_OUT, tail)
        return sampled_losses(alone, rate, self.way, tail)

    def _allocated(self, inner: Gaussian, steps: int, tail: float) -> LossLaw | float:
        """A pass costs at most its Gaussian on all records: joint convexity over the step.

        It costs at least what its first step alone shows: a Poisson sample at rate 1/steps.
        """
        if self.role is Role.ABOVE:
            return shift_over_noise(inner, self.adjacency)
        return sampled_losses(pair_of(inner, Adjacency.ZERO_OUT, tail), 1 / steps, self.way, tail)
