"""Private training on a GPU: does it compute what the CPU computes, and at what cost?

    python benchmarks/gpu.py --json results.json               # at most 8 minutes
    python benchmarks/gpu.py --device cpu --tiny               # a trial without a GPU
    python benchmarks/gpu.py --part "same steps" --part speed

Each part runs in a process of its own with a time limit. A part that fails is one line of the
output, and the rest continues. The exit code is 1 if a part fails or a figure exceeds its limit.

- same steps: seeded steps, with exact noise on a grid, on the device and on the CPU.
- keystream: ChaCha20 of the device beside the vectors of RFC 8439 and another implementation.
- fresh noise: deviation, and independence of two runs, of noise that is made on the device.
- two ranks: seeded steps of two ranks beside one process; NCCL with two GPUs, gloo with one.
- bf16: clipped sums under autocast beside a loop over records.
- compile: clipped sums of a compiled model beside the model's own.
- speed: time between CUDA events, wall time and memory over plain SGD's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from device_checks import agreement, ranks
from device_checks.networks import networks
from device_checks.speed import speed
from side_by_side.tables import table

MINUTES = 8.0
CHECKS = {
    "same steps": (agreement.same_steps, 90),
    "keystream": (agreement.keystream, 45),
    "fresh noise": (agreement.fresh_noise, 45),
    "two ranks": (ranks.two_ranks, 90),
    "bf16": (agreement.half_precision, 60),
    "compile": (agreement.compiled, 75),
}
"""Checks, each with its time limit in seconds out of ``MINUTES``; most parts end earlier."""

SPEED_LIMIT = 45
"""Time limit of one network of the speed table, in seconds."""

SPEED = "speed: "
"""Begin of the names of parts that time one network."""

CHECK_HEADING = ("Part", "Check", "Found", "Allowed", "")
SPEED_HEADING = (
    "Network", "Plain ms", "Ratio", "Plain wall ms", "Wall ratio", "First step", "Plain MB",
    "Memory", "Slow",
)  # fmt: skip


def limits() -> dict[str, float]:
    """Return the time limit of every part, in the order of execution."""
    checks = {name: float(limit) for name, (_, limit) in CHECKS.items()}
    return checks | {f"{SPEED}{name}": float(SPEED_LIMIT) for name in networks(tiny=True)}


def run_part(name: str, device: torch.device, *, tiny: bool, rounds: int) -> Any:
    """Return the rows of one part, taken in this process."""
    if name.startswith(SPEED):
        network = networks(tiny=tiny)[name.removeprefix(SPEED)]
        seconds = 0.2 if tiny else SPEED_LIMIT / 3
        shown = name.removeprefix(SPEED)
        return asdict(speed(shown, network, device, seconds=seconds, rounds=rounds))
    check, _ = CHECKS[name]
    return [asdict(each) | {"passes": each.passes} for each in check(device, tiny=tiny)]


def in_own_process(name: str, given: argparse.Namespace, limit: float) -> Any:
    """Return what a process of its own printed last, or why there is nothing."""
    asked = [sys.executable, __file__, "--run", name, "--device", given.device,
             "--rounds", str(given.rounds), *(["--tiny"] if given.tiny else [])]  # fmt: skip
    if limit <= 0:
        return {"error": "no time was left"}
    try:
        done = subprocess.run(
            asked, capture_output=True, text=True, check=True, timeout=limit,
            env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {limit:.0f} s"}
    except subprocess.CalledProcessError as error:
        return {"error": (error.stderr.strip().splitlines() or ["it printed nothing"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def passes(found: Any) -> bool:
    """Return whether a part ran, and all its figures are within their limits."""
    if isinstance(found, list):
        return bool(found) and all(each["passes"] for each in found)
    return "error" not in found


def lines(name: str, found: Any) -> list[tuple[str, ...]]:
    """Return the rows of a part of checks, or one row that says why it failed."""
    if "error" in found:
        return [(name, found["error"], "", "", "FAIL")]
    return [
        (name, each["name"], f"{each['found']:.2g}", f"{each['allowed']:.2g}",
         "pass" if each["passes"] else "FAIL")
        for each in found
    ]  # fmt: skip


def speed_line(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of one network."""
    if "error" in found:
        return (name.removeprefix(SPEED), found["error"])
    plain, ratio = found["plain_mb"], found["memory_ratio"]
    memory = ("-", "-") if plain is None or ratio is None else (f"{plain:.0f}", f"{ratio:.2f}")
    return (
        found["network"], f"{found['plain_ms']:.2f}", f"{found['ratio']:.2f}",
        f"{found['plain_wall_ms']:.2f}", f"{found['wall_ratio']:.2f}", f"{found['first']:.1f}",
        *memory, str(found["slow"]),
    )  # fmt: skip


def show(found: dict[str, Any]) -> str:
    """Return all figures as two tables."""
    checks = [row for name, own in found.items() if not name.startswith(SPEED)
              for row in lines(name, own)]  # fmt: skip
    speeds = [speed_line(name, own) for name, own in found.items() if name.startswith(SPEED)]
    width = len(SPEED_HEADING)
    padded = [row + ("",) * (width - len(row)) for row in speeds]
    blocks = [table(CHECK_HEADING, checks)] if checks else []
    return "\n\n".join([*blocks, *([table(SPEED_HEADING, padded)] if padded else [])])


def about(device: torch.device) -> dict[str, str]:
    """Return the device and the versions that figures belong to."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {platform.machine()}",
        "devices": str(torch.cuda.device_count() if cuda else 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "dpaudit": importlib.metadata.version("dpaudit"),
    }


def main() -> None:
    """Run the parts, print their figures, and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--part", action="append", help="the begin of a part's name; repeatable")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, for a trial")
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each kind at most")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="time for all parts together"
    )
    parser.add_argument("--json", type=Path, help="write all figures here after every part")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.run:
        warnings.simplefilter("ignore")
        print(json.dumps(run_part(given.run, device, tiny=given.tiny, rounds=given.rounds)))
        return
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is available; --device cpu --tiny is a trial")
    end, found = time.monotonic() + 60 * given.minutes, {}
    head = about(device)
    print("  ".join(f"{key} {value}" for key, value in head.items()), flush=True)
    for name, limit in limits().items():
        if given.part and not name.startswith(tuple(given.part)):
            continue
        patience = limit * given.minutes / MINUTES
        found[name] = in_own_process(name, given, min(patience, end - time.monotonic()))
        print(f"{'pass' if passes(found[name]) else 'FAIL'}  {name}", flush=True)
        if given.json:
            given.json.write_text(json.dumps({"about": head, "parts": found}, indent=1) + "\n")
    print("\n" + show(found))
    sys.exit(0 if all(map(passes, found.values())) else 1)


if __name__ == "__main__":
    main()
