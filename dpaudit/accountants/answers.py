"""Epsilon, delta and risk of a mechanism by an accountant, and the claim of a ledger."""

from __future__ import annotations

import dpaudit
from dpaudit.accountants import pld, privacy_filters, risk
from dpaudit.accountants.numerics import CertifiedInterval, worst_direction
from dpaudit.accountants.registry import find_accountant
from dpaudit.vocabulary.claim import Claim, DeltaAnswer, EpsilonAnswer, Explanation, RiskAnswer
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.ledger import (
    LedgerHeader,
    PrivacyLedger,
    Randomness,
    RenyiBudget,
    ResumeEntry,
    Sampling,
)
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Mechanism,
    PoissonSampled,
    RandomAllocation,
    Release,
    SampledWithoutReplacement,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound, ReleaseScope, Unit

SAMPLING_OF_RELEASE: dict[type, Sampling] = {
    PoissonSampled: Sampling.POISSON,
    TruncatedPoisson: Sampling.TRUNCATED_POISSON,
    SampledWithoutReplacement: Sampling.FIXED_SIZE,
    RandomAllocation: Sampling.BALLS_IN_BINS,
    BandedMatrixFactorization: Sampling.CYCLIC_POISSON,
}
"""How batches must have been drawn for a release to be what it says."""
FILTER_ACCOUNTANT = "renyi-filter"
"""What a claim for a schedule chosen during the run names as its accountant."""


def compute_epsilon(
    accountant: str,
    mechanism: Mechanism,
    delta: float,
    adjacency: Adjacency,
    sampling: Sampling | None,
    unit: Unit = Unit.RECORD,
) -> EpsilonAnswer:
    """Compute epsilon at ``delta`` by one accountant: the tightest of its methods.

    Args:
        accountant: A name in the registry.
        mechanism: What is released, composed over all steps; it alone determines epsilon.
        delta: Probability in (0, 1).
        adjacency: Which data sets are neighbors.
        sampling: How the batches were drawn, for the record; None if the mechanism says it.
        unit: What neighbors differ by, for the record.

    Returns:
        The intersection of the methods' intervals, and each of them.

    Raises:
        InvalidArgument: If the accountant is unknown or ``delta`` is out of range.
        UnsupportedMechanism: If the accountant does not cover ``mechanism``.
    """
    methods = find_accountant(accountant).bounds(mechanism, delta, adjacency)
    best = Bound(
        max(bound.lower for bound in methods.values()),
        min(bound.upper for bound in methods.values()),
    )
    return EpsilonAnswer(accountant, adjacency, delta, best, methods, sampling, unit=unit)


def explain_epsilon(
    mechanism: Mechanism, delta: float, adjacency: Adjacency
) -> tuple[Explanation, ...]:
    """Compute epsilon by the PLD accountant, with the method and error budget of each direction.

    Args:
        mechanism: What is released, composed over all steps.
        delta: Probability in (0, 1).
        adjacency: Which data sets are neighbors.

    Returns:
        One entry for each direction of the neighbor relation.
    """
    answers = pld.profile(mechanism, adjacency=adjacency).explain_epsilon(delta=delta)
    return tuple(_explanation_of(answer) for answer in answers)


def compute_delta(epsilon: float, mechanism: Mechanism, adjacency: Adjacency) -> DeltaAnswer:
    """Compute delta at ``epsilon`` by the PLD accountant.

    Args:
        epsilon: Privacy loss in nats, at least 0.
        mechanism: What is released, composed over all steps.
        adjacency: Which data sets are neighbors.

    Returns:
        An interval that contains the tight delta, with the method of each direction.
    """
    answers = pld.profile(mechanism, adjacency=adjacency).explain_delta(epsilon=epsilon)
    return DeltaAnswer(
        mechanism=mechanism,
        adjacency=adjacency,
        epsilon=epsilon,
        delta=worst_direction(answers),
        accountant="pld",
        dpaudit_version=dpaudit.__version__,
        explanation=tuple(_explanation_of(answer) for answer in answers),
    )


