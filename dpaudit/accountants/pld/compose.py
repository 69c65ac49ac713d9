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
from dpaudit.accountants.pld.pairs import Pair, pair_of
from dpaudit.accountants.releases import Releases, shift_over_noise
from dpaudit.accountants.truncation import truncation_probability
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import Unresolvable, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import (
    Exponential,
    Gaussian,
    PoissonSampled,
    PureDP,
    RandomAllocation,
    Release,
    SampledWithoutReplacement,
    TruncatedPoisson,
)

# Of delta: what the tails that are cut from the laws may cost, over all releases.
TAIL_SHARE = 1e-9
LEAST_TAIL = 1e-318
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
        if not gaussian < math.inf:
            raise Unresolvable("a Gaussian here has next to no noise: nothing can be certified")
        cut = sum(times * law.cut for law, times in laws) * (1 + 1e-12)
        never = sum(times * math.log1p(-law.infinite) for law, times in laws)
        return Ledger(tuple(laws), gaussian, cut, abs(math.expm1(never)))

    @property
    def exact(self) -> bool:
        """Whether the laws are attained, not dominating alone."""
        replaces = self.adjacency is Adjacency.REPLACE_ONE
        alone = sum(self.releases.values()) == 1
        return not any(
            isinstance(release, RandomAllocation)
            or (not alone and _chooses(release))
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

    @property
    def unsampled(self) -> float | None:
        """mu of the same Gaussians on all records, which dominate the sampled ones; or None.

        The hockey-stick divergence is convex: a sampled pair lies below its unsampled one,
        and so do their compositions. Wide, and valid where nothing else has an answer.
        """
        shifts = []
        for release, times in self.releases.items():
            match release:
                case (Gaussian() as inner) | PoissonSampled(Gaussian() as inner):
                    shifts.append(math.sqrt(times) * shift_over_noise(inner, self.adjacency))
                case _:
                    return None
        return math.hypot(*shifts)

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
                return replaced_losses(self._pair(inner, tail), batch / size, tail)
            case _:
                return sampled_losses(self._pair(release, tail), UNSAMPLED, Way.REMOVED, tail)

    def _pair(self, release: Release, tail: float) -> Pair:
        """Return the worst pair; from below, for a choice, one that two candidates attain.

        The curve of ``pair_of`` is the envelope over all choices of that range: each epsilon
        has a worst one of its own, and no composition attains all of them.
        """
        if isinstance(release, Exponential) and not self.exact and self.role is Role.BELOW:
            return pair_of(PureDP(release.epsilon / 2), self.adjacency, tail)
        return pair_of(release, self.adjacency, tail)

    def _poisson(self, inner: Release, rate: float, tail: float) -> LossLaw:
        """Replacing a record of a Poisson sample is bounded from both sides, not known.

        From above by advanced joint convexity (Balle, Barthe & Gaboardi 2018,
        arXiv:1807.01647, Theorem 2), as without replacement; from below by replacing the
        record with one that contributes nothing.
        """
        if self.adjacency is not Adjacency.REPLACE_ONE:
            return sampled_losses(self._pair(inner, tail), rate, self.way, tail)
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


def _chooses(release: Release) -> bool:
    match release:
        case PoissonSampled(inner) | SampledWithoutReplacement(inner):
            return isinstance(inner, Exponential)
        case _:
            return isinstance(release, Exponential)
