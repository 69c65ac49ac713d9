"""Audits every case of two ranks, in one of two processes; the first writes what it found.

python ranks_script.py RANK WORLD FOLDER SEED...
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from dpaudit.attacks import conformance
from dpaudit.runs.file_io import write_json
from tests.planted_bugs.bench import bench, huge, records
from tests.planted_bugs.rank_patches import CASES

STEPS = 12
EFFORT = conformance.Effort(replays=1, sampler_steps=36, noise_samples=30_000)
"""Few steps suffice for rank bugs, and every step is an exchange between two processes."""


def main(rank: int, world: int, folder: Path, seeds: list[int]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    for number, case in enumerate(CASES.values()):
        for seed in seeds:
            with case.patch():
                audit(rank, folder / f"{number}-{seed}.json", seed)
    distributed.destroy_process_group()


def audit(rank: int, out: Path, seed: int) -> None:
    """Both ranks run the same audit on the same results, so they take the same steps."""
    trainer, known = bench(), records()
    result = conformance.check(
        trainer,
        trainer.claim(STEPS),
        records=known,
        probes=[huge(known[0])],
        effort=EFFORT,
        seed=seed,
    )
    if rank == 0:
        write_json(out, result)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), [int(s) for s in sys.argv[4:]])
