"""Answers and claims: the best of the methods, nothing more, and nothing heavy to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dpaudit.accountants.answers import claim_from_ledger, compute_epsilon
from dpaudit.vocabulary.errors import IntegrityError, UnsupportedMechanism
from dpaudit.vocabulary.ledger import (
    LedgerHeader,
    PrivacyLedger,
    Randomness,
    ReleaseEntry,
    ResumeEntry,
    Sampling,
)
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import SAMPLING_ACCOUNTANTS, Adjacency

STEP = PoissonSampled(Gaussian(1.0), 0.01)


def ledger(*lines, adaptive: bool = False, randomness: Randomness = Randomness.SECURE):
    header = LedgerHeader(
        adjacency=Adjacency.ADD_OR_REMOVE_ONE,
        sampling=Sampling.POISSON,
        randomness=randomness,
        schedule_fixed_in_advance=not adaptive,
        clip_norm=1.0,
        versions={},
        run="test",
        unaccounted=("hyperparameter-tuning",),
    )
    return PrivacyLedger(header, lines, head="0" * 64)


STEPS = tuple(ReleaseEntry("step", STEP, step) for step in range(100))


@pytest.mark.parametrize("accountant", SAMPLING_ACCOUNTANTS)
def test_an_answer_is_the_best_of_its_methods(accountant):
    answer = compute_epsilon(
        accountant, Repeated(STEP, 100), 1e-5, Adjacency.ADD_OR_REMOVE_ONE, Sampling.POISSON
    )
    assert answer.epsilon.upper == min(bound.upper for bound in answer.methods.values())
    assert answer.epsilon.lower == max(bound.lower for bound in answer.methods.values())
    assert (answer.accountant, answer.delta) == (accountant, 1e-5)


@pytest.mark.parametrize("accountant", SAMPLING_ACCOUNTANTS)
def test_a_claim_prices_every_recorded_release(accountant):
    claim = claim_from_ledger(ledger(*STEPS), 1e-5, accountant)
    answer = compute_epsilon(
        accountant, Repeated(STEP, 100), 1e-5, Adjacency.ADD_OR_REMOVE_ONE, Sampling.POISSON
    )
    assert claim.releases == 100
    assert claim.epsilon == answer.epsilon
    assert claim.unaccounted == ("hyperparameter-tuning",)


def test_a_ledger_without_releases_supports_no_claim():
    with pytest.raises(IntegrityError):
        claim_from_ledger(ledger(), 1e-5, "pld")


def test_a_schedule_chosen_during_the_run_is_refused():
    with pytest.raises(UnsupportedMechanism, match="schedule"):
        claim_from_ledger(ledger(*STEPS, adaptive=True), 1e-5, "pld")


def test_one_seeded_process_makes_the_whole_claim_seeded():
    resumed = ledger(*STEPS[:50], ResumeEntry(50, Randomness.SEEDED), *STEPS[50:])
    assert claim_from_ledger(ledger(*STEPS), 1e-5, "naive").randomness is Randomness.SECURE
    assert claim_from_ledger(resumed, 1e-5, "naive").randomness is Randomness.SEEDED


def test_the_core_imports_nothing_heavy():
    code = (
        "import sys, dpaudit.accountants.answers\n"
        "print(*{'torch', 'scipy.stats', 'scipy.optimize'} & set(sys.modules))"
    )
    imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert imported.stdout.split() == []
