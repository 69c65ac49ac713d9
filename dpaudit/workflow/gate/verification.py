"""Verify that an audit follows from its own counts and from the files of its run.

Every bound, the largest bound that any outcome could have shown, and the rates of attacks are
recomputed from the counts in audit.json. A file whose numbers do not follow from its counts was
altered. The counts of final models are counted again from the stored outputs. The power of an
audit that guesses canaries needs simulations: it is compared with what the numbers of guesses
allow at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.attacks.bounds.lower_bound import tpr_interval_of_counts
from dpaudit.attacks.one_run import score_file_audit
from dpaudit.attacks.one_run.observations import ClaimedMechanism
from dpaudit.attacks.one_run.recomputation import (
    detectable_epsilon,
    detectable_epsilon_floor,
    greatest_epsilon,
    has_equal_scores,
    recompute_bound,
)
from dpaudit.gate.evidence import DeclaredClaim, Evidence
from dpaudit.gate.policy import AuditPolicy, Policy
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_arrays, read_json
from dpaudit.vocabulary.audit import (
    FINAL_MODELS_NAME,
    AttackReport,
    AuditReport,
    AuditResult,
    BatchMeans,
    BatchRates,
    BoundKind,
    ClassGuesses,
    MembershipResult,
    TprAtFpr,
)
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import GRADIENT_SUM, PrivacyLedger
from dpaudit.vocabulary.privacy_terms import Bound
from dpaudit.vocabulary.rounding import CROSS_MACHINE_TOLERANCE, same_epsilon, same_number
from dpaudit.workflow.audit.audit_plan import (
    ExpectedBound,
    StepParameters,
    claimed_steps,
    expected_attacks,
    expected_bounds,
    plan_gradient_audit,
    recorded_steps,
    simulation_seed,
)
from dpaudit.workflow.gate.final_model_recount import require_counts_of_models
from dpaudit.workflow.run_claims import CLAIM_ACCOUNTANT, ClaimAt, claim_delta

LazyClaim = Callable[[], ClaimedMechanism | None]
"""The claim on a run's steps, at the delta of a bound; None where there is none."""

UNRECORDED_CANARIES = (
    "the run's ledger does not record these canaries, so nothing shows that it trained on them: "
    "make_private(canary_file=...), or dpaudit train --canary-file"
)
MISSING_COUNTS = "the audit lacks the counts that the bound is computed from: audit again"
EQUAL_SCORES = "all of its scores are equal, which shows nothing: audit another target record"
MISSING_RATE_COUNTS = "its rates lack the counts that they are computed from: attack again"


@dataclass(frozen=True)
class EvidenceGaps:
    """Gaps in the measurements of a run that were not altered.

    Attributes:
        missing: Names of bounds that a complete audit of the run holds, and this one lacks, or
            holds without the counts that they are computed from.
        missing_attacks: Names of membership attacks that it lacks.
        doubts: Pairs of a bound's name and the reason why it cannot support the claim.
    """

    missing: tuple[str, ...] = ()
    missing_attacks: tuple[str, ...] = ()
    doubts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LedgerClaims:
    """The claims of a run's ledger on the steps that its canaries observed.

    Attributes:
        run: The run.
        ledger: Its ledger.
        epsilon: Upper bound of its claim, in nats.
        unseen_steps: Number of steps without observations, by the audit.
    """

    run: RunDirectory
    ledger: PrivacyLedger
    epsilon: float
    unseen_steps: int

    def at(self, delta: float) -> ClaimedMechanism | None:
        """Return the claim on the observed steps.

        Args:
            delta: The delta of the claim.

        Returns:
            The claimed mechanism; None if no step was observed.

        Raises:
            IntegrityError: If the observations contradict ``unseen_steps``.
        """
        if not self._steps:
            return None
        return claimed_steps(self._steps, epsilon=self.epsilon, delta=delta)

    @cached_property
    def _steps(self) -> list[StepParameters]:
        steps = recorded_steps(self.ledger, GRADIENT_SUM)
        if not self.unseen_steps:
            return steps
        shown = np.isfinite(read_arrays(self.run.observations)["rows"]).all(axis=1)
        if len(shown) != len(steps) or int((~shown).sum()) != self.unseen_steps:
            raise IntegrityError(
                f"{self.run.audit} holds unseen_steps = {self.unseen_steps}, which contradicts "
                f"{self.run.observations}: audit the run again"
            )
        return [steps[i] for i in np.flatnonzero(shown)]


