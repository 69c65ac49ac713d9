"""Trains on as many ranks as it is started with; the first one writes the parameters.

python -m torch.distributed.run --nproc-per-node 2 ranks_script.py KIND OUT
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn

from dpaudit.trainer import Private, Quantile, make_private
from dpaudit.trainer.distributed import gather_shards, is_sharded

RECORDS, WIDTH, STEPS = 60, 6, 4


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(net(x), y, reduction="none")


def model(rank: int) -> nn.Module:
    torch.manual_seed(rank)  # ranks begin apart: the first one's parameters count
    body = nn.Sequential(nn.Linear(WIDTH, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 8))
    return nn.Sequential(body, nn.Tanh(), nn.Linear(8, 3))


def sharded(net: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in net.parameters():
        distributed.broadcast(parameter.detach(), src=0)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    fully_shard(net[0], mesh=mesh)
    net = fully_shard(net, mesh=mesh)
    assert all(is_sharded(parameter) for parameter in net.parameters())
    return net


def trainer(kind: str, out: Path, rank: int) -> Private:
    net = model(rank)
    net = sharded(net) if kind == "sharded" else net
    return make_private(
        net,
        torch.optim.Adam(net.parameters(), lr=0.05),
        noise_multiplier=0.7,
        clip_norm=0.3,
        sampling_rate=0.02 if kind == "few records" else 0.3,
        expected_batch_size=20,
        physical_batch_size=4,
        clipping=Quantile(0.3, count_noise=2.0) if kind == "quantile" else None,
        ledger=out / "ledger" if kind == "secure" else None,
        seed=None if kind == "secure" else 5,
    )


def main(kind: str, out: Path) -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = distributed.get_rank()
    private = trainer(kind, out, rank)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(RECORDS, WIDTH, generator=generator)
    data = x, torch.randint(0, 3, (RECORDS,), generator=generator)
    if kind == "broken" and rank == 1:
        raise SystemExit("this rank was killed")
    for batch in private.batches(data, steps=STEPS):
        private.step(loss, batch)
    own = {
        name: gather_shards(p.detach()).contiguous() for name, p in private.model.named_parameters()
    }
    flat = torch.cat([p.flatten() for p in own.values()])
    first = flat.clone()
    distributed.broadcast(first, src=0)
    assert torch.equal(first, flat), "ranks hold different parameters"
    if rank == 0:
        save_file(own, out / f"{kind}-{distributed.get_world_size()}.safetensors")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
