"""Failure messages of the pytest plugin's assertions.

Each function returns an empty text where the assertion holds. It never does so on NaN, on empty
input, or on evidence that is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from dpaudit.accountants.answers import claim_from_ledger, compute_epsilon
from dpaudit.attacks.membership.evaluation import evaluate, tpr_interval
from dpaudit.attacks.membership.scores import MembershipScores, RecordScores
from dpaudit.attacks.one_run import audit_random_split
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.vocabulary.audit import AuditResult
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_delta,
    require_open_unit,
    require_positive,
)
from dpaudit.vocabulary.ledger import LedgerHeader, Randomness
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import (
    SAMPLING_ACCOUNTANTS,
    Adjacency,
    Bound,
    ReleaseScope,
    Unit,
)
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.verdict import Outcome
from dpaudit.workflow.gate.baselines import read_baseline, require_other_run
from dpaudit.workflow.gate.policy_sources import load_policy
from dpaudit.workflow.gate.run_evaluation import GateSettings, PolicyProvenance, evidence_of_run

# Format of failure messages.


def failure_text(wrong: str, *lines: tuple[str, str]) -> str:
    """Format a failure message.

    Args:
        wrong: The headline.
        *lines: Pairs of a label and its text, at least one.

    Returns:
        The headline, and one indented line per pair.
    """
    width = max(len(name) for name, _ in lines)
    return "\n".join([wrong, *(f"  {name:{width}}  {text}" for name, text in lines)])


def upper_text(value: float) -> str:
    """Format an upper bound, rounded up; NaN is shown, as NaN is refused here."""
    return "NaN" if math.isnan(value) else round_up(value)


def lower_text(value: float) -> str:
    """Format a lower bound, rounded down; NaN is shown, too."""
    return "NaN" if math.isnan(value) else round_down(value)


# Epsilon of a run, a mechanism or a training session.

PRIVATE_ACCOUNTANT = "pld"
SEEDED_NOISE = (
    "the run's noise comes from a seed: anyone who knows the seed knows the noise, so nothing is "
    "claimed (train without a seed)"
)


@runtime_checkable
class PrivateTraining(Protocol):
    """The part of the result of ``make_private`` that is read here, without an import of torch.

    Attributes:
        steps: Number of completed private steps.
        header: The header of its ledger.
    """

    steps: int
    header: LedgerHeader

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon spent so far."""


PrivacySpending = str | Path | RunDirectory | Mechanism | PrivateTraining


class SpentEpsilon(NamedTuple):
    """The epsilon of a run, a mechanism or a training session.

    Attributes:
        what: A description of the source, for messages.
        epsilon: Interval of epsilon, in nats.
        unit: The unit of privacy.
        released: The releases that epsilon covers.
        why_not: Why epsilon does not count; empty where it does.
    """

    what: str
    epsilon: Bound
    unit: Unit = Unit.RECORD
    released: ReleaseScope = ReleaseScope.EVERY_STEP
    why_not: str = ""


@dataclass(frozen=True)
class EpsilonRequirement:
    """Requirements on a claim.

    Attributes:
        epsilon: Largest allowed upper bound, in nats.
        delta: The delta at which epsilon is computed.
        accountant: Name of the accountant whose upper bound counts.
        unit: Required unit of privacy.
        released: Releases that the claim must cover.

    Raises:
        InvalidArgument: If a value is out of range or unknown.
    """

    epsilon: float
    delta: float
    accountant: str
    unit: str
    released: str

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_delta("delta", self.delta)
        choices: tuple[tuple[str, str, Iterable[str]], ...] = (
            ("accountant", self.accountant, SAMPLING_ACCOUNTANTS),
            ("unit", self.unit, Unit),
            ("released", self.released, ReleaseScope),
        )
        for name, value, allowed in choices:
            if value not in list(allowed):
                raise InvalidArgument(name, value, f"one of {', '.join(allowed)}")


