"""Hold an audit of a run against the counts in it and against the run's own files.

The gate takes nothing from audit.json that follows from its counts: each bound, the largest bound
that any outcome could have shown, and rates of attacks are computed anew. A file whose numbers do
not follow from its counts was altered. What takes simulations of the claim, the power of an audit
that guesses canaries, is held against what its numbers of guesses allow at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from dpaudit.accountants.answers import claim_of
from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.attacks.bounds.rate_intervals import interval_of_hits
from dpaudit.attacks.one_run import scored
from dpaudit.attacks.one_run.claimed import Claimed
from dpaudit.attacks.one_run.recomputed import (
    detectable_epsilon,
    greatest_epsilon,
    least_detectable_epsilon,
    recomputed_bound,
)
from dpaudit.gate.policy import AuditPolicy
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_arrays
from dpaudit.vocabulary.audit import (
    AttackReport,
    AuditReport,
    AuditResult,
    BoundKind,
    MembershipResult,
    TprAtFpr,
)
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.estimators import BatchMeans, BatchRates, ClassGuesses
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.release_names import GRADIENT_SUM
from dpaudit.vocabulary.tolerance import OTHER_MACHINE, same_epsilon, same_number
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT, claim_delta
from dpaudit.workflow.families import Step, booked_steps
from dpaudit.workflow.promised_audits import (
    Promised,
    claimed_steps,
    gradient_plan,
    promised_attacks,
    promised_audits,
    simulation_seed,
)

ClaimedAt = Callable[[], Claimed | None]
"""What is claimed of a run's steps, at the delta of a bound."""

NOT_RECORDED = (
    "the run's ledger does not record these canaries, so nothing shows that it trained on them: "
    "make_private(canary_file=...)"
)
UNKNOWN = "the audit does not hold the counts that it follows from: audit again"
UNKNOWN_RATES = "its rates lack the counts that they follow from: attack again"


@dataclass(frozen=True)
class Checked:
    """What is wrong with an audit that was not altered.

    Attributes:
        missing: Names of bounds that a complete audit of the run holds, and this one lacks.
        doubts: Why a bound is no evidence that the claim is true, by its name.
        missing_attacks: Names of membership attacks that it lacks.
    """

    missing: tuple[str, ...] = ()
    missing_attacks: tuple[str, ...] = ()
    doubts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Claims:
    """What the ledger of a run claims, as its canaries saw it.

    Attributes:
        run: The run.
        ledger: Its ledger.
        epsilon: The upper end of its claim.
        unseen: How many steps showed nothing, as the audit says.
    """

    run: RunDirectory
    ledger: PrivacyLedger
    epsilon: float
    unseen: int

    def at(self, delta: float) -> Claimed | None:
        """Return the claimed steps at ``delta``; None where canaries saw none."""
        if not self._steps:
            return None
        return claimed_steps(self._steps, epsilon=self.epsilon, delta=delta)

    @cached_property
    def _steps(self) -> list[Step]:
        steps = booked_steps(self.ledger, GRADIENT_SUM)
        if not self.unseen:
            return steps
        shown = np.isfinite(read_arrays(self.run.observations)["rows"]).all(axis=1)
        if len(shown) != len(steps) or int((~shown).sum()) != self.unseen:
            raise IntegrityError(
                f"{self.run.audit} says that {self.unseen} steps showed nothing, "
                f"{self.run.observations} says otherwise: audit the run again"
            )
        return [steps[i] for i in np.flatnonzero(shown)]


def checked_measurements(
    run: RunDirectory,
    ledger: PrivacyLedger,
    audit: AuditReport | None,
    attack: AttackReport | None,
) -> Checked:
    """Return what the measurements in a run lack; those of another ledger are no evidence.

    Raises:
        IntegrityError: A number does not follow from the counts beside it.
    """
    if attack is not None and attack.ledger_head == ledger.head:
        require_rates(run.attack, attack.membership)
    if audit is None or audit.ledger_head != ledger.head:
        return Checked()
    claim = claim_of(ledger, claim_delta(run), CLAIMING_ACCOUNTANT)
    return checked_audit(run, ledger, audit, claim)


