"""What other programs read of us: the GitHub action, hooks of pre-commit, CI files, the guide.

Each is held against its schema, and the shell in it is run as the service would run it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4
from xml.etree import ElementTree

import pytest
import yaml
from check_jsonschema.cli import main as check_jsonschema
from click.testing import CliRunner
from places import ROOT
from pre_commit.clientlib import load_config, load_manifest
from warm_python import WarmPython

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.cli.entry_point import _run
from dpaudit.gate.policy import ClaimPolicy, Policy
from dpaudit.runs.directory import RunDirectory, seal_run
from dpaudit.runs.file_io import write_json
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.vocabulary.ledger import LedgerHeader, Randomness, ReleaseEntry, Sampling
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.workflow.gate.baselines import baseline_of_run
from dpaudit.workflow.gate.policy_sources import read_policy

pytest_plugins = ["pytester"]

ACTION, HOOKS = ROOT / "action.yml", ROOT / ".pre-commit-hooks.yaml"
SAMPLE = ROOT / "examples" / "ci-gate"
GUIDE = ROOT / "docs" / "how_to" / "gate_in_ci.md"
POLICY = "[claim]\nmax_epsilon = {}\ndelta = 1e-5\n"
COMPARED = "[regression]\nmax_epsilon_increase = 0.0\n"
SPENT, TOO_LITTLE = 3.0, 1.0  # the run below spends 1.77


def finished_run(path: Path, releases: int = 4) -> RunDirectory:
    """Make a run as a loop of one's own leaves it, weights aside."""
    path.mkdir(parents=True)
    header = LedgerHeader(
        adjacency=Adjacency.ADD_OR_REMOVE_ONE,
        sampling=Sampling.POISSON,
        randomness=Randomness.SECURE,
        schedule_fixed_in_advance=True,
        clip_norm=1.0,
        versions={},
        run=uuid4().hex,  # as two runs have it: neither is the other's baseline by mistake
    )
    run = RunDirectory(path)
    with LedgerWriter.create(run.ledger, header) as ledger:
        for step in range(releases):
            release = PoissonSampled(Gaussian(1.5), 0.2)
            ledger.record_release(ReleaseEntry("gradient sum", release, step=step))
        seal_run(run, ledger, claim_from_ledger(run.read_ledger(), 1e-5, "pld"))
    return run


# --- schemas


def schema_says(schema: str, path: Path) -> str:
    """Return what is wrong with a file; empty: nothing."""
    done = CliRunner().invoke(check_jsonschema, ["--builtin-schema", schema, str(path)])
    return "" if done.exit_code == 0 else done.output


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-actions", ACTION),
        ("vendor.github-workflows", SAMPLE / ".github" / "workflows" / "dpaudit.yml"),
        ("vendor.gitlab-ci", SAMPLE / ".gitlab-ci.yml"),
    ],
    ids=["action", "workflow", "gitlab"],
)
def test_each_file_is_valid_by_its_schema(schema: str, path: Path, tmp_path: Path) -> None:
    assert schema_says(schema, path) == ""
    broken = tmp_path / path.name  # the schema refuses something, and would refuse ours
    broken.write_text(re.sub(r"(?m)^(runs|jobs|privacy):", r"\1-:", path.read_text()))
    broken.write_text(broken.read_text().replace("script:", "scripts:"))
    assert schema_says(schema, broken) != ""


def test_hooks_and_their_use_are_valid_by_pre_commit() -> None:
    offered = {hook["id"] for hook in load_manifest(HOOKS)}
    assert offered == {"dpaudit-policy", "dpaudit-secrets"}
    (used,) = load_config(SAMPLE / ".pre-commit-config.yaml")["repos"]
    assert {hook["id"] for hook in used["hooks"]} <= offered


def test_no_file_names_a_registry() -> None:
    files = [ACTION, HOOKS, GUIDE, *(f for f in SAMPLE.rglob("*") if f.is_file())]
    for file in files:
        assert not re.search(r"pypi|index-url|simple/", file.read_text(errors="replace")), file


# --- the hooks


