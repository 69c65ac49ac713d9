"""``dpaudit delta``, ``noise``, ``tradeoff``, ``completion`` and ``epsilon --explain``."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import make_schemas
import pytest
from calling import Call

STEPS = ("--sampling-rate", "0.01", "--steps", "1000")
PLAN = (*STEPS, "--noise-multiplier", "1")
FULL = ("--sampling", "full-batch", "--steps", "1", "--noise-multiplier", "1")


def read(name: str, text: str) -> dict[str, object]:
    document = json.loads(text)
    jsonschema.validate(document, json.loads((make_schemas.FOLDER / f"{name}.json").read_text()))
    return document


def test_delta_at_the_epsilon_of_a_delta_is_that_delta(call: Call) -> None:
    epsilon = json.loads(
        call("epsilon", *PLAN, "--delta", "1e-5", "--accountant", "pld", "--format", "json").out
    )["epsilon"]
    above = read(
        "delta", call("delta", *PLAN, "--epsilon", epsilon["lower"], "--format", "json").out
    )
    below = read(
        "delta", call("delta", *PLAN, "--epsilon", epsilon["upper"], "--format", "json").out
    )
    assert above["delta"]["upper"] >= 1e-5 >= below["delta"]["lower"]
    assert above["delta"]["upper"] < 1.001e-5


def test_noise_meets_its_target_and_a_little_less_does_not(call: Call) -> None:
    target = ("--target-epsilon", "2", "--delta", "1e-5")
    answer = read("noise", call("noise", *STEPS, *target, "--format", "json").out)
    assert answer["epsilon"]["upper"] <= 2
    less = answer["noise_multiplier"] * (1 - 1e-3)
    priced = call(
        "epsilon", *STEPS, "--noise-multiplier", less, "--delta", "1e-5",
        "--accountant", "pld", "--format", "json",
    )  # fmt: skip
    assert json.loads(priced.out)["epsilon"]["lower"] > 2


@pytest.mark.parametrize("accountant", ["rdp", "naive"])
def test_other_accountants_need_more_noise(call: Call, accountant: str) -> None:
    target = ("--target-epsilon", "2", "--delta", "1e-5", "--format", "json")
    by_pld = json.loads(call("noise", *STEPS, *target).out)["noise_multiplier"]
    by_other = json.loads(call("noise", *STEPS, *target, "--accountant", accountant).out)
    assert by_other["noise_multiplier"] > by_pld


def test_the_tradeoff_of_one_gaussian_is_that_of_two_normal_laws(call: Call) -> None:
    """tpr(fpr) = P[N > z - 1] where P[N > z] = fpr: at fpr 0.1, z = 1.2815515655446004."""
    answer = read("tradeoff", call("tradeoff", *FULL, "--fpr", "0.1", "--format", "json").out)
    (tpr,) = answer["tpr"]
    assert tpr["lower"] <= 0.38914348 <= tpr["upper"] <= 0.3892
    # 2 Phi(1/2) - 1
    assert answer["advantage"]["lower"] <= 0.382924922548026 <= answer["advantage"]["upper"]


def test_rates_are_shown_in_rising_order(call: Call) -> None:
    printed = call("tradeoff", *FULL, "--fpr", "0.1", "--fpr", "0.01").out
    assert printed.index("\n0.01 ") < printed.index("\n0.1 ")


def test_an_explanation_says_method_errors_and_what_is_not_covered(call: Call) -> None:
    printed = call("epsilon", *PLAN, "--delta", "1e-5", "--explain").out
    for said in (
        "one record added or removed",
        "poisson sampling",
        "delta 1e-05",
        "pld accountant, dpaudit ",
        "It does not cover",
        "record removed: contour",
        "record added: contour",
        "aliases (lower end alone)",
    ):
        assert said in printed


def test_an_explanation_is_in_the_json_where_it_was_asked_for(call: Call) -> None:
    asked = ("epsilon", *PLAN, "--delta", "1e-5", "--accountant", "pld", "--format", "json")
    assert read("epsilon", call(*asked).out)["explanation"] == []
    ways = read("epsilon", call(*asked, "--explain").out)["explanation"]
    assert [way["direction"] for way in ways] == ["removed", "added"]
    assert all(0 <= error < 1e-3 for way in ways for error in way["budget"].values())


def test_a_special_accountant_refuses_by_name_what_is_sampled(call: Call) -> None:
    for accountant in ("zcdp", "gdp"):
        result = call("epsilon", *PLAN, "--delta", "1e-5", "--accountant", accountant)
        assert result.code == 2
        assert "on Poisson samples (rate " in result.err
        exact = call("epsilon", *FULL, "--delta", "1e-5", "--accountant", accountant)
        assert exact.code == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_names_the_program(call: Call, shell: str) -> None:
    result = call("completion", shell)
    assert result.code == 0
    assert "_DPAUDIT_COMPLETE" in result.out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("delta", *PLAN, "--epsilon", "-1"), "epsilon"),
        (("delta", *PLAN, "--epsilon", "nan"), "epsilon"),
        (("delta", *PLAN), "--epsilon"),
        (("noise", *STEPS, "--target-epsilon", "0", "--delta", "1e-5"), "target_epsilon"),
        (("noise", *STEPS, "--target-epsilon", "2", "--delta", "2"), "delta"),
        (("noise", "--target-epsilon", "2", "--delta", "1e-5"), "--sampling-rate"),
        (("tradeoff", *PLAN, "--fpr", "1.5"), "fpr"),
        (("tradeoff", *PLAN, "--fpr", "nan"), "fpr"),
        (("completion", "tcsh"), "tcsh"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    call: Call, arguments: tuple[str, ...], named: str
) -> None:
    result = call(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1
    assert named in result.err


def test_a_run_answers_all_of_them(call: Call, trained: Path) -> None:
    assert "delta at epsilon 1: lower bound" in call("delta", trained, "--epsilon", "1").out
    assert "true-positive rate" in call("tradeoff", trained).out


def test_a_trade_off_curve_is_summarized_by_mu_with_its_regret(call: Call) -> None:
    answer = read("tradeoff", call("tradeoff", *FULL, "--gdp", "--format", "json").out)
    assert answer["gdp"]["mu"]["lower"] <= 1 <= answer["gdp"]["mu"]["upper"] <= 1.002
    assert 0 <= answer["gdp"]["regret"]["upper"] < 1e-3
    shown = call("tradeoff", *FULL, "--gdp").out
    assert "Gaussian DP with mu 1.0" in shown
    assert "at most that of mu-GDP plus 1e-10" in shown
    assert "regret" in shown
    assert read("tradeoff", call("tradeoff", *FULL, "--format", "json").out)["gdp"] is None
