"""Questions that people ask, put to every accountant: side by side, or as a claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import dpaudit
from dpaudit.accountants import adaptive, gdp, naive, pld, rdp, risk, zcdp
from dpaudit.accountants.pld.answer import Answer, worst
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.answers import DeltaAnswer, Explanation, RiskAnswer
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.ledger import (
    LedgerHeader,
    PrivacyLedger,
    Randomness,
    RenyiBudget,
    Resumed,
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
from dpaudit.vocabulary.unit import Released, Unit

Methods = dict[str, Bound]
SAMPLED_BY: dict[type, Sampling] = {
    PoissonSampled: Sampling.POISSON,
    TruncatedPoisson: Sampling.TRUNCATED_POISSON,
    SampledWithoutReplacement: Sampling.FIXED_SIZE,
    RandomAllocation: Sampling.BALLS_IN_BINS,
    BandedMatrixFactorization: Sampling.CYCLIC_POISSON,
}
"""How batches must have been drawn for a release to be what it says."""
FILTER = "renyi-filter"
"""What a claim for a schedule chosen during the run names as its accountant."""


def _naive(mechanism: Mechanism, delta: float, adjacency: Adjacency) -> Methods:
    profile = naive.profile(mechanism, adjacency=adjacency)
    return {
        "basic composition": profile.basic(delta=delta),
        "advanced composition": profile.advanced(delta=delta),
        "optimal composition": profile.optimal(delta=delta),
    }


def _rdp(mechanism: Mechanism, delta: float, adjacency: Adjacency) -> Methods:
    profile = rdp.profile(mechanism, adjacency=adjacency)
    return {
        "moments, integer orders": profile.at_integer_orders(delta=delta)[0],
        "Renyi, real orders": profile.at_real_orders(delta=delta)[0],
    }


def _pld(mechanism: Mechanism, delta: float, adjacency: Adjacency) -> Methods:
    profile = pld.profile(mechanism, adjacency=adjacency)
    return {"privacy loss distribution": profile.epsilon(delta=delta)}


def _zcdp(mechanism: Mechanism, delta: float, adjacency: Adjacency) -> Methods:
    profile = zcdp.profile(mechanism, adjacency=adjacency)
    return {"concentrated DP": profile.epsilon(delta=delta)}


def _gdp(mechanism: Mechanism, delta: float, adjacency: Adjacency) -> Methods:
    return {"one Gaussian": gdp.profile(mechanism, adjacency=adjacency).epsilon(delta=delta)}


Ask = Callable[[Mechanism, float, Adjacency], Methods]

ACCOUNTANTS: Mapping[str, Ask] = {"naive": _naive, "rdp": _rdp, "pld": _pld}
"""Those that price nearly everything."""

SPECIAL: Mapping[str, Ask] = {"zcdp": _zcdp, "gdp": _gdp}
"""Those that refuse whatever is sampled."""


def epsilon_by(
    accountant: str,
    mechanism: Mechanism,
    delta: float,
    adjacency: Adjacency,
    sampling: Sampling | None,
    unit: Unit = Unit.RECORD,
) -> EpsilonAnswer:
    """Return what one accountant says of epsilon at ``delta``: the best of its methods.

    ``sampling`` is how the batches were drawn and ``unit`` what neighbours differ by, both
    for the record: the mechanism determines the number.
    """
    methods = {**ACCOUNTANTS, **SPECIAL}[accountant](mechanism, delta, adjacency)
    best = Bound(
        max(bound.lower for bound in methods.values()),
        min(bound.upper for bound in methods.values()),
    )
    return EpsilonAnswer(accountant, adjacency, delta, best, methods, sampling, unit=unit)


def explanation(
    mechanism: Mechanism, delta: float, adjacency: Adjacency
) -> tuple[Explanation, ...]:
    """Return how the PLD accountant comes by its epsilon, direction by direction."""
    answers = pld.profile(mechanism, adjacency=adjacency).explain_epsilon(delta=delta)
    return tuple(_explained(answer) for answer in answers)


def delta_at(epsilon: float, mechanism: Mechanism, adjacency: Adjacency) -> DeltaAnswer:
    """Return the interval of delta at ``epsilon``, by the PLD accountant."""
    answers = pld.profile(mechanism, adjacency=adjacency).explain_delta(epsilon=epsilon)
    return DeltaAnswer(
        mechanism=mechanism,
        adjacency=adjacency,
        epsilon=epsilon,
        delta=worst(answers),
        accountant="pld",
        dpaudit_version=dpaudit.__version__,
        explanation=tuple(_explained(answer) for answer in answers),
    )


def risk_of(mechanism: Mechanism, adjacency: Adjacency, fpr: tuple[float, ...]) -> RiskAnswer:
    """Return what the best attacker can do, by the PLD accountant."""
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


def _explained(answer: Answer) -> Explanation:
    return Explanation(
        answer.direction, answer.method, answer.lower, answer.upper, dict(answer.budget)
    )


def require_priceable(ledger: PrivacyLedger) -> None:
    """Refuse a ledger that theorems for fixed sequences, or for its sampling, do not cover.

    Raises:
        UnsupportedMechanism: the schedule was chosen during the run, or releases count on
            Poisson sampling that the header denies.
    """
    mechanism, header = ledger.mechanism, ledger.header
    if not header.schedule_fixed_in_advance:
        raise UnsupportedMechanism(
            mechanism,
            "its schedule was chosen during the run: only a filter prices it, by the budget "
            "that was declared in the ledger's header",
        )
    _require_booked_sampling(ledger)


def _require_booked_sampling(ledger: PrivacyLedger) -> None:
    for booking in ledger.releases:  # as they were recorded, not what they are priced as
        require_sampling_of(ledger.header, booking.mechanism)


def require_sampling_of(header: LedgerHeader, release: Release) -> None:
    """Refuse a release of another sampling than a ledger's header names.

    Raises:
        UnsupportedMechanism: It is.
    """
    booked = SAMPLED_BY.get(type(release), header.sampling)
    if booked is not header.sampling:
        raise UnsupportedMechanism(
            release, f"it books {booked.value} sampling, but sampling was {header.sampling.value}"
        )


def _filtered(ledger: PrivacyLedger, budget: RenyiBudget, delta: float) -> Bound:
    """Return what a filter promises of a schedule that was chosen during the run."""
    _require_booked_sampling(ledger)
    if not delta >= budget.delta:
        raise InvalidArgument("delta", delta, f"at least the budget's {budget.delta:g}")
    booked = (release.mechanism for release in ledger.releases)
    return adaptive.price(booked, budget, adjacency=ledger.header.adjacency)


def claim_of(ledger: PrivacyLedger, delta: float, accountant: str) -> Claim:
    """Return the claim that a ledger supports at ``delta``.

    Raises:
        IntegrityError: the ledger books no release, so there is nothing to claim.
        UnsupportedMechanism: the schedule was not fixed in advance, and no filter's budget
            was declared; composition theorems for fixed sequences do not price it.
        BudgetExceeded: more was released than that budget admits.
    """
    header = ledger.header
    if not ledger.releases:
        raise IntegrityError("the ledger books no release: the run never took a step")
    if header.budget is not None and not header.schedule_fixed_in_advance:
        accountant, epsilon = FILTER, _filtered(ledger, header.budget, delta)
    else:
        require_priceable(ledger)
        epsilon = epsilon_by(
            accountant, ledger.mechanism, delta, header.adjacency, header.sampling
        ).epsilon
    seeded = header.randomness is Randomness.SEEDED or any(
        isinstance(line, Resumed) and line.randomness is Randomness.SEEDED for line in ledger.lines
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
        leaves_out=ledger.leaves_out,
        unit=header.unit,
        released=Released.EVERY_STEP,  # composition bounds every release, not the last alone
        takes_as_public=header.takes_as_public,
    )