def hook(name: str) -> dict[str, Any]:
    return next(hook for hook in load_manifest(HOOKS) if hook["id"] == name)


@pytest.mark.parametrize(
    ("name", "seen", "unseen"),
    [
        (
            "dpaudit-policy",
            ["dpaudit.toml", "pyproject.toml", "sub/dpaudit.toml"],
            ["settings.toml", "dpaudit.toml.md", "mydpaudit.toml"],
        ),
        (
            "dpaudit-secrets",
            ["runs/a/canaries.secret.npz", "observations.npz"],
            ["runs/a/canaries.npz", "observations.npz.md"],
        ),
    ],
)
def test_a_hook_looks_at_the_files_that_it_is_for(
    name: str, seen: list[str], unseen: list[str]
) -> None:
    pattern = re.compile(hook(name)["files"])
    assert all(pattern.search(path) for path in seen)
    assert not any(pattern.search(path) for path in unseen)


WAIVER = '[[waiver]]\nrule = "claim.max_epsilon"\nreason = "ticket 1"\nexpires = {}\n'


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (POLICY.format(3), 0),
        (POLICY.format(3) + WAIVER.format(datetime.now(UTC).date() + timedelta(days=300)), 0),
        (POLICY.format(3) + WAIVER.format("2020-01-01"), 1),
        (POLICY.format("nan"), 2),
        (POLICY.format(3) + "unknown = 1\n", 2),
    ],
    ids=["valid", "waiver", "expired", "NaN", "unknown key"],
)
def test_the_policy_hook_runs_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, code: int
) -> None:
    (tmp_path / "dpaudit.toml").write_text(policy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(hook("dpaudit-policy")["entry"]))
    assert _run() == code


def test_the_secrets_hook_refuses_by_its_words_alone() -> None:
    assert hook("dpaudit-secrets")["language"] == "fail"
    assert "for the auditor only" in hook("dpaudit-secrets")["entry"]


# --- the action


@dataclass(frozen=True)
class Step:
    """What one step of the action left behind."""

    code: int
    out: str
    outputs: dict[str, str]
    summary: str


def action() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(ACTION.read_text())
    return loaded


def scripts() -> list[dict[str, Any]]:
    return [step for step in action()["runs"]["steps"] if "run" in step]


def expanded(text: str, given: dict[str, str]) -> str:
    """Return a value with inputs in it, as the service fills them in."""
    inputs = {name: spec.get("default", "") for name, spec in action()["inputs"].items()} | given
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda found: inputs[found[1]], text)


@pytest.fixture
def warm_gate(gate_program: WarmPython, tmp_path: Path) -> None:
    """Let the steps of the action call the program without its imports."""
    gate_program.write_program(
        tmp_path / "bin" / "dpaudit", "from dpaudit.cli.entry_point import main; main()"
    )


def run_step(script: dict[str, Any], folder: Path, **given: str) -> Step:
    output, summary = folder / "github_output", folder / "summary"
    for file in (output, summary):
        file.write_text("")
    own = {name: expanded(value, given) for name, value in script["env"].items()}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script["run"]],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
        env={
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GITHUB_ACTION_PATH": "/the action", "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(summary), **own,
        },
    )  # fmt: skip
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return Step(done.returncode, done.stdout + done.stderr, outputs, summary.read_text())


def gate_script() -> dict[str, Any]:
    return next(step for step in scripts() if step.get("id") == "gate")


def test_no_input_is_pasted_into_a_script() -> None:
    assert len(scripts()) == 2
    for script in scripts():
        assert "${{" not in script["run"]
        for value in script["env"].values():  # one input each, and nothing else
            assert re.fullmatch(r"\$\{\{ inputs\.[a-z-]+ \}\}", value)


def test_every_input_is_used_and_every_use_is_an_input() -> None:
    used = set(re.findall(r"inputs\.([a-z-]+)", ACTION.read_text()))
    assert used == set(action()["inputs"])


