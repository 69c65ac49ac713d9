"""Two ranks are given different settings, one after the other; each says how it was refused.

python -m torch.distributed.run --nproc-per-node 2 settings_script.py OUT
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dpaudit.trainer import (
    Automatic,
    GradientCanaries,
    Independent,
    OnGrid,
    Poisson,
    Prefetched,
    Truncated,
    make_private,
)
from dpaudit.vocabulary.errors import DpauditError

RECORDS, WIDTH = 40, 5

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip_norm": ({"clip_norm": 1.0}, {"clip_norm": 10.0}),
    "clip_norm by schedule": (
        {"clip_norm": lambda step: 1.0},
        {"clip_norm": lambda step: 1.0 if step < 900 else 2.0},
    ),
    "clipping": ({}, {"clipping": Automatic(1.0)}),
    "noise_multiplier": ({}, {"noise_multiplier": 0.5}),
    "noise": ({"noise": Independent()}, {"noise": OnGrid()}),
    "sampling_rate": ({}, {"sampling_rate": 0.25}),
    "sampler": ({"sampler": Poisson(0.5)}, {"sampler": Truncated(0.5, RECORDS, 30)}),
    "expected_batch_size": ({}, {"expected_batch_size": 10}),
    "unit": ({}, {"unit": "user"}),
    "unaccounted": ({}, {"unaccounted": ["tuning"]}),
    "seed": ({}, {"seed": 4}),
    "average_decay": ({}, {"average_decay": 0.9}),
    "canaries": ({}, {"canaries": GradientCanaries(4)}),
}
"""What ``make_private`` is given on the first rank, and on the second."""


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def data(records: int = RECORDS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(records, WIDTH, generator=generator), torch.arange(records) % 3


def private(width: int = 4, lr: float = 0.1, frozen: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, width), nn.Tanh(), nn.Linear(width, 3))
    model[0].requires_grad_(not frozen)
    own = [p for p in model.parameters() if p.requires_grad]
    given = {"noise_multiplier": 1.0, "sampling_rate": 0.5, "expected_batch_size": 20, **options}
    return make_private(model, torch.optim.SGD(own, lr=lr), **given)


def main(out: Path) -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank, said = distributed.get_rank(), {}

    def attempt(name: str, begin: Any) -> None:
        try:
            begin()
            said[name] = "nothing was refused"
        except DpauditError as error:
            said[name] = f"{type(error).__name__}: {error}"

    for name, both in OPTIONS.items():
        attempt(name, lambda both=both: private(**both[rank]))
    attempt("optimizer", lambda: private(lr=0.1 * (1 + rank)))
    attempt("model", lambda: private(width=4 + rank))
    attempt("trainable", lambda: private(frozen=rank == 1))
    records = data(RECORDS - 10 * rank)
    attempt("records", lambda: next(private().batches(records, steps=2)))
    others = tuple(part.flip(0) if rank else part for part in data())
    attempt("data", lambda: next(private().batches(others, steps=2)))
    attempt("steps", lambda: next(private().batches(data(), steps=2 + rank)))
    noise = Prefetched() if rank else Independent()
    same = private(noise=noise, physical_batch_size=1 + rank)
    for batch in same.batches(data(), steps=2):  # what only speed depends on may differ
        same.step(loss, batch)
    said["speed alone"] = f"{same.steps} steps"
    (out / f"{rank}.json").write_text(json.dumps(said))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
