"""dpaudit history: verdicts of many runs, which outlive the runs."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import msgspec
import pytest
from calling import Call
from msgspec.structs import replace
from places import ROOT

from dpaudit.gate.policy import ClaimPolicy, Policy
from dpaudit.runs.directory import open_run
from dpaudit.runs.file_io import read_json, write_json
from dpaudit.runs.history_database import DATABASE_NAME, read_history
from dpaudit.vocabulary.audit import AuditReport, BoundKind
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict
from dpaudit.workflow.gate.run_evaluation import GateSettings, evaluate_run
from dpaudit.workflow.gate.verdict_history import largest_lower_bound, record_verdict

Judged = Callable[..., Path]
SCHEMA = ROOT / "dpaudit" / "vocabulary" / "schemas" / "history.json"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def judge(run: Path, most: float = 10.0) -> None:
    evaluate_run(
        open_run(run), GateSettings(Policy(claim=ClaimPolicy(max_epsilon=most, delta=1e-5)))
    )


@pytest.fixture
def judged(trained: Path, runs: Path) -> Judged:
    """Puts a judged copy of the finished run among the runs."""

    def put(name: str, most: float = 10.0, day: int = 1, audit: Path | None = None) -> Path:
        run = Path(shutil.copytree(trained, runs / name))
        if audit is not None:
            shutil.copy(audit, run)
        judge(run, most)
        verdict = read_json(run / "verdict.json", Verdict)
        assert verdict.basis is not None
        basis = replace(verdict.basis, judged=datetime.fromtimestamp(day * 86400, UTC))
        write_json(run / "verdict.json", replace(verdict, basis=basis))
        return run

    return put


@pytest.fixture(scope="session")
def audited(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dpaudit.workflow.audit.run_audit import audit_run

    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("audited") / "run"))
    audit_run(open_run(run), confidence=0.95)
    return run / "audit.json"


def test_every_judged_run_is_taken_up_once_in_the_order_of_time(
    call: Call, runs: Path, judged: Judged, trained: Path
) -> None:
    judged("later", day=9)
    judged("earlier", most=0.1, day=2)
    shutil.copytree(trained, runs / "not judged")
    (runs / "no run").mkdir()
    result = call("history", runs)
    assert (result.code, result.err) == (0, "")
    rows = result.out.splitlines()[1:3]
    assert [row.split()[:4] for row in rows] == [
        ["1970-01-03", "00:00", "earlier", "FAIL"],
        ["1970-01-10", "00:00", "later", "PASS"],
    ]
    assert call("history", runs).out == result.out


def test_its_json_is_valid_and_says_what_the_run_says(
    call: Call, runs: Path, judged: Judged, audited: Path
) -> None:
    run = judged("one", audit=audited)
    said = json.loads(call("history", runs, "--format", "json").out)
    jsonschema.validate(said, json.loads(SCHEMA.read_text()))
    (past,) = said["runs"]
    claim, audit = json.loads((run / "claim.json").read_text()), read_json(audited, AuditReport)
    assert past["epsilon_upper"] == pytest.approx(claim["epsilon"]["upper"], rel=1e-9)
    assert (past["delta"], past["steps"], past["outcome"]) == (1e-5, 30, "PASS")
    assert past["ledger_head"] == claim["ledger_head"] == audit.ledger_head
    assert past["epsilon_lower"] == max(bound.epsilon_lower for bound in audit.bounds)
    rates = [rate for result in audit.membership for rate in result.tpr_at_fpr]
    least = min(rate.fpr for rate in rates)
    assert past["fpr"] == least
    assert past["tpr"] == max(rate.interval.upper for rate in rates if rate.fpr == least)
    assert past["accuracy"] == audit.heldout_accuracy


def test_a_run_that_was_removed_stays_and_a_new_audit_is_a_new_line(
    call: Call, runs: Path, judged: Judged, audited: Path
) -> None:
    run = judged("one")
    call("history", runs)
    shutil.copy(audited, run)
    judge(run)
    measured = read_json(audited, AuditReport).heldout_accuracy
    assert [past.accuracy for past in read_after(call, runs)] == [None, measured]
    shutil.rmtree(run)
    assert len(read_after(call, runs)) == 2


def read_after(call: Call, runs: Path) -> tuple[object, ...]:
    assert call("history", runs).code == 0
    return read_history(runs)


@pytest.mark.parametrize("kind", [BoundKind.ESTIMATE, BoundKind.CONDITIONAL])
@pytest.mark.parametrize("delta", [1e-7, math.nextafter(1e-5, 0), 1e-3])
def test_only_a_lower_bound_that_holds_at_the_claims_delta_counts(
    audited: Path, kind: BoundKind, delta: float
) -> None:
    audit = read_json(audited, AuditReport)
    bound = msgspec.structs.replace(audit.bounds[0], kind=kind, delta=delta, epsilon_lower=7.0)
    holds = kind is BoundKind.CONDITIONAL and delta > 9e-6  # last digits aside
    assert largest_lower_bound((bound,), 1e-5) == (7.0 if holds else None)


def test_altered_audit_is_not_stored(call: Call, runs: Path, judged: Judged, audited: Path) -> None:
    audit = read_json(audited, AuditReport)
    first, *others = audit.bounds
    changed = runs.parent / "audit.json"
    higher = msgspec.structs.replace(first, epsilon_lower=first.epsilon_lower + 1)
    report = msgspec.structs.replace(audit, bounds=(higher, *others))
    changed.write_bytes(msgspec.json.encode(report))
    with pytest.raises(IntegrityError, match="its counts give"):
        judged("one", audit=changed)


@pytest.mark.parametrize(
    "damage", ["model", "ledger", "claim", "verdict", "other ledger", "unfinished", "audit"]
)
def test_altered_run_is_named_and_other_runs_are_shown(
    call: Call, runs: Path, judged: Judged, damage: str
) -> None:
    judged("good")
    bad = judged("bad")
    match damage:
        case "model":
            (bad / "model.safetensors").write_bytes(b"other weights")
        case "ledger":
            text = (bad / "ledger.jsonl").read_text()
            (bad / "ledger.jsonl").write_text(text.replace(":2.0}", ":9.0}", 1))
        case "claim":
            claim = json.loads((bad / "claim.json").read_text())
            claim["epsilon"] = {"lower": 0.1, "upper": 0.2}
            (bad / "claim.json").write_text(json.dumps(claim))
        case "verdict":
            (bad / "verdict.json").write_text("{}")
        case "other ledger":
            verdict = json.loads((bad / "verdict.json").read_text())
            (bad / "verdict.json").write_text(json.dumps(verdict | {"ledger_head": "00"}))
        case "unfinished":
            lines = (bad / "ledger.jsonl").read_bytes().splitlines(keepends=True)
            (bad / "ledger.jsonl").write_bytes(b"".join(lines[:-1]))
        case "audit":
            (bad / "audit.json").write_text("not JSON")
    result = call("history", runs)
    assert result.code == 4
    assert result.err.startswith("bad was not imported: ")
    assert result.err.count("\n") == 1
    assert [past.run for past in read_history(runs)] == ["good"]
    assert "good" in result.out


def test_a_verdict_before_a_new_audit_is_named_with_what_to_do(
    call: Call, runs: Path, judged: Judged, audited: Path
) -> None:
    judged("good")
    shutil.copy(audited, judged("stale"))
    result = call("history", runs)
    assert result.code == 3
    assert result.err.startswith("stale was not imported: ")
    assert f"evaluate the run again by dpaudit gate {runs / 'stale'}" in result.err
    assert [past.run for past in read_history(runs)] == ["good"]
    judge(runs / "stale")
    assert call("history", runs).code == 0


def test_where_there_is_nothing_nothing_is_made_and_the_code_is_3(call: Call, runs: Path) -> None:
    result = call("history", runs)
    assert result.code == 3
    assert "no verdict yet" in result.err
    assert list(runs.iterdir()) == []


def test_a_place_that_is_no_folder_of_runs_exits_2(
    call: Call, trained: Path, tmp_path: Path
) -> None:
    assert call("history", tmp_path / "nowhere").code == 2
    assert call("history", trained).code == 2
    assert not (trained / DATABASE_NAME).exists()


def test_a_broken_history_exits_4(call: Call, runs: Path, judged: Judged) -> None:
    judged("one")
    (runs / DATABASE_NAME).write_bytes(b"nothing that was ever written here" * 50)
    result = call("history", runs)
    assert result.code == 4
    assert DATABASE_NAME in result.err


@pytest.mark.parametrize("name", ["course.svg", "course.png"])
def test_the_course_is_drawn(
    call: Call, runs: Path, judged: Judged, tmp_path: Path, name: str
) -> None:
    judged("one")
    assert call("history", runs, "--plot", tmp_path / name).code == 0
    assert (tmp_path / name).stat().st_size > 1000


def test_a_picture_of_no_known_kind_is_refused_before_anything_is_written(
    call: Call, runs: Path, judged: Judged, tmp_path: Path
) -> None:
    judged("one")
    assert call("history", runs, "--plot", tmp_path / "course.pdf").code == 2
    assert not (runs / DATABASE_NAME).exists()


def test_what_the_gate_remembers_is_not_taken_up_again(
    call: Call, runs: Path, judged: Judged
) -> None:
    run = open_run(judged("one"))
    verdict = read_json(run.verdict, Verdict)
    past = record_verdict(runs, run, verdict)
    assert past.outcome is verdict.outcome
    assert read_after(call, runs) == (past,)


def test_verdict_on_another_ledger_is_not_stored(runs: Path, judged: Judged) -> None:
    run = open_run(judged("one"))
    other = Verdict((RuleOutcome("claim.max_epsilon", Outcome.PASS, "small"),), "00" * 32)
    with pytest.raises(IntegrityError, match="another ledger"):
        record_verdict(runs, run, other)
    assert not (runs / DATABASE_NAME).exists()


def test_it_imports_neither_torch_nor_pandas(runs: Path, judged: Judged) -> None:
    judged("one")
    code = (
        f"import sys; sys.argv = ['dpaudit', 'history', {str(runs)!r}]\n"
        "from dpaudit.cli.entry_point import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    heavy = ('torch', 'pandas', 'matplotlib')\n"
        "    print('LOADED', end.code, [m for m in heavy if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout.endswith("LOADED 0 []\n"), result.stderr
