"""A GPT-2 of transformers, sharded by FSDP2 on two gloo ranks, takes the steps of one process."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import pytest
import torch
from ranks import on_ranks
from safetensors.torch import load_file

from dpaudit.runs.ledger_file import read_ledger

SCRIPT = Path(__file__).with_name("fsdp_script.py")


@pytest.mark.slow
def test_a_sharded_gpt2_takes_the_steps_of_one_process(tmp_path: Path) -> None:
    spec = util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = util.module_from_spec(spec)
    spec.loader.exec_module(script)
    alone = script.train(tmp_path / "alone", shard=False)
    on_ranks(SCRIPT, tmp_path / "two", world=2, folder=tmp_path, seconds=300)
    found, expected = load_file(tmp_path / "two" / "weights.safetensors"), script.weights(alone)
    assert found.keys() == expected.keys()
    for name, part in expected.items():
        torch.testing.assert_close(found[name], part, rtol=0, atol=2e-5)
    assert len(read_ledger(tmp_path / "two" / "ledger.jsonl").releases) == 4
    released = load_file(tmp_path / "two" / "model.safetensors")
    for name, part in found.items():
        assert torch.equal(released[name], part)
