"""What a claim protects, and what it covers, against what a policy promises."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dpaudit.gate.claim_rules import evaluate_claim_rules
from dpaudit.gate.evidence import DeclaredClaim, Evidence
from dpaudit.gate.policy import ClaimPolicy, Policy
from dpaudit.gate.policy_evaluation import delta_warning, smallest_dataset, verdict_warnings
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import OBSERVERS, FederationHeader, ThreatModel
from dpaudit.vocabulary.mechanism import (
    Composed,
    Gaussian,
    PoissonSampled,
    Repeated,
    SampledWithoutReplacement,
)
from dpaudit.vocabulary.privacy_terms import ReleaseScope, Unit
from dpaudit.vocabulary.verdict import Outcome
from tests.gate.figures import CLAIM, RUN
from tests.gate.test_waivers import LAST


def outcomes(policy: ClaimPolicy, **changes: object) -> dict[str, Outcome]:
    claim = replace(CLAIM, **changes)
    return {rule.rule: rule.outcome for rule in evaluate_claim_rules(policy, claim)}


@pytest.mark.parametrize("promised", Unit)
@pytest.mark.parametrize("protected", Unit)
def test_only_the_promised_unit_passes(promised: Unit, protected: Unit) -> None:
    policy = ClaimPolicy(max_epsilon=3.0, delta=1e-5, unit=promised)
    found = outcomes(policy, unit=protected)["claim.unit"]
    assert (found is Outcome.PASS) == (promised is protected)


@pytest.mark.parametrize("promised", ReleaseScope)
@pytest.mark.parametrize("covered", ReleaseScope)
def test_a_claim_for_every_step_covers_the_final_model_and_not_the_reverse(
    promised: ReleaseScope, covered: ReleaseScope
) -> None:
    policy = ClaimPolicy(max_epsilon=3.0, delta=1e-5, released=promised)
    found = outcomes(policy, released=covered)["claim.released"]
    uncovered = (promised, covered) == (ReleaseScope.EVERY_STEP, ReleaseScope.FINAL_MODEL)
    assert found is (Outcome.FAIL if uncovered else Outcome.PASS)


def federation(*observers: str) -> FederationHeader:
    return FederationHeader("dp-fedavg", 10, observers)


@pytest.mark.parametrize("held", [(), *((one,) for one in OBSERVERS), OBSERVERS])
@pytest.mark.parametrize("demanded", [*((one,) for one in OBSERVERS), OBSERVERS])
def test_a_claim_must_hold_against_every_demanded_observer(
    demanded: tuple[str, ...], held: tuple[str, ...]
) -> None:
    policy = ClaimPolicy(max_epsilon=3.0, delta=1e-5, protects_against=demanded)
    found = outcomes(policy, federation=federation(*held))["claim.protects_against"]
    assert (found is Outcome.PASS) == (set(demanded) <= set(held))


def test_a_run_of_one_trainer_holds_against_readers_of_the_model_alone() -> None:
    for demanded, expected in zip(OBSERVERS, ("FAIL", "FAIL", "PASS"), strict=True):
        policy = ClaimPolicy(max_epsilon=3.0, delta=1e-5, protects_against=(demanded,))
        assert outcomes(policy)["claim.protects_against"].value == expected


def test_the_reason_states_the_threat_model() -> None:
    model = ThreatModel(10, 8, 1, one_process=True)
    secure = replace(federation(*OBSERVERS), threat_model=model)
    policy = ClaimPolicy(max_epsilon=3.0, delta=1e-5, protects_against=OBSERVERS)
    claim = replace(CLAIM, federation=secure)
    (rule,) = (one for one in evaluate_claim_rules(policy, claim) if "protects" in one.rule)
    assert "ran in one process" in rule.why


@pytest.mark.parametrize("one_process", [True, False])
@pytest.mark.parametrize("demanded", [*((one,) for one in OBSERVERS), OBSERVERS])
def test_one_process_shows_no_protection_from_whom_it_is(
    demanded: tuple[str, ...], one_process: bool
) -> None:
    model = ThreatModel(10, 8, 1, one_process=one_process)
    secure = replace(federation(*OBSERVERS), threat_model=model)
    policy = ClaimPolicy(max_epsilon=3.0, delta=1e-5, protects_against=demanded)
    found = outcomes(policy, federation=secure)["claim.protects_against"]
    shown = not one_process or demanded == ("readers of the final model",)
    assert found is (Outcome.PASS if shown else Outcome.INCONCLUSIVE)


def test_observers_that_nobody_demands_give_no_rule() -> None:
    policy = ClaimPolicy(max_epsilon=3.0, delta=1e-5)
    assert "claim.protects_against" not in outcomes(policy, federation=federation())


def test_a_declared_claim_says_nothing_of_observers() -> None:
    policy = ClaimPolicy(max_epsilon=3.0, delta=1e-5, protects_against=("server",))
    found = {
        rule.rule: rule.outcome for rule in evaluate_claim_rules(policy, DeclaredClaim(2.0, 1e-5))
    }
    assert found["claim.protects_against"] is Outcome.INCONCLUSIVE


def test_an_unknown_observer_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"claim\.protects_against"):
        ClaimPolicy(max_epsilon=3.0, delta=1e-5, protects_against=("the press",))


def test_a_declared_claim_says_neither() -> None:
    policy = ClaimPolicy(max_epsilon=3.0, delta=1e-5)
    found = {
        rule.rule: rule.outcome for rule in evaluate_claim_rules(policy, DeclaredClaim(2.0, 1e-5))
    }
    assert found["claim.unit"] is found["claim.released"] is Outcome.INCONCLUSIVE


@given(st.floats(1e-12, 0.5), st.integers(1, 10**9))
def test_a_delta_above_one_record_is_a_warning(delta: float, size: int) -> None:
    assert bool(list(delta_warning(delta, size))) == (delta * size > 1)


@pytest.mark.parametrize(("delta", "warned"), [(1e-3, False), (1.001e-3, True), (math.nan, True)])
def test_without_a_public_size_a_thousandth_is_the_limit(delta: float, warned: bool) -> None:
    assert bool(list(delta_warning(delta, None))) == warned


def test_the_public_size_is_the_policys_or_the_mechanisms() -> None:
    sampled = SampledWithoutReplacement(Gaussian(1.0), 10, 500)
    nested = Composed((Repeated(sampled, 3), PoissonSampled(Gaussian(1.0), 0.1)))
    assert smallest_dataset(nested) == 500
    assert smallest_dataset(Gaussian(1.0)) is None
    recorded = replace(RUN, recorded=(replace(RUN.recorded[0], mechanism=sampled),))
    evidence = Evidence(claim=replace(CLAIM, delta=1e-2), recorded=recorded)
    stated = Policy(claim=ClaimPolicy(max_epsilon=3.0, delta=1e-2, dataset_size=50))
    unstated = Policy(claim=ClaimPolicy(max_epsilon=3.0, delta=1e-2))
    assert not list(verdict_warnings((), stated, evidence, LAST))
    (warning,) = verdict_warnings((), unstated, evidence, LAST)
    assert "500 records" in warning
    (warning,) = verdict_warnings((), unstated, Evidence(claim=DeclaredClaim(1.0, 1e-2)), LAST)
    assert "unless the data set is very small" in warning


@pytest.mark.parametrize("size", [0, -1])
def test_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(InvalidArgument, match=r"claim\.dataset_size"):
        ClaimPolicy(max_epsilon=3.0, delta=1e-2, dataset_size=size)
