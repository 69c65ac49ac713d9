"""``dpaudit epsilon``: numbers, formats, and a line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from calling import Call
from places import ROOT

PLAN = ("--sampling-rate", "0.01", "--noise-multiplier", "1", "--steps", "1000", "--delta", "1e-5")
SCHEMAS = ROOT / "dpaudit" / "vocabulary" / "schemas"


def check_schema(name: str, document: object) -> None:
    jsonschema.validate(document, json.loads((SCHEMAS / f"{name}.json").read_text()))


@pytest.mark.parametrize("accountant", ["pld", "rdp", "naive"])
def test_the_json_of_one_accountant_has_the_promised_fields(call: Call, accountant: str) -> None:
    result = call("epsilon", *PLAN, "--accountant", accountant, "--format", "json")
    answer = json.loads(result.out)
    assert result.code == 0
    check_schema("epsilon", answer)
    assert answer["schema_version"] == "2.0"
    assert answer["accountant"] == accountant
    assert answer["adjacency"] == "add-or-remove-one"
    assert answer["delta"] == 1e-5
    assert answer["epsilon"]["lower"] <= 1.828237
    assert answer["epsilon"]["upper"] >= 1.828236


def test_all_accountants_come_as_a_list_of_results(call: Call) -> None:
    answers = json.loads(call("epsilon", *PLAN, "--format", "json").out)
    check_schema("epsilon-all", answers)
    assert [one["accountant"] for one in answers["results"]] == ["naive", "rdp", "pld"]
    for one in answers["results"]:
        check_schema("epsilon", one)


def test_sizes_and_epochs_give_rate_and_steps_and_print_them(call: Call) -> None:
    sizes = ("--dataset-size", "60000", "--batch-size", "256", "--epochs", "60")
    result = call("epsilon", *sizes, "--noise-multiplier", "1.1", "--delta", "1e-5")
    assert "14063 times" in result.out
    assert "rate 0.00426667" in result.out


def test_a_run_answers_by_its_ledger(call: Call, trained: Path) -> None:
    result = call("epsilon", trained, "--accountant", "pld", "--format", "json")
    claim = json.loads((trained / "claim.json").read_text())
    assert json.loads(result.out)["epsilon"] == claim["epsilon"]


def test_the_output_file_gets_what_would_have_been_printed(call: Call, tmp_path: Path) -> None:
    target = tmp_path / "epsilon.txt"
    printed = call("epsilon", *PLAN).out
    assert call("epsilon", *PLAN, "-o", target).out == ""
    assert target.read_text() == printed


def test_full_batches_are_the_exact_gaussian(call: Call) -> None:
    plan = ("--noise-multiplier", "10", "--steps", "100", "--delta", "1e-5")
    result = call("epsilon", *plan, "--sampling", "full-batch", "--accountant", "pld")
    assert "4.377" in result.out
    assert "4.378" in result.out


def test_shuffled_batches_earn_no_amplification_and_say_under_which_adjacency(call: Call) -> None:
    plan = ("--sampling-rate", "0.01", "--noise-multiplier", "10", "--steps", "10000")
    shuffled = ("epsilon", *plan, "--delta", "1e-5", "--sampling", "shuffled")
    refused = call(*shuffled)
    assert refused.code == 2
    assert "zero-out" in refused.err
    priced = call(*shuffled, "--adjacency", "zero-out", "--accountant", "pld")
    assert "4.378" in priced.out  # 100 passes, each a release on all records


def changed(option: str, value: str) -> tuple[str, ...]:
    plan = list(PLAN)
    plan[plan.index(option) + 1] = value
    return tuple(plan)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--sampling-rate", "1.7"),
        ("--sampling-rate", "0"),
        ("--sampling-rate", "nan"),
        ("--noise-multiplier", "-3"),
        ("--noise-multiplier", "0"),
        ("--noise-multiplier", "nan"),
        ("--noise-multiplier", "inf"),
        ("--steps", "0"),
        ("--steps", "-5"),
        ("--delta", "0"),
        ("--delta", "1"),
        ("--delta", "nan"),
        ("--delta", "-1e-5"),
    ],
)
def test_bad_numbers_are_named_in_one_line(call: Call, option: str, value: str) -> None:
    result = call("epsilon", *changed(option, value))
    assert result.code == 2
    assert result.out == ""
    assert result.err.count("\n") == 1
    assert option.lstrip("-").replace("-", "_") in result.err
    assert f"{float(value):g}".rstrip("0") in result.err or value in result.err
    assert "must be" in result.err


@pytest.mark.parametrize("digits", [20, 400])
def test_more_steps_than_can_be_counted_are_one_line(call: Call, digits: int) -> None:
    result = call("epsilon", *changed("--steps", "1" + "0" * digits))
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "at most 1000000000000000000" in result.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--sampling-rate"),
        (PLAN[:-2], "--delta"),
        (("--dataset-size", "10", *PLAN), "not both|--dataset-size"),
        (("--steps", "many"), "--steps"),
        (("nowhere",), "nowhere"),
        ((*PLAN, "--accountant", "prv"), "prv"),
        ((*PLAN, "--colour"), "--colour"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    call: Call, arguments: tuple[str, ...], named: str
) -> None:
    result = call("epsilon", *arguments)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert any(name in result.err for name in named.split("|"))


def test_a_batch_larger_than_the_data_set_is_refused(call: Call) -> None:
    sizes = ("--dataset-size", "100", "--batch-size", "256", "--epochs", "1")
    result = call("epsilon", *sizes, "--noise-multiplier", "1", "--delta", "1e-5")
    assert result.code == 2
    assert "batch_size" in result.err


def test_a_refused_mechanism_is_named_in_words(call: Call) -> None:
    plan = ("--sampling-rate", 0.01, "--noise-multiplier", 1, "--steps", 9, "--delta", 1e-5)
    result = call("epsilon", *plan, "--accountant", "zcdp")
    assert result.code == 2
    assert "DPA701: a Gaussian (noise multiplier 1) on Poisson samples (rate 0.01): " in result.err
    assert "PoissonSampled" not in result.err