def verify_measurements(
    run: RunDirectory,
    ledger: PrivacyLedger,
    audit: AuditReport | None,
    attack: AttackReport | None,
    claim_at: ClaimAt,
) -> EvidenceGaps:
    """Verify the measurements of a run; those of another ledger are ignored.

    Args:
        run: A finished run, whose files were verified.
        ledger: Its ledger.
        audit: Its audit, if there is one.
        attack: Its attack report, if there is one.
        claim_at: Claims of its ledger.

    Returns:
        What the audit lacks.

    Raises:
        IntegrityError: If a number does not follow from the counts beside it.
    """
    if attack is not None and attack.ledger_head == ledger.head:
        require_rates_match_counts(run.attack, attack.membership)
    if audit is None or audit.ledger_head != ledger.head:
        return EvidenceGaps()
    claim = claim_at(claim_delta(run), CLAIM_ACCOUNTANT)
    return verify_audit(run, ledger, audit, claim)


def verify_audit(
    run: RunDirectory, ledger: PrivacyLedger, audit: AuditReport, claim: Claim
) -> EvidenceGaps:
    """Verify an audit of the present ledger.

    Args:
        run: A finished run, whose files were verified.
        ledger: Its ledger.
        audit: The run's audit.
        claim: The run's own claim, at its own delta.

    Returns:
        What the audit lacks.

    Raises:
        IntegrityError: If a number of the audit does not follow from its counts, or contradicts
            the run's own files.
    """
    expected = {one.name: one for one in expected_bounds(run, ledger, audit, claim.delta)}
    claims = LedgerClaims(run, ledger, claim.epsilon.upper, audit.unseen_steps)
    at = cache(claims.at)
    seed = simulation_seed(ledger)
    _require_once(run.audit, audit)
    for bound in audit.bounds:
        _require_as_expected(run.audit, bound, expected.get(bound.name))
        _require_recomputed(run.audit, bound, partial(at, bound.delta), seed)
    require_counts_of_models(run, audit)
    require_rates_match_counts(run.audit, audit.membership)
    # A bound without counts may hide that it contradicts the claim: it is as good as missing.
    present = {bound.name for bound in audit.bounds}
    counted = {bound.name for bound in audit.bounds if bound.estimator is not None}
    missing = tuple(
        f"the counts of {name}" if name in present else _lacking(name)
        for name in expected
        if name not in counted
    )
    doubts = [(bound.name, MISSING_COUNTS) for bound in audit.bounds if bound.estimator is None]
    doubts += [(bound.name, EQUAL_SCORES) for bound in audit.bounds if has_equal_scores(bound)]
    doubts += [(one.name, UNRECORDED_CANARIES) for one in expected.values() if _is_unrecorded(one)]
    measured = {one.attack for one in audit.membership}
    missing_attacks = tuple(one for one in expected_attacks(run, audit) if one not in measured)
    return EvidenceGaps(missing, missing_attacks, tuple(doubts))


