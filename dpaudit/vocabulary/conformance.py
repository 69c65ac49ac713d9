"""Conformance audits of trainers: the claim of one step, the findings and the verdict."""

from __future__ import annotations

import math
from enum import Enum

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.conformance_words import conformance_summary
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
from dpaudit.vocabulary.notebooks import table_html
from dpaudit.vocabulary.privacy_terms import Adjacency, require_adjacency
from dpaudit.vocabulary.verdict import Outcome

_EXIT_CODES = {
    Outcome.PASS: ExitCode.PASS,
    Outcome.FAIL: ExitCode.FAIL,
    Outcome.INCONCLUSIVE: ExitCode.INCONCLUSIVE,
}


class Assumption(Enum):
    """What an audit may assume about the records instead of testing it.

    The value is the name on the command line.

    Example:
        >>> Assumption("no-nan").statement[:16]
        'NaN cannot occur'
    """

    NO_NAN = "no-nan"

    @property
    def statement(self) -> str:
        """The assumption as a sentence, for results and reports."""
        return _STATEMENTS[self]


_STATEMENTS = {
    Assumption.NO_NAN: "NaN cannot occur: no record has NaN features or a NaN gradient (not tested)"
}


class StepClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The claim that a trainer makes for every step.

    The noisy sum is the sum of the sampled records' gradients, each clipped to L2 norm
    ``clip_norm``, plus N(0, (noise_multiplier * clip_norm)^2) on every coordinate. For the server
    of a federation, a step is a round, and a record's gradient is a participant's update.

    Attributes:
        noise_multiplier: Standard deviation of the noise over ``clip_norm``; above 0.
        clip_norm: Largest L2 norm of what one record adds to the sum; above 0.
        sampling_rate: Probability with which each record joins each step. With batches of
            fixed size, the share of the records in a batch. Above 0 and at most 1.
        steps: Number of steps; at least 1.
        update_scale: The public factor from the noisy sum to what ``step()`` returns; finite
            and not 0. For a parameter change under SGD it is minus the learning rate over the
            expected batch size, for the noisy sum itself it is 1. None: it is measured.
        adjacency: The adjacency of the claim.
        sampling: How the records of a step are drawn.

    Raises:
        InvalidArgument: If a number is NaN, infinite or out of its range.

    Example:
        >>> claim = StepClaim(
        ...     noise_multiplier=1.1, clip_norm=0.5, sampling_rate=0.01, steps=9, update_scale=-0.1
        ... )
        >>> claim.adjacency.value
        'add-or-remove-one'
    """

    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    steps: int
    update_scale: float | None = None
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    sampling: Sampling = Sampling.POISSON

    def __post_init__(self) -> None:
        require_adjacency("adjacency", self.adjacency)
        if not isinstance(self.sampling, Sampling):
            raise InvalidArgument("sampling", self.sampling, "a member of Sampling")
        require_positive("noise_multiplier", self.noise_multiplier)
        require_positive("clip_norm", self.clip_norm)
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_count("steps", self.steps)
        if self.update_scale is not None and not 0 < abs(self.update_scale) < math.inf:
            raise InvalidArgument("update_scale", self.update_scale, "finite and not 0")

    @property
    def scale(self) -> float:
        """The update scale; ``InvalidArgument`` if it is None, where it cannot be measured."""
        if self.update_scale is None:
            raise InvalidArgument("update_scale", None, "given, as a number that is not 0")
        return self.update_scale


class ConformanceFinding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one test of a trainer.

    Attributes:
        check: ``replay``, ``noise``, ``correlation``, ``sampler``, ``masks`` or ``provenance``.
        name: The test of that check.
        outcome: PASS, FAIL or INCONCLUSIVE.
        tested: What was tested, as text.
        why: What was observed, as text; for a failure, the fault and its place.
        power: The smallest fault that this test detects, as text.
        p_value: Upper bound of the probability of an observation at least as extreme if the
            claim is true; None for an exact test.
        level: The p-value at which the claim is refuted.
        norm: The largest norm by which one record moved the sum, in clip norms.
        limit: The largest norm that is allowed, in clip norms, with rounding.
        detectable: The number in ``power``; None if it has none.

    Raises:
        InvalidArgument: If ``p_value`` or ``level`` is not in [0, 1].

    Example:
        >>> from dpaudit.vocabulary.verdict import Outcome
        >>> finding = ConformanceFinding(
        ...     check="replay",
        ...     name="clipping",
        ...     outcome=Outcome.FAIL,
        ...     tested="every record by itself",
        ...     why="one record moved the sum by 3 clip norms",
        ...     power="any movement above 1 clip norm",
        ...     norm=3.0,
        ...     limit=1.0,
        ... )
        >>> outcome_of_findings((finding,))
        <Outcome.FAIL: 'FAIL'>
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
    """Results of one conformance audit of a trainer.

    Attributes:
        claim: The claim that was tested.
        findings: The result of each test.
        level: Upper bound of the probability that a trainer that conforms fails; above 0 and
            below 1.
        verdict: The outcome of all findings together.
        ledger_head: Hash of the last line of the run's ledger; None without a run.
        assumptions: What was assumed instead of tested, as sentences.
        schema_version: Version of the JSON format.

    Raises:
        InvalidArgument: If ``level`` is out of its range, or ``verdict`` contradicts
            ``findings``.

    Example:
        >>> claim = StepClaim(
        ...     noise_multiplier=1.0, clip_norm=1.0, sampling_rate=0.1, steps=10, update_scale=1.0
        ... )
        >>> result = ConformanceResult(
        ...     claim=claim, findings=(), level=1e-6, verdict=outcome_of_findings(())
        ... )
        >>> result.exit_code  # nothing was tested
        <ExitCode.INCONCLUSIVE: 3>
        >>> print(result)
        INCONCLUSIVE: nothing was tested
        a trainer that implements its claim is rejected with a probability of at most 1e-06
    """

    claim: StepClaim
    findings: tuple[ConformanceFinding, ...]
    level: float
    verdict: Outcome
    ledger_head: str | None = None
    assumptions: tuple[str, ...] = ()
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require_open_unit("level", self.level)
        if self.verdict is not outcome_of_findings(self.findings):
            raise InvalidArgument("verdict", self.verdict.value, "the outcome of the findings")

    def __str__(self) -> str:
        """Summarize the result: the verdict, the causes of FAIL and INCONCLUSIVE, and the terms."""
        return conformance_summary(self)

    def _repr_html_(self) -> str:
        """Return the findings as a table for notebooks."""
        rows = [
            (f"{one.check}, {one.name}", one.outcome.value, one.why, one.power)
            for one in self.findings
        ]
        heading = ("test", "outcome", "observed", "power")
        return table_html(f"Conformance: {self.verdict.value}", rows, heading)

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of the process for this verdict."""
        return _EXIT_CODES[self.verdict]

    @property
    def violations(self) -> tuple[ConformanceFinding, ...]:
        """The findings with outcome FAIL, which refute the claim."""
        return tuple(f for f in self.findings if f.outcome is Outcome.FAIL)


def outcome_of_findings(findings: tuple[ConformanceFinding, ...]) -> Outcome:
    """Return the outcome of several findings together.

    Args:
        findings: Results of tests; there may be none.

    Returns:
        FAIL if any finding failed. Otherwise INCONCLUSIVE if any is inconclusive or there is no
        finding. Otherwise PASS.

    Example:
        >>> outcome_of_findings(())
        <Outcome.INCONCLUSIVE: 'INCONCLUSIVE'>
    """
    outcomes = {finding.outcome for finding in findings}
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    return Outcome.PASS if outcomes == {Outcome.PASS} else Outcome.INCONCLUSIVE
