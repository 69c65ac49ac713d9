"""Policies are read whole or refused by the name of what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import ROOT

from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.gate.policy_sources import read_policy

GOOD = "[claim]\nmax_epsilon = 3.0\ndelta = 1e-5\n"


def write(tmp_path: Path, text: str, name: str = "dpaudit.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_demos_policy_is_valid() -> None:
    policy = read_policy(ROOT / "dpaudit.toml")
    assert policy.claim.max_epsilon == 3.0
    assert policy.audit is not None
    assert policy.audit.max_tpr_at_fpr == {"0.1": 0.3}


def test_pyproject_holds_the_policy_under_tool_dpaudit(tmp_path: Path) -> None:
    text = "[tool.dpaudit.claim]\nmax_epsilon = 2\ndelta = 1e-6\n"
    assert read_policy(write(tmp_path, text, "pyproject.toml")).claim.delta == 1e-6


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[claim]\nmax_epsilon = 3.0\n", "delta"),
        (GOOD + "colour = 1\n", "colour"),
        (GOOD + "[audits]\n", "audits"),
        (GOOD + "[regression]\nmax_epsilon_increase = nan\n", "max_epsilon_increase"),
        (GOOD + "[regression]\nmax_tpr_increase = -0.1\n", "max_tpr_increase"),
        (GOOD + "[regression]\nmax_tpr = 0.1\n", "max_tpr"),
        (GOOD + "[regression]\n", r"regression in .*dpaudit.toml:4 must be a section with one of"),
        (GOOD + "sampling = []\n", "sampling"),
        (GOOD + "[audit]\ncount = []\n", "count"),
        (GOOD + '[audit]\nmax_tpr_at_fpr = { "0.1" = 0.2, "0.10" = 0.3 }\n', "one limit per rate"),
        (GOOD + '[[waiver]]\nrule = "claim.max_epsilon"\nreason = "why"\n', "expires"),
        (GOOD + '[[waiver]]\nrule = "claim.max"\nreason = "why"\nexpires = 2027-01-31\n', "rule"),
        (GOOD + '[[waiver]]\nrule = "audit"\nreason = " "\nexpires = 2027-01-31\n', "reason"),
        (GOOD + '[[waiver]]\nrule = "audit"\nreason = "why"\nexpires = "soon"\n', "expires"),
        ("[claim]\nmax_epsilon = nan\ndelta = 1e-5\n", "max_epsilon"),
        ("[claim]\nmax_epsilon = -1.0\ndelta = 1e-5\n", "max_epsilon"),
        ("[claim]\nmax_epsilon = inf\ndelta = 1e-5\n", "max_epsilon"),
        ("[claim]\nmax_epsilon = 3.0\ndelta = 1.0\n", "delta"),
        (GOOD + 'accountant = "prv"\n', "accountant"),
        (GOOD + 'adjacency = "both"\n', "adjacency"),
        (GOOD + 'sampling = ["magic"]\n', "sampling"),
        (GOOD + "[audit]\nconfidence = 1.5\n", "confidence"),
        (GOOD + '[audit]\nmax_tpr_at_fpr = { "x" = 0.1 }\n', "max_tpr_at_fpr"),
        (GOOD + '[audit]\nmax_tpr_at_fpr = { "0.1" = nan }\n', "max_tpr_at_fpr"),
        ("[claim", "TOML"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named) as refused:
        read_policy(write(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_a_missing_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"nowhere\.toml"):
        read_policy(tmp_path / "nowhere.toml")
