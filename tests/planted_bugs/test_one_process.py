"""Every bug planted in one process is detected by the right check, with the right reason."""

from __future__ import annotations

import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.verdict import Outcome
from tests.planted_bugs.bench import EFFORT, STEPS, bench, records
from tests.planted_bugs.table import LISTED, OWN, Planted

ALL = {**LISTED, **OWN}


def audited(seed: int) -> ConformanceResult:
    trainer = bench()
    return conformance.check(
        trainer, trainer.claim(STEPS), records=records(), effort=EFFORT, seed=seed
    )


def require_convicted(bug: Planted, seed: int) -> None:
    with bug.patch():
        result = audited(seed)
    assert result.verdict is Outcome.FAIL
    said = [finding.why for finding in result.violations if finding.check == bug.check]
    assert any(bug.word in why for why in said), result.violations


@pytest.mark.parametrize("name", LISTED)
def test_planted_bug_is_detected(name: str) -> None:
    require_convicted(LISTED[name], seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_unlisted_bug_is_detected(name: str) -> None:
    require_convicted(OWN[name], seed=1)


def test_clean_trainer_passes() -> None:
    result = audited(seed=1)
    assert result.verdict is Outcome.PASS, result.findings


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(2, 7))
def test_planted_bug_is_detected_under_five_seeds(name: str, seed: int) -> None:
    require_convicted(ALL[name], seed)
