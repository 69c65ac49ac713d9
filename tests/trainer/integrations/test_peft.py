"""Adapters of peft and whole models: private steps, saving and loading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from places import ROOT
from safetensors.torch import load_file, load_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dpaudit.trainer import Private, make_private
from dpaudit.trainer.integrations.head_losses import loss_of_model

WORDS, RECORDS = 11, 24
TOKENS = torch.randint(WORDS, (RECORDS, 5), generator=torch.Generator().manual_seed(1))
TARGETS = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "v_proj", "up_proj"]}


def base_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def with_adapters(base: PreTrainedModel, kind: str) -> PeftModel:
    return get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS[kind]))


def train(model: nn.Module, folder: Path) -> Private:
    trained = [part for part in model.parameters() if part.requires_grad]
    private = make_private(
        model, torch.optim.Adam(trained, lr=0.05), {"input_ids": TOKENS, "labels": TOKENS},
        noise_multiplier=0.5, sampling_rate=0.25, expected_batch_size=6, seed=2,
        ledger=folder / "run" / "ledger.jsonl",
    )  # fmt: skip
    loss = loss_of_model(model, 0.0)
    for batch in private.batches(steps=3):
        private.step(loss, batch)
    return private


def logits(model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize("kind", TARGETS)
def test_adapters_are_trained_saved_and_loaded(tmp_path: Path, kind: str) -> None:
    base_model(kind).save_pretrained(tmp_path / "base")
    model = with_adapters(base_model(kind), kind)
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    private = train(model, tmp_path)
    after = dict(model.named_parameters())
    moved = {name for name, part in after.items() if not torch.equal(part, before[name])}
    assert moved == {name for name in after if "lora_" in name}
    model.save_pretrained(tmp_path / "adapters")
    # The files of peft hold the adapters alone; the run's file holds frozen weights, too.
    own = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    assert len(own) == len(moved)
    loaded = PeftModel.from_pretrained(
        type(base_model(kind)).from_pretrained(tmp_path / "base"), tmp_path / "adapters"
    )
    expected = logits(model)
    assert torch.equal(logits(loaded), expected)
    released = load_file(private.finish(delta=1e-5).model)
    tied = {"base_model.model.lm_head.weight", "base_model.model.transformer.wte.weight"}
    missing = model.state_dict().keys() - released.keys()
    assert missing <= tied
    assert len(missing) == (kind == "gpt2")
    fresh = with_adapters(base_model(kind), kind)
    load_model(fresh, tmp_path / "run" / "model.safetensors")
    assert torch.equal(logits(fresh), expected)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected)


@pytest.mark.parametrize("kind", TARGETS)
def test_whole_models_are_trained_saved_and_loaded(tmp_path: Path, kind: str) -> None:
    model = base_model(kind)
    private = train(model, tmp_path)
    private.finish(delta=1e-5)
    model.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved")
    assert not torch.equal(logits(model), logits(base_model(kind)))
    assert torch.equal(logits(loaded), logits(model))
    fresh = base_model(kind)
    load_model(fresh, tmp_path / "run" / "model.safetensors")
    assert torch.equal(logits(fresh), logits(model))


LOADS = """
import sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokens, expected = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    assert torch.equal(model(input_ids=tokens).logits, expected)
"""


@pytest.mark.slow
def test_adapters_are_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    base_model("gpt2").save_pretrained(tmp_path / "base")
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    model = with_adapters(base, "gpt2")
    train(model, tmp_path).finish(delta=1e-5)
    model.save_pretrained(tmp_path / "adapters")
    torch.save((TOKENS, logits(model)), tmp_path / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOADS, tmp_path / "adapters", tmp_path / "expected.pt"],
        capture_output=True, text=True, check=False, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