def explain_epsilon_failure(spending: PrivacySpending, requirement: EpsilonRequirement) -> str:
    """Explain why the spent epsilon does not meet a requirement.

    Args:
        spending: A run, a mechanism, or what ``make_private`` returned.
        requirement: The requirement.

    Returns:
        The failure message; empty if the requirement is met.

    Raises:
        InvalidArgument: If an argument is out of range or of an unknown kind.
        IntegrityError: If a run is unfinished or was altered.
    """
    delta = requirement.delta
    spent = _spent(spending, requirement)
    given = (
        f"{spent.what}, at most {upper_text(spent.epsilon.upper)} at delta {delta:g} for one "
        f"{spent.unit.value} ({spent.released.value})"
    )
    allowed = f"at most {requirement.epsilon:g} at delta {delta:g}"
    if spent.why_not:
        return failure_text(spent.why_not, ("given", given), ("allowed", allowed))
    if spent.unit != requirement.unit or not spent.released.covers(
        ReleaseScope(requirement.released)
    ):
        demanded = f"{allowed} for one {requirement.unit} ({requirement.released})"
        return failure_text(
            "the claim is for something else", ("given", given), ("allowed", demanded)
        )
    if spent.epsilon.upper <= requirement.epsilon:
        return ""
    return failure_text(
        "epsilon is above what is allowed",
        ("given", f"{given} ({requirement.accountant})"),
        ("allowed", allowed),
        ("to do", "use more noise, fewer steps or a lower sampling rate; dpaudit noise "
         "computes the noise, and dpaudit compare lists what changed between two runs"),
    )  # fmt: skip


def _spent(spending: PrivacySpending, requirement: EpsilonRequirement) -> SpentEpsilon:
    delta, accountant = requirement.delta, requirement.accountant
    match spending:
        case str() | Path():
            return _of_run(open_run(Path(spending)), delta, accountant)
        case RunDirectory():
            return _of_run(spending, delta, accountant)
        case PrivateTraining():
            return _of_steps(spending, delta, accountant)
        case _ if isinstance(spending, Mechanism):
            adjacency = Adjacency.ADD_OR_REMOVE_ONE
            answer = compute_epsilon(accountant, spending, delta, adjacency, None)
            # A mechanism has no unit of privacy: it has the one that its user requires.
            return SpentEpsilon(type(spending).__name__, answer.epsilon, Unit(requirement.unit))
    raise InvalidArgument(
        "run", type(spending).__name__, "a run directory, a mechanism, or what make_private returns"
    )


def _of_run(run: RunDirectory, delta: float, accountant: str) -> SpentEpsilon:
    claim = claim_from_ledger(run.read_finished(), delta, accountant)
    what = f"{run.path}: {claim.releases} releases, {claim.sampling.value} sampling"
    why_not = SEEDED_NOISE if claim.randomness is Randomness.SEEDED else ""
    return SpentEpsilon(what, claim.epsilon, claim.unit, claim.released, why_not)


def _of_steps(private: PrivateTraining, delta: float, accountant: str) -> SpentEpsilon:
    if accountant != PRIVATE_ACCOUNTANT:
        allowed = f"{PRIVATE_ACCOUNTANT} for what make_private returns: finish the run for others"
        raise InvalidArgument("accountant", accountant, allowed)
    what, epsilon = f"{private.steps} private steps", private.epsilon(delta=delta)
    if private.header.randomness is Randomness.SEEDED:
        return SpentEpsilon(what, epsilon, private.header.unit, why_not=SEEDED_NOISE)
    why_not = "" if private.steps > 0 else "no step was taken: there is no spent epsilon to test"
    return SpentEpsilon(what, epsilon, private.header.unit, why_not=why_not)


# The policy.


def explain_policy_failure(
    run: RunDirectory | Path | str, policy: Path, baseline: Path | None
) -> str:
    """Explain which rules of a policy a run does not pass.

    A rule that is INCONCLUSIVE and not waived is a failure. Nothing is written into the run.

    Args:
        run: A finished run, or its path.
        policy: The policy's file; variables of the environment are ignored.
        baseline: A baseline file, or an earlier run; None: there is none.

    Returns:
        The verdict, rule by rule; empty if it is PASS.

    Raises:
        InvalidArgument: If there is no such run, policy or baseline.
        IntegrityError: If the run is unfinished or was altered.
    """
    directory = run if isinstance(run, RunDirectory) else open_run(Path(run))
    loaded = load_policy(policy, environment={})  # the file alone, wherever the tests run
    compared = None if baseline is None else read_baseline(baseline, loaded.policy)
    settings = GateSettings(loaded.policy, compared, sources=PolicyProvenance.of(loaded))
    evidence = evidence_of_run(directory, loaded.policy)
    if compared is not None:
        require_other_run(compared, directory, evidence.claim_figures.ledger_head)
    verdict = settings.verdict(evidence)
    if verdict.outcome is Outcome.PASS:
        return ""
    broken = [rule for rule in verdict.rules if rule.counts and rule.outcome is not Outcome.PASS]
    lines = [
        failure_text(f"{rule.outcome.value} {rule.rule}", ("why", rule.why)) for rule in broken
    ]
    return "\n".join([f"{directory.path} does not pass {policy}", *(lines or ["it has no rules"])])