def compute_risk(mechanism: Mechanism, adjacency: Adjacency, fpr: tuple[float, ...]) -> RiskAnswer:
    """Bound what the best membership attack can achieve, by the PLD accountant.

    Args:
        mechanism: What is released, composed over all steps.
        adjacency: Which data sets are neighbors.
        fpr: False-positive rates, each in [0, 1].

    Returns:
        True-positive rates at ``fpr``, advantage and accuracy, as intervals.
    """
    profile = pld.profile(mechanism, adjacency=adjacency)
    curve = risk.tradeoff(profile, fpr)
    return RiskAnswer(
        mechanism=mechanism,
        adjacency=adjacency,
        fpr=curve.fpr,
        tpr=curve.tpr,
        advantage=risk.advantage(profile),
        accuracy=risk.accuracy(profile),
        accountant="pld",
        dpaudit_version=dpaudit.__version__,
    )


def _explanation_of(answer: CertifiedInterval) -> Explanation:
    return Explanation(
        answer.direction, answer.method, answer.lower, answer.upper, dict(answer.budget)
    )


def require_accountable(ledger: PrivacyLedger) -> None:
    """Refuse a ledger that the composition theorems do not cover.

    Args:
        ledger: At least one release.

    Raises:
        UnsupportedMechanism: If the schedule was chosen during the run, or a release assumes
            another sampling than the header records.
    """
    mechanism, header = ledger.mechanism, ledger.header
    if not header.schedule_fixed_in_advance:
        raise UnsupportedMechanism(
            mechanism,
            "its schedule was chosen during the run: only a privacy filter covers it, by the "
            "budget that was declared in the ledger's header",
        )
    _require_all_recorded_sampling(ledger)


def _require_all_recorded_sampling(ledger: PrivacyLedger) -> None:
    for release in ledger.releases:  # as recorded, not what they are accounted for as
        require_recorded_sampling(ledger.header, release.mechanism)


def require_recorded_sampling(header: LedgerHeader, release: Release) -> None:
    """Refuse a release that assumes another sampling than a ledger's header records.

    Args:
        header: Of the ledger.
        release: To be recorded, or recorded already.

    Raises:
        UnsupportedMechanism: If the two differ.
    """
    recorded = SAMPLING_OF_RELEASE.get(type(release), header.sampling)
    if recorded is not header.sampling:
        raise UnsupportedMechanism(
            release,
            f"it assumes {recorded.value} sampling, but sampling was {header.sampling.value}",
        )


def _epsilon_under_filter(ledger: PrivacyLedger, budget: RenyiBudget, delta: float) -> Bound:
    """Return the budget of a privacy filter, which bounds an adaptive schedule."""
    _require_all_recorded_sampling(ledger)
    if not delta >= budget.delta:
        raise InvalidArgument("delta", delta, f"at least the budget's {budget.delta:g}")
    recorded = (release.mechanism for release in ledger.releases)
    return privacy_filters.epsilon_under_budget(recorded, budget, adjacency=ledger.header.adjacency)


def claim_from_ledger(ledger: PrivacyLedger, delta: float, accountant: str) -> Claim:
    """Compute the claim that a ledger supports at ``delta``.

    Args:
        ledger: At least one release.
        delta: Probability in (0, 1).
        accountant: A name in the registry. A schedule that was chosen during the run is bounded
            by its privacy filter instead.

    Returns:
        Epsilon with everything that the claim depends on.

    Raises:
        IntegrityError: If the ledger records no release, so that there is nothing to claim.
        UnsupportedMechanism: If the schedule was chosen during the run and no budget of a
            privacy filter was declared.
        BudgetExceeded: If more was released than that budget admits.
    """
    header = ledger.header
    if not ledger.releases:
        raise IntegrityError("the ledger records no release: the run never took a step")
    if header.budget is not None and not header.schedule_fixed_in_advance:
        accountant, epsilon = FILTER_ACCOUNTANT, _epsilon_under_filter(ledger, header.budget, delta)
    else:
        require_accountable(ledger)
        epsilon = compute_epsilon(
            accountant, ledger.mechanism, delta, header.adjacency, header.sampling
        ).epsilon
    seeded = header.randomness is Randomness.SEEDED or any(
        isinstance(line, ResumeEntry) and line.randomness is Randomness.SEEDED
        for line in ledger.lines
    )
    return Claim(
        epsilon=epsilon,
        delta=delta,
        accountant=accountant,
        adjacency=header.adjacency,
        sampling=header.sampling,
        randomness=Randomness.SEEDED if seeded else Randomness.SECURE,
        releases=len(ledger.releases),
        ledger_head=ledger.head,
        dpaudit_version=dpaudit.__version__,
        unaccounted=ledger.unaccounted,
        unit=header.unit,
        released=ReleaseScope.EVERY_STEP,  # composition bounds every release, not the last alone
        assumed_public=header.assumed_public,
    )
