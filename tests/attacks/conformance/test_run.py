"""A run of our own, checked by its settings: it holds, and says so in its directory."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_json, write_json
from dpaudit.trainer import run as runs
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)
from dpaudit.vocabulary.verdict import Outcome
from dpaudit.workflow.conforming import check_run
from dpaudit.workflow.training import write_claim


def trained(out: Path, noise: str) -> RunDirectory:
    privacy = PrivacySettings(
        sampling_rate=0.1, noise_multiplier=1.5, clip_norm=0.5, steps=20, delta=1e-5, noise=noise
    )
    config = RunConfig(
        DataSettings(), privacy, ModelSettings(), CanarySettings(20, 2), SpeedSettings()
    )
    run = runs.train(runs.prepare(config), out, lambda done, tap: None)
    write_claim(run, 1e-5)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "grid"])
def test_a_run_does_what_its_settings_claim(tmp_path: Path, noise: str) -> None:
    run = trained(tmp_path / "run", noise)
    result = check_run(run)
    assert result.verdict is Outcome.HOLDS, result.findings
    assert result.ledger_head == run.read_ledger().head
    assert read_json(run.conformance, ConformanceResult) == result


@pytest.mark.slow
def test_a_claim_that_leaves_a_release_out_is_refused(tmp_path: Path) -> None:
    """It contradicts the ledger beside it: nothing is tested, and nothing is written."""
    run = trained(tmp_path / "run", "normal")
    claim = read_json(run.claim, Claim)
    write_json(run.claim, msgspec.structs.replace(claim, releases=claim.releases - 1))
    with pytest.raises(IntegrityError, match=r"claim\.json"):
        check_run(run)
    assert not run.conformance.exists()