def require_decisive_power(
    run: RunDirectory,
    ledger: PrivacyLedger,
    audit: AuditReport | None,
    policy: AuditPolicy,
    doubted_bounds: frozenset[str],
    claim_at: ClaimAt,
) -> None:
    """Simulate again the power that a verdict depends on, where nothing else verifies it.

    The smallest stated power among the kinds of bound that count is decisive. Bounds by batch
    are recomputed in any case; for others, the simulation of the claim is repeated from its
    seed. A bound in doubt supports nothing, so it does not replace the simulation.

    Args:
        run: A finished run, whose files were verified.
        ledger: Its ledger.
        audit: Its audit, if there is one.
        policy: The kinds of bound that count, and the power that is demanded.
        doubted_bounds: Names of the bounds that cannot support the claim.
        claim_at: Claims of its ledger.

    Raises:
        IntegrityError: If the audit states another power.
    """
    if audit is None or audit.ledger_head != ledger.head:
        return
    claim = claim_at(claim_delta(run), CLAIM_ACCOUNTANT)
    counted = [bound for bound in audit.bounds if bound.kind in policy.count]
    stated = [bound for bound in counted if bound.detectable_epsilon is not None]
    usable = [one for one in counted if one.inconclusive is None and one.name not in doubted_bounds]
    # A verified bound that could have contradicted the claim shows the audit's strength: then the
    # stated power matters only to a policy that demands one.
    could = any((bound.greatest_epsilon or 0) > claim.epsilon.upper for bound in usable)
    if not stated or (could and policy.min_power_epsilon is None):
        return
    best = min(stated, key=lambda bound: bound.detectable_epsilon or 0.0)
    if isinstance(best.estimator, BatchRates | BatchMeans):
        return
    claimed = LedgerClaims(run, ledger, claim.epsilon.upper, audit.unseen_steps).at(best.delta)
    plan = None if claimed is None else plan_gradient_audit(run, ledger, audit, claimed, best.name)
    power = None if plan is None else plan.power()
    if power is None or not same_epsilon(best.detectable_epsilon or 0.0, power):
        raise IntegrityError(
            f"{run.audit}: detectable_epsilon of {best.name!r} is {best.detectable_epsilon:.9g}, "
            f"its simulation gives {'none' if power is None else format(power, '.9g')}: audit the "
            "run again"
        )


def with_checked_counts(results: Iterable[MembershipResult]) -> tuple[MembershipResult, ...]:
    """Mark attacks whose rates lack the counts that they are computed from as inconclusive.

    Args:
        results: Results of attacks.

    Returns:
        The results, in the same order.
    """
    return tuple(
        replace(result, inconclusive=result.inconclusive or MISSING_RATE_COUNTS)
        if any(rate.least_hits is None or rate.greatest_hits is None for rate in result.tpr_at_fpr)
        else result
        for result in results
    )


def verify_audit_file(path: Path, audit: AuditReport) -> EvidenceGaps:
    """Verify an audit without a run.

    Args:
        path: The file, for messages.
        audit: Its content.

    Returns:
        Doubts about the bounds that need a ledger to be recomputed.

    Raises:
        IntegrityError: If a number of the audit does not follow from its counts.
    """
    doubts = []
    _require_once(path, audit)
    for bound in audit.bounds:
        if not _require_recomputed(path, bound, _no_ledger, 0):
            doubts.append((bound.name, MISSING_COUNTS))
        if has_equal_scores(bound):
            doubts.append((bound.name, EQUAL_SCORES))
    require_rates_match_counts(path, audit.membership)
    return EvidenceGaps(doubts=tuple(doubts))


def _lacking(name: str) -> str:
    """Return the name of a missing bound, with the option that it needs."""
    if name.startswith(FINAL_MODELS_NAME):
        return f"{name} (of final-models.npz; an interrupted one is finished by --black-box)"
    return f"{name} (with --canaries FILE)" if name == score_file_audit.SCORE_AUDIT_NAME else name


def require_bounds_match_counts(path: Path, bounds: Iterable[AuditResult]) -> None:
    """Refuse bounds that contradict their own counts; those that need a ledger are not verified.

    Args:
        path: The file that holds them, for messages.
        bounds: The bounds.

    Raises:
        IntegrityError: If a bound does not follow from its counts.
    """
    for bound in bounds:
        _require_recomputed(path, bound, _no_ledger, 0)


def _no_ledger() -> None:
    """Return no claim, as there is no run."""


def _is_unrecorded(one: ExpectedBound) -> bool:
    return one.trials is None


def _require_once(path: Path, audit: AuditReport) -> None:
    names = [bound.name for bound in audit.bounds]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise IntegrityError(f"{path} holds the bound {twice[0]!r} twice: audit the run again")


