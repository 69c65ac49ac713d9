"""Every bug planted in one process is detected by the right check, with the right reason.

Each bug meets the tests of its kind alone, at the level and effort of the whole
``conformance.check``. One bug of each kind, two of them in the slow tests, meets that too, and all
bugs under five seeds in the slow tests.
"""

from __future__ import annotations

import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.verdict import Outcome
from tests.planted_bugs.bench import EFFORT, STEPS, bench, records
from tests.planted_bugs.parts import checks_alone
from tests.planted_bugs.table import LISTED, OWN, Planted

ALL = {**LISTED, **OWN}


def audited(seed: int) -> ConformanceResult:
    trainer = bench()
    return conformance.check(
        trainer, trainer.claim(STEPS), records=records(), effort=EFFORT, seed=seed
    )


def require_detected(bug: Planted, seed: int) -> None:
    with bug.patch():
        result = audited(seed)
    assert result.verdict is Outcome.FAIL
    said = [finding.why for finding in result.violations if finding.check == bug.check]
    assert any(bug.word in why for why in said), result.violations


REPRESENTATIVES = {bug.check: name for name, bug in reversed(LISTED.items())}
MET_BY_ALL = {REPRESENTATIVES["noise"], REPRESENTATIVES["replay"]}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in MET_BY_ALL else pytest.mark.slow)
        for name in REPRESENTATIVES.values()
    ],
)
def test_first_bug_of_each_kind_is_detected_by_the_whole_check(name: str) -> None:
    require_detected(LISTED[name], seed=1)


@pytest.mark.parametrize("name", [one for one in LISTED if one not in MET_BY_ALL])
def test_planted_bug_is_detected(name: str) -> None:
    with checks_alone(LISTED[name].check):
        require_detected(LISTED[name], seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_unlisted_bug_is_detected(name: str) -> None:
    require_detected(OWN[name], seed=1)


def test_clean_trainer_passes() -> None:
    result = audited(seed=1)
    assert result.verdict is Outcome.PASS, result.findings


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(2, 7))
def test_planted_bug_is_detected_under_five_seeds(name: str, seed: int) -> None:
    require_detected(ALL[name], seed)
