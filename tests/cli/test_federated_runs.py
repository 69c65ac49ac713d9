"""Commands on finished and unfinished federations, which were written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import Call
from federations import (
    DELTA,
    begin,
    participant_level_run,
    record_level_run,
    run_round,
    unfinished_federation,
)

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.directory import RunDirectory, seal_participant
from dpaudit.runs.file_io import sha256, write_json
from dpaudit.vocabulary.errors import ExitCode

POLICY = '[claim]\nmax_epsilon = 2.0\ndelta = 1e-5\nunit = "{unit}"\n'


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return record_level_run(tmp_path / "record").path


@pytest.fixture
def level(tmp_path: Path) -> Path:
    return participant_level_run(tmp_path / "level").path


def policy(tmp_path: Path, unit: str) -> Path:
    path = tmp_path / f"{unit}.toml"
    path.write_text(POLICY.format(unit=unit))
    return path


def cut(path: Path, lines: int = 1) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-lines]))


def test_epsilon_shows_each_participant_and_the_largest(call: Call, record: Path) -> None:
    result = call("epsilon", record, "--accountant", "pld")
    assert result.code == ExitCode.PASS
    table = [line.split() for line in result.out.split("\n\n")[-1].splitlines()]
    rows = {" ".join(cells[:-2]): cells[-2:] for cells in table}
    assert rows["000, 002"] == ["1.087", "1.088"]
    assert rows["001"] == rows["largest"] == ["1.384", "1.385"]
    assert "server  " in result.out
    assert "against the server, other participants and readers of the final model" in result.out


def test_epsilon_as_json_has_each_participant(call: Call, record: Path) -> None:
    found = json.loads(call("epsilon", record, "--format", "json", "--accountant", "pld").out)
    claim = json.loads((record / "claim.json").read_text())
    assert set(found["participants"]) == {"000", "001", "002"}
    assert found["participants"]["001"] == found["epsilon"] == claim["epsilon"]
    assert found["participants"]["000"]["upper"] < found["epsilon"]["upper"]


def test_epsilon_of_a_participant_level_run_is_that_of_the_server(call: Call, level: Path) -> None:
    found = json.loads(call("epsilon", level, "--format", "json", "--accountant", "rdp").out)
    assert set(found["participants"]) == {"server", "000", "001", "002"}
    assert found["participants"]["server"] == found["participants"]["002"] == found["epsilon"]
    assert found["unit"] == "participant"


def test_delta_and_tradeoff_are_of_the_costliest_participant(call: Call, record: Path) -> None:
    delta = json.loads(call("delta", record, "--epsilon", "1", "--format", "json").out)
    assert delta["mechanism"]["mechanisms"][0]["times"] == 12
    risk = json.loads(call("tradeoff", record, "--format", "json").out)
    assert risk["mechanism"] == delta["mechanism"]


@pytest.mark.parametrize(
    ("run", "unit", "outcome"),
    [
        ("record", "record", "PASS"),
        ("record", "participant", "FAIL"),
        ("level", "participant", "PASS"),
        ("level", "record", "FAIL"),
    ],
)
def test_gate_checks_the_unit(
    call: Call,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    run: str,
    unit: str,
    outcome: str,
) -> None:
    path = request.getfixturevalue(run)
    result = call("gate", path, "--policy", policy(tmp_path, unit), "--format", "json")
    verdict = json.loads(result.out)
    assert verdict["outcome"] == outcome
    failed = [rule["rule"] for rule in verdict["rules"] if rule["outcome"] != "PASS"]
    assert failed == ([] if outcome == "PASS" else ["claim.unit"])
    assert verdict["ledger_head"] == json.loads((path / "claim.json").read_text())["ledger_head"]
    assert verdict["claim"]["federation"]["participants"] == 3


@pytest.mark.parametrize(
    ("observer", "code"), [("readers of the final model", ExitCode.PASS), ("server", ExitCode.FAIL)]
)
def test_gate_checks_whom_a_claim_protects_against(
    call: Call, level: Path, tmp_path: Path, observer: str, code: ExitCode
) -> None:
    path = policy(tmp_path, "participant")
    path.write_text(f"{path.read_text()}protects_against = ['{observer}']\n")
    result = call("gate", level, "--policy", path)
    assert result.code == code
    assert "claim.protects_against" in result.out


def test_gate_refuses_a_federation_above_the_limit_of_one_participant(
    call: Call, record: Path, tmp_path: Path
) -> None:
    path = policy(tmp_path, "record")
    path.write_text(path.read_text().replace("2.0", "1.2"))  # between 000's epsilon and 001's
    assert call("gate", record, "--policy", path).code == ExitCode.FAIL


@pytest.mark.parametrize("name", ["000", "001"])
@pytest.mark.parametrize("command", ["epsilon", "gate", "report", "finish"])
def test_cut_ledger_of_a_participant_has_exit_code_4(
    call: Call, record: Path, name: str, command: str
) -> None:
    cut(record / "participants" / name / "ledger.jsonl", 2)
    result = call(command, record)
    assert result.code == ExitCode.INTEGRITY
    assert name in result.err


def test_swapped_participants_have_exit_code_4(call: Call, record: Path) -> None:
    one, other = (record / "participants" / name for name in ("000", "001"))
    one.rename(record / "kept")
    other.rename(one)
    (record / "kept").rename(other)
    for command in ("epsilon", "gate", "report"):
        assert call(command, record).code == ExitCode.INTEGRITY


def test_removed_round_has_exit_code_4(call: Call, record: Path) -> None:
    ledger = record / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(line for line in lines if b'"number":1' not in line))
    assert call("epsilon", record).code == ExitCode.INTEGRITY


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", {"lower": 0.1, "upper": 0.2}),
        ("unit", "participant"),
        ("federation", None),
        ("releases", 12),
        ("unaccounted", ["nothing"]),
    ],
)
def test_edited_claim_has_exit_code_4(call: Call, record: Path, field: str, value: object) -> None:
    path = record / "claim.json"
    claim = json.loads(path.read_text())
    assert claim[field] != value
    path.write_text(json.dumps(claim | {field: value}))
    assert call("gate", record).code == ExitCode.INTEGRITY
    assert call("report", record).code == ExitCode.INTEGRITY


def test_edited_observers_of_a_claim_have_exit_code_4(call: Call, level: Path) -> None:
    path = level / "claim.json"
    text = path.read_text()
    changed = text.replace('"readers of the final model"', '"readers of the final model", "server"')
    assert changed != text
    path.write_text(changed)
    assert call("gate", level).code == ExitCode.INTEGRITY


def test_run_list_shows_federations_by_rounds(call: Call, record: Path, tmp_path: Path) -> None:
    unfinished_federation(tmp_path / "open")
    result = call("run", "list", tmp_path)
    rows = {line.split()[0]: line.split()[1:] for line in result.out.splitlines()}
    assert rows["record"][:5] == ["finished", "3", "of", "3", "1.385"]
    assert rows["open"][:5] == ["unfinished", "2", "of", "3", "1.197"]
    cut(record / "participants" / "002" / "ledger.jsonl")
    result = call("run", "list", tmp_path)
    assert result.code == ExitCode.INTEGRITY
    assert "damaged" in result.out


def test_run_show_has_strategy_participants_and_observers(call: Call, level: Path) -> None:
    found = json.loads(call("run", "show", level, "--format", "json").out)
    assert found["federated_settings"]["federation"]["strategy"] == "dp-fedavg"
    assert found["settings"] is None
    assert found["ledger"]["participants"] == {"000": 3, "001": 3, "002": 3}
    assert found["ledger"]["federation"]["protects_against"] == ["readers of the final model"]
    assert "participants/000/ledger.jsonl" in [one["name"] for one in found["files"]]
    text = call("run", "show", level).out
    assert "3, with 3 releases each" in text


def test_ledger_of_a_participant_is_accounted_for_and_has_no_claim(
    call: Call, record: Path, tmp_path: Path
) -> None:
    one = record / "participants" / "001"
    assert "1.385" in call("epsilon", one, "--accountant", "pld", "--delta", "1e-5").out
    result = call("gate", one, "--policy", policy(tmp_path, "record"))
    assert result.code == ExitCode.USAGE
    assert "the run of its federation" in result.err
    listed = call("run", "list", record / "participants")
    assert listed.code == ExitCode.PASS
    assert listed.out.count("finished") == 3


def test_claim_that_was_put_beside_the_ledger_of_a_participant_passes_no_gate(
    call: Call, record: Path, tmp_path: Path
) -> None:
    own = RunDirectory(record / "participants" / "000")
    write_json(own.claim, claim_from_ledger(own.read_ledger(), 1e-5, "pld"))
    for command in (
        ("gate", own.path, "--policy", policy(tmp_path, "record")),
        ("report", own.path),
    ):
        result = call(*command)
        assert result.code == ExitCode.USAGE
        assert "the run of its federation" in result.err


def test_report_shows_the_participants(call: Call, record: Path) -> None:
    assert call("report", record).code == ExitCode.PASS
    page = (record / "report.html").read_text()
    assert "Participants of the federation" in page
    assert "000, 002" in page
    card = call("report", record, "--format", "model-card").out
    assert "Federation of 3 participants by fedavg" in card


def test_compare_names_what_differs_between_federations(
    call: Call, record: Path, level: Path
) -> None:
    text = call("compare", record, level).out
    assert "unit of privacy was record, is participant" in text
    assert "federation (strategy) was fedavg, is dp-fedavg" in text
    assert call("report", record, level, "-o", record.parent / "both.html").code == ExitCode.PASS


def test_baseline_of_a_federation_is_read_back(call: Call, record: Path, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    assert call("baseline", "write", record, "-o", path).code == ExitCode.PASS
    found = json.loads(path.read_text())
    assert [one["times"] for one in found["recorded"]] == [12]
    assert call("compare", path, record).code == ExitCode.PASS


def test_watch_shows_rounds_and_the_limit_of_the_plan(call: Call, tmp_path: Path) -> None:
    run = unfinished_federation(tmp_path / "open").path
    text = call("watch", run, "--once").out
    assert "rounds              2 of 3" in text
    assert "upper bound 1.197 at delta 1e-05" in text
    assert "participants        3" in text


def test_watch_shows_who_left_and_whose_update_was_rejected(call: Call, tmp_path: Path) -> None:
    federation = begin(tmp_path / "open")
    run_round(federation, 0, rejected={"002": "its entry w is NaN"})
    run_round(federation, 1, {"000": 2, "001": 1}, left=("002",))
    federation.close()
    text = call("watch", federation.run.path, "--once").out
    assert "no budget: 002" in text
    assert "002 (1, last: its entry w is NaN)" in text


def ended_federation(path: Path) -> Path:
    """A federation whose process died after its last line and before its claim."""
    federation = begin(path)
    for number in range(3):
        run_round(federation, number)
    for writer in federation.participants.values():
        seal_participant(writer)
    run = federation.run
    files = {run.sealed_name(one): sha256(one) for one in run.sealed_files}
    federation.server.end(files)
    federation.close()
    return run.path


def test_finish_writes_claim_and_seal_of_a_federation(call: Call, tmp_path: Path) -> None:
    run = ended_federation(tmp_path / "run")
    result = call("finish", run)
    assert (result.code, "claim.json and the seal were written" in result.out) == (0, True)
    claim = json.loads((run / "claim.json").read_text())
    assert (claim["releases"], claim["delta"]) == (18, DELTA)
    assert call("gate", run, "--policy", policy(tmp_path, "record")).code == ExitCode.PASS


def test_finish_writes_the_seal_that_the_claim_proves(call: Call, record: Path) -> None:
    before = (record / "ledger.jsonl").read_bytes()
    cut(record / "ledger.jsonl")
    assert call("finish", record).code == ExitCode.PASS
    assert (record / "ledger.jsonl").read_bytes() == before


def test_finish_refuses_a_federation_with_a_cut_participant(call: Call, tmp_path: Path) -> None:
    run = ended_federation(tmp_path / "run")
    cut(run / "participants" / "001" / "ledger.jsonl")
    assert call("finish", run).code == ExitCode.INTEGRITY
    assert not (run / "claim.json").exists()


def test_audit_of_a_federation_is_a_usage_error(call: Call, record: Path) -> None:
    result = call("audit", record)
    assert result.code == ExitCode.USAGE
    assert "federation" in result.err


def test_export_has_the_epsilon_of_each_participant(call: Call, record: Path) -> None:
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.report.run_export import collect_export

    exported = collect_export(open_run(record))
    figures = {one.name: one.value for one in exported.figures}
    assert figures["epsilon_at_most/participant_001"] == figures["epsilon_claimed_at_most"]
    assert figures["epsilon_at_most/participant_000"] < figures["epsilon_claimed_at_most"]
    assert exported.parameters["strategy"] == "fedavg"
    assert "readers of the final model" in exported.parameters["protects_against"]


def test_history_records_the_rounds_of_a_federation(
    call: Call, record: Path, tmp_path: Path
) -> None:
    assert call("gate", record, "--policy", policy(tmp_path, "record")).code == ExitCode.PASS
    found = json.loads(call("history", tmp_path, "--format", "json").out)
    assert [(one["run"], one["steps"]) for one in found["runs"]] == [("record", 3)]


def test_init_drafts_a_policy_with_the_unit(
    call: Call, level: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init", level).code == ExitCode.PASS
    assert 'unit = "participant"' in (tmp_path / "dpaudit.toml").read_text()
