"""Adapters of peft on models of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from public_models.subject import Subject, named, next_tokens, token_batch
from public_models.text import TEXT_MODELS

TARGETS = {"GPT-2": ["c_attn", "c_proj", "c_fc"], "Llama": ["q_proj", "v_proj", "up_proj"]}


def _adapted(base: str, **settings: Any) -> nn.Module:
    """Return a frozen model with low-rank adapters, all of which are trained."""
    config = named("peft", "LoraConfig")(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=TARGETS[base],
        fan_in_fan_out=base == "GPT-2",
        task_type="CAUSAL_LM",
        **settings,
    )
    model: nn.Module = named("peft", "get_peft_model")(TEXT_MODELS[base].make(), config)
    return model.train()


def _lora(base: str, **settings: Any) -> Subject:
    return Subject("peft", partial(_adapted, base, **settings), token_batch, next_tokens)


ADAPTED_MODELS = {
    "LoRA on GPT-2 (B = 0)": _lora("GPT-2"),
    "LoRA on GPT-2 (B not 0)": _lora("GPT-2", init_lora_weights=False),
    "LoRA on Llama (B = 0)": _lora("Llama"),
    "LoRA on Llama (B not 0)": _lora("Llama", init_lora_weights=False),
    "DoRA on Llama": _lora("Llama", use_dora=True),
}
