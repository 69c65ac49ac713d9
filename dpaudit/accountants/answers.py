"""Questions that people ask, put to every accountant: side by side, or as a claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import dpaudit
from dpaudit.accountants import naive, pld, rdp
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.errors import IntegrityError, UnsupportedMechanism
from dpaudit.vocabulary.ledger import PrivacyLedger, Randomness, Resumed, Sampling
from dpaudit.vocabulary.mechanism import Mechanism, PoissonSampled

Methods = dict[str, Bound]


def _naive(mechanism: Mechanism, delta: float, adjacency: Adjacency) -> Methods:
    profile = naive.profile(mechanism, adjacency=adjacency)
    return {
        "basic composition": profile.basic(delta=delta),
        "advanced composition": profile.advanced(delta=delta),
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


ACCOUNTANTS: Mapping[str, Callable[[Mechanism, float, Adjacency], Methods]] = {
    "naive": _naive,
    "rdp": _rdp,
    "pld": _pld,
}


def epsilon_by(
    accountant: str,
    mechanism: Mechanism,
    delta: float,
    adjacency: Adjacency,
    sampling: Sampling,
) -> EpsilonAnswer:
    """Return what one accountant says of epsilon at ``delta``: the best of its methods.

    ``sampling`` is how the batches were drawn, for the record: the mechanism says it all.
    """
    methods = ACCOUNTANTS[accountant](mechanism, delta, adjacency)
    best = Bound(
        max(bound.lower for bound in methods.values()),
        min(bound.upper for bound in methods.values()),
    )
    return EpsilonAnswer(accountant, adjacency, delta, best, methods, sampling)


def require_priceable(ledger: PrivacyLedger) -> None:
    """Refuse a ledger that theorems for fixed sequences, or for its sampling, do not cover.

    Raises:
        UnsupportedMechanism: the schedule was chosen during the run, or releases count on
            Poisson sampling that the header denies.
    """
    mechanism, header = ledger.mechanism, ledger.header
    if not header.schedule_fixed_in_advance:
        raise UnsupportedMechanism(
            mechanism, "its schedule was chosen during the run: no accountant here prices it"
        )
    sampled = any(
        isinstance(release, PoissonSampled) and release.sampling_rate < 1
        for release in count_releases(mechanism)
    )
    if sampled and header.sampling is not Sampling.POISSON:
        raise UnsupportedMechanism(
            mechanism, f"it books Poisson sampling, but sampling was {header.sampling.value}"
        )


def claim_of(ledger: PrivacyLedger, delta: float, accountant: str) -> Claim:
    """Return the claim that a ledger supports at ``delta``.

    Raises:
        IntegrityError: the ledger books no release, so there is nothing to claim.
        UnsupportedMechanism: the schedule was not fixed in advance; composition theorems
            for fixed sequences do not price it.
    """
    header = ledger.header
    if not ledger.releases:
        raise IntegrityError("the ledger books no release: the run never took a step")
    require_priceable(ledger)
    answer = epsilon_by(accountant, ledger.mechanism, delta, header.adjacency, header.sampling)
    seeded = header.randomness is Randomness.SEEDED or any(
        isinstance(line, Resumed) and line.randomness is Randomness.SEEDED for line in ledger.lines
    )
    return Claim(
        epsilon=answer.epsilon,
        delta=delta,
        accountant=accountant,
        adjacency=header.adjacency,
        sampling=header.sampling,
        randomness=Randomness.SEEDED if seeded else Randomness.SECURE,
        releases=len(ledger.releases),
        ledger_head=ledger.head,
        dpaudit_version=dpaudit.__version__,
        leaves_out=header.leaves_out,
        takes_as_public=header.takes_as_public,
    )
