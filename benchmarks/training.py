"""What private training costs over plain SGD, beside its peers: CPU time and peak memory.

Install the peers as benchmarks/accounting.py says; then, from anywhere:

    bench/bin/python benchmarks/training.py                        # everything: some minutes
    bench/bin/python benchmarks/training.py --task mlp --threads 2
    bench/bin/python benchmarks/training.py --json results.json

Trainers take turns on one batch in one process, so that each ratio is between neighbors in
time; CPU time of the whole process, noise included. The first step counts in plain steps; it
verifies the model. Memory is the peak of a process of its own for each trainer, its first step
included. A peer that is not installed, or breaks, is a line that says so. Without --json, the
figures are written to benchmarks/results/ under today's date if all tasks are measured.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
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

import dpaudit
from dpaudit.trainer.noise.kernels import kernels

TARGETS = {"mlp": 1.20, "mlp64": 2.00, "cnn": 1.20, "gpt2": 1.20, "llama": 1.25, "lora": 1.10}
EXACT_TARGETS = {"mlp": 1.40, "mlp64": 2.50, "cnn": 1.30, "gpt2": 1.30, "llama": 1.35, "lora": 1.20}
TARGET_TWO_THREADS, TARGET_MEMORY, TARGET_FIRST, TARGET_PEER = 1.35, 1.35, 5.0, 1.5
PEER_TASKS = ("mlp", "cnn", "gpt2")
YARDSTICK, OURS, EXACT = "plain SGD", "dpaudit", "dpaudit, exact noise"
WARMING_STEPS = 9
"""Steps before the clock runs: single records are checked in each of the first steps."""

SLOW, SLOW_ROUNDS = 10, 3
"""A trainer that takes more plain steps than this is timed for few rounds."""

RESULTS = Path(__file__).parent / "results"


def steps_of(task: Task) -> tuple[dict[str, Step], dict[str, str], dict[str, float]]:
    """Return a step of each trainer, why others have none, and CPU seconds of first steps."""
    steps: dict[str, Step] = {}
    broken: dict[str, str] = {}
    first: dict[str, float] = {}
    plain = TRAINERS[YARDSTICK](Task(copy.deepcopy(task.model), task.inputs, task.labels))
    plain()  # what torch imports in its first step is nobody's cost
    for name, make in TRAINERS.items():
        try:
            own = Task(copy.deepcopy(task.model), task.inputs, task.labels)
            steps[name] = make(own)
            start = time.process_time()
            steps[name]()
            first[name] = time.process_time() - start
            for _ in range(WARMING_STEPS if name.startswith(OURS) else 1):
                steps[name]()
        except Exception as error:  # a peer may break in any way
            steps.pop(name, None)
            broken[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return steps, broken, first


def times(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds of each trainer's steps, taken in turns; a slow one takes few turns."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            if number >= SLOW_ROUNDS and found[name][0] > SLOW * found[YARDSTICK][0]:
                continue
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
    steps, broken, first = steps_of(TASKS[task]())
    seconds = times(steps, rounds)
    yardstick = seconds[YARDSTICK]
    usual = statistics.median(yardstick)
    return {
        "broken": broken,
        "trainers": {
            name: {
                "milliseconds": 1e3 * statistics.median(own),
                "ratio": statistics.median(
                    mine / plain for mine, plain in zip(own, yardstick, strict=False)
                ),
                "first_step_in_plain_steps": first[name] / usual,
                "megabytes": peak_memory(task, name),
            }
            for name, own in seconds.items()
        },
    }


def show(task: str, found: dict[str, Any], threads: int) -> str:
    """Return the figures of one network as a table, with the targets beside ours."""
    weights = {name: row["megabytes"] for name, row in found["trainers"].items()}
    aims = {OURS: TARGETS.get(task), EXACT: EXACT_TARGETS.get(task)} if threads == 1 else {
        OURS: TARGET_TWO_THREADS
    }  # fmt: skip
    rows = []
    for name, row in found["trainers"].items():
        plain, own, aim = weights[YARDSTICK], weights[name], aims.get(name)
        memory = f"{own:.0f} ({own / plain:.2f})" if own and plain else "-"
        rows.append((
            name, f"{row['milliseconds']:.1f}", f"{row['ratio']:.2f}", f"{aim:.2f}" if aim else "",
            f"{row['first_step_in_plain_steps']:.1f}", memory,
        ))  # fmt: skip
    rows += [(name, "-", "-", "", "-", why) for name, why in found["broken"].items()]
    heading = ("", "median CPU ms", "over plain SGD", "target",
               f"first step (target {TARGET_FIRST:g})",
               f"peak MB (ratio; target {TARGET_MEMORY})")  # fmt: skip
    return titled(f"{task}, {threads} thread(s)", table(heading, rows), beside_peers(task, found))


def beside_peers(task: str, found: dict[str, Any]) -> str:
    """Return how much slower the fastest peer is."""
    ratios = {
        name: row["ratio"] for name, row in found["trainers"].items() if name.startswith("Opacus")
    }
    if not ratios or OURS not in found["trainers"]:
        return "No peer was measured."
    name = min(ratios, key=lambda peer: ratios[peer])
    slower = ratios[name] / found["trainers"][OURS]["ratio"]
    target = f" (target {TARGET_PEER:g})" if task in PEER_TASKS else ""
    return f"The fastest peer, {name}, takes {slower:.2f} times as long{target}."


def facts(threads: int, remarks: str) -> dict[str, Any]:
    """Return when and on what the figures were measured."""
    return {
        "date": datetime.date.today().isoformat(),
        "dpaudit": dpaudit.__version__,
        "torch": str(torch.__version__),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "compiled_noise": kernels().compiled,
        "threads": threads,
        "remarks": remarks,
    }


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, action="append", help="repeatable; default: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each trainer")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--remarks", default="", help="about the machine, for the results")
    parser.add_argument("--weigh", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.weigh:
        weigh(*given.weigh)
        return
    torch.set_num_threads(given.threads)
    about = facts(given.threads, given.remarks)
    print("  ".join([f"python {platform.python_version()}", f"torch {torch.__version__}"]))
    target = given.json
    if target is None and not given.task:
        target = RESULTS / f"training-{about['date']}.json"
    found = {}
    for task in given.task or [*TARGETS]:
        found[task] = measure(task, given.rounds)
        print("\n" + show(task, found[task], given.threads), flush=True)
        if target:  # a long run may be cut short
            target.write_text(json.dumps({**about, "tasks": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
