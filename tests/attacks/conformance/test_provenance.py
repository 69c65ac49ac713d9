"""Claims that do not cover their ledger, or other uses of the records."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from dpaudit.attacks.conformance import StepClaim
from dpaudit.attacks.conformance.provenance import DataUse, check_provenance
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import (
    LedgerHeader,
    PrivacyLedger,
    Randomness,
    ReleaseEntry,
    Sampling,
    Seal,
)
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound
from dpaudit.vocabulary.verdict import Outcome

STEP = PoissonSampled(Gaussian(1.1), 0.1)
STEPS = StepClaim(noise_multiplier=1.1, clip_norm=0.5, sampling_rate=0.1, steps=3, update_scale=1.0)


def ledger() -> PrivacyLedger:
    header = LedgerHeader(
        adjacency=Adjacency.ADD_OR_REMOVE_ONE,
        sampling=Sampling.POISSON,
        randomness=Randomness.SECURE,
        schedule_fixed_in_advance=True,
        clip_norm=0.5,
        versions={},
        run="a",
        unaccounted=("hyperparameter-tuning",),
    )
    lines = [ReleaseEntry("gradient sum", STEP, step=step) for step in range(3)]
    return PrivacyLedger(header, (*lines, Seal(3, {})), "head")


def claim() -> Claim:
    return Claim(
        epsilon=Bound(1.0, 1.1),
        delta=1e-5,
        accountant="pld",
        adjacency=Adjacency.ADD_OR_REMOVE_ONE,
        sampling=Sampling.POISSON,
        randomness=Randomness.SECURE,
        releases=3,
        ledger_head="head",
        dpaudit_version="0",
        unaccounted=("hyperparameter-tuning",),
    )


def with_header(**changes: object) -> PrivacyLedger:
    header = msgspec.structs.replace(ledger().header, **changes)
    return msgspec.structs.replace(ledger(), header=header)


def with_step(step: PoissonSampled) -> PrivacyLedger:
    lines = (ReleaseEntry("gradient sum", step, step=0), *ledger().lines[1:])
    return msgspec.structs.replace(ledger(), lines=lines)


def test_claim_that_covers_its_ledger_passes_and_lists_the_rest() -> None:
    made = DataUse(steps=3, runs=8, checkpoints=(1, 3))
    (finding,) = check_provenance(ledger(), claim(), steps=STEPS, data_use=made)
    assert finding.outcome is Outcome.PASS
    assert "hyperparameter-tuning" in finding.why


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"adjacency": Adjacency.REPLACE_ONE}, "twice the clip norm"),
        ({"sampling": Sampling.FULL_BATCH}, "sampling"),
        ({"randomness": Randomness.SEEDED}, "randomness"),
        ({"releases": 2}, "steps are left out"),
        ({"ledger_head": "other"}, "another ledger"),
        ({"unaccounted": ()}, "hyperparameter-tuning"),
        ({"unit": "user"}, "user"),
    ],
)
def test_claim_that_differs_from_its_ledger_fails(changes: dict[str, object], word: str) -> None:
    found = check_provenance(ledger(), msgspec.structs.replace(claim(), **changes))
    assert {finding.outcome for finding in found} == {Outcome.FAIL}
    assert any(word in finding.why for finding in found)


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (DataUse(steps=4), "4 steps were taken, 3 are recorded"),
        (DataUse(stopped_early=True), "when to stop"),
        (DataUse(checkpoints=(2, 5)), "not recorded: 5"),
    ],
)
def test_unrecorded_use_of_the_records_fails(made: DataUse, word: str) -> None:
    found = check_provenance(ledger(), claim(), data_use=made)
    assert [finding.outcome for finding in found] == [Outcome.FAIL]
    assert word in found[0].why


def test_undeclared_selection_among_runs_fails() -> None:
    honest = with_header(unaccounted=())
    silent = msgspec.structs.replace(claim(), unaccounted=())
    assert check_provenance(honest, silent)[0].outcome is Outcome.PASS
    (finding,) = check_provenance(honest, silent, data_use=DataUse(runs=8))
    assert "one of 8" in finding.why


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (lambda: with_step(PoissonSampled(Gaussian(0.9), 0.1)), "noise multiplier 0.9"),
        (lambda: with_step(PoissonSampled(Gaussian(1.1), 0.2)), "rate 0.2"),
        (lambda: with_header(clip_norm=0.7), "clip norm 0.7"),
    ],
)
def test_recorded_steps_weaker_than_claimed_fail(
    made: Callable[[], PrivacyLedger], word: str
) -> None:
    found = check_provenance(made(), claim(), steps=STEPS)
    assert any(word in finding.why for finding in found)


def test_more_steps_than_claimed_fail() -> None:
    few = msgspec.structs.replace(STEPS, steps=2)
    (finding,) = check_provenance(ledger(), claim(), steps=few)
    assert finding.why == "3 steps are recorded, 2 are claimed"


def test_add_or_remove_noise_fails_a_replace_one_ledger() -> None:
    replaced = with_header(adjacency=Adjacency.REPLACE_ONE)
    said = msgspec.structs.replace(claim(), adjacency=Adjacency.REPLACE_ONE)
    (finding,) = check_provenance(replaced, said)
    assert finding.name == "adjacency"


def test_adaptive_schedule_fails() -> None:
    (finding,) = check_provenance(with_header(schedule_fixed_in_advance=False), claim())
    assert finding.name == "schedule"


def test_unsealed_ledger_is_inconclusive() -> None:
    going_on = msgspec.structs.replace(ledger(), lines=ledger().lines[:-1])
    (finding,) = check_provenance(going_on, claim())
    assert finding.outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"noise_multiplier": 0.11}, "noise"),
        ({"sampling_rate": 0.2}, "sampling rate"),
        ({"sampling": Sampling.FIXED_SIZE}, "sampling"),
        ({"adjacency": Adjacency.REPLACE_ONE}, "adjacency"),
    ],
)
def test_trainer_tested_for_a_weaker_step_is_inconclusive(
    changes: dict[str, object], name: str
) -> None:
    found = check_provenance(ledger(), claim(), steps=msgspec.structs.replace(STEPS, **changes))
    assert Outcome.INCONCLUSIVE in {one.outcome for one in found if one.name == name}
    assert Outcome.PASS not in {one.outcome for one in found}


def test_ledger_without_gradient_sums_is_inconclusive() -> None:
    lines = tuple(
        msgspec.structs.replace(line, what="count") if isinstance(line, ReleaseEntry) else line
        for line in ledger().lines
    )
    found = check_provenance(msgspec.structs.replace(ledger(), lines=lines), claim(), steps=STEPS)
    assert [one.outcome for one in found] == [Outcome.INCONCLUSIVE]


def test_poisson_samples_at_rate_one_are_full_batches() -> None:
    everyone = with_header(sampling=Sampling.FULL_BATCH)
    steps = msgspec.structs.replace(STEPS, sampling_rate=1.0)
    said = msgspec.structs.replace(claim(), sampling=Sampling.FULL_BATCH)
    found = check_provenance(everyone, said, steps=steps)
    assert "sampling" not in {one.name for one in found}
