"""The examples of the guide run where their framework is installed, and drive a step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT

from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.verdict import Outcome

PAGE = ROOT / "docs" / "how_to" / "wrapped_trainers.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
PARTS = {section.partition("\n")[0]: section for section in SECTIONS[1:]}
NEEDS = {
    "Opacus": "opacus",
    "Your own loop, and Accelerate": "accelerate",
    "Hugging Face": "transformers",
    "Lightning": "lightning",
    "optax": "optax",
    "JAX Privacy": "jax_privacy",
}
DIMENSION = 8 * 3


def code(section: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def test_every_section_with_code_is_run() -> None:
    assert {name for name, section in PARTS.items() if code(section)} == NEEDS.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NEEDS)
def test_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    monkeypatch.chdir(tmp_path)
    defined: dict[str, Any] = {}
    shown = ["optax", name] if name == "JAX Privacy" else [name]
    for block in [code(SECTIONS[0])[0], *(one for part in shown for one in code(PARTS[part]))]:
        exec(block, defined)
    if "result" in defined:
        result: ConformanceResult = defined["result"]
        assert result.verdict is Outcome.PASS, result.violations
        return
    trainer = defined["make_trainer"].for_records(24)(defined["records"], 0)
    first, second = trainer.step(include=[0, 1, 2]), trainer.step(include=[3])
    assert first.size in {DIMENSION, DIMENSION + 3}
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()
    assert trainer.sampled == [3]
