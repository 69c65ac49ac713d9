"""``dpaudit noise`` for a target epsilon or a target of a risk."""

from __future__ import annotations

import json

import jsonschema
import make_schemas
import pytest
from calling import Call

STEPS = ("--sampling-rate", "0.01", "--steps", "200")
FULL = ("--sampling", "full-batch", "--steps", "1")


def answer(call: Call, *options: object) -> dict[str, object]:
    found = json.loads(call("noise", *options, "--format", "json").out)
    jsonschema.validate(found, json.loads((make_schemas.FOLDER / "noise-risk.json").read_text()))
    return found


def test_noise_for_an_advantage_is_what_tradeoff_bounds_by_it(call: Call) -> None:
    found = answer(call, *STEPS, "--target-advantage", "0.1")
    assert found["interval"]["upper"] <= 0.1
    noise = ("--noise-multiplier", repr(found["noise_multiplier"]))
    priced = json.loads(call("tradeoff", *STEPS, *noise, "--format", "json").out)
    assert priced["advantage"] == found["interval"]


@pytest.mark.parametrize(
    ("options", "least"),
    [
        (("--target-tpr", "0.01", "--at-fpr", "0.001"), False),
        (("--target-bayes-risk", "0.4"), True),
        (("--target-bayes-risk", "0.08", "--prior", "0.1"), True),
        (("--target-reconstruction", "0.1", "--chance", "0.01"), False),
    ],
)
def test_every_risk_meets_its_target_and_the_text_names_it(
    call: Call, options: tuple[str, ...], least: bool
) -> None:
    found = answer(call, *FULL, *options)
    assert found["target"] == float(options[1])
    ends = found["interval"]
    assert ends["lower"] >= found["target"] if least else ends["upper"] <= found["target"]
    shown = call("noise", *FULL, *options).out
    assert repr(found["noise_multiplier"]) in shown
    assert f"target {options[1]}" in shown
    assert ("lower bound on the Bayes risk" in shown) is least


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "--target-epsilon, --target-tpr"),
        (("--target-epsilon", "1"), "--delta"),
        (("--target-tpr", "0.1"), "--at-fpr"),
        (("--target-reconstruction", "0.1"), "--chance"),
        (("--target-advantage", "0.1", "--delta", "1e-5"), "--delta has no meaning"),
        (("--target-tpr", "0.1", "--at-fpr", "0.01", "--chance", "0.1"), "--chance"),
        (("--target-advantage", "0.1", "--target-epsilon", "1"), "--target-epsilon or"),
        (("--target-advantage", "0.1", "--accountant", "naive"), "pld or rdp"),
        (("--target-tpr", "0.1", "--at-fpr", "0.2"), "guessing at random"),
        (("--target-advantage", "nan"), "advantage"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    call: Call, options: tuple[str, ...], named: str
) -> None:
    found = call("noise", *FULL, *options)
    assert found.code == 2
    assert named in found.err
