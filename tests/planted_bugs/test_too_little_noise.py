"""The pipeline end to end: it believes an honest run and convicts one with too little noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpaudit.attacks.sequential_audit import SequentialTest
from dpaudit.cli.entry_point import _run
from dpaudit.gate.policy import AuditPolicy, ClaimPolicy, Policy
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.trainer import run as runs
from dpaudit.trainer.canaries.run_canaries import Observation
from dpaudit.trainer.noise.gradient_noise import GradientSums, Independent, NoiseContext
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import ExitCode
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)
from dpaudit.vocabulary.verdict import Outcome, Verdict
from dpaudit.workflow.audit.run_audit import audit_run
from dpaudit.workflow.gate.run_evaluation import GateSettings, evaluate_run
from dpaudit.workflow.run_claims import with_calibrated_noise
from dpaudit.workflow.train.accuracy import heldout_accuracy
from dpaudit.workflow.train.finish import finish_and_read_claim
from dpaudit.workflow.train.stop_when_refuted import with_refutation_check

POLICY = Policy(
    claim=ClaimPolicy(max_epsilon=3.0, delta=1e-5),
    audit=AuditPolicy(confidence=0.99, count=(BoundKind.CERTIFIED,)),
)


def run_pipeline(out: Path) -> tuple[RunDirectory, Verdict, float]:
    privacy = with_calibrated_noise(
        PrivacySettings(
            sampling_rate=0.1, noise_multiplier=1.0, clip_norm=0.5, steps=100, delta=1e-5
        ),
        target_epsilon=3.0,
    )
    config = RunConfig(
        DataSettings(), privacy, ModelSettings(), CanarySettings(500, 25), SpeedSettings()
    )
    prepared = runs.prepare_run(config)
    run = runs.train_run(prepared, out, lambda done, seen: None)
    claim = finish_and_read_claim(run, privacy.delta)
    assert claim.epsilon.upper <= 3.0
    audit_run(run, confidence=0.99)
    return run, evaluate_run(run, GateSettings(POLICY)), heldout_accuracy(run, prepared.split)


def test_honest_run_passes_with_useful_accuracy(tmp_path: Path) -> None:
    _, verdict, accuracy = run_pipeline(tmp_path / "run")
    assert verdict.outcome is Outcome.PASS
    assert accuracy >= 0.92


def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a fifth of the noise that the ledger books."""
    honest = Independent.add_noise

    def a_fifth(
        self: Independent,
        sums: GradientSums,
        context: NoiseContext,
        noise_multiplier: float,
        norm: float,
    ) -> GradientSums:
        return honest(self, sums, context, noise_multiplier / 5, norm)

    monkeypatch.setattr(Independent, "add_noise", a_fifth)


def test_run_with_too_little_noise_is_stopped_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "--target-epsilon", "3", "--canaries", "200", "--stop-when-refuted", "0.99"]
    command += ["--noise", "normal"]  # the bug is planted in this kind
    monkeypatch.setattr("sys.argv", ["dpaudit", *command, "--out", str(tmp_path / "honest")])
    assert _run() == ExitCode.PASS
    planted(monkeypatch)
    monkeypatch.setattr("sys.argv", ["dpaudit", *command, "--out", str(tmp_path / "run")])
    assert _run() == ExitCode.FAIL
    assert open_run(tmp_path / "run").read_ledger().seal is None  # nothing is shipped


def test_resumed_run_is_tested_from_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each resumption would open the failure budget anew."""
    config = RunConfig(
        DataSettings(),
        PrivacySettings(0.1, 1.0, 0.5, 30, 1e-5),
        ModelSettings(),
        CanarySettings(100, 5),
        SpeedSettings(checkpoint_every=10),
    )
    out = tmp_path / "run"

    class Stop(Exception):
        pass

    def stop(done: int, seen: Observation) -> None:
        if done == 20:
            raise Stop

    with pytest.raises(Stop):
        runs.train_run(runs.prepare_run(config), out, stop)
    seen: list[int] = []
    monkeypatch.setattr(
        SequentialTest, "update", lambda self, *args, **kwargs: seen.append(len(args[0]))
    )
    on_step = with_refutation_check(out, config, 0.99, lambda done, seen: None)
    runs.resume_run(runs.prepare_resume(out), out, on_step)
    assert len(seen) == 30


def test_noise_below_the_recorded_is_detected_by_a_certified_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch)
    _, verdict, _ = run_pipeline(tmp_path / "run")
    assert verdict.outcome is Outcome.FAIL
    convicted = [rule for rule in verdict.rules if rule.outcome is Outcome.FAIL]
    assert [rule.rule for rule in convicted] == ["audit.lower_bound"]
    assert "certified" in convicted[0].why
