"""Ledgers of a federation: local steps are recorded ahead, and none is recorded too late."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpaudit.runs.ledger_file import read_ledger
from dpaudit.trainer.federated.fedavg import DEFINITION
from dpaudit.trainer.federated.ledgers import (
    RECORDED_AHEAD,
    AheadRecorder,
    FederationLedger,
    federation_header,
)
from dpaudit.trainer.session.release_account import PrivacyBudget
from dpaudit.vocabulary.federation import FederatedConfig, FederatedPrivacy, FederationSettings
from dpaudit.vocabulary.ledger import GRADIENT_SUM, Randomness, ReleaseEntry
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Release
from dpaudit.vocabulary.settings import DataSettings

STEP: Release = PoissonSampled(Gaussian(1.0), 0.1)
CONFIG = FederatedConfig(
    DataSettings("digits"),
    FederationSettings("fedavg", participants=4, rounds=2),
    FederatedPrivacy(delta=1e-5, noise_multiplier=1.0, clip_norm=0.5),
)
HEADER = federation_header(CONFIG, DEFINITION, Randomness.SECURE, 2)


def entry(step: int, release: Release = STEP) -> ReleaseEntry:
    return ReleaseEntry(GRADIENT_SUM, release, step)


@pytest.fixture
def ledger(tmp_path: Path) -> FederationLedger:
    return FederationLedger.begin(tmp_path / "002" / "ledger.jsonl", HEADER)


def on_disk(ledger: FederationLedger) -> list[int | None]:
    assert ledger.writer is not None
    return [one.step for one in read_ledger(ledger.writer.path).releases]


def test_a_round_of_steps_is_recorded_once_each(ledger: FederationLedger) -> None:
    recorder = AheadRecorder(ledger)
    recorder.planned = 2 * RECORDED_AHEAD + 3
    for step in range(2 * RECORDED_AHEAD + 3):
        recorder.record_release(entry(step))
        steps = on_disk(ledger)
        assert step in steps
        assert len(steps) <= step + RECORDED_AHEAD
    assert on_disk(ledger) == list(range(2 * RECORDED_AHEAD + 3))
    assert ledger.releases == 2 * RECORDED_AHEAD + 3
    assert ledger.recorded == {STEP: 2 * RECORDED_AHEAD + 3}


def test_steps_that_failed_are_used_in_the_next_round(ledger: FederationLedger) -> None:
    recorder = AheadRecorder(ledger)
    recorder.planned = 5
    recorder.record_release(entry(0))  # the rest of the round fails
    assert on_disk(ledger) == [0, 1, 2, 3, 4]
    recorder.planned = 5
    for step in range(1, 6):
        recorder.record_release(entry(step))
    assert on_disk(ledger) == [0, 1, 2, 3, 4, 5]


def test_another_release_than_the_one_ahead_is_recorded(ledger: FederationLedger) -> None:
    recorder = AheadRecorder(ledger)
    recorder.planned = 3
    recorder.record_release(entry(0))
    other: Release = PoissonSampled(Gaussian(2.0), 0.1)
    recorder.record_release(entry(1, other))
    assert ledger.recorded[other] >= 1
    assert ledger.recorded[STEP] == 3  # those ahead stay recorded
    recorder.record_release(entry(7))
    assert 7 in on_disk(ledger)


def test_steps_that_were_not_planned_are_recorded_one_by_one(ledger: FederationLedger) -> None:
    recorder = AheadRecorder(ledger)
    for step in range(3):
        recorder.record_release(entry(step))
        assert on_disk(ledger) == list(range(step + 1))


def test_a_budget_has_room_for_a_number_of_releases() -> None:
    ledger = FederationLedger.begin(None, HEADER, PrivacyBudget(2.0, 1e-5))
    room = 0
    while ledger.has_room(STEP, room + 1):
        room += 1
    assert room > 1
    for step in range(room):
        assert ledger.has_room(STEP, room - step)
        assert not ledger.has_room(STEP, room - step + 1)
        ledger.record(GRADIENT_SUM, STEP, step)
    assert not ledger.has_room(STEP)
    assert ledger.epsilon(1e-5).upper <= 2.0
    assert ledger.head == ""
