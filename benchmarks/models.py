"""Private training of public models: is the sum right, which path, what cost, what memory?

    python -m venv bench-models && bench-models/bin/pip install '.[bench-models]'
    bench-models/bin/python benchmarks/models.py --json results.json   # all models: half an hour
    bench-models/bin/python benchmarks/models.py --only Llama --only ViT
    bench-models/bin/python benchmarks/models.py --json results.json --fill docs/reference/models.md

Install a CPU build of torch first. Models are tiny and random; nothing is downloaded. Each
model is measured in processes of its own with a time limit, so that one failure is one line.
Parts that the JSON file holds already are not measured again; ``--again`` measures them.

The sum of one clipped step is compared with a loop over records: each record alone, clipped at
the median norm, summed in float64. The path counts parameters by rule and record by record.
Cost is CPU time over plain SGD on one thread, median of alternating steps, with secure float32
noise. Memory is the growth of a process of its own over plain SGD's, first step included.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from public_models import MODELS, RECORDS
from public_models.measures import TOLERANCE, TOLERANCE_FLOAT64, correctness, cost, peak_memory
from public_models.subject import named
from side_by_side.tables import table

# A fork of this process has the libraries loaded. It takes no steps itself, so that no thread of
# autograd exists yet.
FORKS = sys.platform == "linux"
PROCESSES = multiprocessing.get_context("fork" if FORKS else "spawn")

LIBRARIES = ("dpaudit", "torch", "transformers", "peft", "timm", "torchvision", "diffusers")
PARTS = ("correctness", "cost", "plain memory", "private memory")
BEGIN, END = "<!-- benchmarks/models.py -->", "<!-- end -->"
HEADING = (
    "Model", "Library", "Sum", "By rule", "Record by record", "Cost", "First step", "Memory",
)  # fmt: skip


def measure_part(name: str, part: str, rounds: int) -> Any:
    """Return one part of the measurements of a model, in this process."""
    torch.set_num_threads(1)
    subject = MODELS[name]
    match part:
        case "correctness":
            return asdict(correctness(subject))
        case "cost":
            return asdict(cost(subject, rounds))
        case "plain memory":
            return peak_memory(subject, private=False)
        case _:
            return peak_memory(subject, private=True)


def measure(
    name: str, held: dict[str, Any], parts: Sequence[str], rounds: int, limit: float
) -> dict[str, Any]:
    """Return what is held of a model and the missing parts, each from a process of its own.

    A failure is a text in place of a part. Nothing follows if no step can be taken.
    """
    found = {"library": MODELS[name].library} | held
    for part in ["correctness", *parts]:
        if part not in found and not ("correctness" in found and refused_or_broken(found)):
            found[part] = _in_own_process(name, part, rounds, limit)
    return found


def refused_or_broken(found: dict[str, Any]) -> bool:
    """Return whether no step can be taken."""
    own = found["correctness"]
    return "error" in own or own["refusal"] is not None


def _in_own_process(name: str, part: str, rounds: int, limit: float) -> Any:
    """Return what a process of its own found, or why it found nothing."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_send_part, args=(theirs, name, part, rounds), daemon=True)
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(limit) else {"error": f"took more than {limit:.0f} s"}
    except EOFError:
        return {"error": "the process ended"}
    finally:
        process.kill()
        process.join()