def test_the_workflows_give_the_action_only_what_it_takes() -> None:
    workflows = [
        (SAMPLE / ".github/workflows/dpaudit.yml").read_text(),
        *guide("yaml", "workflows"),
    ]
    for text in workflows:
        (job,) = yaml.safe_load(text)["jobs"].values()
        (ours,) = [step for step in job["steps"] if "/dpaudit@" in step.get("uses", "")]
        assert set(ours["with"]) <= set(action()["inputs"])
        assert {name for name, one in action()["inputs"].items() if one.get("required")} <= set(
            ours["with"]
        )


@pytest.mark.parametrize(
    ("given", "installed"),
    [
        ({}, "/the action"),
        ({"extras": "train,report"}, "/the action[train,report]"),
        ({"extras": '"; touch pwned; "'}, '/the action["; touch pwned; "]'),
    ],
    ids=["core", "extras", "markup"],
)
def test_the_install_step_installs_the_action_itself(
    tmp_path: Path, given: dict[str, str], installed: str
) -> None:
    """A python that notes what it was asked for stands in for the one that installs."""
    stand_in = tmp_path / "bin" / "python"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > asked\n')
    stand_in.chmod(0o755)
    (install,) = [step for step in scripts() if step.get("id") != "gate"]
    assert run_step(install, tmp_path, **given).code == 0
    assert (tmp_path / "asked").read_text().splitlines() == ["-m", "pip", "install", installed]
    assert not (tmp_path / "pwned").exists()


def test_the_gate_step_reports_a_run_that_holds(tmp_path: Path) -> None:
    """With the installed program; the tests below, without its imports."""
    finished_run(tmp_path / "runs" / "ci")
    (tmp_path / "dpaudit.toml").write_text(POLICY.format(SPENT))
    done = run_step(gate_script(), tmp_path, run="runs/ci")
    assert done.code == 0, done.out
    assert done.outputs == {
        "exit-code": "0",
        "sarif": "dpaudit-reports/gate.sarif",
        "junit": "dpaudit-reports/gate.xml",
    }
    sarif = json.loads((tmp_path / done.outputs["sarif"]).read_text())
    assert sarif["version"] == "2.1.0"
    assert ElementTree.parse(tmp_path / done.outputs["junit"]).findall(".//testcase")
    assert done.summary.count("## dpaudit: PASS") == 1


@pytest.mark.usefixtures("warm_gate")
def test_the_gate_step_fails_with_the_verdict_and_says_why(tmp_path: Path) -> None:
    """Names with spaces, quotes and a $ are names."""
    name = 'a $(touch pwned) "run"; touch pwned'
    finished_run(tmp_path / name)
    (tmp_path / "my policy.toml").write_text(POLICY.format(TOO_LITTLE))
    done = run_step(
        gate_script(), tmp_path, run=name, policy="my policy.toml", reports="the reports"
    )
    assert done.code == 1
    assert done.outputs["exit-code"] == "1"
    assert "FAIL  claim.max_epsilon" in done.out
    assert "::error file=my policy.toml,line=2" in done.out
    assert "the policy allows 1" in (tmp_path / "the reports" / "gate.xml").read_text()
    assert "claim.max_epsilon" in (tmp_path / "the reports" / "gate.sarif").read_text()
    assert not (tmp_path / "pwned").exists()


@pytest.mark.usefixtures("warm_gate")
@pytest.mark.parametrize(("inconclusive", "code"), [("fail", 3), ("warn", 0)])
def test_gate_step_handles_inconclusive_as_configured(
    tmp_path: Path, inconclusive: str, code: int
) -> None:
    finished_run(tmp_path / "run")
    (tmp_path / "dpaudit.toml").write_text("[audit]\nrequire_conformance = true\n")
    write_baseline(tmp_path)
    done = run_step(
        gate_script(), tmp_path, run="run", inconclusive=inconclusive, baseline="baseline.json"
    )
    assert (done.code, done.outputs["exit-code"]) == (code, str(code)), done.out


