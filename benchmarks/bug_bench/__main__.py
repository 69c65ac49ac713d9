"""Real faults of public DP trainers and accountants: what detects them, and what they leak.

    python benchmarks/bug_bench                              # all entries: about ten minutes
    python benchmarks/bug_bench --only opacus --only NaN     # entries or packages by part of name
    python benchmarks/bug_bench --json results.json --fill docs/reference/bug_bench.md

The pinned packages are installed with pip into folders of a cache, without dependencies, and
each entry runs in a process of its own. Entries that the JSON file holds already are not run
again; ``--again`` runs them. ``[train]`` is needed, ``[federated]`` for Flower's entries.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catalogue import entries
from faults import EXECUTED, Fault
from packages import folder_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = HERE.parent / "results"
BEGIN, END = "<!-- benchmarks/bug_bench -->", "<!-- end -->"
MINUTES = 15
COLUMNS = (
    "Package", "Fault", "Evidence", "Claimed", "Conformance", "Lower bound", "CPU s", "Result",
)  # fmt: skip


def run(fault: Fault, cache: Path) -> dict[str, Any]:
    """Execute an entry in a process of its own; an error is part of the result."""
    try:
        folder = folder_of(fault.packages, cache)
    except RuntimeError as error:
        return {"error": str(error)}
    paths = [str(part) for part in (ROOT, folder) if part]
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / "run_one.py"), fault.name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False, timeout=60 * MINUTES,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {MINUTES} minutes"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def result_of(fault: Fault, found: Mapping[str, Any] | None) -> str:
    """Say whether a fault is detected, and by what; otherwise why not."""
    if fault.evidence != EXECUTED:
        return f"not executed: {fault.why_not}"
    if not found:
        return "not run"
    if "error" in found:
        return f"not run: {found['error']}"
    by = list(filter(None, (_failing(fault, found) and "conformance", _bounded(fault, found))))
    if by:
        return f"detected by {' and '.join(by)}"
    return f"not detected: {fault.why_not or 'nothing above contradicts the claim'}"


def _failing(fault: Fault, found: Mapping[str, Any]) -> str:
    """Return the failed test that shows the fault; empty if there is none."""
    names = [one.split(": ")[0] for one in found["failed"]]
    return next((one for one in names if fault.shown_by and fault.shown_by in one), "")


def _bounded(fault: Fault, found: Mapping[str, Any]) -> str:
    if found["lower"] is None or not found["lower"] > found["claimed"]:
        return ""
    return "the lower bound" if found["kind"] == "certified" else "the certified interval"


def row(fault: Fault, found: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return an entry's row of the table."""
    package, what = fault.packages[0], f"{fault.name}: {fault.what}"
    if not found or "error" in found:
        return (package, what, fault.evidence, "", "", "", "", result_of(fault, found))
    failing = _failing(fault, found)
    verdict = f"{found['verdict']} ({failing})" if failing else found["verdict"]
    lower = "" if found["lower"] is None else f"{found['lower']:.3g} ({found['kind']})"
    return (
        package, what, fault.evidence, f"{found['claimed']:.3g} at {found['delta']:g}",
        verdict if fault.shown_by else "not applicable",
        lower, f"{found['seconds']:.1f}", result_of(fault, found),
    )  # fmt: skip


def table(results: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    lines += [row(fault, results.get(fault.name)) for fault in entries()]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in one)} |" for one in lines)


def fill(page: Path, results: Mapping[str, Any], date: str) -> None:
    """Write the table between the marks of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    body = f"{BEGIN}\n\nMeasured on {date}.\n\n{table(results)}\n\n{END}"
    page.write_text(before + body + after)


def chosen(parts: Sequence[str]) -> list[Fault]:
    """Return the executed entries whose name or package contains a part; all without parts."""
    return [
        fault
        for fault in entries()
        if fault.evidence == EXECUTED
        and (not parts or any(part in (fault.name + fault.packages[0]) for part in parts))
    ]


def main() -> None:
    """Run entries, write results, and fill the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    today = datetime.date.today().isoformat()
    default = RESULTS / f"bug-bench-{today}.json"
    parser.add_argument("--only", action="append", default=[], help="part of a name; repeatable")
    parser.add_argument("--json", type=Path, default=default, help="results, read and written")
    parser.add_argument("--fill", type=Path, help="page whose table is written")
    parser.add_argument("--again", action="store_true", help="run entries that have a result")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "dpaudit-bug-bench",
        help="folder for the pinned packages",
    )  # fmt: skip
    given = parser.parse_args()
    kept = json.loads(given.json.read_text()) if given.json.exists() else {"results": {}}
    results: dict[str, Any] = kept["results"]
    for fault in chosen(given.only):
        if given.again or "claimed" not in results.get(fault.name, {}):
            results[fault.name] = run(fault, given.cache)
            given.json.write_text(json.dumps({"date": today, "results": results}, indent=1))
        print(f"{fault.packages[0]:22} {fault.name}: {result_of(fault, results[fault.name])}")
    if given.fill:
        fill(given.fill, results, kept.get("date", today))


if __name__ == "__main__":
    main()
