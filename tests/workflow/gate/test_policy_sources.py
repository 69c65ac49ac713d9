"""A verdict names the policy that it was reached by, down to the bytes of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from dpaudit.gate.evidence import DeclaredClaim, Evidence
from dpaudit.vocabulary.verdict import VerdictBasis
from dpaudit.workflow.gate.policy_sources import UNREADABLE_FILE, load_policy, project_digest
from dpaudit.workflow.gate.run_evaluation import GateSettings, PolicyProvenance

STRICT = "[claim]\nmax_epsilon = 1.0\ndelta = 1e-5\n"
LAX = "[claim]\nmax_epsilon = 900.0\ndelta = 1e-5\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def basis_by(
    path: Path | None, *assignments: str, environment: Mapping[str, str] | None = None
) -> VerdictBasis:
    loaded = load_policy(path, assignments, environment or {})
    judging = GateSettings(loaded.policy, sources=PolicyProvenance.of(loaded))
    basis = judging.verdict(Evidence(claim=DeclaredClaim(1.0, 1e-5))).basis
    assert basis is not None
    return basis


def test_each_file_is_named_with_the_digest_of_its_bytes(folder: Path) -> None:
    (folder / "dpaudit.toml").write_text(STRICT)
    (folder / "pyproject.toml").write_text("[tool.dpaudit.audit]\nconfidence = 0.9\n")
    found = {layer.source: layer.sha256 for layer in basis_by(None).layers}
    assert found == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("pyproject.toml", "dpaudit.toml")
    }


def test_the_projects_own_policy_is_recognised_by_its_content(folder: Path) -> None:
    (folder / "dpaudit.toml").write_text(STRICT)
    (folder / "copy.toml").write_text("# the same\n" + STRICT + "accountant = 'pld'\n")
    (folder / "lax.toml").write_text(LAX)
    assert basis_by(None).is_of_project()
    assert basis_by(Path("copy.toml")).is_of_project()
    assert not basis_by(Path("lax.toml")).is_of_project()


@pytest.mark.parametrize(
    ("assignments", "environment", "source"),
    [
        (("claim.max_epsilon=9",), {}, "--set claim.max_epsilon"),
        ((), {"DPAUDIT_POLICY_CLAIM_MAX_EPSILON": "9"}, "$DPAUDIT_POLICY_CLAIM_MAX_EPSILON"),
    ],
)
def test_what_overrides_the_files_is_recorded_and_is_another_policy(
    folder: Path, assignments: tuple[str, ...], environment: dict[str, str], source: str
) -> None:
    (folder / "dpaudit.toml").write_text(STRICT)
    basis = basis_by(None, *assignments, environment=environment)
    (one,) = basis.overrides
    assert (one.key, one.value, one.source) == ("claim.max_epsilon", "9", source)
    assert not basis.is_of_project()
    assert basis.layers[-1].source == source


def test_without_a_policy_of_its_own_a_project_contradicts_none(folder: Path) -> None:
    (folder / "elsewhere.toml").write_text(LAX)
    basis = basis_by(Path("elsewhere.toml"))
    assert basis.project_digest == ""
    assert basis.is_of_project()
    assert not basis.is_of_project("34" * 32)


@pytest.mark.parametrize("text", ["[claim", "[claim]\nmax_epsilon = -1\ndelta = 1e-5\n"])
def test_a_policy_of_the_project_that_cannot_be_read_is_equal_to_none(
    folder: Path, text: str
) -> None:
    (folder / "dpaudit.toml").write_text(text)
    (folder / "elsewhere.toml").write_text(LAX)
    assert project_digest() == UNREADABLE_FILE
    assert not basis_by(Path("elsewhere.toml")).is_of_project()


def test_any_key_changes_the_digest(folder: Path) -> None:
    (folder / "one.toml").write_text(STRICT)
    digests = {
        basis_by(Path("one.toml"), *changed).policy_digest
        for changed in ((), ("claim.unit=user",), ("claim.delta=1e-6",), ("audit.confidence=0.9",))
    }
    assert len(digests) == 4


def test_assignments_by_a_variable_are_not_taken_for_options(folder: Path) -> None:
    (folder / "dpaudit.toml").write_text(STRICT)
    by = "$DPAUDIT_GATE_ASSIGNMENTS"
    loaded = load_policy(None, ("claim.max_epsilon=9",), {}, by)
    (one,) = PolicyProvenance.of(loaded).overrides
    assert one.source == f"{by} claim.max_epsilon"
