"""Write docs/errors.md from the error classes; ``--check`` only says whether it is current.

    python tools/make_errors_page.py [--check]

A docstring of ``dpaudit.vocabulary.errors`` has a summary line, paragraphs that say when the
error is raised, a paragraph ``Exit code: N.`` and a paragraph ``Remedy: ...``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpaudit.vocabulary.errors import DpauditError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
GROUPS = {
    "0": "Internal",
    "1": "Arguments and settings",
    "2": "Files and formats",
    "3": "Ledgers and runs",
    "4": "Training",
    "5": "Audits",
    "6": "Environment",
    "7": "Accounting",
}
"""The group of errors by the first digit of their codes."""

EXIT_CODES = {
    0: "Success; the policy holds",
    1: "The policy, a claim or a check is violated",
    2: "Wrong usage or configuration",
    3: "Inconclusive: evidence is missing, or no bound is certainly true",
    4: "Integrity: a file of a run is missing, incomplete or altered",
    5: "Input or output: a disk is full or fails",
    70: "Internal error: a bug of dpaudit",
    130: "Interrupted",
    141: "The reader of the output has closed the pipe",
}
PREAMBLE = """\
# Errors

<!-- Written by tools/make_errors_page.py from dpaudit/vocabulary/errors.py; do not edit. -->

The `dpaudit` command prints an error as one line on standard error:

    dpaudit: error DPA101: delta must be at least 1e-300 and below 1, got 2.0

The line has the code of the error, what is allowed and what was given. The code of an error
never changes; its message may. In Python, `dpaudit.vocabulary.errors` has one class per code;
`error.code` is the code, `error.exit_code` the exit code and `str(error)` the message without
the code. All classes are derived from `DpauditError`. A verdict is not an error: it has an exit
code, but no error code.
"""


@dataclass(frozen=True)
class Entry:
    """What the page says about one class.

    Attributes:
        kind: The class.
        summary: The first line of its docstring.
        details: Paragraphs that say when it is raised.
        remedy: What a user should do.
    """

    kind: type[DpauditError]
    summary: str
    details: tuple[str, ...]
    remedy: str


def error_classes(root: type[DpauditError] = DpauditError) -> Iterator[type[DpauditError]]:
    """Yield ``root`` and every class of dpaudit that is derived from it."""
    if root.__module__.startswith("dpaudit."):
        yield root
    for kind in root.__subclasses__():
        yield from error_classes(kind)


def read_entry(kind: type[DpauditError]) -> Entry:
    """Return what the docstring of a class says.

    Raises:
        ValueError: It lacks the exit code of the class, or a remedy.
    """
    text = inspect.cleandoc(kind.__doc__ or "").partition("\n\nAttributes:\n")[0]
    paragraphs = [" ".join(part.split()).replace("``", "`") for part in text.split("\n\n")]
    exit_code = f"Exit code: {kind.exit_code:d}."
    if len(paragraphs) < 3 or paragraphs[-2] != exit_code:
        raise ValueError(f"{kind.__name__}: the last paragraph but one must be {exit_code!r}")
    label, _, remedy = paragraphs[-1].partition(": ")
    if label != "Remedy" or not remedy:
        raise ValueError(f"{kind.__name__}: the last paragraph must begin with 'Remedy: '")
    return Entry(kind, paragraphs[0], tuple(paragraphs[1:-2]), remedy)


def page_text() -> str:
    """Return the whole page."""
    entries = sorted(map(read_entry, error_classes()), key=lambda entry: entry.kind.code)
    lines = [PREAMBLE, "| Code | Class | Exit code | Meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| [{entry.kind.code}](#{entry.kind.code.lower()}) | `{entry.kind.__name__}` "
        f"| {entry.kind.exit_code:d} | {entry.summary} |"
        for entry in entries
    ]
    lines += ["", "## Exit codes", "", "| Exit code | Meaning |", "| --- | --- |"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    group = ""
    for entry in entries:
        if entry.kind.code[3] != group:
            group = entry.kind.code[3]
            lines += ["", f"## {GROUPS[group]}"]
        lines += _section(entry)
    return "\n".join(lines) + "\n"


def _section(entry: Entry) -> Iterator[str]:
    kind, parents = entry.kind, entry.kind.__bases__
    yield from ("", f"### {kind.code}", "")
    bases = ", ".join(f"`{parent.__name__}`" for parent in parents)
    yield f"`{kind.__name__}` (derived from {bases}), exit code {kind.exit_code:d}"
    for paragraph in (entry.summary, *entry.details, f"**Remedy:** {entry.remedy}"):
        yield from ("", paragraph)


def main(arguments: list[str]) -> int:
    """Write the page, or compare it; return the exit code."""
    if arguments not in ([], ["--check"]):
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    text = page_text()
    if not arguments:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.name} is out of date: run python tools/{Path(__file__).name}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
