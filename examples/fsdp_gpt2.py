"""Train a small GPT-2, sharded over processes by FSDP2 of torch, privately.

    pip install 'dpaudit[hugging-face]'
    torchrun --nproc-per-node 2 examples/fsdp_gpt2.py

``make_private`` takes a model that ``fully_shard`` has sharded. Any number of processes takes the
same steps.
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import GPT2Config, GPT2LMHeadModel

from dpaudit.trainer import make_private
from dpaudit.vocabulary.rounding import round_up

WORDS, RECORDS = 50, 800


def next_word_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return each text's mean loss over its words."""
    logits = model(input_ids=tokens).logits[:, :-1]
    each = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return each.mean(dim=1)


def main(folder: str, epochs: int) -> None:
    """Shard the model, train it, and write the run."""
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    torch.manual_seed(0)  # the same model and texts in every process
    config = GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    texts = torch.randint(WORDS, (RECORDS, 1)).expand(RECORDS, 12).contiguous()
    private = make_private(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.01),
        texts,
        target_epsilon=4.0,
        delta=1e-5,
        epochs=epochs,
        dataset_size=RECORDS,
        expected_batch_size=80,
        ledger=Path(folder, "ledger.jsonl"),
    )
    for batch in private.batches():
        private.step(next_word_losses, batch)
    spent = private.epsilon().upper
    private.finish()  # gathers the shards into model.safetensors
    if distributed.get_rank() == 0:
        ranks = distributed.get_world_size()
        print(f"epsilon at most {round_up(spent)} after {private.steps} steps on {ranks} ranks")
    distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", default="runs/gpt2-sharded", help="folder of the run")
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    if not distributed.is_torchelastic_launched():
        parser.error("start it by torchrun --nproc-per-node 2")
    main(given.output, given.epochs)