def _require_as_expected(
    path: Path, bound: AuditResult, expected_bound: ExpectedBound | None
) -> None:
    """Refuse a bound that no audit of this run has, or with other canaries or confidence."""
    if expected_bound is None:
        raise IntegrityError(
            f"{path} holds the bound {bound.name!r}, which no audit of this run has: audit the "
            "run again"
        )
    expected: list[tuple[str, object, object, bool]] = [
        (
            "delta",
            bound.delta,
            expected_bound.delta,
            same_number(bound.delta, expected_bound.delta),
        ),
        ("kind", bound.kind.value, expected_bound.kind.value, bound.kind is expected_bound.kind),
        (
            "confidence",
            bound.confidence,
            expected_bound.confidence,
            same_number(1 - bound.confidence, 1 - expected_bound.confidence)
            or abs(bound.confidence - expected_bound.confidence) < 1e-12,
        ),
    ]
    if expected_bound.trials is not None:
        same = bound.trials == expected_bound.trials
        expected.append(("trials", bound.trials, expected_bound.trials, same))
    if bound.estimator is not None:
        names = " or ".join(kind.__name__ for kind in expected_bound.estimators)
        same = isinstance(bound.estimator, expected_bound.estimators)
        expected.append(("estimator", type(bound.estimator).__name__, names, same))
    for name, given, allowed, same in expected:
        if not same:
            raise IntegrityError(
                f"{path}: {name} of {bound.name!r} is {given}, an audit of this run has "
                f"{allowed}: audit the run again"
            )


def _require_recomputed(path: Path, bound: AuditResult, claim: LazyClaim, seed: int) -> bool:
    """Return whether a bound can be recomputed; refuse it if it differs."""
    try:
        again = recompute_bound(bound, claim)
        if again is None:
            return False
        greatest, power = greatest_epsilon(bound), detectable_epsilon(bound, claim, seed)
    except InvalidArgument as error:
        raise IntegrityError(f"{path}: the counts of {bound.name!r}: {error}") from error
    _require_same(path, bound, "epsilon_lower", bound.epsilon_lower, again.epsilon)
    if again.kind is BoundKind.CONDITIONAL and bound.kind is not again.kind:
        raise IntegrityError(
            f"{path}: kind of {bound.name!r} is {bound.kind.value}, its estimator is "
            f"{again.kind.value}: audit the run again"
        )
    if greatest is not None:
        _require_stated(path, bound, "greatest_epsilon", bound.greatest_epsilon)
        _require_same(path, bound, "greatest_epsilon", bound.greatest_epsilon or 0.0, greatest)
    _require_power(path, bound, power)
    return True


def _require_power(path: Path, bound: AuditResult, again: float | None) -> None:
    """Refuse a power that differs, or that is better than the counts allow."""
    stated = bound.detectable_epsilon
    if stated is None:
        return
    if isinstance(bound.estimator, ClassGuesses):
        raise IntegrityError(
            f"{path}: {bound.name!r} states a detectable_epsilon, which no audit of a random "
            "split has: audit again"
        )
    if again is not None:
        _require_same(path, bound, "detectable_epsilon", stated, again)
    if bound.refutes_epsilon is None:
        return
    least = detectable_epsilon_floor(bound, bound.refutes_epsilon)
    if not stated >= least * (1 - CROSS_MACHINE_TOLERANCE):
        raise IntegrityError(
            f"{path}: detectable_epsilon of {bound.name!r} is {stated:.9g}, its counts allow none "
            f"below {least:.9g}: audit the run again"
        )


def _require_stated(path: Path, bound: AuditResult, name: str, stated: float | None) -> None:
    if stated is None:
        raise IntegrityError(
            f"{path}: {bound.name!r} lacks {name}, which its counts give: audit the run again"
        )


def _require_same(path: Path, bound: AuditResult, name: str, stated: float, again: float) -> None:
    if not same_epsilon(stated, again):
        raise IntegrityError(
            f"{path}: {name} of {bound.name!r} is {stated:.9g}, its counts give {again:.9g}: audit "
            "the run again"
        )


def require_rates_match_counts(path: Path, results: Iterable[MembershipResult]) -> None:
    """Refuse intervals of true-positive rates that do not follow from their counts.

    Args:
        path: The file that holds them, for messages.
        results: Results of attacks.

    Raises:
        IntegrityError: If an interval does not follow from its counts.
    """
    for result in results:
        for rate in result.tpr_at_fpr:
            for name, stated, again in _intervals(result, rate):
                if stated is not None and not _same_interval(stated, again):
                    raise IntegrityError(
                        f"{path}: {name} of the attack by {result.attack} at FPR {rate.fpr:g} is "
                        f"{stated.lower:.9g} to {stated.upper:.9g}, its counts give "
                        f"{again.lower:.9g} to {again.upper:.9g}: attack again"
                    )


