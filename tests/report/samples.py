"""Evidence on runs that never were: everything that a report can show, and next to nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any

import msgspec

from dpaudit.gate.run_differences import DifferenceCost, EpsilonEffect, RunDifference
from dpaudit.report.evidence import (
    CanaryScoreHistogram,
    ComparisonEvidence,
    EpsilonCurve,
    ParticipantEpsilon,
    ProfilePoint,
    RefusedAccountant,
    ReportEvidence,
    RunFacts,
    TradeoffPoint,
)
from dpaudit.vocabulary.audit import (
    AttackReport,
    AuditReport,
    AuditResult,
    BoundKind,
    GuessCount,
    InferenceResult,
    MembershipResult,
    OneRun,
    SliceResult,
    TprAtFpr,
)
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer, Explanation
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult, StepClaim
from dpaudit.vocabulary.federation import FederationHeader, ThreatModel
from dpaudit.vocabulary.language_models import BlindBaseline, ExtractedShare, ExtractionResult
from dpaudit.vocabulary.ledger import NoiseKind, Randomness, Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from dpaudit.vocabulary.verdict import (
    AppliedWaiver,
    InconclusiveHandling,
    Outcome,
    PastRun,
    PolicyOverride,
    PolicySource,
    RuleOutcome,
    Verdict,
    VerdictBasis,
)

HEAD = "5f2b" * 16
DELTA = 1e-5


def make_claim() -> Claim:
    return Claim(
        epsilon=Bound(2.9703, 2.98461),
        delta=DELTA,
        accountant="pld",
        adjacency=Adjacency.ADD_OR_REMOVE_ONE,
        sampling=Sampling.POISSON,
        randomness=Randomness.SECURE,
        releases=101,
        ledger_head=HEAD,
        dpaudit_version="0.1.0",
        unaccounted=("hyperparameter-tuning",),
        assumed_public=("feature shape", "label set", "hyper-parameters"),
        noise=NoiseKind.GRID,
    )


def make_answers() -> tuple[EpsilonAnswer, ...]:
    methods = {
        "pld": {"privacy loss distribution": Bound(2.9703, 2.98461)},
        "rdp": {
            "moments, integer orders": Bound(0, 3.3512),
            "Renyi, real orders": Bound(0, 3.3017),
        },
        "naive": {
            "basic composition": Bound(0, 95.1234),
            "advanced composition": Bound(0, 60.4321),
        },
    }
    return tuple(
        EpsilonAnswer(
            name,
            Adjacency.ADD_OR_REMOVE_ONE,
            DELTA,
            Bound(max(b.lower for b in by.values()), min(b.upper for b in by.values())),
            by,
            Sampling.POISSON,
            explanation=(Explanation("removed", "grid", 2.9703, 2.98461, {"rounding": 1e-9}),),
        )
        for name, by in methods.items()
    )


def make_audit() -> AuditReport:
    bounds = (
        AuditResult(
            name="gradient canaries, final model",
            method="one-run guessing, Steinke, Nasr & Jagielski 2023",
            kind=BoundKind.CERTIFIED,
            epsilon_lower=0.9042,
            delta=DELTA,
            confidence=0.975,
            assumes="",
            trials=1000,
            guesses=200,
            correct=160,
            thresholds="fixed before the bits were read",
            states="the mechanism is not (epsilon, delta)-DP for any smaller epsilon",
            registered="99e8" * 16,
            detectable_epsilon=4.2137,
            greatest_epsilon=6.5,
            refutes_epsilon=2.985,
            inconclusive="its scores rank no better than chance",
            estimator=OneRun((GuessCount(100, 90),)),
        ),
        AuditResult(
            name="gradient canaries, every step",
            method="Gaussian mechanism fitted to the scores, Clopper-Pearson",
            kind=BoundKind.CONDITIONAL,
            epsilon_lower=2.1049,
            delta=DELTA,
            confidence=0.975,
            assumes="scores of different canaries are independent and Gaussian",
            trials=1000,
            guesses=1000,
            correct=702,
            thresholds="all canaries are guessed",
            detectable_epsilon=3.4,
        ),
        AuditResult(
            name="mislabelled inputs",
            method="plug-in ratio of rates",
            kind=BoundKind.ESTIMATE,
            epsilon_lower=1.3,
            delta=DELTA,
            confidence=0.95,
            assumes="nothing; it is no bound",
            trials=400,
            guesses=80,
            correct=53,
            thresholds="best of 20 in hindsight",
        ),
    )
    return AuditReport(
        HEAD,
        0.95,
        bounds,
        make_membership(),
        heldout_accuracy=0.931,
        files={"canaries": "c0" * 32},
        spot_checks="checked at 12 of 1000 steps",
    )


def make_membership() -> tuple[MembershipResult, ...]:
    return made_attack("loss threshold", 0.92, 0.5208), made_attack(
        "LiRA, 16 shadows", 0.85, 0.5411
    )


def made_attack(name: str, power: float, auc: float) -> MembershipResult:
    fprs = [i / 400 for i in range(401)]
    return MembershipResult(
        attack=name,
        members=400,
        nonmembers=400,
        auc=auc,
        balanced_accuracy=0.527,
        tpr_at_fpr=(
            TprAtFpr(0.01, 0.0125, Bound(0.00408, 0.02894), 0.95, Bound(0.005, 0.026), 4, 3, 8),
            TprAtFpr(0.1, 0.1175, Bound(0.0877, 0.1532), 0.95, Bound(0.09, 0.15), 40, 38, 58),
        ),
        roc=tuple((fpr, fpr**power) for fpr in fprs),
        auc_interval=Bound(auc - 0.04, auc + 0.04),
        balanced_accuracy_interval=Bound(0.49, 0.56),
        band=tuple((f, max(0.0, f**power - 0.05), min(1.0, f**power + 0.05)) for f in fprs[::8]),
        unresolved=(0.0001, 0.001),
        assumes="given the model, records are independent trials",
    )


def make_attack_report() -> AttackReport:
    silent = msgspec.structs.replace(
        made_attack("RMIA, offline", 0.9, 0.53), inconclusive="it scores below chance"
    )
    return AttackReport(
        "the model of a run, with 16 references",
        0.95,
        (made_attack("RMIA", 0.8, 0.55), silent),
        HEAD,
        {"scores": "5c" * 32},
        slices=(SliceResult("hospital", "north", made_attack("RMIA", 0.85, 0.54)),),
        inference=(
            InferenceResult(
                *("label", 10, 400, 320, 380, 290, 250, 200, 0.95),
                gap_interval=Bound(0.01, 0.09),
                above_baseline=Bound(0.2, 0.4),
            ),
        ),
        notes=("slices without members or non-members, not evaluated: south",),
        extraction=(
            ExtractionResult(
                "probabilistic",
                16,
                ExtractedShare(400, 21, Bound(0.03, 0.08)),
                ExtractedShare(900, 2, Bound(0.0002, 0.009)),
                "temperature 1, all tokens",
                100,
                0.5,
                0.95,
            ),
        ),
        reference_training="dp-sgd",
        baselines=(BlindBaseline("bag of words", 0.51, 0.4),),
    )


def make_conformance() -> ConformanceResult:
    def finding(check: str, name: str, outcome: Outcome) -> ConformanceFinding:
        return ConformanceFinding(
            check=check,
            name=name,
            outcome=outcome,
            tested="a step with and without one record, sampled by the trainer; 6 replays",
            why="one record moved the sum by at most 0.999996 C",
            power="a movement above 1.00002 C is detectable",
            p_value=0.2093,
            level=5.9e-6,
            norm=0.999996,
            limit=1.00002,
            detectable=1.00002,
        )

    return ConformanceResult(
        claim=StepClaim(
            noise_multiplier=1.2, clip_norm=1.0, sampling_rate=0.1, steps=100, update_scale=1.0
        ),
        findings=(
            finding("replay", "ordinary", Outcome.PASS),
            finding("noise", "scale of each group", Outcome.INCONCLUSIVE),
        ),
        level=1e-4,
        verdict=Outcome.INCONCLUSIVE,
        ledger_head=HEAD,
        assumptions=("no record has a NaN gradient",),
    )


def make_history() -> tuple[PastRun, ...]:
    def past(day: int, head: str, outcome: Outcome, epsilon: float) -> PastRun:
        return PastRun(
            run=f"digits-{day}",
            ledger_head=head,
            judged=datetime(2026, 10, day, 12, 30, tzinfo=UTC),
            outcome=outcome,
            epsilon_upper=epsilon,
            delta=DELTA,
            steps=100,
            accountant="pld",
            adjacency=Adjacency.ADD_OR_REMOVE_ONE,
            dpaudit_version="0.1.0",
            epsilon_lower=0.4 * epsilon,
            fpr=0.01,
            tpr=0.03,
            accuracy=0.93,
        )

    return (
        past(1, "1" * 64, Outcome.PASS, 2.5),
        past(2, "2" * 64, Outcome.FAIL, 4.2),
        past(3, "3" * 64, Outcome.INCONCLUSIVE, 2.9),
        past(4, HEAD, Outcome.PASS, 2.98461),
    )


def make_canary_scores() -> CanaryScoreHistogram:
    return CanaryScoreHistogram(
        "gradient canaries, every step",
        tuple(-3 + 0.5 * i for i in range(13)),
        (0, 1, 4, 20, 60, 90, 120, 110, 60, 25, 8, 2),
        (2, 8, 25, 60, 110, 120, 90, 60, 20, 4, 1, 0),
    )


def make_verdict() -> Verdict:
    return Verdict(
        (
            RuleOutcome("claim.max_epsilon", Outcome.PASS, "2.985 is at most 3"),
            RuleOutcome("claim.allow_unaccounted", Outcome.PASS, "tuning may be left out"),
            RuleOutcome(
                "audit.min_power_epsilon",
                Outcome.INCONCLUSIVE,
                "the audit would have caught 3.4, not 2",
            ),
            RuleOutcome(
                "audit.max_tpr_at_fpr.0.01",
                Outcome.FAIL,
                "the true-positive rate is at most 0.03, the policy allows 0.02",
                AppliedWaiver("known outliers, ticket 123", date(2027, 1, 31)),
            ),
        ),
        HEAD,
        run="digits-eps3",
        inconclusive=InconclusiveHandling.WARN,
        measured="9d" * 32,
        claim=make_claim(),
        basis=make_basis(),
        warnings=("the waiver of claim.sampling (old) is not used: delete it",),
    )


def make_basis() -> VerdictBasis:
    return VerdictBasis(
        policy_digest="ab" * 32,
        project_digest="ab" * 32,
        layers=(PolicySource("dpaudit.toml", "cd" * 32),),
        overrides=(PolicyOverride("--inconclusive", "warn", "command line"),),
        model_digest="ef" * 32,
        dpaudit_version="0.1.0",
        judged=datetime(2026, 11, 29, 12, 30, tzinfo=UTC),
    )


def make_evidence() -> ReportEvidence:
    steps = tuple(range(5, 101, 5))
    shapes = {"pld": (2.98461, 0.5), "rdp": (3.3017, 0.5), "naive": (60.4321, 0.9)}
    return ReportEvidence(
        run="digits-eps3",
        claim=make_claim(),
        mechanism_in_words=(
            "100 steps of DP-SGD: Gaussian noise of 1.2 times the clip norm on batches that each "
            "record joins with probability 0.1; and the record count, once, with noise 50"
        ),
        answers=make_answers(),
        curves=tuple(
            EpsilonCurve(name, steps, tuple(end * (n / 100) ** power for n in steps))
            for name, (end, power) in shapes.items()
        ),
        profile=tuple(
            ProfilePoint(delta, Bound(0.995 * epsilon - 0.03, epsilon))
            for k in range(1, 37)
            for delta in (10 ** (-k / 3),)
            for epsilon in (2.98461 * math.sqrt(k / 15),)
        ),
        audit=make_audit(),
        verdict=make_verdict(),
        refused=(RefusedAccountant("zcdp", "no concentrated privacy is known of sampled steps"),),
        tradeoff=tuple(
            TradeoffPoint(fpr, Bound(fpr, min(1.0, max(fpr, 1.02 * fpr**0.4))))
            for fpr in (0.0, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
        ),
        canaries=make_canary_scores(),
        attack=make_attack_report(),
        conformance=make_conformance(),
        history=make_history(),
        project_digest=make_basis().policy_digest,
        facts=RunFacts(
            written=datetime(2026, 11, 30, 9, 15, tzinfo=UTC),
            data="digits (test fraction 0.2, split seed 0)",
            model="mlp, trained with sgd",
            model_digest="ef" * 32,
        ),
    )


def bare_evidence() -> ReportEvidence:
    """Return a claim, and nothing else."""
    full = make_evidence()
    return ReportEvidence(full.run, full.claim, full.mechanism_in_words, (), (), ())


def make_federated_evidence() -> ReportEvidence:
    """Return a finished federation, one of whose participants left, and one was rejected."""
    full = make_evidence()
    federation = FederationHeader(
        "fedavg", 4, ("server", "other participants"), threat_model=ThreatModel(4, 3, 1)
    )
    claim = msgspec.structs.replace(make_claim(), federation=federation)
    bounds = {"000": Bound(1.2, 1.3), "001": Bound(2.9703, 2.98461), "002": Bound(1.2, 1.3)}
    found = tuple(ParticipantEpsilon(name, 20, bound) for name, bound in bounds.items())
    return msgspec.structs.replace(
        full,
        claim=claim,
        verdict=msgspec.structs.replace(make_verdict(), claim=claim),
        answers=tuple(msgspec.structs.replace(one, participants=bounds) for one in make_answers()),
        participants=(
            ParticipantEpsilon("server", 0, None),
            *found[:2],
            msgspec.structs.replace(found[2], left=7, rejected=2),
            ParticipantEpsilon("003", 0, None),
        ),
        rounds=10,
        published="published: epsilon 0.01 per parameter and epoch; it is no bound for the run",
    )


def make_two_runs() -> ComparisonEvidence:
    before, causes = (
        make_evidence(),
        (
            DifferenceCost(
                RunDifference("noise multiplier (gradient sum)", "2", "1.2", EpsilonEffect.RAISES),
                4.18,
            ),
            DifferenceCost(RunDifference("version of torch", "2.10", "2.11", EpsilonEffect.NONE)),
        ),
    )
    after = msgspec.structs.replace(
        bare_evidence(),
        run="digits-eps4",
        claim=msgspec.structs.replace(make_claim(), epsilon=Bound(4.1, 4.2), delta=1e-6),
        curves=before.curves,
        profile=before.profile,
        audit=msgspec.structs.replace(make_audit(), heldout_loss=2.1),
        canaries=make_canary_scores(),
    )
    return ComparisonEvidence(before, after, causes)


def filled_with(value: Any, payload: str) -> Any:
    """Put ``payload`` into every string of the evidence, keys of dictionaries too."""
    return filled_by(value, lambda _: payload)


def filled_by(value: Any, string: Callable[[str], str]) -> Any:
    """Put ``string`` of each string of the evidence in its place, keys of dictionaries too."""
    if type(value) is float:  # most of all: the points of curves
        return value
    if isinstance(value, str) and not isinstance(value, Enum):
        return string(value)
    if isinstance(value, tuple):
        return tuple(filled_by(item, string) for item in value)
    if isinstance(value, dict):
        return {string(key): filled_by(item, string) for key, item in value.items()}
    if isinstance(value, FederationHeader):  # those whom it protects against are a closed set
        strategy = string(value.strategy).encode(errors="replace").decode()  # UTF-8, as in a file
        return msgspec.structs.replace(value, strategy=strategy)
    if isinstance(value, msgspec.Struct):
        fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return type(value)(**{name: filled_by(field, string) for name, field in fields})
    return value
