"""Audits every case of two ranks, in one of two processes; the first writes what it found.

A bug meets the ``whole`` check, or the tests of its kind ``alone``.

torchrun --nproc-per-node 2 ranks_script.py FOLDER (whole | alone) SEED...
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
from tests.planted_bugs.parts import checks_alone
from tests.planted_bugs.rank_patches import CASES

STEPS = 12
EFFORT = conformance.Effort(replays=1, sampler_steps=36, noise_samples=30_000)
"""Few steps suffice for rank bugs, and every step is an exchange between two processes."""


def main(folder: Path, whole: bool, seeds: list[int]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = distributed.get_rank()
    for number, case in enumerate(CASES.values()):
        for seed in seeds:
            with case.patch(), checks_alone("" if whole else case.check):
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
    main(Path(sys.argv[1]), sys.argv[2] == "whole", [int(seed) for seed in sys.argv[3:]])
