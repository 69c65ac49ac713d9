"""``dpaudit epsilon --from``: an old claim, checked from what another library wrote down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from calling import Call
from foreign_files import EVENT, FLOWER_CONFIG, FLOWER_STATE, HISTORY, STEP

PLAN = ("--sampling-rate", "0.01", "--noise-multiplier", "1", "--steps", "1000")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(FLOWER_STATE))
    return path


@pytest.fixture
def history(tmp_path: Path) -> Path:
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"history": HISTORY, "mechanism": "prv"}))
    return path


@pytest.fixture
def event(tmp_path: Path) -> Path:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(EVENT))
    return path


def epsilon(call: Call, *arguments: object) -> object:
    result = call("epsilon", *arguments, "--delta", "1e-5", "--accountant", "rdp")
    return result.out.split("\n\n")[1]


def test_an_old_ledger_costs_what_its_plan_costs(call: Call, history: Path, event: Path) -> None:
    planned = epsilon(call, *PLAN)
    assert epsilon(call, "--from", "opacus", history) == planned
    assert epsilon(call, "--from", "dp-event", event) == planned


def test_an_opacus_history_comes_with_what_it_does_not_say(call: Call, history: Path) -> None:
    arguments = ("--delta", "1e-5", "--accountant", "rdp", "--format", "json")
    result = call("epsilon", "--from", "opacus", history, *arguments)
    assert result.code == 0
    assert result.err.count("\n") == 1
    assert "does not record how batches were drawn" in result.err
    assert json.loads(result.out)["sampling"] == "poisson"


def test_an_event_says_its_sampling_in_its_mechanism_alone(call: Call, event: Path) -> None:
    arguments = ("--delta", "1e-5", "--accountant", "rdp", "--format", "json")
    result = call("epsilon", "--from", "dp-event", event, *arguments)
    assert result.err == ""
    assert json.loads(result.out)["sampling"] is None


def test_a_flower_state_has_its_delta_and_unit_and_says_what_it_does_not_cover(
    call: Call, state: Path
) -> None:
    result = call("epsilon", "--from", "flower", state, "--accountant", "pld", "--format", "json")
    assert result.code == 0
    answer = json.loads(result.out)
    assert answer["epsilon"]["upper"] == pytest.approx(3.7086349, abs=5e-8)
    assert (answer["delta"], answer["unit"]) == (1e-5, "participant")
    assert (answer["adjacency"], answer["sampling"]) == ("zero-out", "full-batch")
    assert result.err.count("\n") == 1
    for missing in ("round", "clip norm", "standard deviation", "replies", "randomness", "metrics"):
        assert missing in result.err


def test_another_delta_of_a_flower_state_can_be_given(call: Call, state: Path) -> None:
    arguments = ("--delta", "1e-6", "--accountant", "pld", "--format", "json")
    answer = json.loads(call("epsilon", "--from", "flower", state, *arguments).out)
    assert answer["delta"] == 1e-6
    assert answer["epsilon"]["lower"] > 4


def test_the_convention_of_the_noise_can_be_said(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "gaussian.json"
    path.write_text(json.dumps(STEP))
    asked = ("epsilon", "--from", "dp-event", path, "--adjacency", "replace-one")
    rest = ("--delta", "1e-6", "--accountant", "naive", "--format", "json")
    by_definition = json.loads(call(*asked, *rest).out)
    as_set = json.loads(call(*asked, "--noise-set-for", "replace-one", *rest).out)
    assert by_definition["epsilon"]["upper"] == pytest.approx(10.997, abs=1e-3)
    assert as_set["epsilon"]["upper"] < 5.22


@pytest.mark.parametrize("source", ["opacus", "dp-event", "flower"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[[1.0, 0.01",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b"3",
        b'"text"',
        b"[[1.0, 0.01, -5]]",
        b"[[1.0, 1.7, 5]]",
        b"[[NaN, 0.1, 5]]",
        b'["dp_accounting.dp_event", "NonPrivateDpEvent"]',
        b'["dp_accounting.dp_event", "GaussianDpEvent", Infinity]',
        b'["elsewhere", "UnheardOfDpEvent", 1.0]',
        b'{"schema_version": 1, "backend": "rdp", "config": {"target_delta": NaN}}',
        json.dumps(FLOWER_STATE | {"config": {**FLOWER_CONFIG, "target_delta": -1}}).encode(),
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_bad_file_is_one_line_and_exit_2(
    call: Call, tmp_path: Path, source: str, content: bytes
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    result = call("epsilon", "--from", source, path, "--delta", "1e-5")
    assert result.code == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert len(result.err) < 500


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_a_file_that_cannot_be_read_is_named(call: Call, tmp_path: Path, name: str) -> None:
    result = call("epsilon", "--from", "opacus", tmp_path / name, "--delta", "1e-5")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert str(tmp_path) in result.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--from", "opacus", "--delta", "1e-5"), "FILE"),
        (("--from", "opacus", "FILE"), "--delta"),
        (("--from", "opacus", "FILE", "--delta", "1e-5", "--steps", "3"), "--steps"),
        (("--from", "opacus", "FILE", "--delta", "1e-5", "--sampling", "shuffled"), "--sampling"),
        (("--from", "opacus", "FILE", "--delta", "2"), "delta"),
        (("--from", "flower", "FILE", "--adjacency", "replace-one"), "--adjacency"),
        (("--from", "flower", "FILE", "--steps", "3"), "--steps"),
        (("--from", "flower"), "FILE"),
        (("--from", "prv", "FILE", "--delta", "1e-5"), "prv"),
        (
            ("--from", "opacus", "FILE", "--delta", "1e-5", "--noise-set-for", "replace-one"),
            "--noise-set-for",
        ),
        ((*PLAN, "--delta", "1e-5", "--noise-set-for", "replace-one"), "--noise-set-for"),
    ],
)
def test_usage_errors_name_the_option(
    call: Call, history: Path, arguments: tuple[str, ...], named: str
) -> None:
    given = [str(history) if argument == "FILE" else argument for argument in arguments]
    result = call("epsilon", *given)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert named in result.err


def test_a_convention_that_answers_another_question_is_refused(call: Call, event: Path) -> None:
    asked = ("epsilon", "--from", "dp-event", event, "--delta", "1e-5")
    result = call(*asked, "--noise-set-for", "replace-one")
    assert result.code == 2
    assert "noise_set_for" in result.err
