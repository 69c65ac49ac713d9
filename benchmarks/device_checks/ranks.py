"""Do two ranks take the step that one process takes?"""

from __future__ import annotations

import multiprocessing
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from device_checks.checks import Check, relative_gap, require_exact_products, trainer
from device_checks.networks import networks
from dpaudit.trainer import OnGrid

RANKS, STEPS, TOLERANCE = 2, 2, 1e-4


def two_ranks(device: torch.device, *, tiny: bool) -> list[Check]:
    """Compare seeded steps of two ranks with one process: NCCL with two GPUs, else gloo."""
    own_gpus = device.type == "cuda" and torch.cuda.device_count() >= RANKS
    backend = "nccl" if own_gpus else "gloo"
    found = []
    for name in ("CNN, batch 128", "GPT-2, 4 x 256"):
        alone = _steps(name, device, tiny=tiny)
        with tempfile.TemporaryDirectory() as folder:
            context = multiprocessing.get_context("spawn")
            arguments = (backend, Path(folder), name, device.type, tiny)
            processes = [
                context.Process(target=_rank, args=(rank, *arguments)) for rank in range(RANKS)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            files = [Path(folder) / f"{rank}.pt" for rank in range(RANKS)]
            ranks = [torch.load(file) if file.exists() else {} for file in files]
        if not all(ranks):
            raise RuntimeError(f"a rank ended with exit code {[p.exitcode for p in processes]}")
        found += [
            Check(f"{backend}: ranks to one process, {name}",
                  max(relative_gap(each, alone) for each in ranks), TOLERANCE),
            Check(f"{backend}: rank 1 to rank 0, {name}", relative_gap(ranks[1], ranks[0]), 0.0),
        ]  # fmt: skip
    return found


def _rank(rank: int, backend: str, folder: Path, name: str, kind: str, tiny: bool) -> None:
    """Take the steps as one of the ranks, and write what they moved."""
    device = torch.device(kind, rank) if backend == "nccl" else torch.device(kind)
    if device.index is not None:
        torch.cuda.set_device(device)
    distributed.init_process_group(
        backend,
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    torch.save(_steps(name, device, tiny=tiny), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def _steps(name: str, device: torch.device, *, tiny: bool) -> dict[str, torch.Tensor]:
    """Return by how much seeded steps moved each parameter, on this rank's part of each batch."""
    require_exact_products()
    network = networks(tiny=tiny)[name]
    model, batch = network.built(device)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    records = len(batch[0])
    with trainer(model, records, noise=OnGrid(), seed=1) as private:
        for own in private.batches(torch.arange(records), steps=STEPS):
            private.step(network.loss, tuple(part[own.to(device)] for part in batch))
    return {n: (p.detach() - before[n]).cpu() for n, p in model.named_parameters()}
