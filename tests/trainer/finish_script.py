"""Trains a sharded model on as many ranks as it is started with, and finishes the run.

python -m torch.distributed.run --nproc-per-node 2 finish_script.py OUT
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
from ranks_script import loss, model, sharded
from safetensors.torch import save_file
from torch import distributed

from dpaudit.trainer import make_private
from dpaudit.trainer.distributed import gather_shards


def main(out: Path) -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    net = sharded(model(distributed.get_rank()))
    private = make_private(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        noise_multiplier=1.5,
        sampling_rate=0.3,
        expected_batch_size=8,
        seed=4,  # its ranks get unequal parts of a batch, and must not wait for each other
        ledger=out / "sharded" / "ledger.jsonl",
    )
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(30, 6, generator=generator), torch.arange(30) % 3
    for batch in private.batches(data, steps=3):
        private.step(loss, batch)
    run = private.finish(delta=1e-5)
    assert run.claim.exists(), "this rank went on before the files were there"
    held = {name: gather_shards(p.detach()).contiguous() for name, p in net.named_parameters()}
    if distributed.get_rank() == 0:
        save_file(held, out / "held.safetensors")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