def checked_audit(
    run: RunDirectory, ledger: PrivacyLedger, audit: AuditReport, claim: Claim
) -> Checked:
    """Return what an audit of this very ledger lacks.

    Args:
        run: A finished run, whose files were verified.
        ledger: Its ledger.
        audit: The audit that lies in it.
        claim: The run's own, at its own delta.

    Raises:
        IntegrityError: A number of the audit does not follow from its counts, or it says other
            than the run's own files do.
    """
    promised = {one.name: one for one in promised_audits(run, ledger, audit, claim.delta)}
    claims = Claims(run, ledger, claim.epsilon.upper, audit.unseen_steps)
    at = cache(claims.at)
    seed = simulation_seed(ledger)
    _require_once(run.audit, audit)
    for bound in audit.bounds:
        _require_as_promised(run.audit, bound, promised.get(bound.name))
        _require_recomputed(run.audit, bound, partial(at, bound.delta), seed)
    require_rates(run.audit, audit.membership)
    present = {bound.name for bound in audit.bounds}
    missing = tuple(_lacking(name) for name in promised if name not in present)
    doubts = [(bound.name, UNKNOWN) for bound in audit.bounds if bound.estimator is None]
    doubts += [(one.name, NOT_RECORDED) for one in promised.values() if _is_unrecorded(one)]
    measured = {one.attack for one in audit.membership}
    unmade = tuple(one for one in promised_attacks(run, audit) if one not in measured)
    return Checked(missing, unmade, tuple(doubts))


def require_decisive_power(
    run: RunDirectory,
    ledger: PrivacyLedger,
    audit: AuditReport | None,
    policy: AuditPolicy,
    doubted: frozenset[str],
) -> None:
    """Simulate the power that a policy's verdict depends on again, where nothing else shows it.

    The smallest stated power among the kinds of bound that count decides. Bounds by batch are
    computed anew anyway; of others, the simulation of the claim is repeated from its seed. A
    bound in doubt shows nothing, so it does not spare the simulation.

    Args:
        run: A finished run, whose files were verified.
        ledger: Its ledger.
        audit: What was measured of it.
        policy: Which kinds of bound count, and which power it demands.
        doubted: Names of the bounds that are no evidence.

    Raises:
        IntegrityError: The audit states another power.
    """
    if audit is None or audit.ledger_head != ledger.head:
        return
    claim = claim_of(ledger, claim_delta(run), CLAIMING_ACCOUNTANT)
    counted = [bound for bound in audit.bounds if bound.kind in policy.count]
    stated = [bound for bound in counted if bound.detectable_epsilon is not None]
    usable = [one for one in counted if one.inconclusive is None and one.name not in doubted]
    could = any((bound.greatest_epsilon or 0) > claim.epsilon.upper for bound in usable)
    if not stated or (could and policy.min_power_epsilon is None):
        return
    best = min(stated, key=lambda bound: bound.detectable_epsilon or 0.0)
    if isinstance(best.estimator, BatchRates | BatchMeans):
        return
    claimed = Claims(run, ledger, claim.epsilon.upper, audit.unseen_steps).at(best.delta)
    plan = None if claimed is None else gradient_plan(run, ledger, audit, claimed, best.name)
    power = None if plan is None else plan.power()
    if power is None or not same_epsilon(best.detectable_epsilon or 0.0, power):
        raise IntegrityError(
            f"{run.audit}: detectable_epsilon of {best.name!r} is {best.detectable_epsilon:.9g}, "
            f"its simulation gives {'none' if power is None else format(power, '.9g')}: audit the "
            "run again"
        )


