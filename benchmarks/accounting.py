"""dpaudit's certified accountant beside its peers: one process, one thread, CPU time, ratios.

Install the peers into an environment of their own, a CPU build of torch first (Opacus
wants torch, and the default one can bring gigabytes):

    python -m venv bench && bench/bin/pip install torch --index-url .../whl/cpu
    bench/bin/pip install -e '.[bench]'

Then, from anywhere:

    bench/bin/python benchmarks/accounting.py                      # everything: some minutes
    bench/bin/python benchmarks/accounting.py --only speed         # A to H, with ratios
    bench/bin/python benchmarks/accounting.py --only random --random 10000 --seed 7
    bench/bin/python benchmarks/accounting.py --json results.json

Sections:

    speed        A to H at delta 1e-5 and 1e-12: intervals, widths, CPU time, peers, ratios
    calibration  noise for epsilon 2
    random       random plans into the corners: time, width, every refusal, error and NaN
    ledger       1,000 and 10,000 different releases; memory added by imports and by calls
    sweeps       grids of plans, curves over deltas, epsilons and steps, different Laplace releases
    faults       questions that a peer was seen to answer wrongly

All times are CPU milliseconds of this process; ours are for both directions and a profile
made anew each time, of a plan whose noise differs in the 13th digit from all before. A peer
that is not installed, or breaks, is a line that says so.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import logging
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from side_by_side import at_random, calibration, faults, long_ledger, speed, sweeps

LIBRARIES = (
    "dpaudit",
    "dp-accounting",
    "opake",
    "prv-accountant",
    "opacus",
    "numpy",
    "scipy",
    "torch",
)

Section = tuple[Callable[[argparse.Namespace], Any], Callable[[Any], str]]

SECTIONS: dict[str, Section] = {
    "speed": (lambda given: speed.measure(repeats=given.repeats), speed.show),
    "calibration": (lambda given: calibration.measure(repeats=given.repeats), calibration.show),
    "random": (
        lambda given: at_random.measure(count=given.random, seed=given.seed),
        at_random.show,
    ),
    "ledger": (lambda given: long_ledger.measure(repeats=given.repeats), long_ledger.show),
    "sweeps": (lambda given: sweeps.measure(repeats=given.repeats), sweeps.show),
    "faults": (lambda given: faults.measure(), faults.show),
}


def main() -> None:
    """Measure the sections asked for, print each as it is done, write the JSON at the end."""
    given = _arguments()
    logging.disable(logging.WARNING)  # peers log by the hundred
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "versions": _versions(),
    }
    print("  ".join(f"{name} {version}" for name, version in results["versions"].items()))
    for name in given.only or SECTIONS:
        measure, show = SECTIONS[name]
        results[name] = measure(given)
        print(f"\n{show(results[name])}", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="this section; repeatable"
    )
    parser.add_argument("--random", type=int, default=300, metavar="N", help="random plans")
    parser.add_argument("--seed", type=int, default=0, help="of the random plans")
    parser.add_argument("--repeats", type=int, default=7, help="of our own calls")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    return parser.parse_args()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    main()
