"""What private training costs over plain SGD, beside its peers: CPU time and peak memory.

Install the peers as benchmarks/accounting.py says; then, from anywhere:

    bench/bin/python benchmarks/training.py                        # everything: some minutes
    bench/bin/python benchmarks/training.py --task mlp --threads 2
    bench/bin/python benchmarks/training.py --json results.json

Trainers take turns on one batch in one process, so that each ratio is between neighbors in
time; CPU time of the whole process, noise included. Memory is the peak of a process of its
own for each trainer. A peer that is not installed, or breaks, is a line that says so.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from side_by_side.networks import TASKS, Task
from side_by_side.steps import TRAINERS, Step
from side_by_side.tables import table, titled

TARGETS = {"mlp": 1.15, "cnn": 1.25, "transformer": 1.15}
TARGET_TWO_THREADS, TARGET_MEMORY, TARGET_PEER = 1.35, 1.35, 1.5
YARDSTICK, OURS = "plain SGD", "dpaudit"


def steps_of(task: Task) -> tuple[dict[str, Step], dict[str, str]]:
    """Return a step of each trainer on a model of its own, and why others have none."""
    steps: dict[str, Step] = {}
    broken: dict[str, str] = {}
    for name, make in TRAINERS.items():
        try:
            own = Task(copy.deepcopy(task.model), task.inputs, task.labels)
            steps[name] = make(own)
            steps[name]()
            steps[name]()
        except Exception as error:  # a peer may break in any way
            steps.pop(name, None)
            broken[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return steps, broken


def times(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds of each trainer's steps, taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            found[name].append(time.process_time() - start)
    return found


def peak_memory(task: str, trainer: str) -> float | None:
    """Return the most MB that a process of its own took for a few steps."""
    done = subprocess.run(
        [sys.executable, __file__, "--weigh", task, trainer],
        capture_output=True,
        text=True,
        check=False,
    )
    return float(done.stdout) if done.returncode == 0 else None


def weigh(task: str, trainer: str) -> None:
    """Take a few steps, and print the most memory that this process took."""
    torch.set_num_threads(1)
    step = TRAINERS[trainer](TASKS[task]())
    for _ in range(3):
        step()
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak
    (peak,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    print(int(peak.split()[1]) / 1024)


def measure(task: str, rounds: int) -> dict[str, Any]:
    """Return medians of CPU time, of its ratio to plain SGD in the same round, and memory."""
    torch.manual_seed(0)
    steps, broken = steps_of(TASKS[task]())
    seconds = times(steps, rounds)
    yardstick = seconds[YARDSTICK]
    return {
        "broken": broken,
        "trainers": {
            name: {
                "milliseconds": 1e3 * statistics.median(own),
                "ratio": statistics.median(
                    mine / plain for mine, plain in zip(own, yardstick, strict=True)
                ),
                "megabytes": peak_memory(task, name),
            }
            for name, own in seconds.items()
        },
    }


def show(task: str, found: dict[str, Any], threads: int) -> str:
    """Return the figures of one network as a table."""
    weights = {name: row["megabytes"] for name, row in found["trainers"].items()}
    rows = []
    for name, row in found["trainers"].items():
        plain, own = weights[YARDSTICK], weights[name]
        memory = f"{own:.0f} ({own / plain:.2f})" if own and plain else "-"
        rows.append((name, f"{row['milliseconds']:.1f}", f"{row['ratio']:.3f}", memory))
    rows += [(name, "-", "-", why) for name, why in found["broken"].items()]
    target = TARGETS[task] if threads == 1 else TARGET_TWO_THREADS
    heading = ("", "median CPU ms", f"over plain SGD (target {target} + 0.10 for secure noise)",
               f"peak MB (ratio; target {TARGET_MEMORY})")  # fmt: skip
    return titled(f"{task}, {threads} thread(s)", table(heading, rows))


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, action="append", help="repeatable; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each trainer")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--weigh", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.weigh:
        weigh(*given.weigh)
        return
    torch.set_num_threads(given.threads)
    versions = [f"{n} {importlib.metadata.version(n)}" for n in ("dpaudit", "torch")]
    print("  ".join([f"python {platform.python_version()}", *versions]))
    found = {}
    for task in given.task or TASKS:
        found[task] = measure(task, given.rounds)
        print("\n" + show(task, found[task], given.threads), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"threads": given.threads, "tasks": found}, indent=2))


if __name__ == "__main__":
    main()
