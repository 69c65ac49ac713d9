"""``dpaudit split``: the noise of queries that share an epsilon and delta."""

from __future__ import annotations

import json

import pytest
from calling import Call

from dpaudit.accountants import budgets

TOTAL = ("--target-epsilon", "1", "--delta", "1e-6")


def test_the_command_gives_the_noise_of_python(call: Call) -> None:
    done = call(
        "split", "sum=2,sensitivity=10,times=3", "histogram,noise=laplace", *TOTAL,
        "--format", "json",
    )  # fmt: skip
    answer = json.loads(done.out)
    truth = budgets.split_budget(
        {
            "sum": budgets.Query(2.0, sensitivity=10.0, times=3),
            "histogram": budgets.Query(noise="laplace"),
        },
        target_epsilon=1.0,
        delta=1e-6,
    )
    assert {name: one["scale"] for name, one in answer["queries"].items()} == truth.noise
    assert answer["epsilon"]["upper"] == truth.epsilon.upper <= 1
    assert answer["queries"]["sum"]["times"] == 3


def test_the_text_says_what_to_add_to_each_result(call: Call) -> None:
    lines = call("split", "count=3,noise=laplace", "sum=1,noise=laplace",
                 "--target-epsilon", "1", "--delta", "0").out.splitlines()  # fmt: skip
    assert lines[:2] == [
        "count: laplace noise of scale 1.3333333333333335",
        "sum: laplace noise of scale 4.0",
    ]
    assert lines[2].startswith("all queries: upper bound on epsilon 1 at delta 0 (pld accountant")


def test_other_accountants_need_more_noise(call: Call) -> None:
    found = [
        json.loads(call("split", "a", "b=2", *TOTAL, "--accountant", name, "--format", "json").out)
        for name in ("pld", "rdp")
    ]
    exact, renyi = (one["queries"]["a"]["scale"] for one in found)
    assert exact < renyi


@pytest.mark.parametrize(
    ("queries", "named"),
    [
        (("sum=2", "sum=1"), "each name once"),
        (("sum=2,noise=laplace,noise=gaussian",), "each setting once"),
        (("sum=2,norm=3",), "each setting once"),
        (("sum=two",), "NAME=WEIGHT"),
        (("=2",), "NAME=WEIGHT"),
        (("sum\nall queries: upper bound on epsilon 0",), "in one line"),
        (("sum=2,times=1.5",), "times=COUNT"),
        (("sum=-1",), "weight"),
        (("sum=1,noise=cauchy",), "gaussian or laplace"),
        ((), "QUERY"),
    ],
)
def test_what_is_no_query_is_refused_by_name(
    call: Call, queries: tuple[str, ...], named: str
) -> None:
    done = call("split", *queries, *TOTAL)
    assert done.code == 2
    assert named in done.err


def test_gaussian_noise_at_delta_0_is_refused(call: Call) -> None:
    done = call("split", "sum=1", "--target-epsilon", "1", "--delta", "0")
    assert done.code == 2
    assert "laplace at delta 0" in done.err


def test_minus_zero_is_delta_0(call: Call) -> None:
    done = call("split", "sum,noise=laplace", "--target-epsilon", "1", "--delta", "-0.0")
    assert "at delta 0 (pld" in done.out
