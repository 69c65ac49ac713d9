"""Errors of documents name the key, the allowed ones and the nearest, and no internal type."""

from __future__ import annotations

import msgspec
import pytest

from dpaudit.vocabulary.mechanism import Mechanism
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
