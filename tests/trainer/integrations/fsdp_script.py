"""Trains a GPT-2 on as many ranks as it is started with, sharded by FSDP2 if there are several.

python -m torch.distributed.run --nproc-per-node 2 fsdp_script.py OUT
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from transformers import GPT2Config, GPT2LMHeadModel

from dpaudit.trainer import Private, make_private
from dpaudit.trainer.distributed import gather_shards, is_sharded
from dpaudit.trainer.integrations.head_losses import loss_of_model

WORDS, RECORDS = 17, 32


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    model = fully_shard(model, mesh=mesh)
    assert all(is_sharded(part) for part in model.parameters())
    return model


def train(folder: Path, *, shard: bool) -> Private:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=8, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model: nn.Module = GPT2LMHeadModel(config)
    loss = loss_of_model(model, 0.0)
    if shard:
        model = sharded(model)
    tokens = torch.randint(WORDS, (RECORDS, 6), generator=torch.Generator().manual_seed(1))
    private = make_private(
        model, torch.optim.AdamW(model.parameters(), lr=0.02),
        {"input_ids": tokens, "labels": tokens}, noise_multiplier=0.7, clip_norm=0.5,
        sampling_rate=0.25, expected_batch_size=8, physical_batch_size=4, seed=5, delta=1e-5,
        ledger=folder / "ledger.jsonl",
    )  # fmt: skip
    for batch in private.batches(steps=4):
        private.step(loss, batch)
    return private


def weights(private: Private) -> dict[str, Tensor]:
    """Return the whole weights; every rank calls this."""
    own = private.model.named_parameters()
    return {name: gather_shards(part.detach()).contiguous() for name, part in own}


def main(folder: Path) -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    private = train(folder, shard=True)
    found = weights(private)
    private.finish()
    if distributed.get_rank() == 0:
        save_file(found, folder / "weights.safetensors")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
