"""A to H: the interval, its width and its CPU time, and the peers' beside them."""

from __future__ import annotations

import statistics
import sys
from typing import Any

from side_by_side import ours
from side_by_side.clock import Timed, timed
from side_by_side.peers import DP_PLD, PEERS, Peer
from side_by_side.plans import HALF_A_DIGIT, NAMED, TRUTHS, Plan, truth
from side_by_side.tables import fixed, percent, short, table, titled

LEAST_RATIO, MEDIAN_RATIO = 25, 100
"""Targets: how many times less CPU than dp_accounting's PLD."""

PEER_REPEATS = 3


def measure(*, repeats: int) -> dict[str, Any]:
    """Return CPU times and answers of everybody on A to H."""
    first_call = timed(lambda _: ours.epsilon(NAMED["A"].nudged(-1), 1e-5), 1).best
    rows = [_row(name, plan, delta, repeats) for delta in TRUTHS for name, plan in NAMED.items()]
    missing = {peer.name: peer.missing for peer in PEERS if peer.missing}
    return {"first_call_ms": first_call, "rows": rows, "missing": missing}


def _row(name: str, plan: Plan, delta: float, repeats: int) -> dict[str, Any]:
    print(f"{name} at {delta:g} ...", file=sys.stderr)  # peers take their time
    # A new profile each time, of a plan that nobody has seen.
    own = timed(lambda place: ours.epsilon(plan.nudged(place), delta), repeats)
    row: dict[str, Any] = {
        "name": name,
        "plan": str(plan),
        "delta": delta,
        "truth": truth(name, delta),
        "best_ms": own.best,
        "median_ms": own.median,
        "error": own.why_not,
        "peers": {},
    }
    if own.value is not None:
        lower, upper = own.value.lower, own.value.upper
        holds = lower - HALF_A_DIGIT <= row["truth"] <= upper + HALF_A_DIGIT
        row |= {"lower": lower, "upper": upper, "holds": holds, "width": (upper - lower) / upper}
    for peer in PEERS:
        if peer.missing is None:
            row["peers"][peer.name] = _beside(peer, plan, delta, own)
    return row


def _beside(peer: Peer, plan: Plan, delta: float, own: Timed[Any]) -> dict[str, Any]:
    theirs = timed(lambda place: peer.epsilon(plan.nudged(place), delta), PEER_REPEATS)
    return {
        "epsilon": theirs.value,
        "best_ms": theirs.best,
        "median_ms": theirs.median,
        "ratio": theirs.best / own.best,
        "error": theirs.why_not,
    }


def show(measured: dict[str, Any]) -> str:
    """Return the tables."""
    rows = measured["rows"]
    blocks = [
        f"The first call in this process took {measured['first_call_ms']:.0f} ms.",
        _own(rows),
    ]
    for name, why in measured["missing"].items():
        blocks.append(f"{name}: {why}")
    blocks += [_theirs(peer.name, rows) for peer in PEERS if peer.name not in measured["missing"]]
    if DP_PLD.name not in measured["missing"]:
        blocks.append(_against_targets(rows))
    return titled("A to H: certified intervals, CPU time, peers", *blocks)


def _own(rows: list[dict[str, Any]]) -> str:
    heading = (
        "",
        "delta",
        "truth",
        "at least",
        "at most",
        "width",
        "best ms",
        "median ms",
        "holds",
    )
    return table(
        heading,
        [
            (
                row["name"],
                f"{row['delta']:g}",
                fixed(row["truth"]),
                fixed(row.get("lower"), 9),
                fixed(row.get("upper"), 9),
                short(row.get("width")),
                fixed(row["best_ms"], 2),
                fixed(row["median_ms"], 2),
                row["error"] or ("yes" if row["holds"] else "NO"),
            )
            for row in rows
        ],
    )


def _theirs(name: str, rows: list[dict[str, Any]]) -> str:
    heading = (name, "delta", "epsilon", "best ms", "median ms", "theirs/ours", "over truth")
    lines = []
    for row in rows:
        beside = row["peers"][name]
        answer = beside["epsilon"]
        over = beside["error"] if answer is None else percent(answer, row["truth"])
        lines.append(
            (
                row["name"],
                f"{row['delta']:g}",
                fixed(answer),
                fixed(beside["best_ms"], 1),
                fixed(beside["median_ms"], 1),
                fixed(beside["ratio"], 2),
                over,
            )
        )
    return table(heading, lines)


def _against_targets(rows: list[dict[str, Any]]) -> str:
    lines = []
    for delta in TRUTHS:
        ratios = [row["peers"][DP_PLD.name]["ratio"] for row in rows if row["delta"] == delta]
        least, median = min(ratios), statistics.median(ratios)
        met = "met" if least >= LEAST_RATIO and median >= MEDIAN_RATIO else "NOT MET"
        lines.append((f"{delta:g}", fixed(least, 2), fixed(median, 2), met))
    targets = f"target: {LEAST_RATIO} and {MEDIAN_RATIO}"
    return table((f"{DP_PLD.name} / ours, delta", "least", "median", targets), lines)
