"""What noise costs beside torch.randn, on one thread: per normal, and for a whole sum.

From anywhere, in an environment with dpaudit[train]:

    python benchmarks/noise.py
    python benchmarks/noise.py --json results.json

Each kind takes turns with torch.randn in one process; CPU time of the process, AES included. The
figures are medians of ratios between neighbors in time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dpaudit.trainer.noise.gaussian_draws import normal_chunks
from dpaudit.trainer.noise.gradient_noise import (
    GradientNoise,
    Independent,
    NoiseContext,
    OnGrid,
    count_coordinates,
)
from dpaudit.trainer.noise.grid_noise import grid_chunks
from dpaudit.trainer.noise.kernels import kernels
from dpaudit.trainer.noise.randomness import Keystream, Purpose

SHAPES = [(512, 784), (512,), (512, 512), (512,), (10, 512), (10,)]  # of an MLP, 669,706 numbers
TARGETS = {"float32 normals": 0.5, "grid normals": 2.0}
ROUNDS = 41


def kinds() -> dict[str, Callable[[int], object]]:
    """Return, by name, what is measured: a function of the step."""
    stream, purpose = Keystream.secure(), Purpose.GRADIENT_NOISE
    sums = {str(place): torch.zeros(shape) for place, shape in enumerate(SHAPES)}
    count = count_coordinates(sums)

    def added(noise: GradientNoise) -> Callable[[int], object]:
        return lambda step: noise.add_noise(sums, NoiseContext(stream, step), 1.0, 1.0)

    return {
        "float32 normals": lambda step: sum(map(len, normal_chunks(stream, purpose, step, count))),
        "grid normals": lambda step: sum(map(len, grid_chunks(stream, purpose, step, 1e6, count))),
        "Independent().add_noise": added(Independent()),
        "OnGrid().add_noise": added(OnGrid()),
    }


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = sum(torch.Size(shape).numel() for shape in SHAPES)
    print(f"{count:,} coordinates; compiled kernels: {kernels().compiled}")
    found = {}
    for name, work in kinds().items():
        pairs = [
            (seconds(lambda: torch.randn(count)), seconds(partial(work, step)))
            for step in range(ROUNDS)
        ]
        nanoseconds = statistics.median(own for _, own in pairs) / count * 1e9
        ratio = statistics.median(own / randn for randn, own in pairs)
        target = f", required {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:24} {nanoseconds:6.2f} ns, {ratio:.2f} of torch.randn{target}")
        found[name] = {"nanoseconds": nanoseconds, "ratio": ratio}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
