"""Figures of a run for the tests of the gate."""

from __future__ import annotations

from dpaudit.vocabulary.audit import AuditResult, BoundKind
from dpaudit.vocabulary.baseline import AttackRate, Baseline, ReleaseCount
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import Randomness, Sampling
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

CLAIM = Claim(
    epsilon=Bound(2.97, 2.99),
    delta=1e-5,
    accountant="pld",
    adjacency=Adjacency.ADD_OR_REMOVE_ONE,
    sampling=Sampling.POISSON,
    randomness=Randomness.SECURE,
    releases=100,
    ledger_head="a" * 64,
    dpaudit_version="1",
)
BOUND = AuditResult(
    name="gradient canaries",
    method="one run",
    kind=BoundKind.CERTIFIED,
    epsilon_lower=1.0,
    delta=1e-5,
    confidence=0.99,
    assumes="nothing",
    trials=100,
    guesses=50,
    correct=40,
    thresholds="fixed",
    detectable_epsilon=5.0,
    refutes_epsilon=3.0,
)
STEP = ReleaseCount("gradient sum", PoissonSampled(Gaussian(1.1), 0.01), 1000)
COUNT = ReleaseCount("record count", Gaussian(20.0), 1)
RUN = Baseline(
    run="before",
    claim=CLAIM,
    clip_norm=0.5,
    recorded=(STEP, COUNT),
    schedule_fixed_in_advance=True,
    versions={"torch": "2"},
    bounds=(BOUND,),
    rates=(AttackRate("loss", 0.01, Bound(0.005, 0.03), 0.99),),
)
