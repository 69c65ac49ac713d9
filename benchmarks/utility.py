"""What a preset is worth: held-out accuracy at its epsilon, over seeds, beside the papers' figures.

Calls the installed command, in a process of its own for each seed, as a user would:

    python benchmarks/utility.py                                # every preset, 5 seeds: an hour
    python benchmarks/utility.py --preset mnist-scattering --seeds 2
    python benchmarks/utility.py --json results.json

The records are looked for in DPAUDIT_DATA (default ../shared/data beside the project). Seconds
are of the whole command: reading, features, training, claim and evaluation.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side.tables import table, titled

import dpaudit
from dpaudit.runs.directory import open_run
from dpaudit.trainer.data import load_dataset
from dpaudit.workflow.train.accuracy import heldout_accuracy

DATA = Path(os.environ.get("DPAUDIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
FILES = {
    "fashion-mnist-scattering": "fashion_mnist.npz",
    "mnist-scattering": "mnist.npz",
    "mnist-cnn": "mnist.npz",
}
# At epsilon 3 and delta 1e-5: Tramer & Boneh 2021, arXiv:2011.11660, Table 1; what we ask for.
PAPER = {"fashion-mnist-scattering": 89.7, "mnist-scattering": 98.7, "mnist-cnn": 98.1}
TARGETS = {"fashion-mnist-scattering": 89.7, "mnist-scattering": 98.6, "mnist-cnn": 98.0}


def run(preset: str, seed: int, options: list[str]) -> dict[str, float]:
    """Train once; return accuracy in percent, epsilon, and seconds of clock and processor."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "dpaudit", "train", "--preset", preset]
        where = ["--data", str(DATA / FILES[preset]), "--out", str(out), "--seed", str(seed)]
        start, before = time.perf_counter(), _processor_seconds()
        subprocess.run([*command, *where, *options], stdout=subprocess.DEVNULL, check=True)
        seconds, cpu_seconds = time.perf_counter() - start, _processor_seconds() - before
        trained = open_run(out)  # the command prints fewer digits than a mean needs
        return {
            "seed": seed,
            "accuracy": 100 * heldout_accuracy(trained, load_dataset(trained.read_config().data)),
            "epsilon": json.loads(trained.claim.read_text())["epsilon"]["upper"],
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
        }


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def summary(preset: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return mean and spread over the seeds, beside what the paper reports."""
    accuracies = [one["accuracy"] for one in runs]
    return {
        "mean": statistics.mean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "epsilon": max(one["epsilon"] for one in runs),
        "seconds": statistics.median(one["seconds"] for one in runs),
        "cpu_seconds": statistics.median(one["cpu_seconds"] for one in runs),
        "paper": PAPER[preset],
        "target": TARGETS[preset],
        "runs": runs,
    }


def show(found: dict[str, dict[str, Any]]) -> str:
    """Return all presets as a table."""
    heading = ("", "seeds", "held-out accuracy", "target", "paper", "epsilon at most",
               "seconds (median)", "CPU seconds")  # fmt: skip
    rows = []
    for preset, row in found.items():
        spread = "" if row["deviation"] is None else f" +- {row['deviation']:.2f}"
        rows.append(
            (preset, str(len(row["runs"])), f"{row['mean']:.2f}%{spread}", f"{row['target']}%",
             f"{row['paper']}%", f"{row['epsilon']:.4f}", f"{row['seconds']:.0f}",
             f"{row['cpu_seconds']:.0f}")
        )  # fmt: skip
    return titled("presets, mean and standard deviation over seeds", table(heading, rows))


def facts() -> dict[str, Any]:
    """Return when and on what the figures were measured."""
    return {
        "date": datetime.date.today().isoformat(),
        "dpaudit": dpaudit.__version__,
        "torch": importlib.metadata.version("torch"),
        "processors": os.cpu_count(),
    }


def main() -> None:
    """Measure what was asked for; what follows ``--`` goes to the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=FILES, action="append", help="repeatable; default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("options", nargs="*", help="more options of dpaudit train, after --")
    given = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in given.preset or FILES}
    for seed in range(given.seeds):  # a long run may be cut short: each preset in turn
        for preset, done in runs.items():
            done.append(run(preset, seed, given.options))
            said = f"{preset}, seed {seed}: {done[-1]['accuracy']:.2f}%"
            print(said, file=sys.stderr, flush=True)
            found = {name: summary(name, some) for name, some in runs.items() if some}
            if given.json:
                given.json.write_text(json.dumps(facts() | {"presets": found}, indent=2) + "\n")
    print(show(found))


if __name__ == "__main__":
    main()
