"""The noise multiplier for epsilon 2: how long it takes, and what that noise really costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from side_by_side import ours
from side_by_side.clock import timed
from side_by_side.peers import PEERS
from side_by_side.plans import NAMED, Entry, plan
from side_by_side.tables import fixed, table, titled

TARGET, DELTA = 2.0, 1e-5
SHARED = ("A", "F")
"""The plans that peers calibrate, too: minutes for all of them."""


def measure(*, repeats: int) -> list[dict[str, Any]]:
    """Return who found which noise for A to H, in which time."""
    rows = []
    for name, one in NAMED.items():
        (entry,) = one.entries
        rows.append(_row(name, "dpaudit", entry, ours.noise_multiplier, repeats))
        for peer in PEERS if name in SHARED else ():
            if peer.missing is not None:
                rows.append({"name": name, "who": peer.name, "error": peer.missing})
            elif peer.noise_multiplier is not None:
                rows.append(_row(name, peer.name, entry, peer.noise_multiplier, 1))
    return rows


def _row(
    name: str,
    who: str,
    entry: Entry,
    find: Callable[[Entry, float, float], float],
    repeats: int,
) -> dict[str, Any]:
    # The target is nudged: nothing remembered fits.
    found = timed(lambda place: find(entry, TARGET * (1 - place * 1e-13), DELTA), repeats)
    row: dict[str, Any] = {
        "name": name,
        "who": who,
        "noise_multiplier": found.value,
        "best_ms": found.best,
        "error": found.why_not,
    }
    if found.value is not None:
        costs = ours.epsilon(plan(entry.sampling_rate, found.value, entry.steps), DELTA)
        row |= {"lower": costs.lower, "upper": costs.upper}
    return row


def show(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    heading = (
        "",
        "who",
        "noise multiplier",
        "costs at least",
        "at most",
        "best ms (target 100)",
        "",
    )
    lines = [
        (
            row["name"],
            row["who"],
            fixed(row.get("noise_multiplier")),
            fixed(row.get("lower")),
            fixed(row.get("upper")),
            fixed(row.get("best_ms"), 1),
            row["error"] or ("TOO LITTLE NOISE" if row["lower"] > TARGET else ""),
        )
        for row in rows
    ]
    title = f"Noise for epsilon {TARGET:g} at delta {DELTA:g}, priced by dpaudit"
    return titled(title, table(heading, lines))
