"""Types of evidence refuse values that cannot be, so that no reader can forget to."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from dpaudit.vocabulary.audit import (
    MOST_BAND_SCORES,
    AttackReport,
    AuditReport,
    BatchRates,
    ClaimedCurve,
    ErrorBand,
    GaussianBand,
    GuessCount,
    InferenceResult,
    MembershipResult,
    SampleMoments,
    SequentialRanks,
    TotalVariation,
    TprAtFpr,
)
from dpaudit.vocabulary.baseline import AttackRate
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.language_models import BlindBaseline, ExtractedShare, ExtractionResult
from dpaudit.vocabulary.privacy_terms import Bound
from dpaudit.vocabulary.rounding import same_epsilon, same_number
from dpaudit.vocabulary.verdict import Outcome
from tests.gate.figures import BOUND, RUN, STEP

NAN, INF = math.nan, math.inf
RATE = TprAtFpr(0.1, 0.2, Bound(0.1, 0.3), 0.95, Bound(0.15, 0.25), 3, 10, 40)
ATTACK = MembershipResult("a", 100, 50, 0.6, 0.6, (RATE,), ((0.0, 0.0), (1.0, 1.0)))
AUDIT = AuditReport("", 0.99, (BOUND,), (ATTACK,))
INFERENCE = InferenceResult(
    *("label", 2, 10, 8, 5, 4, 5, 4, 0.9), gap_interval=Bound(-1, 1), above_baseline=Bound(-1, 1)
)
FINDING = ConformanceFinding(
    check="noise", name="n", outcome=Outcome.PASS, tested="t", why="w", power="p", p_value=0.5
)
CONFORMANCE = ConformanceResult(
    claim=StepClaim(
        noise_multiplier=1.0, clip_norm=1.0, sampling_rate=0.1, steps=9, update_scale=1.0
    ),
    findings=(FINDING,),
    level=1e-4,
    verdict=Outcome.PASS,
)
SHARE = ExtractedShare(10, 3, Bound(0.05, 0.7))
EXTRACTION = ExtractionResult(
    "probabilistic", 16, SHARE, ExtractedShare(20, 0, Bound(0.0, 0.2)), "all tokens", 100, 0.5, 0.95
)
CASES: list[tuple[Any, str, list[object]]] = [
    (BOUND, "confidence", [0.0, 1.0, 1.5, -0.5, NAN]),
    (BOUND, "epsilon_lower", [-1e-9, INF, NAN]),
    (BOUND, "delta", [-1e-9, 1.0, NAN]),
    (BOUND, "trials", [-1, 49, 1.5]),
    (BOUND, "guesses", [-1, 39, 101, 50.5]),
    (BOUND, "correct", [-1, 51]),
    (BOUND, "detectable_epsilon", [-1e9, INF, NAN]),
    (BOUND, "greatest_epsilon", [-0.1, NAN]),
    (BOUND, "refutes_epsilon", [-0.1, NAN]),
    (RATE, "fpr", [0.0, 1.0, NAN]),
    (RATE, "tpr", [-0.1, 1.1, 0.31, 0.09, NAN]),
    (RATE, "interval", [Bound(0.1, 1.1), Bound(-0.1, 0.3), Bound(0.21, 0.3)]),
    (RATE, "given_threshold", [Bound(0.21, 0.3), Bound(0.0, 0.1)]),
    (RATE, "confidence", [1.0, 0.0]),
    (RATE, "false_positives", [-1]),
    (RATE, "least_hits", [-1]),
    (ATTACK, "members", [0, -5, 39]),
    (ATTACK, "nonmembers", [0, 2]),
    (ATTACK, "auc", [-0.1, 1.1, NAN]),
    (ATTACK, "balanced_accuracy", [1.1, NAN]),
    (ATTACK, "auc_interval", [Bound(0.0, 0.5), Bound(0.5, 1.5)]),
    (ATTACK, "roc", [((0.0, 1.5),), ((-0.1, 0.5),), ((NAN, 0.5),)]),
    (ATTACK, "band", [((0.0, 0.5, 1.5),)]),
    (ATTACK, "unresolved", [(2.0,)]),
    (AUDIT, "confidence", [1.5, 0.0, 0.991, NAN]),
    (AUDIT, "heldout_accuracy", [-0.1, 1.1, NAN]),
    (AUDIT, "unseen_steps", [-1]),
    (AUDIT, "bounds", [(BOUND, BOUND)]),
    (AttackReport("a", 0.95, (ATTACK,)), "confidence", [1.5, 0.0, NAN]),
    (INFERENCE, "members", [0, 4]),
    (INFERENCE, "nonmembers", [0, 3]),
    (INFERENCE, "correct_members", [11, -1]),
    (INFERENCE, "baseline_nonmembers", [9, -1]),
    (INFERENCE, "confidence", [1.5, 0.0, NAN]),
    (SHARE, "texts", [0, 2, -1]),
    (SHARE, "extracted", [-1, 11]),
    (SHARE, "interval", [Bound(0.4, 0.9), Bound(-0.1, 0.5), Bound(0.2, 1.5)]),
    (EXTRACTION, "suffix_tokens", [0]),
    (EXTRACTION, "queries", [0]),
    (EXTRACTION, "probability", [0.0, 1.0, NAN]),
    (EXTRACTION, "confidence", [1.0, NAN]),
    (EXTRACTION, "too_short", [-1]),
    (BlindBaseline("length", 0.6, 0.2), "auc", [1.1, NAN]),
    (BlindBaseline("length", 0.6, 0.2), "p_value", [-0.1, NAN]),
    (AttackRate("a", 0.1, Bound(0.1, 0.2), 0.9), "fpr", [0.0, 2.0]),
    (AttackRate("a", 0.1, Bound(0.1, 0.2), 0.9), "tpr", [Bound(0.1, 1.2), Bound(-1.0, 0.2)]),
    (AttackRate("a", 0.1, Bound(0.1, 0.2), 0.9), "confidence", [1.5]),
    (STEP, "times", [0, -3]),
    (RUN, "clip_norm", [0.0, -1.0, NAN, INF]),
    (RUN, "heldout_accuracy", [1.5, NAN]),
    (SampleMoments(3, 0.5, 1.0), "count", [-1]),
    (SampleMoments(3, 0.5, 1.0), "mean", [NAN, INF, -INF]),
    (SampleMoments(3, 0.5, 1.0), "variance", [-0.1, NAN, INF]),
    (GuessCount(5, 3), "correct", [6, -1]),
    (BatchRates(3, 5, 2, 9), "hits", [6, -1]),
    (BatchRates(3, 5, 2, 9), "out_of_batch", [1]),
    (ClaimedCurve(1.5), "noise_factor", [0.0, -1.0, NAN, INF]),
    (TotalVariation(1.5), "noise_factor", [0.0, NAN]),
    (ErrorBand(5, 4, (0, 5), (4, 0)), "missed", [(0, 6), (-1, 5), (0,)]),
    (SequentialRanks((0, 3), (1, 2)), "members", [(0, 4), (-1, 2), (0,)]),
    (GaussianBand(5, 4, (0, 5), (4, 0)), "missed", [(0, 6), (-1, 5), (0,)]),
    (ErrorBand(5, 4, (0, 5), (4, 0)), "members", [10**9, MOST_BAND_SCORES + 1]),
    (ErrorBand(5, 4, (0, 5), (4, 0)), "nonmembers", [10**9, MOST_BAND_SCORES + 1]),
    (GaussianBand(5, 4, (0, 5), (4, 0)), "members", [10**9, MOST_BAND_SCORES + 1]),
    (GaussianBand(5, 4, (0, 5), (4, 0)), "nonmembers", [10**9, MOST_BAND_SCORES + 1]),
    (FINDING, "p_value", [-0.1, 1.1, NAN]),
    (FINDING, "level", [2.0]),
    (CONFORMANCE, "level", [0.0, 1.0, 1.5, NAN]),
]


@pytest.mark.parametrize(
    ("value", "field", "impossible"),
    [(value, field, one) for value, field, given in CASES for one in given],
)
def test_what_cannot_be_is_refused_when_it_is_built(
    value: msgspec.Struct, field: str, impossible: object
) -> None:
    assert msgspec.structs.replace(value) == value
    with pytest.raises(InvalidArgument):
        msgspec.structs.replace(value, **{field: impossible})


@pytest.mark.parametrize("value", [BOUND, RATE, ATTACK, AUDIT, RUN, CONFORMANCE])
def test_what_can_be_reads_back(value: msgspec.Struct) -> None:
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


@pytest.mark.parametrize("number", [1e-300, 1e-5, 0.25, 0.999])
def test_a_number_is_the_same_up_to_its_last_digits(number: float) -> None:
    near, far = number * (1 + 5e-16), number * (1 + 1e-8)
    assert same_number(number, near)
    assert not same_number(number, far)
    assert not same_number(number, NAN)
    assert same_epsilon(number, near)


def test_small_epsilons_are_the_same_and_others_are_not() -> None:
    assert same_epsilon(0.0, 1e-10)
    assert same_epsilon(3.0, 3.0 * (1 + 1e-7))
    assert not same_epsilon(3.0, 3.0 * (1 + 1e-5))
    assert not same_epsilon(0.0, 1e-6)
    assert not same_epsilon(NAN, NAN)
