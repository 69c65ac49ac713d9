"""What a claim leaves out of its ledger, or of what was made of the records."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from dpaudit.attacks.conformance import StepClaim
from dpaudit.attacks.conformance.provenance import Made, check_provenance
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import (
    BookedRelease,
    LedgerHeader,
    PrivacyLedger,
    Randomness,
    Sampling,
    Seal,
)
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled
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
        leaves_out=("hyperparameter-tuning",),
    )
    lines = [BookedRelease("gradient sum", STEP, step=step) for step in range(3)]
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
        leaves_out=("hyperparameter-tuning",),
    )


def with_header(**changes: object) -> PrivacyLedger:
    header = msgspec.structs.replace(ledger().header, **changes)
    return msgspec.structs.replace(ledger(), header=header)


def with_step(step: PoissonSampled) -> PrivacyLedger:
    lines = (BookedRelease("gradient sum", step, step=0), *ledger().lines[1:])
    return msgspec.structs.replace(ledger(), lines=lines)


def test_a_claim_that_covers_its_ledger_holds_and_says_what_it_leaves_out() -> None:
    made = Made(steps=3, runs=8, checkpoints=(1, 3))
    (finding,) = check_provenance(ledger(), claim(), steps=STEPS, made=made)
    assert finding.outcome is Outcome.HOLDS
    assert "hyperparameter-tuning" in finding.why


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"adjacency": Adjacency.REPLACE_ONE}, "twice the clip norm"),
        ({"sampling": Sampling.FULL_BATCH}, "sampling"),
        ({"randomness": Randomness.SEEDED}, "randomness"),
        ({"releases": 2}, "steps are left out"),
        ({"ledger_head": "other"}, "another ledger"),
        ({"leaves_out": ()}, "hyperparameter-tuning"),
        ({"unit": "user"}, "user"),
    ],
)
def test_a_claim_of_other_terms_is_convicted(changes: dict[str, object], word: str) -> None:
    found = check_provenance(ledger(), msgspec.structs.replace(claim(), **changes))
    assert {finding.outcome for finding in found} == {Outcome.VIOLATED}
    assert any(word in finding.why for finding in found)


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (Made(steps=4), "4 steps were taken, 3 are booked"),
        (Made(stopped_early=True), "when to stop"),
        (Made(checkpoints=(2, 5)), "not booked: 5"),
    ],
)
def test_what_was_made_and_not_booked_convicts(made: Made, word: str) -> None:
    found = check_provenance(ledger(), claim(), made=made)
    assert [finding.outcome for finding in found] == [Outcome.VIOLATED]
    assert word in found[0].why


def test_a_run_that_was_chosen_among_many_convicts_a_claim_that_does_not_say_so() -> None:
    honest = with_header(leaves_out=())
    silent = msgspec.structs.replace(claim(), leaves_out=())
    assert check_provenance(honest, silent)[0].outcome is Outcome.HOLDS
    (finding,) = check_provenance(honest, silent, made=Made(runs=8))
    assert "one of 8" in finding.why


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (lambda: with_step(PoissonSampled(Gaussian(0.9), 0.1)), "noise multiplier 0.9"),
        (lambda: with_step(PoissonSampled(Gaussian(1.1), 0.2)), "rate 0.2"),
        (lambda: with_header(clip_norm=0.7), "clips at 0.7"),
    ],
)
def test_steps_that_are_booked_otherwise_convict(
    made: Callable[[], PrivacyLedger], word: str
) -> None:
    found = check_provenance(made(), claim(), steps=STEPS)
    assert any(word in finding.why for finding in found)


def test_more_steps_than_are_claimed_convict() -> None:
    few = msgspec.structs.replace(STEPS, steps=2)
    (finding,) = check_provenance(ledger(), claim(), steps=few)
    assert finding.why == "3 steps are booked, 2 are claimed"


def test_noise_for_added_records_convicts_a_replace_one_ledger() -> None:
    replaced = with_header(adjacency=Adjacency.REPLACE_ONE)
    said = msgspec.structs.replace(claim(), adjacency=Adjacency.REPLACE_ONE)
    (finding,) = check_provenance(replaced, said)
    assert finding.name == "adjacency"


def test_a_schedule_that_was_chosen_on_the_way_convicts() -> None:
    (finding,) = check_provenance(with_header(schedule_fixed_in_advance=False), claim())
    assert finding.name == "schedule"


def test_a_ledger_without_a_seal_is_inconclusive() -> None:
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
def test_a_trainer_that_was_tested_for_less_or_otherwise_shows_nothing_of_the_run(
    changes: dict[str, object], name: str
) -> None:
    found = check_provenance(ledger(), claim(), steps=msgspec.structs.replace(STEPS, **changes))
    assert Outcome.INCONCLUSIVE in {one.outcome for one in found if one.name == name}
    assert Outcome.HOLDS not in {one.outcome for one in found}


def test_a_ledger_without_a_sum_of_gradients_says_nothing_of_a_trainer() -> None:
    lines = tuple(
        msgspec.structs.replace(line, what="count") if isinstance(line, BookedRelease) else line
        for line in ledger().lines
    )
    found = check_provenance(msgspec.structs.replace(ledger(), lines=lines), claim(), steps=STEPS)
    assert [one.outcome for one in found] == [Outcome.INCONCLUSIVE]


def test_poisson_samples_of_everyone_are_full_batches() -> None:
    everyone = with_header(sampling=Sampling.FULL_BATCH)
    steps = msgspec.structs.replace(STEPS, sampling_rate=1.0)
    said = msgspec.structs.replace(claim(), sampling=Sampling.FULL_BATCH)
    found = check_provenance(everyone, said, steps=steps)
    assert "sampling" not in {one.name for one in found}