@pytest.mark.usefixtures("warm_gate")
@pytest.mark.parametrize(
    ("name", "given"),
    [("dpaudit.toml", ""), ("pyproject.toml", ""), ("privacy rules.toml", "privacy rules.toml")],
)
def test_the_gate_step_takes_its_settings_from_any_policy_file(
    tmp_path: Path, name: str, given: str
) -> None:
    finished_run(tmp_path / "run")
    policy = POLICY.format(TOO_LITTLE)
    if name == "pyproject.toml":
        policy = policy.replace("[claim]", "[tool.dpaudit.claim]")
    (tmp_path / name).write_text(policy)
    done = run_step(gate_script(), tmp_path, run="run", policy=given)
    assert done.code == 1, done.out
    assert f"file={name},line=2" in done.out


def write_baseline(folder: Path) -> None:
    policy = Policy(claim=ClaimPolicy(max_epsilon=SPENT, delta=1e-5))
    finished_run(folder / "earlier")
    figures = baseline_of_run(RunDirectory(folder / "earlier"), policy)
    write_json(folder / "baseline.json", figures)


@pytest.mark.usefixtures("warm_gate")
def test_the_gate_step_leaves_no_report_of_what_was_not_judged(tmp_path: Path) -> None:
    (tmp_path / "dpaudit.toml").write_text(POLICY.format(SPENT))
    done = run_step(gate_script(), tmp_path, run="--help")
    assert done.code == 2
    assert done.outputs == {"exit-code": "2"}
    assert not (tmp_path / "dpaudit-reports").exists()


# --- docs/how_to/gate_in_ci.md


def guide(language: str, holding: str = "") -> Iterator[str]:
    """Return the guide's blocks of a language that hold some words."""
    blocks = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return (block for block in blocks if holding in block)


def test_the_yaml_of_the_guide_is_valid(tmp_path: Path) -> None:
    schemas = {
        ".github/workflows/privacy.yml": "vendor.github-workflows",
        ".gitlab-ci.yml": "vendor.gitlab-ci",
    }
    names = []
    for block in guide("yaml"):
        names.append(block.splitlines()[0].removeprefix("# "))
        path = tmp_path / Path(names[-1]).name
        path.write_text(block)
        if names[-1] in schemas:
            assert schema_says(schemas[names[-1]], path) == ""
        else:
            (repo,) = load_config(path)["repos"]
            assert {one["id"] for one in repo["hooks"]} == {
                one["id"] for one in load_manifest(HOOKS)
            }
    assert names == [*schemas, ".pre-commit-config.yaml"]


def test_the_policy_of_the_guide_is_valid(tmp_path: Path) -> None:
    (policy,) = guide("toml", "[claim]")
    (tmp_path / "dpaudit.toml").write_text(policy)
    assert read_policy(tmp_path / "dpaudit.toml").regression is not None


def test_the_commands_and_the_tests_of_the_guide_run_in_its_order(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(pytester.path / "runs" / "release")
    finished_run(pytester.path / "runs" / "next")
    pytester.chdir()
    commands, formats = guide("sh")
    for command in (commands + formats).splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
        assert _run() == 0, command
    (settings,) = guide("toml", "dpaudit_run")
    assert tomllib.loads(settings)["tool"]["pytest"]["ini_options"]["dpaudit_run"]
    pytester.makepyprojecttoml(settings)
    (test,) = guide("python")
    pytester.makepyfile(test)
    pytester.runpytest_inprocess().assert_outcomes(passed=2)


def test_the_gitlab_script_of_the_guide_uses_options_that_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_run(tmp_path / "runs" / "ci")
    finished_run(tmp_path / "run")
    write_baseline(tmp_path)
    (tmp_path / "dpaudit.toml").write_text(POLICY.format(SPENT) + COMPARED)
    monkeypatch.chdir(tmp_path)
    (text,) = guide("yaml", "gitlab")
    job = yaml.safe_load(text)["privacy"]
    gates = [line for line in (*job["script"], *job["after_script"]) if "dpaudit gate" in line]
    assert len(gates) == 2
    for line in gates:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        assert _run() == 0
    ElementTree.parse(tmp_path / job["artifacts"]["reports"]["junit"])
