"""Rules of the policy section ``claim``: epsilon, neighbors, observers, sampling, scope."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dpaudit.gate.evidence import DeclaredClaim
from dpaudit.gate.policy import ClaimPolicy
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.federation import DP_FEDAVG, FINAL_MODEL_READERS
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.privacy_terms import ReleaseScope
from dpaudit.vocabulary.rounding import round_up
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, decided_outcome, inconclusive_outcome

RELEASE_SCOPE_WORDS = {
    ReleaseScope.EVERY_STEP: "the release of every step",
    ReleaseScope.FINAL_MODEL: "the release of the final model alone",
}
DECLARED_WITHOUT_LEDGER = (
    "the claim is declared and no ledger supports it: evaluate a run, or remove [claim]"
)


def evaluate_claim_rules(
    policy: ClaimPolicy, claim: Claim | DeclaredClaim
) -> Iterator[RuleOutcome]:
    """Evaluate the rules of the section ``claim``.

    Args:
        policy: The section.
        claim: A claim that was computed from a ledger; or a declared one, which can fail a rule
            but never passes one.

    Yields:
        One outcome per rule.
    """
    if isinstance(claim, DeclaredClaim):
        yield from _declared_rules(policy, claim)
        return
    yield _max_epsilon(policy, claim)
    yield _adjacency(policy, claim)
    yield _unit(policy, claim)
    if policy.protects_against:
        yield _protects_against(policy, claim)
    yield _released(policy, claim)
    yield _sampling(policy, claim)
    yield decided_outcome(
        "claim.require_secure_randomness",
        claim.randomness is Randomness.SECURE or not policy.require_secure_randomness,
        f"randomness was {claim.randomness.value}",
    )
    yield _left_out(policy, claim)


def _declared_rules(policy: ClaimPolicy, claim: DeclaredClaim) -> Iterator[RuleOutcome]:
    """Yield what a declared number allows: FAIL if it is too large, never PASS."""
    too_large = not claim.epsilon <= policy.max_epsilon and claim.delta == policy.delta
    stated = f"epsilon {round_up(claim.epsilon)} at delta {claim.delta:g} is declared"
    why = (
        f"{stated}, the policy allows {policy.max_epsilon:g}"
        if too_large
        else DECLARED_WITHOUT_LEDGER
    )
    outcome = Outcome.FAIL if too_large else Outcome.INCONCLUSIVE
    yield RuleOutcome("claim.max_epsilon", outcome, why)
    demanded = ("protects_against",) if policy.protects_against else ()
    for rule in (
        "adjacency",
        "unit",
        *demanded,
        "released",
        "sampling",
        "require_secure_randomness",
        "allow_unaccounted",
    ):
        yield inconclusive_outcome(f"claim.{rule}", DECLARED_WITHOUT_LEDGER)


def _max_epsilon(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    if (claim.delta, claim.accountant) != (policy.delta, policy.accountant):
        return inconclusive_outcome(
            "claim.max_epsilon",
            f"the claim is at delta {claim.delta:g} by {claim.accountant}, the policy demands "
            f"delta {policy.delta:g} by {policy.accountant}",
        )
    return decided_outcome(
        "claim.max_epsilon",
        claim.epsilon.upper <= policy.max_epsilon,
        f"epsilon is at most {round_up(claim.epsilon.upper)} at delta {claim.delta:g} "
        f"({claim.accountant}), the policy allows {policy.max_epsilon:g}",
    )


def _adjacency(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    return decided_outcome(
        "claim.adjacency",
        claim.adjacency is policy.adjacency,
        f"the claim is for {claim.adjacency.value}, the policy demands {policy.adjacency.value}",
    )


def _unit(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    """Require the exact unit: neither of two units implies the other at the same epsilon.

    Of k records that a user may have, epsilon for one record bounds about k times epsilon
    for the user. Epsilon for a user is for adding or removing all of their records, which no
    change of a single record is.
    """
    why = f"the claim protects one {claim.unit.value}, the policy demands one {policy.unit.value}"
    if claim.unit is not policy.unit:
        why += ": train with that unit, or set claim.unit if the project claims another"
    return decided_outcome("claim.unit", claim.unit is policy.unit, why)


def _protects_against(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    """Require every demanded observer among those that the claim holds against."""
    federation = claim.federation
    held = (FINAL_MODEL_READERS,) if federation is None else federation.protects_against
    missing = [one for one in policy.protects_against if one not in held]
    why = f"the claim holds against {_listed(held)}"
    if missing:
        why += f", and not against {_listed(missing)}"
    if missing and federation is None:
        why += ": the run is not a federation, and its trainer sees every record"
    elif missing and federation is not None and federation.strategy == DP_FEDAVG:
        why += ": use secure aggregation (other participants need colluders of at least 1)"
    if federation is not None and federation.threat_model is not None:
        why += f". {federation.threat_model.summary}"
    kept_out = held if federation is None else federation.kept_out
    if not missing and not set(policy.protects_against) <= set(kept_out):
        why += " That process held every update: run the participants on machines of their own"
        return inconclusive_outcome("claim.protects_against", why)
    return decided_outcome("claim.protects_against", not missing, why)


def _listed(observers: Iterable[str]) -> str:
    """Return observers as a list in one phrase."""
    return ", ".join(observers) or "nobody"


def _released(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    return decided_outcome(
        "claim.released",
        claim.released.covers(policy.released),
        f"the claim covers {RELEASE_SCOPE_WORDS[claim.released]}, the policy demands "
        f"{RELEASE_SCOPE_WORDS[policy.released]}",
    )


def _sampling(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    allowed = ", ".join(sampling.value for sampling in policy.sampling)
    return decided_outcome(
        "claim.sampling",
        claim.sampling in policy.sampling,
        f"sampling was {claim.sampling.value}, allowed is {allowed}",
    )


def _left_out(policy: ClaimPolicy, claim: Claim) -> RuleOutcome:
    left_out = [item for item in claim.unaccounted if item not in policy.allow_unaccounted]
    why = "the claim leaves nothing unaccounted that the policy does not allow"
    if left_out:
        why = f"the claim does not account for {', '.join(left_out)}"
    return decided_outcome("claim.allow_unaccounted", not left_out, why)
