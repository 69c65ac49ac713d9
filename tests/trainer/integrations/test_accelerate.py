"""``prepare_private`` against the real Accelerate, in one process and in two."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from ranks import on_ranks
from torch import nn

from dpaudit.runs.ledger_file import read_ledger
from dpaudit.trainer import make_private
from dpaudit.trainer.integrations import prepare_private
from dpaudit.vocabulary.errors import InvalidArgument

SCRIPT = Path(__file__).with_name("accelerate_script.py")


def _script() -> ModuleType:
    spec = util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _script()


@pytest.fixture(autouse=True)
def _other_state() -> Iterator[None]:
    """Accelerate keeps its settings in the process: forget them."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([part.detach().flatten() for part in model.parameters()])


def test_steps_are_those_of_a_loop_of_your_own(tmp_path: Path) -> None:
    through = script.train(Accelerator(cpu=True), tmp_path / "through")
    own = script.network()
    private = make_private(
        own,
        torch.optim.Adam(own.parameters(), lr=0.1),
        script.records(),
        **script.settings(tmp_path / "own"),
    )
    for batch in private.batches():
        private.step(script.loss, batch)
    assert private.steps == through.private.steps == 8
    assert torch.equal(weights(through.model), weights(own))


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    alone = script.train(Accelerator(cpu=True), tmp_path / "alone")
    on_ranks(SCRIPT, tmp_path, world=2, folder=tmp_path)
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, part in alone.model.state_dict().items():
        torch.testing.assert_close(found[name], part, rtol=0, atol=2e-5)
    ledger = read_ledger(tmp_path / "ledger.jsonl")
    assert [release.step for release in ledger.releases] == list(range(8))
    assert (tmp_path / "state" / "private" / "step-8").is_dir()


def test_a_saved_state_is_resumed_from(tmp_path: Path) -> None:
    whole = script.train(Accelerator(cpu=True), tmp_path / "whole")
    accelerator = Accelerator(cpu=True)
    net = script.network()
    begun = prepare_private(
        accelerator,
        net,
        torch.optim.Adam(net.parameters(), lr=0.1),
        script.records(),
        **script.settings(tmp_path / "part"),
    )
    for batch in begun.batches(steps=5):
        begun.step(script.loss, batch)
    accelerator.save_state(str(tmp_path / "state"))
    with pytest.raises(InvalidArgument, match="input_dir must be given as prepare_private"):
        accelerator.load_state(str(tmp_path / "state"))
    begun.private.close()
    resumed = script.train(Accelerator(cpu=True), tmp_path / "part", resume=tmp_path / "state")
    assert resumed.private.steps == 8
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_mixed_precision_is_that_of_the_accelerator(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    seen = []
    net = script.network()
    net[0].register_forward_hook(lambda _, inputs, outputs: seen.append(outputs.dtype))
    private = prepare_private(
        accelerator,
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        script.records(),
        **script.settings(tmp_path),
    )
    for batch in private.batches(steps=1):
        private.step(script.loss, batch)
    assert torch.bfloat16 in seen
    assert all(part.dtype is torch.float32 for part in net.parameters())


# What is refused.


def attach(accelerator: Accelerator, net: nn.Module, optimizer: object) -> None:
    prepare_private(
        accelerator,
        net,
        optimizer,
        noise_multiplier=1.0,
        sampling_rate=0.25,
        expected_batch_size=10,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("gradient_accumulation_steps", 2), ("mixed_precision", "fp16"), ("distributed_type", "FSDP")],
)
def test_a_setting_that_does_not_fit_is_refused(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator, net = Accelerator(cpu=True), script.network()
    assert hasattr(accelerator, name)
    if name == "gradient_accumulation_steps":
        accelerator.gradient_accumulation_steps = value
    else:
        monkeypatch.setattr(Accelerator, name, property(lambda _: value))
    with pytest.raises(InvalidArgument, match=rf"accelerator\.{name} must be"):
        attach(accelerator, net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_a_prepared_model_or_optimizer_is_refused() -> None:
    accelerator, net = Accelerator(cpu=True), script.network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(InvalidArgument, match=r"given before accelerator\.prepare"):
        attach(accelerator, net, accelerator.prepare(optimizer))
    with pytest.raises(InvalidArgument, match=r"given before accelerator\.prepare"):
        attach(accelerator, nn.DataParallel(net), optimizer)
