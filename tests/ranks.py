"""Scripts on several ranks of gloo, as torchrun starts them, but without its costs.

Each rank is a process of its own, forked from a server that has imported torch once. Started by
torchrun, every rank and the launcher import torch and its compiler, which takes about six seconds
of CPU time each and most of these scripts' time. Tests of a launcher use ``torchrun`` below.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from places import ROOT

PRELOADED = [
    "torch._dynamo",  # imported by the first optimizer
    "torch.distributed.fsdp",
    "dpaudit.trainer.private",
    "dpaudit.attacks.conformance",
]


def torchrun(*command: object, world: int, seconds: float) -> subprocess.CompletedProcess[str]:
    """Start a command on ranks by torchrun itself.

    Args:
        command: A script, or ``-m`` and a module, and its arguments.
        world: Number of ranks.
        seconds: Time until all are ended and the test fails.

    Returns:
        The exit code, and what was printed.
    """
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(world), *map(str, command)],
        capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


class Ended(NamedTuple):
    """What a rank left behind: its exit code, and what it printed on both streams."""

    code: int | None
    printed: str


def on_ranks(script: Path, *options: object, world: int, folder: Path, seconds: float = 120) -> str:
    """Run a script on ranks that find each other as those of torchrun do; all must succeed.

    Args:
        script: What each rank runs.
        options: Its arguments.
        world: Number of ranks.
        folder: Where the output of each rank is kept.
        seconds: Time until a rank is killed.

    Returns:
        What the ranks printed, the first one's first.
    """
    ended = ended_ranks(script, *options, world=world, folder=folder, seconds=seconds)
    assert [rank.code for rank in ended] == [0] * world, [rank.printed[-3000:] for rank in ended]
    return "".join(rank.printed for rank in ended)


def ended_ranks(
    script: Path, *options: object, world: int, folder: Path, seconds: float = 120
) -> list[Ended]:
    """Run a script on ranks like ``on_ranks``; return how each rank ended."""
    from torch.distributed import TCPStore  # here: tests of the core have no torch

    store = TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    outputs = [folder / f"printed-{rank}.txt" for rank in range(world)]
    ranks = [
        context.Process(
            target=_run,
            args=([str(script), *map(str, options)], _variables(rank, world, store.port), output),
        )
        for rank, output in enumerate(outputs)
    ]
    for rank in ranks:
        rank.start()
    codes = [_exit_code(rank, seconds) for rank in ranks]
    del store
    return [Ended(code, file.read_text()) for code, file in zip(codes, outputs, strict=True)]


def _variables(rank: int, world: int, port: int) -> dict[str, str]:
    """Return what torchrun tells a rank by the environment."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def _run(arguments: list[str], variables: dict[str, str], output: Path) -> None:
    """Become a rank: run its script in this process, which was forked for it."""
    import torch

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    sys.argv = arguments
    sys.path[:0] = [str(Path(arguments[0]).parent), str(ROOT)]
    runpy.run_path(arguments[0], run_name="__main__")


def _exit_code(rank: BaseProcess, seconds: float) -> int | None:
    """Return the exit code of a rank, which is killed where it takes too long."""
    rank.join(seconds)
    if rank.is_alive():
        rank.kill()
        rank.join()
    return rank.exitcode
