"""Fine-tune LoRA adapters of peft with private steps, save them, and load them.

    pip install 'dpaudit[train]' peft
    python examples/lora_adapters.py

The base model is tiny and random; ``from_pretrained`` of your own model takes its place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from dpaudit.trainer import make_private
from dpaudit.vocabulary.rounding import round_up

WORDS, RECORDS = 50, 600


def next_word_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return each text's mean loss over its words."""
    logits = model(input_ids=tokens).logits[:, :-1]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return each.mean(dim=1)


def main(folder: str) -> None:
    """Train the adapters, save them, and load them beside the base model."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    base.save_pretrained(Path(folder, "base"))
    texts = torch.randint(WORDS, (RECORDS, 1)).expand(RECORDS, 8).contiguous()  # one word, repeated
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]))
    adapters = [part for part in model.parameters() if part.requires_grad]
    private = make_private(
        model,
        torch.optim.AdamW(adapters, lr=0.02),
        texts,
        target_epsilon=4.0,
        delta=1e-5,
        epochs=5,
        dataset_size=RECORDS,
        expected_batch_size=60,
        ledger=Path(folder, "run", "ledger.jsonl"),
    )
    for batch in private.batches():
        private.step(next_word_losses, batch)
    private.finish()  # model.safetensors of the run holds adapters and base
    model.save_pretrained(Path(folder, "adapters"))  # the adapters alone

    fresh = LlamaForCausalLM.from_pretrained(Path(folder, "base"))
    loaded = PeftModel.from_pretrained(fresh, Path(folder, "adapters")).eval()
    with torch.no_grad():
        same = torch.equal(loaded(texts[:4]).logits, model.eval()(texts[:4]).logits)
    spent = private.epsilon().upper
    print(f"epsilon at most {round_up(spent)}; the loaded adapters give equal outputs: {same}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="runs/lora", help="folder of base, adapters and run")
    main(parser.parse_args().output)
