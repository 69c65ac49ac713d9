"""Numbers on the command line, as people write them, and hints for other libraries' options."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import click
import pytest
from calling import Call
from hypothesis import given, settings
from hypothesis import strategies as st

from dpaudit.cli.account import noise
from dpaudit.cli.number_types import Count, LargestRate, Rate, Rates
from dpaudit.workflow.account import rate_from_sizes

PLAN = ("--sampling-rate", "0.01", "--noise-multiplier", "1", "--delta", "1e-5")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1000", 1000), ("1e4", 10_000), ("1.5E3", 1500), ("10_000", 10_000), (" 7 ", 7), ("-3", -3)],
)
def test_whole_numbers_are_read(text: str, value: int) -> None:
    assert Count().convert(text, None, None) == value
    assert type(Count().convert(text, None, None)) is int


@pytest.mark.parametrize(
    "text", ["2.5", "1e-3", "many", "", "1e99999", "0x10", "9" * 2000, "nan", "inf", "1 2"]
)
def test_other_counts_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="whole number"):
        Count().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("0.01", Fraction(0.01)),
        ("256/60000", Fraction(256, 60000)),
        ("1 / 3", Fraction(1, 3)),
        ("1%", Fraction(1, 100)),
        ("0.5 %", Fraction(1, 200)),
        ("1e-2", Fraction(0.01)),
    ],
)
def test_rates_are_read_and_rounded_up(text: str, exact: Fraction) -> None:
    found = Rate().convert(text, None, None)
    assert Fraction(found) >= exact
    assert Fraction(math.nextafter(found, 0)) < exact


@given(st.integers(1, 10**6), st.integers(1, 10**6))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_quotients_are_the_least_double_above(over: int, under: int) -> None:
    found = Fraction(Rate().convert(f"{over}/{under}", None, None))
    assert found >= Fraction(over, under)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_limits_are_the_largest_double_below(over: int, under: int) -> None:
    limit = LargestRate().convert(f"{over}/{under}", None, None)
    assert Fraction(limit) <= Fraction(over, under) < Fraction(math.nextafter(limit, math.inf))


@given(st.integers(1, 10**6), st.integers(1, 10**6))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_rates_by_sizes_are_those_of_their_quotients(one: int, other: int) -> None:
    batch, size = sorted((one, other))
    assert rate_from_sizes(size, batch) == Rate().convert(f"{batch}/{size}", None, None)


@pytest.mark.parametrize("text", ["1/0", "1/2/3", "x%", "", "1/", "1e9999/2", "1" * 2000])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="a quotient"):
        Rate().convert(text, None, None)


def test_the_limits_of_a_risk_are_rounded_down() -> None:
    for name in ("target_tpr", "target_advantage", "target_reconstruction"):
        kind = next(one.type for one in noise.params if one.name == name)
        assert isinstance(kind, LargestRate)


def test_several_rates_are_separated_by_commas() -> None:
    assert Rates().convert("0.01,0.1, 1/2", None, None) == (0.01, 0.1, 0.5)


def test_forms_of_one_plan_give_one_answer(call: Call) -> None:
    rest = (
        "--noise-multiplier",
        "1",
        "--delta",
        "1e-5",
        "--accountant",
        "naive",
        "--format",
        "json",
    )
    plain = call("epsilon", "--sampling-rate", "0.005", "--steps", "10000", *rest)
    assert plain.code == 0
    for forms in (
        ("--sampling-rate", "300/60000", "--steps", "1e4"),
        ("--sampling-rate", "0.5%", "--steps", "10_000"),
        ("--dataset-size", "6e4", "--batch-size", "300", "--steps", "1e4"),
    ):
        found = json.loads(call("epsilon", *forms, *rest).out)
        assert found["epsilon"]["upper"] == pytest.approx(
            json.loads(plain.out)["epsilon"]["upper"], rel=1e-12
        )


def test_rates_of_a_trade_off_curve_may_be_listed(call: Call) -> None:
    plan = ("--sampling", "full-batch", "--steps", "1", "--noise-multiplier", "1")
    listed = call("tradeoff", *plan, "--fpr", "0.01,10%", "--format", "json")
    repeated = call("tradeoff", *plan, "--fpr", "0.1", "--fpr", "0.01", "--format", "json")
    assert listed.out == repeated.out
    assert json.loads(listed.out)["fpr"] == [0.01, 0.1]


@pytest.mark.parametrize(
    ("command", "option", "hint"),
    [
        ("epsilon", "--sigma", "--noise-multiplier"),
        ("epsilon", "-n", "--dataset-size or --steps"),
        ("epsilon", "--rate", "--sampling-rate"),
        ("epsilon", "--noise_multiplier_", "--noise-multiplier"),
        ("noise", "--eps", "--target-epsilon"),
        ("noise", "--epsilon", "--target-epsilon"),
        ("delta", "--eps", "--epsilon"),
        ("tradeoff", "--alpha", "--fpr"),
    ],
)
def test_usual_names_of_options_get_a_hint(
    call: Call, command: str, option: str, hint: str
) -> None:
    found = call(command, option, "1")
    assert found.code == 2
    assert hint in found.err
    assert found.err.count("\n") == 1


def test_sizes_take_steps_or_epochs_and_no_rate(call: Call) -> None:
    sizes = ("--dataset-size", "100", "--batch-size", "10", "--noise-multiplier", "1")
    for extra in (("--steps", "5", "--epochs", "1"), ("--sampling-rate", "0.1", "--steps", "5")):
        found = call("epsilon", *sizes, *extra, "--delta", "1e-5")
        assert found.code == 2
        assert "--epochs" in found.err