def _intervals(result: MembershipResult, rate: TprAtFpr) -> list[tuple[str, Bound | None, Bound]]:
    hits = round(rate.tpr * result.members)
    given = clopper_pearson_interval(
        successes=hits, trials=result.members, confidence=rate.confidence
    )
    found: list[tuple[str, Bound | None, Bound]] = [
        ("given_threshold", rate.given_threshold, given)
    ]
    if rate.least_hits is not None and rate.greatest_hits is not None:
        interval = tpr_interval_of_counts(
            (rate.least_hits, rate.greatest_hits),
            members=result.members,
            nonmembers=result.nonmembers,
            fpr=rate.fpr,
            confidence=rate.confidence,
        )
        found.append(("interval", rate.interval, interval))
    return found


def _same_interval(one: Bound, other: Bound) -> bool:
    return all(
        abs(a - b) <= CROSS_MACHINE_TOLERANCE
        for a, b in ((one.lower, other.lower), (one.upper, other.upper))
    )


# Collect evidence without a run: a declared claim, and measurements in files.

DEFAULT_POLICY = Policy(audit=AuditPolicy(count=(BoundKind.CERTIFIED, BoundKind.CONDITIONAL)))
"""Used without a policy: no lower bound may contradict the claim."""


@dataclass(frozen=True)
class MeasurementFiles:
    """Files of measurements; None means not given.

    Attributes:
        scores: Score file with members; excludes ``audit``.
        audit: Output of ``dpaudit audit --format json``.
        attack: Output of ``dpaudit attack --format json``.
        conformance: Output of ``dpaudit conformance --format json``.

    Raises:
        InvalidArgument: If both ``scores`` and ``audit`` are given.
    """

    scores: Path | None = None
    audit: Path | None = None
    attack: Path | None = None
    conformance: Path | None = None

    def __post_init__(self) -> None:
        if self.scores is not None and self.audit is not None:
            raise InvalidArgument(
                "scores", str(self.scores), "given without --audit: give one of them"
            )


def evidence_of_files(claim: DeclaredClaim, measured: MeasurementFiles, policy: Policy) -> Evidence:
    """Read and verify the measurements, and audit the scores if they are given.

    Args:
        claim: The declared claim.
        measured: The files.
        policy: Its section ``audit`` sets the confidence of the audit of scores.

    Returns:
        The evidence. Bounds that cannot be recomputed without a ledger are listed as doubts.

    Raises:
        InvalidArgument: If the scores cannot be used.
        IntegrityError: If a file is missing, broken or altered.
    """
    confidence = (policy.audit or AuditPolicy()).confidence
    audit = None if measured.audit is None else read_json(measured.audit, AuditReport)
    if measured.scores is not None:
        audit = _audited(measured.scores, claim, confidence)
    checked = EvidenceGaps()
    if measured.audit is not None and audit is not None:
        checked = verify_audit_file(measured.audit, audit)
    attack = None
    if measured.attack is not None:
        attack = read_json(measured.attack, AttackReport)
        require_rates_match_counts(measured.attack, attack.membership)
        attack = replace(attack, membership=with_checked_counts(attack.membership))
    if measured.audit is not None and audit is not None:
        audit = replace(audit, membership=with_checked_counts(audit.membership))
    conformance = measured.conformance
    return Evidence(
        claim=claim,
        audit=audit,
        attack=attack,
        doubts=checked.doubts,
        conformance=None if conformance is None else read_json(conformance, ConformanceResult),
    )


def _audited(scores: Path, claim: DeclaredClaim, confidence: float) -> AuditReport:
    from dpaudit.workflow.audit.external_scores import ScoreAuditSettings, audit_score_file  # noqa: PLC0415

    return audit_score_file(scores, ScoreAuditSettings(claim.delta, confidence, claim.epsilon))
