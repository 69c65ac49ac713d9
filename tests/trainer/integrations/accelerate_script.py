"""Trains through Accelerate on as many ranks as it is started with; the first writes the weights.

python -m torch.distributed.run --nproc-per-node 2 accelerate_script.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dpaudit.trainer.integrations import AcceleratedPrivate, prepare_private

RECORDS = 40


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def records() -> tuple[Tensor, Tensor]:
    rows = torch.randn(RECORDS, 5, generator=torch.Generator().manual_seed(1))
    return rows, (rows[:, 0] > 0).long()


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")


def settings(folder: Path) -> dict[str, object]:
    return {
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "epochs": 2,
        "dataset_size": RECORDS,
        "expected_batch_size": 10,
        "seed": 3,
        "ledger": folder / "ledger.jsonl",
    }


def train(accelerator: Accelerator, folder: Path, **options: object) -> AcceleratedPrivate:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    private = prepare_private(
        accelerator, net, optimizer, records(), **{**settings(folder), **options}
    )
    for batch in private.batches():
        private.step(loss, batch)
    return private


def main(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    private = train(accelerator, folder)
    accelerator.save_state(str(folder / "state"))
    assert private.log() == private.private.epsilon().upper
    if accelerator.is_main_process:
        torch.save(private.model.state_dict(), folder / "weights.pt")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
