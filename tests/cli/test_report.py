"""``dpaudit report``: one run, two, a card; from whatever is in the run directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from calling import Call

from dpaudit.report.evidence import RefusedAccountant
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.runs.file_io import read_arrays, read_json, write_json
from dpaudit.runs.history_database import insert_verdict
from dpaudit.vocabulary.audit import AttackReport
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.ledger import RenyiBudget
from dpaudit.vocabulary.mechanism import Gaussian, TruncatedPoisson
from dpaudit.vocabulary.settings import NoProgress
from dpaudit.vocabulary.verdict import PastRun
from dpaudit.workflow.report import run_evidence
from dpaudit.workflow.report.run_evidence import canary_score_histogram
from tests.report.active_content import assert_inert
from tests.report.html_parser import Page
from tests.report.samples import made_attack, make_conformance, make_history
from tests.report.stub_figures import undrawn


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with undrawn():
        yield


def text_of(path: Path) -> str:
    return Page(path.read_text()).text


def test_report_of_a_trained_run_shows_all_recorded_facts(run_copy: Path, call: Call) -> None:
    result = call("report", run_copy)
    assert (result.code, result.out) == (0, f"wrote {run_copy / 'report.html'}\n")
    text = text_of(run_copy / "report.html")
    assert "An interval wholly inside the hatched area contradicts the claim" in text
    assert "Scores of the canaries: gradient canaries, every step." in text
    assert "no policy evaluated" in text
    assert "The trainer was not tested" in text
    assert "(test fraction 0.2, split seed 0)" in text
    assert "Report written20" in text
    assert_inert((run_copy / "report.html").read_text())


def test_the_bins_count_every_canary_once_and_by_its_coin(run_copy: Path) -> None:
    run = open_run(run_copy)
    scores = canary_score_histogram(run, run.read_finished())
    included = read_arrays(run.secret_canaries)["gradient_included"]
    assert scores is not None
    assert sum(scores.included) == included.sum()
    assert sum(scores.left_out) == (~included).sum()
    assert len(scores.edges) == len(scores.included) + 1 <= 25
    assert np.all(np.diff(scores.edges) > 0)


@pytest.mark.parametrize("name", ["secret_canaries", "observations"])
def test_without_canaries_nothing_is_scored(run_copy: Path, name: str) -> None:
    run = open_run(run_copy)
    ledger = run.read_finished()
    Path(getattr(run, name)).unlink()
    assert canary_score_histogram(run, ledger) is None


def test_what_lies_in_the_run_is_shown_where_it_is_of_this_ledger(
    run_copy: Path, call: Call
) -> None:
    run = RunDirectory(run_copy)
    head = read_json(run.claim, Claim).ledger_head
    attack = AttackReport("this run", 0.95, (made_attack("LiRA", 0.9, 0.53),), head)
    write_json(run.attack, attack)
    write_json(run.conformance, msgspec.structs.replace(make_conformance(), ledger_head=head))
    assert call("report", run_copy).code == 0
    text = text_of(run.report)
    assert "Further attacks, beside those of the audit: this run" in text
    assert "a movement above 1.00002 C is detectable" in text
    write_json(run.attack, msgspec.structs.replace(attack, ledger_head="0" * 64))
    assert call("report", run_copy).code == 0
    assert "attack.json is of another state of the ledger" in text_of(run.report)
    write_json(run.conformance, make_conformance())
    assert call("report", run_copy).code == 4


def test_a_claim_that_is_not_its_ledgers_is_refused(run_copy: Path, call: Call) -> None:
    path = RunDirectory(run_copy).claim
    written = read_json(path, Claim)
    better = msgspec.structs.replace(
        written, epsilon=msgspec.structs.replace(written.epsilon, lower=0.0, upper=0.5)
    )
    write_json(path, better)
    result = call("report", run_copy)
    assert result.code == 4
    assert "does not match its ledger" in result.err


def test_past_runs_are_shown(run_copy: Path, call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    for number, past in enumerate(make_history()):
        insert_verdict(folder, past, evidence=str(number))
    out = tmp_path / "page.html"
    assert call("report", run_copy, "--history", folder, "-o", out).code == 0
    assert "digits-2" in text_of(out)
    assert isinstance(make_history()[0], PastRun)


def test_two_runs_stand_side_by_side(run_copy: Path, call: Call, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run_copy, tmp_path / "other"))
    out = tmp_path / "both.html"
    result = call("report", run_copy, other, "-o", out)
    assert (result.code, result.out) == (0, f"wrote {out}\n")
    text = text_of(out)
    assert "A: run and B: other" in text
    assert "The ledgers do not differ in anything that they record" in text
    assert_inert(out.read_text())


def test_the_card_is_printed_or_written(run_copy: Path, call: Call, tmp_path: Path) -> None:
    printed = call("report", run_copy, "--format", "model-card")
    assert printed.code == 0
    assert printed.out.startswith("**Privacy.** Upper bound on epsilon: ")
    out = tmp_path / "card.md"
    assert call("report", run_copy, "--format", "model-card", "-o", out).code == 0
    assert out.read_text() == printed.out
    assert not RunDirectory(run_copy).report.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "RUN"),
        (("a", "b", "c", "-o", "x.html"), "got 3"),
        (("{run}", "{run}"), "--output"),
        (("{run}", "{run}", "-o", "x.html", "--format", "model-card"), "leave out --format"),
        (("{run}", "{run}", "-o", "x.html", "--history", "runs"), "leave out --format"),
        (("nowhere",), "a run directory that exists"),
        (("{run}", "--history", "nowhere"), "nowhere"),
        (("{run}", "-o", "nowhere/x.html"), "a file in a folder that exists"),
    ],
)
def test_what_cannot_be_done_is_refused(
    trained: Path, call: Call, arguments: tuple[str, ...], says: str
) -> None:
    result = call("report", *(one.format(run=trained) for one in arguments))
    assert result.code == 2
    assert says in result.err


def test_an_accountant_that_refuses_says_why(trained: Path) -> None:
    claim = read_json(RunDirectory(trained).claim, Claim)
    cut = TruncatedPoisson(Gaussian(2.0), 0.1, 1000, 150)
    answers = {name: run_evidence._answer(name, cut, claim) for name in ("naive", "rdp")}
    assert isinstance(answers["rdp"], EpsilonAnswer)
    assert isinstance(answers["naive"], RefusedAccountant)
    assert "truncated to 150 records: " in answers["naive"].why
    assert run_evidence._curve("naive", [(1, cut)], claim).steps == ()


def test_adaptive_schedule_shows_the_claim_only(trained: Path) -> None:
    ledger = open_run(trained).read_finished()
    header = msgspec.structs.replace(
        ledger.header,
        schedule_fixed_in_advance=False,
        budget=RenyiBudget(3.0, 1e-5, (2.0, 4.0)),
    )
    known = run_evidence.gather_evidence(open_run(trained))
    bare = msgspec.structs.replace(known, answers=(), curves=(), profile=(), tradeoff=())
    adaptive = msgspec.structs.replace(ledger, header=header)
    assert run_evidence._priced(bare, adaptive, NoProgress()) == bare
    assert run_evidence._priced(bare, ledger, NoProgress()) == known


def test_a_report_does_not_import_torch(trained: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from dpaudit.cli.entry_point import _run\n"
        f"sys.argv = ['dpaudit', 'report', {str(trained)!r}, '-o', 'x.html']\n"
        "assert _run() == 0\n"
        "sys.exit(10 if 'torch' in sys.modules else 0)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