# Conformance of a trainer.

CONFORMANCE_HEADLINES = {
    Outcome.FAIL: "the trainer does not do what it claims",
    Outcome.INCONCLUSIVE: "whether the trainer does what it claims is inconclusive",
}


def explain_conformance_failure(result: ConformanceResult) -> str:
    """Explain why a conformance result is not PASS.

    Args:
        result: The result of a check.

    Returns:
        The findings that fail, then the inconclusive ones; empty if the verdict is PASS.
    """
    if result.verdict is Outcome.PASS:
        return ""
    open_ = [f for f in result.findings if f.outcome is Outcome.INCONCLUSIVE]
    counted = f"{len(result.violations)} refute the claim, {len(open_)} are inconclusive"
    of = f"of {len(result.findings)} findings {counted}"
    chance = f"a trainer that does what it claims fails once in {1 / result.level:,.0f} checks"
    details = [_finding(finding) for finding in (*result.violations, *open_)]
    return "\n".join([f"{CONFORMANCE_HEADLINES[result.verdict]}: {of}", *details, f"({chance})"])


def _finding(finding: ConformanceFinding) -> str:
    return failure_text(
        f"{finding.outcome.value} {finding.check}, {finding.name}",
        ("tested", finding.tested),
        ("observed", finding.why),
        ("power", finding.power),
    )


# Scores of members and non-members.


@dataclass(frozen=True)
class LeakageLimits:
    """Limits on what scores may show.

    Attributes:
        max_tpr_at_fpr: Largest true-positive rate, by false-positive rate.
        claim_epsilon: The upper bound that no lower bound may exceed, in nats; None: not tested.
        delta: Of that claim; given if and only if ``claim_epsilon`` is.
        confidence: Of each interval; of all lower bounds together.

    Raises:
        InvalidArgument: If a limit is out of range, or there is no limit.
    """

    max_tpr_at_fpr: Mapping[float, float]
    claim_epsilon: float | None
    delta: float | None
    confidence: float

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)
        for fpr, tpr in self.max_tpr_at_fpr.items():
            require_open_unit("max_tpr_at_fpr", fpr)
            if not 0 <= tpr <= 1:
                raise InvalidArgument(f"max_tpr_at_fpr[{fpr:g}]", tpr, "between 0 and 1")
        if (self.claim_epsilon is None) != (self.delta is None):
            raise InvalidArgument(
                "delta", self.delta, "given if and only if claim_epsilon is given"
            )
        if self.claim_epsilon is not None and self.delta is not None:
            require_positive("claim_epsilon", self.claim_epsilon)
            require_delta("delta", self.delta)
        elif not self.max_tpr_at_fpr:
            raise InvalidArgument("max_tpr_at_fpr", {}, "some rate, or a claim_epsilon")


def load_scores(scores: Any, members: Any = None) -> dict[str, MembershipScores]:
    """Read scores from an object, a file or two arrays.

    Args:
        scores: ``MembershipScores``, the path of a score file, or an array, shape ``(records,)``.
        members: With an array: 1 for members, 0 for non-members, shape ``(records,)``.

    Returns:
        Scores by the name of the attack.

    Raises:
        InvalidArgument: If the file or the arrays cannot be used.
        MissingExtra: If a file is given and pandas is not installed.
    """
    match scores:
        case MembershipScores():
            return {"scores": scores}
        case str() | Path():
            from dpaudit.attacks.membership.score_file import (  # noqa: PLC0415 - pandas
                read_scores,
                scores_by_group,
            )

            return scores_by_group(read_scores(Path(scores)))
    if members is None:
        allowed = "given with an array of scores: 1 for each member, 0 for each other record"
        raise InvalidArgument("members", None, allowed)
    return {"scores": RecordScores(np.asarray(scores, np.float64)).split(np.asarray(members))}