def _send_part(pipe: Connection, name: str, part: str, rounds: int) -> None:
    """Send one part of the measurements of a model; an error of any kind is sent as a text."""
    warnings.simplefilter("ignore")
    try:
        pipe.send(measure_part(name, part, rounds))
    except Exception as error:  # a model may fail in any way
        pipe.send({"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]})


def verdict(name: str, found: dict[str, Any]) -> str:
    """Return whether the sum is right, and the relative gap to the loop."""
    own = found["correctness"]
    if "error" in own:
        return f"failed: {own['error']}"
    if own["refusal"] is not None:
        return "refused, as it must be" if MODELS[name].mixes else f"WRONG: {own['refusal']}"
    if MODELS[name].mixes:
        return "WRONG: not refused"
    gap, wide = own["gap"], own["gap_float64"]
    if gap is None:
        return "not compared"
    if gap <= TOLERANCE:
        return f"right, {gap:.0e}"
    right = wide is not None and wide <= TOLERANCE_FLOAT64
    return f"{'right' if right else 'WRONG'}, {gap:.0e} (float64: {wide or math.nan:.0e})"


def row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    """Return one row of the table."""
    paid, path, price, memory = found.get("cost", {}), ("", ""), ("", ""), ""
    if not refused_or_broken(found):
        path = (str(found["correctness"]["parameters"] - slow_later(found)), slow_text(found))
    if "later" in paid:
        price = (f"{paid['early']:.2f}, then {paid['later']:.2f}", f"{paid['first']:.1f}")
    elif "error" in paid:
        price = (paid["error"], "")
    plain, private = found.get("plain memory"), found.get("private memory")
    if isinstance(plain, float) and isinstance(private, float):
        memory = f"{private / plain:.2f}"
    return (name, found["library"], verdict(name, found), *path, *price, memory)


def slow_later(found: dict[str, Any]) -> int:
    """Return how many parameters are differentiated record by record after the first steps."""
    later: int = found.get("cost", {}).get("slow", len(found["correctness"].get("slow", ())))
    return later


def slow_text(found: dict[str, Any]) -> str:
    """Return the number of parameters without a rule at first, and later if it changes."""
    first, later = len(found["correctness"]["slow"]), slow_later(found)
    return str(later) if first == later else f"{first}, then {later}"


def slow_lines(found: dict[str, Any]) -> list[str]:
    """Return which functions of torch use the parameters without a rule, with one example each."""
    by_use: dict[str, list[str]] = {}
    for name, uses in found["correctness"].get("slow", {}).items() if slow_later(found) else ():
        by_use.setdefault(", ".join(uses) or "no function of torch", []).append(name)
    return [f"{len(names)} in `{use}`, as `{names[0]}`" for use, names in by_use.items()]


def markdown(models: dict[str, Any]) -> str:
    """Return the table and the list of slow parameters as Markdown."""
    rows = [row(name, found) for name, found in models.items()]
    lines = [f"| {' | '.join(each)} |" for each in (HEADING, ("---",) * len(HEADING), *rows)]
    slow = [(name, slow_lines(found)) for name, found in models.items()]
    listed = [f"- {name}: {'; '.join(uses)}." for name, uses in slow if uses]
    return "\n".join(
        [*lines, "", *(listed or ["No parameter is differentiated record by record."])]
    )


def filled(page: str, text: str) -> str:
    """Return a page with another text between its two marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "not installed"
    return found


def main() -> None:
    """Measure what was asked for, or fill a page with what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", help="a model, or a part of its name; repeatable"
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each kind")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each process")
    parser.add_argument("--json", type=Path, help="write all figures here, and go on from there")
    parser.add_argument("--again", action="store_true", help="measure what the file holds, too")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all; repeatable")
    parser.add_argument("--fill", type=Path, help="fill the table of this page from the JSON file")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    held = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    models = held.get("models", {})
    if given.fill:
        ordered = {name: models[name] for name in MODELS if name in models}
        given.fill.write_text(filled(given.fill.read_text(), markdown(ordered)))
        return
    wanted = [n for n in MODELS if not given.only or any(part in n for part in given.only)]
    if FORKS:
        for library in {MODELS[name].library for name in wanted}:
            named(library, "__version__")
    print("  ".join(f"{name} {version}" for name, version in versions().items()))
    for name in wanted:
        held = {} if given.again else models.get(name, {})
        models[name] = measure(name, held, given.part or PARTS, given.rounds, given.limit)
        if given.json and models[name] != held:
            given.json.write_text(
                json.dumps({"records": RECORDS, "versions": versions(), "models": models}, indent=1)
                + "\n"
            )
        print(f"\n{'  '.join(cell for cell in row(name, models[name]) if cell)}", flush=True)
        for line in slow_lines(models[name]):
            print(f"    {line}", flush=True)
    print("\n" + table(HEADING, [row(name, models[name]) for name in wanted]))


if __name__ == "__main__":
    main()
