"""The conformance result of a run of ``make_private`` is bound to its ledger, for the gate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dpaudit.attacks import conformance as checks
from dpaudit.cli.audit import conformance_command
from dpaudit.gate.audit_rules import evaluate_audit_rules
from dpaudit.gate.evidence import Evidence
from dpaudit.gate.policy import AuditPolicy
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome
from tests.attacks.conformance import session_trainer
from tests.planted_bugs.parts import checks_alone

TRAINER = "tests.attacks.conformance.session_trainer:make"
QUICK = checks.Effort(noise_samples=5_000, replays=1, sampler_steps=30)


def shorten(patches: pytest.MonkeyPatch) -> None:
    genuine = checks.check

    def check(*arguments: Any, **named: Any) -> ConformanceResult:
        return genuine(*arguments, **{**named, "effort": QUICK})

    patches.setattr("dpaudit.workflow.audit.conformance_check.check", check)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("session")
    session_trainer.train(folder / "run")
    (folder / "claim.toml").write_text(session_trainer.CLAIM)
    return folder


@pytest.fixture(scope="module")
def tested(trained: Path) -> RunDirectory:
    """Return a run with its conformance result, of all checks."""
    with pytest.MonkeyPatch.context() as patches:
        shorten(patches)
        code, said = called(TRAINER, "--claim", trained / "claim.toml", "--run", trained / "run")
    assert code == 0, said
    return RunDirectory(trained / "run")


def called(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(conformance_command, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def rule(run: RunDirectory) -> RuleOutcome:
    """Return the outcome of the gate's conformance rule for the files of a run."""
    evidence = Evidence(
        claim=read_json(run.claim, Claim),
        conformance=read_json(run.conformance, ConformanceResult),
    )
    policy = AuditPolicy(confidence=0.99, require_conformance=True)
    (found,) = [
        one
        for one in evaluate_audit_rules(policy, evidence)
        if one.rule == "audit.require_conformance"
    ]
    return found


def test_result_is_written_into_the_run_and_satisfies_the_rule(tested: RunDirectory) -> None:
    run = tested
    result = read_json(run.conformance, ConformanceResult)
    assert result.ledger_head == run.read_finished().head
    assert "provenance" in {finding.check for finding in result.findings}
    assert rule(run).outcome is Outcome.PASS


def test_result_of_another_run_does_not_satisfy_the_rule(
    tested: RunDirectory, tmp_path: Path
) -> None:
    session_trainer.train(tmp_path / "other")
    other = RunDirectory(tmp_path / "other")
    other.conformance.write_bytes(tested.conformance.read_bytes())
    assert rule(other).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("stated", "instead"), [("noise_multiplier = 4.0", "noise_multiplier = 5.0"),
                            ("steps = 12", "steps = 10")]
)  # fmt: skip
def test_claim_that_the_ledger_contradicts_violates_the_rule(
    trained: Path, tmp_path: Path, stated: str, instead: str
) -> None:
    claim = tmp_path / "claim.toml"
    claim.write_text(session_trainer.CLAIM.replace(stated, instead))
    run = RunDirectory(Path(shutil.copytree(trained / "run", tmp_path / "run")))
    with checks_alone("sampler"):  # the other checks of steps may contradict the claim too
        code, _ = called(TRAINER, "--claim", claim, "--run", run.path)
    assert code == 1
    assert rule(run).outcome is Outcome.FAIL


def test_unfinished_run_is_refused_before_anything_is_tested(tmp_path: Path) -> None:
    from dpaudit.vocabulary.errors import DpauditError

    session_trainer.train(tmp_path / "run")
    (tmp_path / "claim.toml").write_text(session_trainer.CLAIM)
    ledger = tmp_path / "run" / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DpauditError):
        called(TRAINER, "--claim", tmp_path / "claim.toml", "--run", tmp_path / "run")


# Probes from a file


def test_probes_of_a_file_are_replayed(trained: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "probes.npz", x=np.full((2, 8), 50, dtype="f4"), y=np.array([0, 1]))
    with checks_alone("replay"):
        code, said = called(
            TRAINER, "--claim", trained / "claim.toml", "--probes", tmp_path / "probes.npz",
            "--format", "json",
        )  # fmt: skip
    assert code == 0
    names = {finding["name"] for finding in json.loads(said)["findings"]}
    assert {"given, number 0", "given, number 1"} <= names
    assert "huge features" not in names


@pytest.mark.parametrize(
    "arrays", [{"x": np.zeros((2, 8))}, {"x": np.zeros((2, 8)), "y": np.zeros(3)}, {"x": 1, "y": 2}]
)
def test_file_without_probes_is_refused(
    trained: Path, tmp_path: Path, arrays: dict[str, Any]
) -> None:
    from dpaudit.vocabulary.errors import InvalidArgument

    np.savez(tmp_path / "probes.npz", **arrays)
    with pytest.raises(InvalidArgument, match="probes"):
        called(TRAINER, "--claim", trained / "claim.toml", "--probes", tmp_path / "probes.npz")