def explain_leakage_failure(groups: Mapping[str, MembershipScores], allowed: LeakageLimits) -> str:
    """Explain which limits scores exceed, or why the scores are inconclusive.

    Args:
        groups: Scores by the name of the attack.
        allowed: The limits.

    Returns:
        The failure messages; empty if every limit is met.
    """
    share = (1 - allowed.confidence) / max(1, len(groups))
    complaints = [
        complaint
        for name, scores in groups.items()
        for complaint in _complaints(name, scores, allowed, 1 - share)
    ]
    return "\n".join(complaints)


def _complaints(
    name: str, scores: MembershipScores, allowed: LeakageLimits, confidence: float
) -> Iterator[str]:
    """Yield the failures of one attack; lower bounds hold with ``confidence``."""
    sizes = f"{name}: {len(scores.members)} members, {len(scores.nonmembers)} non-members"
    nothing = evaluate(name, scores, confidence=allowed.confidence).inconclusive
    if nothing is not None:
        yield failure_text(
            "the scores are no evidence either way",
            ("given", sizes),
            ("observed", nothing),
            ("to do", "score by a stronger attack: a larger score must mean member"),
        )
        return
    for fpr, most in sorted(allowed.max_tpr_at_fpr.items()):
        yield from _rate(sizes, scores, fpr, most, allowed.confidence)
    if allowed.claim_epsilon is not None and allowed.delta is not None:
        yield from _bound(sizes, scores, allowed.claim_epsilon, allowed.delta, confidence)


def _rate(
    sizes: str, scores: MembershipScores, fpr: float, most: float, confidence: float
) -> Iterator[str]:
    found = tpr_interval(scores, fpr=fpr, confidence=confidence)
    if found.upper <= most:
        return
    surely = found.lower > most
    yield failure_text(
        "the model separates members from non-members more often than is allowed"
        if surely
        else "whether the model separates members from non-members more often than is allowed is "
        "inconclusive",
        ("given", sizes),
        (
            "observed",
            f"a true-positive rate at FPR {fpr:g} of {lower_text(found.lower)} to "
            f"{upper_text(found.upper)}, with confidence {confidence:g}",
        ),
        ("allowed", f"an upper end of {most:g}"),
        (
            "to do",
            "train with more noise" if surely else "score more records: the interval shrinks",
        ),
    )


def _bound(
    sizes: str, scores: MembershipScores, claim: float, delta: float, confidence: float
) -> Iterator[str]:
    values = np.concatenate([scores.members, scores.nonmembers])
    bound = audit_random_split(
        values,
        np.arange(len(values)) < len(scores.members),
        delta=delta,
        confidence=confidence,
        claimed_epsilon=claim,
    )
    if bound.epsilon_lower <= claim and math.isfinite(bound.epsilon_lower):
        yield from _too_weak(sizes, bound, claim)
        return
    yield failure_text(
        "more is leaked than is claimed",
        ("given", sizes),
        ("observed", f"a lower bound on epsilon of {lower_text(bound.epsilon_lower)} at delta "
         f"{delta:g}, with confidence {confidence:g} ({bound.correct} of {bound.guesses} guesses "
         "were right)"),
        ("claimed", f"epsilon is at most {upper_text(claim)} at delta {delta:g}"),
        ("assumes", bound.assumes),
        ("to do", "the trainer does not do what it claims: find the cause by assert_conforms"),
    )  # fmt: skip


def _too_weak(sizes: str, bound: AuditResult, claim: float) -> Iterator[str]:
    """Yield a failure if no outcome could have contradicted the claim."""
    greatest = bound.greatest_epsilon
    if greatest is not None and greatest > claim:
        return
    yield failure_text(
        "the scores could not have contradicted the claim",
        ("given", sizes),
        (
            "observed",
            f"if every guess were right, the lower bound would be {lower_text(greatest or 0)}",
        ),
        ("claimed", f"epsilon is at most {upper_text(claim)} at delta {bound.delta:g}"),
        ("to do", "score more records"),
    )
