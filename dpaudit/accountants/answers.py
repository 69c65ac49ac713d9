"""Epsilon, delta and risk of a mechanism by an accountant, and the claim of a ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import dpaudit
from dpaudit.accountants import gdp_summary, pld, privacy_filters, risk
from dpaudit.accountants.numerics import CertifiedInterval, worst_direction
from dpaudit.accountants.registry import find_accountant
from dpaudit.vocabulary.claim import (
    Claim,
    DeltaAnswer,
    EpsilonAnswer,
    Explanation,
    GaussianSummary,
    RiskAnswer,
)
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.ledger import (
    LedgerHeader,
    PrivacyLedger,
    Randomness,
    RenyiBudget,
    Sampling,
)
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    BinnedMatrixFactorization,
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
    BinnedMatrixFactorization: Sampling.BALLS_IN_BINS,
}
"""How batches must have been drawn for a release to be what it says."""
NO_RELEASE = "the ledger records no release: the run never took a step"
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


def compute_risk(
    mechanism: Mechanism,
    adjacency: Adjacency,
    fpr: tuple[float, ...],
    gdp_slack: float | None = None,
) -> RiskAnswer:
    """Bound what the best membership attack can achieve, by the PLD accountant.

    Args:
        mechanism: What is released, composed over all steps.
        adjacency: Which data sets are neighbors.
        fpr: False-positive rates, each in [0, 1].
        gdp_slack: Slack of a summary by mu of Gaussian DP; None: no summary.

    Returns:
        True-positive rates at ``fpr``, advantage and accuracy, as intervals.
    """
    profile = pld.profile(mechanism, adjacency=adjacency)
    curve = risk.tradeoff(profile, fpr)
    summary = None
    if gdp_slack is not None:
        found = gdp_summary.summarize(profile, slack=gdp_slack)
        summary = GaussianSummary(found.mu, found.regret, found.slack)
    return RiskAnswer(
        mechanism=mechanism,
        adjacency=adjacency,
        fpr=curve.fpr,
        tpr=curve.tpr,
        advantage=risk.advantage(profile),
        accuracy=risk.accuracy(profile),
        accountant="pld",
        dpaudit_version=dpaudit.__version__,
        gdp=summary,
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

    The claim of a federation is the largest of its participants' epsilons: the upper end is the
    largest upper end, and the lower end the largest lower end.

    Args:
        ledger: At least one release, of its own or of a participant.
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
    header, parts = ledger.header, ledger_epsilons(ledger, delta, accountant)
    epsilons = [part.epsilon for part in parts.values()]
    costliest = ledger.accounted_ledgers[costliest_of(parts)]
    filtered = any(part.accountant == FILTER_ACCOUNTANT for part in parts.values())
    return Claim(
        epsilon=Bound(max(one.lower for one in epsilons), max(one.upper for one in epsilons)),
        delta=delta,
        accountant=FILTER_ACCOUNTANT if filtered else accountant,
        adjacency=header.adjacency,
        sampling=costliest.header.sampling,
        randomness=Randomness.SEEDED if ledger.is_seeded else Randomness.SECURE,
        releases=ledger.release_count,
        ledger_head=ledger.head,
        dpaudit_version=dpaudit.__version__,
        unaccounted=ledger.unaccounted,
        unit=header.unit,
        released=ReleaseScope.EVERY_STEP,  # composition bounds every release, not the last alone
        assumed_public=ledger.assumed_public,
        federation=header.federation,
        noise=costliest.header.noise,
    )


@dataclass(frozen=True)
class LedgerEpsilon:
    """The epsilon of one ledger of a run.

    Attributes:
        epsilon: Interval of epsilon, in nats.
        accountant: Who computed it: ``FILTER_ACCOUNTANT`` for a schedule chosen during the run.
        releases: Number of releases that it covers.
    """

    epsilon: Bound
    accountant: str
    releases: int


def ledger_epsilons(
    ledger: PrivacyLedger, delta: float, accountant: str
) -> dict[str, LedgerEpsilon]:
    """Compute epsilon of each ledger of a run: of each participant of a federation.

    Equal compositions, which most participants have, are computed once.

    Args:
        ledger: At least one release, of its own or of a participant.
        delta: Probability in (0, 1).
        accountant: A name in the registry.

    Returns:
        By the names of ``PrivacyLedger.accounted_ledgers``; never empty.

    Raises:
        IntegrityError: If no release is recorded.
        UnsupportedMechanism: If a schedule was chosen during the run without a privacy filter.
        BudgetExceeded: If more was released than the budget of a filter admits.
    """
    parts = ledger.accounted_ledgers
    if not parts:
        raise IntegrityError(NO_RELEASE)
    known: dict[Hashable, LedgerEpsilon] = {}
    found: dict[str, LedgerEpsilon] = {}
    for name, part in parts.items():
        key = _composition_key(part)
        if key not in known:
            known[key] = _ledger_epsilon(part, delta, accountant)
        found[name] = known[key]
    return found


def costliest_of(parts: Mapping[str, LedgerEpsilon]) -> str:
    """Return the name of the ledger with the largest upper bound, the first of several."""
    return max(parts, key=lambda name: parts[name].epsilon.upper)


def costliest_ledger(ledger: PrivacyLedger, delta: float, accountant: str = "pld") -> PrivacyLedger:
    """Return the ledger of a run whose releases its claim accounts for.

    Args:
        ledger: At least one release, of its own or of a participant.
        delta: The delta at which the participants of a federation are compared.
        accountant: The accountant that compares them. The result need not be the costliest at
            another delta, or by another accountant.

    Returns:
        The ledger itself for a run of one trainer. Of a federation, that with the largest
        epsilon, the server's releases on the same records included.

    Raises:
        IntegrityError: If no release is recorded.
    """
    parts = ledger.accounted_ledgers
    if not parts:
        raise IntegrityError(NO_RELEASE)
    if len({_composition_key(part) for part in parts.values()}) > 1:
        return parts[costliest_of(ledger_epsilons(ledger, delta, accountant))]
    return next(iter(parts.values()))


def compared_by(claim: Claim) -> str:
    """Return the accountant that compares the participants of a claim's federation."""
    return "pld" if claim.accountant == FILTER_ACCOUNTANT else claim.accountant


def _composition_key(ledger: PrivacyLedger) -> Hashable:
    """Return what the epsilon of a ledger depends on."""
    header = ledger.header
    counts = Counter(release.mechanism for release in ledger.releases)
    order = tuple(one.mechanism for one in ledger.releases) if header.budget is not None else ()
    settings = (header.sampling, header.schedule_fixed_in_advance, header.budget)
    return frozenset(counts.items()), order, settings


def _ledger_epsilon(ledger: PrivacyLedger, delta: float, accountant: str) -> LedgerEpsilon:
    """Compute epsilon of one ledger, without its participants."""
    header, releases = ledger.header, len(ledger.releases)
    if header.budget is not None and not header.schedule_fixed_in_advance:
        epsilon = _epsilon_under_filter(ledger, header.budget, delta)
        return LedgerEpsilon(epsilon, FILTER_ACCOUNTANT, releases)
    require_accountable(ledger)
    answer = compute_epsilon(accountant, ledger.mechanism, delta, header.adjacency, header.sampling)
    return LedgerEpsilon(answer.epsilon, accountant, releases)
