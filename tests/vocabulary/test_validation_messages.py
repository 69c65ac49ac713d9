"""Errors of documents name the key, the allowed ones and the nearest, and no internal type."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from dpaudit.accountants import budgets, naive, pld, rdp
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, Skellam
from dpaudit.vocabulary.validation_messages import explain_validation
from dpaudit.workflow.plan_files import PlanFile

GAUSSIAN = {"kind": "gaussian", "noise_multiplier": 1.0}


def explained(document: object, kind: object) -> str:
    with pytest.raises(msgspec.ValidationError) as found:
        msgspec.convert(document, kind)
    return explain_validation(found.value, document, kind)


@pytest.mark.parametrize(
    ("document", "kind", "words"),
    [
        (
            {"release": [{"noise_multiplyer": 1}]},
            PlanFile,
            ("release[0].noise_multiplyer", "did you mean noise_multiplier?", "times"),
        ),
        ({"release": [], "dleta": 1e-5}, PlanFile, ("unknown key dleta", "did you mean delta?")),
        ({"release": 3}, PlanFile, ("a list as release", "not a whole number")),
        ({}, PlanFile, ("key release, which is missing",)),
        (
            {"release": [{"noise_multiplier": "1"}]},
            PlanFile,
            ("a number as release[0].noise_multiplier", "not text: write it without quotes"),
        ),
        ({"release": [], "delta": True}, PlanFile, ("a number as delta", "not a boolean")),
        (
            {"release": [], "adjacency": "replace"},
            PlanFile,
            ("known adjacency, not 'replace'", "replace-one"),
        ),
        (GAUSSIAN | {"sigma": 1.0}, Mechanism, ("unknown key sigma", "kind, noise_multiplier")),
        (
            {"kind": "repeated", "times": 2, "mechanism": GAUSSIAN | {"seet_for": "x"}},
            Mechanism,
            ("mechanism.seet_for", "did you mean set_for?"),
        ),
        (
            {"kind": "repeated", "times": 2, "mechanism": {"kind": "gausian"}},
            Mechanism,
            ("mechanism.kind, not 'gausian'", "did you mean gaussian?"),
        ),
        (
            {"kind": "composed", "mechanisms": [GAUSSIAN, {"kind": "laplace"}]},
            Mechanism,
            ("mechanisms[1].scale", "missing"),
        ),
        (GAUSSIAN | {"noise_multiplier": -1.0}, Mechanism, ("above 0 and finite",)),
    ],
)
def test_every_error_names_its_key(document: object, kind: object, words: tuple[str, ...]) -> None:
    found = explained(document, kind)
    for word in words:
        assert word in found
    for internal in ("Object", "`", "$", "Expected", "| null"):
        assert internal not in found


class Thing:
    """An object that Python writes with its address."""


VECTOR = {"l2_sensitivity": 1.0, "l1_sensitivity": 2.0, "dimension": 3}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Gaussian(Thing()), "got an object of the class Thing"),
        (lambda: Gaussian(Gaussian), "got the class Gaussian"),
        (lambda: Gaussian(len), "got a function"),
        (lambda: Gaussian(np.float32(-1.5)), "got -1.5"),
        (lambda: Gaussian(10**400), "above 0 and finite"),
        (lambda: Skellam(4.0, **VECTOR | {"l1_sensitivity": None}), "from 1 to"),
        (lambda: Skellam(4.0, **VECTOR | {"l2_sensitivity": "x"}), "got 'x'"),
        (lambda: Skellam(4.0, **VECTOR | {"l2_sensitivity": np.ones(2)}), "from 1 to"),
        (lambda: Composed(3), "a list of at least one mechanism, got 3"),
        (lambda: Composed(Gaussian(1.0)), "a list of at least one mechanism"),
        (lambda: Composed(()), "a list of at least one mechanism"),
        (lambda: Composed([1]), "a mechanism, as Gaussian"),
        (lambda: pld.profile([]), "a mechanism, as Gaussian"),
        (lambda: rdp.profile({}), "a mechanism, as Gaussian"),
        (lambda: naive.profile(Thing()), "got an object of the class Thing"),
        (lambda: pld.profile(Gaussian(1.0)).delta(epsilon=10**400), "at least 0 and finite"),
        (lambda: budgets.Query(noise=np.ones(2)), "gaussian or laplace"),
        (lambda: budgets.split_budget([], target_epsilon=1.0, delta=0), "query by its name"),
    ],
)
def test_errors_of_python_show_no_address_and_no_module(
    build: Callable[[], object], words: str
) -> None:
    with pytest.raises(InvalidArgument) as found:
        build()
    assert words in str(found.value)
    for internal in ("0x", "<class", "<function", "dpaudit.", "numpy", "msgspec"):
        assert internal not in str(found.value)


def test_parts_of_a_composition_may_be_of_any_iterable() -> None:
    assert Composed(Gaussian(one) for one in (1.0, 2.0)).mechanisms[1] == Gaussian(2.0)