def with_counts(results: Iterable[MembershipResult]) -> tuple[MembershipResult, ...]:
    """Return attacks; those whose rates lack the counts that they follow from are no evidence."""
    return tuple(
        replace(result, inconclusive=result.inconclusive or UNKNOWN_RATES)
        if any(rate.least_hits is None or rate.greatest_hits is None for rate in result.tpr_at_fpr)
        else result
        for result in results
    )


def checked_file(path: Path, audit: AuditReport) -> Checked:
    """Return what an audit of no run lacks; bounds over a claimed family cannot be told.

    Raises:
        IntegrityError: A number of the audit does not follow from its counts.
    """
    doubts = []
    _require_once(path, audit)
    for bound in audit.bounds:
        if not _require_recomputed(path, bound, _no_ledger, 0):
            doubts.append((bound.name, UNKNOWN))
    require_rates(path, audit.membership)
    return Checked(doubts=tuple(doubts))


def _lacking(name: str) -> str:
    """Return the name of a missing bound, with the option that it needs."""
    return f"{name} (with --canaries FILE)" if name == scored.NAME else name


def require_bounds(path: Path, bounds: Iterable[AuditResult]) -> None:
    """Refuse bounds that their own counts contradict, without the claim that some invert over.

    Raises:
        IntegrityError: Names the bound.
    """
    for bound in bounds:
        _require_recomputed(path, bound, _no_ledger, 0)


def _no_ledger() -> None:
    """Return what is claimed of the steps of a run that nobody has: nothing."""


def _is_unrecorded(one: Promised) -> bool:
    return one.trials is None


def _require_once(path: Path, audit: AuditReport) -> None:
    names = [bound.name for bound in audit.bounds]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise IntegrityError(f"{path} holds the bound {twice[0]!r} twice: audit the run again")


def _require_as_promised(path: Path, bound: AuditResult, promised: Promised | None) -> None:
    """Refuse a bound that no audit of this run makes, or of other canaries or confidence."""
    if promised is None:
        raise IntegrityError(
            f"{path} holds the bound {bound.name!r}, which no audit of this run makes: audit the "
            "run again"
        )
    expected: list[tuple[str, object, object, bool]] = [
        ("delta", bound.delta, promised.delta, same_number(bound.delta, promised.delta)),
        ("kind", bound.kind.value, promised.kind.value, bound.kind is promised.kind),
        (
            "confidence",
            bound.confidence,
            promised.confidence,
            same_number(1 - bound.confidence, 1 - promised.confidence)
            or abs(bound.confidence - promised.confidence) < 1e-12,
        ),
    ]
    if promised.trials is not None:
        same = bound.trials == promised.trials
        expected.append(("trials", bound.trials, promised.trials, same))
    if bound.estimator is not None:
        names = " or ".join(kind.__name__ for kind in promised.estimators)
        same = isinstance(bound.estimator, promised.estimators)
        expected.append(("estimator", type(bound.estimator).__name__, names, same))
    for name, given, allowed, same in expected:
        if not same:
            raise IntegrityError(
                f"{path}: {name} of {bound.name!r} is {given}, an audit of this run has "
                f"{allowed}: audit the run again"
            )


def _require_recomputed(path: Path, bound: AuditResult, claim: ClaimedAt, seed: int) -> bool:
    """Return whether a bound could be computed anew; refuse it where it says something else."""
    try:
        again = recomputed_bound(bound, claim)
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
    """Refuse a power that is another one, or better than the counts allow."""
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
    least = least_detectable_epsilon(bound, bound.refutes_epsilon)
    if not stated >= least * (1 - OTHER_MACHINE):
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


def require_rates(path: Path, results: Iterable[MembershipResult]) -> None:
    """Refuse an interval of a true-positive rate that does not follow from its counts.

    Raises:
        IntegrityError: Names the attack.
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
        interval = interval_of_hits(
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
        abs(a - b) <= OTHER_MACHINE for a, b in ((one.lower, other.lower), (one.upper, other.upper))
    )
