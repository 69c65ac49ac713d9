"""A run that is checked by its settings passes, and its directory has the result."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json, write_json
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
from dpaudit.workflow.audit.conformance_check import check_run_conformance
from dpaudit.workflow.train.finish import finish_and_read_claim


def trained(out: Path, noise: str) -> RunDirectory:
    privacy = PrivacySettings(
        sampling_rate=0.1, noise_multiplier=1.5, clip_norm=0.5, steps=20, delta=1e-5, noise=noise
    )
    config = RunConfig(
        DataSettings(), privacy, ModelSettings(), CanarySettings(20, 2), SpeedSettings()
    )
    run = runs.train_run(runs.prepare_run(config), out, lambda done, tap: None)
    finish_and_read_claim(run, 1e-5)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["normal", "grid"])
def test_run_conforms_to_its_settings(tmp_path: Path, noise: str) -> None:
    run = trained(tmp_path / "run", noise)
    result = check_run_conformance(run)
    assert result.verdict is Outcome.PASS, result.findings
    assert result.ledger_head == run.read_ledger().head
    assert read_json(run.conformance, ConformanceResult) == result


@pytest.mark.slow
def test_claim_without_a_release_is_refused(tmp_path: Path) -> None:
    """The claim contradicts its ledger: nothing is tested, and nothing is written."""
    run = trained(tmp_path / "run", "normal")
    claim = read_json(run.claim, Claim)
    write_json(run.claim, msgspec.structs.replace(claim, releases=claim.releases - 1))
    with pytest.raises(IntegrityError, match=r"claim\.json"):
        check_run_conformance(run)
    assert not run.conformance.exists()
