"""A ledger of 1,000 different releases, and the memory that importing and asking add."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from side_by_side import ours
from side_by_side.clock import Timed, timed
from side_by_side.peers import DP_PLD, DP_RDP, OPACUS_PRV, OPACUS_RDP, PRV, Peer
from side_by_side.plans import Plan, different_releases
from side_by_side.tables import fixed, table, titled

COUNT, SEED, DELTA = 1_000, 1, 1e-5
LONG = 10_000
"""Releases of a second ledger, of which dpaudit alone is asked."""
SHORT = 20
"""Of these many of its releases the slow peers are asked: minutes for all of them."""

QUICK_PEERS = (DP_RDP, OPACUS_RDP)
SLOW_PEERS = (DP_PLD, PRV, OPACUS_PRV)

MEMORY = f"""
import json, resource, sys, tracemalloc
sys.path.insert(0, sys.argv[1])
import side_by_side

def peak():
    try:  # of this process alone: ru_maxrss can be that of the parent
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20

steps = {{"python": peak()}}
import numpy, scipy.special, scipy.optimize
steps["numpy and scipy"] = peak()
from side_by_side import ours, plans
steps["import dpaudit's accountants"] = peak()
calls = {{
    "A at 1e-5": (plans.NAMED["A"], 1e-5),
    "H at 1e-12": (plans.NAMED["H"], 1e-12),
    "(0.999, 0.3, 1e6) at 1e-30": (plans.plan(0.999, 0.3, 10**6), 1e-30),
    "{COUNT} different releases": (plans.different_releases({COUNT}, seed={SEED}), {DELTA}),
}}
traced = {{}}
for name, (plan, delta) in calls.items():
    try:
        if sys.argv[2] == "trace":
            tracemalloc.start()
        ours.epsilon(plan, delta)
    except Exception as error:
        name += f" ({{type(error).__name__}})"
    if sys.argv[2] == "trace":
        traced[name] = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
    steps[name] = peak()
print(json.dumps(traced if sys.argv[2] == "trace" else steps))
"""


def measure(*, repeats: int) -> dict[str, Any]:
    """Return everybody's CPU time on the ledger, and our memory step by step."""
    plan = different_releases(COUNT, seed=SEED)
    start = Plan(plan.entries[:SHORT])
    rows = [_own(plan, min(repeats, 3)), *(_theirs(peer, plan) for peer in QUICK_PEERS)]
    rows += [_own(start, repeats), *(_theirs(peer, start) for peer in SLOW_PEERS + QUICK_PEERS)]
    rows.append(_own(different_releases(LONG, seed=SEED), 1))
    return {"rows": rows, "peak_mb": _memory("peak"), "traced_mb": _memory("trace")}


def _own(plan: Plan, repeats: int) -> dict[str, Any]:
    asked = timed(lambda place: ours.epsilon(plan.nudged(place), DELTA), repeats)
    lower, upper = (None, None) if asked.value is None else (asked.value.lower, asked.value.upper)
    return _row("dpaudit", plan, asked) | {"lower": lower, "upper": upper}


def _theirs(peer: Peer, plan: Plan) -> dict[str, Any]:
    if peer.missing is not None:
        return {"who": peer.name, "releases": len(plan.entries), "error": peer.missing}
    asked = timed(lambda _: peer.epsilon(plan, DELTA), 1)
    return _row(peer.name, plan, asked) | {"upper": asked.value}


def _row(who: str, plan: Plan, asked: Timed[Any]) -> dict[str, Any]:
    return {
        "who": who,
        "releases": len(plan.entries),
        "ms": asked.best,
        "error": asked.why_not,
    }


def _memory(how: str) -> dict[str, float] | str:
    folder = str(Path(__file__).resolve().parent.parent)
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, folder, how], capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        return (ran.stderr.strip().splitlines() or ["no output"])[-1]
    measured: dict[str, float] = json.loads(ran.stdout)
    return measured


def show(measured: dict[str, Any]) -> str:
    """Return the tables."""
    lines = [
        (
            row["who"],
            str(row["releases"]),
            fixed(row.get("lower")),
            fixed(row.get("upper")),
            fixed(row.get("ms"), 0),
            row["error"],
        )
        for row in measured["rows"]
    ]
    title = f"A ledger of {COUNT} different releases at delta {DELTA:g}"
    heading = ("", "releases", "at least", "at most", "CPU ms (target 2000 for 10000)", "")
    return titled(title, table(heading, lines), _memory_table(measured))


def _memory_table(measured: dict[str, Any]) -> str:
    peaks, traced = measured["peak_mb"], measured["traced_mb"]
    if isinstance(peaks, str) or isinstance(traced, str):
        return f"memory not measured: {peaks if isinstance(peaks, str) else traced}"
    lines, base = [], peaks["numpy and scipy"]
    for name, peak in peaks.items():
        added = "" if name == "python" else fixed(peak - base, 0)
        lines.append((name, fixed(peak, 0), added, fixed(traced.get(name), 1)))
    return table(
        (
            "memory, MB, in a process of its own",
            "peak so far",
            "over numpy and scipy (target 200)",
            "traced in the call",
        ),
        lines,
    )
