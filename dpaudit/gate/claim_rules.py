"""What the policy demands of the claim."""

from __future__ import annotations

from collections.abc import Iterator

from dpaudit.gate.evidence import Declared
from dpaudit.gate.outcomes import decided, unknown
from dpaudit.gate.policy import ClaimPolicy
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.rounding import round_up
from dpaudit.vocabulary.unit import Released
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome

RELEASED = {
    Released.EVERY_STEP: "the release of every step",
    Released.FINAL_MODEL: "the release of the final model alone",
}
NO_LEDGER = "the claim is declared, and no ledger shows it: judge a run, or leave out [claim]"


def claim_rules(policy: ClaimPolicy, claim: Claim | Declared) -> Iterator[RuleOutcome]:
    """Yield the outcome of each rule of the section ``claim``."""
    if isinstance(claim, Declared):
        yield from _declared_rules(policy, claim)
        return
    yield _max_epsilon(policy, claim)
    yield _adjacency(policy, claim)
    yield _unit(policy, claim)
    yield _released(policy, claim)
    yield _sampling(policy, claim)
    yield decided(
        "claim.require_secure_randomness",
        claim.randomness is Randomness.SECURE or not policy.require_secure_randomness,
        f"randomness was {claim.randomness.value}",
    )
    yield _left_out(policy, claim)


def _declared_rules(policy: ClaimPolicy, claim: Declared) -> Iterator[RuleOutcome]:
    """Yield what can be said of a number: that it is too large, never that it is true."""
    too_large = not claim.epsilon <= policy.max_epsilon and claim.delta == policy.delta
    stated = f"epsilon {claim.epsilon:g} at delta {claim.delta:g} is declared"
    why = f"{stated}, the policy allows {policy.max_epsilon:g}" if too_large else NO_LEDGER
    outcome = Outcome.VIOLATED if too_large else Outcome.INCONCLUSIVE
    yield RuleOutcome("claim.max_epsilon", outcome, why)
    for rule in (
        "adjacency",
        "unit",
        "released",
        "sampling",
        "require_secure_randomness",
        "may_leave_out",
    ):
        yield unknown(f"claim.{rule}", NO_LEDGER)


def _max_epsilon(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    if (claim.delta, claim.accountant) != (policy.delta, policy.accountant):
        return unknown(
            "claim.max_epsilon",
            f"the claim is at delta {claim.delta:g} by {claim.accountant}, the policy asks for "
            f"delta {policy.delta:g} by {policy.accountant}",
        )
    return decided(
        "claim.max_epsilon",
        claim.epsilon.upper <= policy.max_epsilon,
        f"epsilon is at most {round_up(claim.epsilon.upper)} at delta {claim.delta:g} "
        f"({claim.accountant}), the policy allows {policy.max_epsilon:g}",
    )


def _adjacency(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    return decided(
        "claim.adjacency",
        claim.adjacency is policy.adjacency,
        f"the claim is for {claim.adjacency.value}, the policy demands {policy.adjacency.value}",
    )


def _unit(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    """Demand the very unit: neither of two units implies the other at the same epsilon.

    Of k records that a user may have, epsilon for one record bounds about k times epsilon
    for the user. Epsilon for a user is for adding or removing all of their records, which no
    change of a single record is.
    """
    why = f"the claim protects one {claim.unit.value}, the policy demands one {policy.unit.value}"
    if claim.unit is not policy.unit:
        why += ": train with that unit, or set claim.unit if the project promises another"
    return decided("claim.unit", claim.unit is policy.unit, why)


def _released(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    return decided(
        "claim.released",
        claim.released.covers(policy.released),
        f"the claim covers {RELEASED[claim.released]}, the policy demands "
        f"{RELEASED[policy.released]}",
    )


def _sampling(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    allowed = ", ".join(sampling.value for sampling in policy.sampling)
    return decided(
        "claim.sampling",
        claim.sampling in policy.sampling,
        f"sampling was {claim.sampling.value}, allowed is {allowed}",
    )


def _left_out(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    left_out = [item for item in claim.leaves_out if item not in policy.may_leave_out]
    return decided(
        "claim.may_leave_out",
        not left_out,
        f"the claim leaves out {', '.join(left_out) or 'nothing that it may not'}",
    )
