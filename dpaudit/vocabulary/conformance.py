"""Whether a trainer does what it claims: the claim of one step, what was found, the verdict."""

from __future__ import annotations

import math

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import (
    ExitCode,
    InvalidArgument,
    require_count,
    require_open_unit,
    require_positive,
    require_rate,
    require_sampling_rate,
)
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.verdict import Outcome

_EXIT_CODES = {
    Outcome.HOLDS: ExitCode.HOLDS,
    Outcome.VIOLATED: ExitCode.VIOLATED,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}


class StepClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every step of a trainer is claimed to do.

    The noisy sum is the sum of the sampled records' gradients, each cut at ``clip_norm`` in
    L2 norm, plus N(0, (noise_multiplier * clip_norm)^2) on every coordinate.

    Attributes:
        noise_multiplier: Standard deviation of the noise over ``clip_norm``.
        clip_norm: Largest L2 norm of what one record adds to the sum.
        sampling_rate: Probability with which each record joins each step; the share of the
            records in a step under sampling of a fixed size.
        steps: How many.
        update_scale: The public factor from the noisy sum to what ``step()`` returns: minus
            the learning rate over the expected batch size for a parameter change under SGD,
            1 for the noisy sum itself.
        adjacency: Under which the claim is made.
        sampling: How the records of a step are drawn.
    """

    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    steps: int
    update_scale: float
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    sampling: Sampling = Sampling.POISSON

    def __post_init__(self) -> None:
        require_positive("noise_multiplier", self.noise_multiplier)
        require_positive("clip_norm", self.clip_norm)
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_count("steps", self.steps)
        if not 0 < abs(self.update_scale) < math.inf:
            raise InvalidArgument("update_scale", self.update_scale, "finite and not 0")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was tested.

    Attributes:
        check: ``replay``, ``noise``, ``correlation``, ``sampler`` or ``provenance``.
        name: Which test of that check.
        outcome: What can be said.
        tested: In words, what was done.
        why: In words, what was seen; where it is wrong, what and where.
        power: In words, the smallest fault that this test would have seen.
        p_value: Probability of as much under the claim, at most; None for an exact test.
        level: The p-value at which the claim is refuted.
        norm: The largest norm by which one record moved the sum, in clip norms.
        limit: The largest that is allowed, in clip norms, rounding included.
        detectable: The number in ``power``; None where there is none.
    """

    check: str
    name: str
    outcome: Outcome
    tested: str
    why: str
    power: str
    p_value: float | None = None
    level: float | None = None
    norm: float | None = None
    limit: float | None = None
    detectable: float | None = None

    def __post_init__(self) -> None:
        for name in ("p_value", "level"):
            value = getattr(self, name)
            if value is not None:
                require_rate(name, value)


class ConformanceResult(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one audit of a trainer found.

    ``level`` is the probability, at most, with which a trainer that does what it claims is
    said to violate it. ``ledger_head`` is that of the run that was checked, if it was one.
    """

    claim: StepClaim
    findings: tuple[Finding, ...]
    level: float
    verdict: Outcome
    ledger_head: str | None = None
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require_open_unit("level", self.level)
        if self.verdict is not outcome_of(self.findings):
            raise InvalidArgument("verdict", self.verdict.value, "what the findings say together")

    @property
    def exit_code(self) -> ExitCode:
        """The process's exit code for this verdict."""
        return _EXIT_CODES[self.verdict]

    @property
    def violations(self) -> tuple[Finding, ...]:
        """The findings that refute the claim."""
        return tuple(f for f in self.findings if f.outcome is Outcome.VIOLATED)


def outcome_of(findings: tuple[Finding, ...]) -> Outcome:
    """VIOLATED if any finding is; else INCONCLUSIVE if any is, or there is none."""
    outcomes = {finding.outcome for finding in findings}
    if Outcome.VIOLATED in outcomes:
        return Outcome.VIOLATED
    return Outcome.HOLDS if outcomes == {Outcome.HOLDS} else Outcome.INCONCLUSIVE
