"""Files about the project: workflows, hooks, versions, and what a release makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import release
import yaml
from check_jsonschema.cli import main as check_jsonschema
from click.testing import CliRunner
from places import ROOT
from pre_commit.clientlib import load_config

import dpaudit

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = "https://example.org/somebody/dpaudit"

# --- workflows


def jobs(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return loaded


def files_with_actions() -> Iterator[Path]:
    yield from (*WORKFLOWS, ROOT / "action.yml", *(ROOT / "docs").rglob("*.md"))
    yield from (ROOT / "examples").rglob(".github/workflows/*.yml")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_each_workflow_is_valid_by_its_schema(path: Path) -> None:
    arguments = ["--builtin-schema", "vendor.github-workflows", str(path)]
    done = CliRunner().invoke(check_jsonschema, arguments)
    assert done.exit_code == 0, done.output


def test_each_action_is_pinned_by_one_digest() -> None:
    digests: dict[str, set[str]] = {}
    for path in files_with_actions():
        for name, reference in re.findall(r"uses: ([\w/.-]+)@(.*)", path.read_text()):
            if name != "OWNER/dpaudit":
                assert re.fullmatch(r"[0-9a-f]{40} # v\d+\.\d+\.\d+", reference), (path, name)
                digests.setdefault(name, set()).add(reference)
    assert {"actions/checkout", "actions/setup-python"} <= digests.keys()
    assert all(len(found) == 1 for found in digests.values()), digests


def test_the_workflow_runs_every_supported_python_and_system() -> None:
    check = jobs(ROOT / ".github" / "workflows" / "check.yml")
    pythons = check["full"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: 3."
    assert pythons == [f"3.{c.removeprefix(prefix)}" for c in PROJECT["classifiers"] if prefix in c]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    core = check["core"]["strategy"]["matrix"]
    assert core["os"] == ["macos-latest", "windows-latest"]
    assert core["python"] == [pythons[0], pythons[-1]]


def test_the_workflow_runs_the_commands_of_the_readme() -> None:
    steps = [
        step["run"]
        for job in jobs(ROOT / ".github" / "workflows" / "check.yml").values()
        for step in job["steps"]
        if "run" in step
    ]
    assert {"./check", "./check --slow", "./demo"} <= set(steps)
    readme = (ROOT / "README.md").read_text()
    for command in ("./check", "./check --slow", "./demo"):
        assert command in readme


# --- hooks, editors, citation


def test_the_hooks_of_this_repository_run_what_is_here() -> None:
    (local,) = load_config(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    for hook in local["hooks"]:
        assert hook["entry"].startswith(".venv/bin/")
        for word in hook["entry"].split():
            assert not word.startswith("tests/") or (ROOT / word).is_file(), word


def test_the_editor_and_the_formatter_agree_on_the_width() -> None:
    width = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"]
    assert f"max_line_length = {width}\n" in (ROOT / ".editorconfig").read_text()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dpaudit.__version__
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_the_changelog_is_by_version_and_kind() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", one) for one in versions[1:])
    assert versions[1].startswith(f"{dpaudit.__version__} - ")
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Fixed", "Removed", "Security"}


# --- release


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("README.md", "pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "dpaudit").mkdir()
    shutil.copy(ROOT / "dpaudit" / "__init__.py", tmp_path / "dpaudit")
    return tmp_path


def test_a_tag_of_this_version_can_be_released(tree: Path) -> None:
    assert release.problems(tree, f"v{dpaudit.__version__}") == []


def test_a_tag_of_another_version_cannot(tree: Path) -> None:
    found = release.problems(tree, "v99.0.0")
    assert [one.partition(" ")[0] for one in found] == [
        *("dpaudit/__init__.py", "CITATION.cff", "CHANGELOG.md")
    ]
    assert release.problems(tree, dpaudit.__version__) == [
        f"a tag must be v and a version, got {dpaudit.__version__!r}"
    ]


def test_published_links_are_absolute(tree: Path) -> None:
    text = release.absolute((tree / "README.md").read_text(), ADDRESS, "v0.1.0")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 10
    assert all(target.startswith(f"{ADDRESS}/") for target in targets)
    assert f"({ADDRESS}/raw/v0.1.0/docs/images/report.png)" in text
    assert f"({ADDRESS}/blob/v0.1.0/docs/glossary.md)" in text


def test_absolute_links_and_anchors_stay() -> None:
    text = "[a](https://example.org/a) [b](#b) [c](mailto:c@example.org)"
    assert release.absolute(text, ADDRESS, "v1") == text


def test_published_metadata_has_addresses(tree: Path) -> None:
    text = release.with_urls((tree / "pyproject.toml").read_text(), ADDRESS, "v0.1.0")
    project = tomllib.loads(text)["project"]
    assert project["urls"]["Repository"] == ADDRESS
    assert project["urls"]["Changelog"] == f"{ADDRESS}/blob/v0.1.0/CHANGELOG.md"
    assert project["scripts"] == PROJECT["scripts"]


# --- install lines


def test_install_lines_work_without_an_index_that_has_dpaudit() -> None:
    """Each names a clone, a tag, or an extra of what is installed."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    pages += [path for path in (ROOT / "examples").rglob("*") if path.suffix in {".md", ".yml"}]
    extras = set(PROJECT["optional-dependencies"])
    seen = 0
    for page in pages:
        if page.name == "errors.md":  # the program's own words to who has installed it
            continue
        for line in re.findall(r"pip install (.*)", page.read_text()):
            seen += 1
            named = re.search(r"\[([a-z,-]+)\]", line)
            assert set(named[1].split(",") if named else ()) <= extras, line
            adds_an_extra = "'dpaudit[onnx]'" in line
            assert adds_an_extra or re.match(r"['\"]?\.|.*@ git\+https://", line), (page, line)
    assert seen > 5


def test_fast_check_names_tests_that_exist() -> None:
    steps = (ROOT / "tools" / "steps.sh").read_text()
    named = re.findall(r"tests/[\w/]+(?:\.py)?", steps)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def program(path: Path, code: int) -> None:
    path.write_text(f"#!/bin/sh\necho output of {path.name}\nexit {code}\n")
    path.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("failing", [None, "mypy", "pytest", "ruff"])
@pytest.mark.parametrize("steps", ["all_steps", "fast_steps"])
def test_checks_fail_where_one_program_fails(
    tmp_path: Path, steps: str, failing: str | None
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("ruff", "lint-imports", "python", "pydoclint", "mkdocs", "pytest", "mypy"):
        program(tmp_path / "bin" / name, 3 if name == failing else 0)
    script = f"set -eu; VENV={tmp_path}; . {ROOT}/tools/steps.sh; {steps}; echo end"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == (3 if failing else 0)
    assert ("end\n" in done.stdout) == (failing is None)
    # Types are checked next to the other steps, and shown last, also where a test fails.
    assert ("output of mypy" in done.stdout) == (failing != "ruff")
