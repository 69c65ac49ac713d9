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
