"""Random allocation (balls in bins): widths, CPU time and refusals over random settings.

    python benchmarks/allocation.py                       # 100 settings, some minutes
    python benchmarks/allocation.py --settings 20 --seed 3 --json results.json

Noise multipliers are .5 to 10, steps of a pass 2 to 1e5, passes 1 to 1000, deltas 1e-3 to 1e-12,
all log-uniform. Each question is asked of a new profile, for both directions, in one process with
one thread. A width is relative to epsilon's upper end; one of at most 1e-6 nats counts as narrow.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

NARROW, ABSOLUTE = 1e-3, 1e-6


@dataclass(frozen=True)
class Setting:
    """One question: epsilon of ``passes`` passes of ``steps`` steps, at ``delta``."""

    noise: float
    steps: int
    passes: int
    delta: float


@dataclass(frozen=True)
class Row:
    """The answer to one question, or the reason of a refusal."""

    setting: Setting
    lower: float
    upper: float
    seconds: float
    refused: str

    @property
    def width(self) -> float:
        """Width of the interval, relative to its upper end."""
        if self.upper - self.lower <= ABSOLUTE:
            return 0.0
        return (self.upper - self.lower) / self.upper


def settings(count: int, seed: int) -> list[Setting]:
    """Draw settings over the domain."""
    draw = random.Random(seed)

    def between(low: float, high: float) -> float:
        return math.exp(draw.uniform(math.log(low), math.log(high)))

    return [
        Setting(
            round(between(0.5, 10), 4),
            round(between(2, 1e5)),
            round(between(1, 1000)),
            between(1e-12, 1e-3),
        )
        for _ in range(count)
    ]


def measure(setting: Setting) -> Row:
    """Ask one question."""
    from dpaudit.accountants import Gaussian, RandomAllocation, Repeated, pld
    from dpaudit.vocabulary.errors import DpauditError

    start = time.process_time()
    try:
        mechanism = Repeated(
            RandomAllocation(Gaussian(setting.noise), setting.steps), setting.passes
        )
        found = pld.profile(mechanism).epsilon(delta=setting.delta)
        lower, upper, refused = found.lower, found.upper, ""
    except DpauditError as error:
        lower, upper, refused = 0.0, math.inf, str(error)
    return Row(setting, lower, upper, time.process_time() - start, refused)


def summary(rows: list[Row]) -> dict[str, float]:
    """Return figures over all settings."""
    answered = [row for row in rows if not row.refused]
    seconds = sorted(row.seconds for row in rows)
    widths = sorted(row.width for row in answered)

    def quantile(values: list[float], share: float) -> float:
        return values[min(len(values) - 1, math.ceil(share * len(values)) - 1)]

    return {
        "settings": len(rows),
        "refused": len(rows) - len(answered),
        "wider than 1e-3": sum(width > NARROW for width in widths),
        "median width": quantile(widths, 0.5),
        "largest width": widths[-1],
        "median CPU seconds": quantile(seconds, 0.5),
        "98th percentile CPU seconds": quantile(seconds, 0.98),
        "largest CPU seconds": seconds[-1],
    }


def main() -> None:
    """Measure, print slow and wide settings, and the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", type=int, default=100, help="number of settings")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw")
    parser.add_argument("--json", type=Path, help="file for all rows")
    given = parser.parse_args()
    measure(Setting(1.0, 4, 1, 1e-3))  # imports
    rows: list[Row] = []
    with contextlib.suppress(KeyboardInterrupt):  # then the figures are those of fewer settings
        for setting in settings(given.settings, given.seed):
            row = measure(setting)
            rows.append(row)
            if row.refused or row.width > NARROW or row.seconds > 5:
                print(row, flush=True)
    figures = summary(rows)
    for name, value in figures.items():
        print(f"{name:30} {value:.4g}")
    if given.json is not None:
        document = {"summary": figures, "rows": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
