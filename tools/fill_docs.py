"""Run the commands of README.md and docs/ and write their real output below them.

A block of output begins with ```` ```console ````. Each line that begins with ``$ `` is a
command; the lines below it are what it prints. Output that ends with ``...`` is shortened: as
many lines as it has are kept. All pages run in one temporary folder, README.md first. A command
that was run before is not run again.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(?<=```console\n)\$ .*?(?=```)", re.DOTALL)
COMMAND = re.compile(r"^\$ (dpaudit [^\n]*)\n", re.MULTILINE)
CUT = "...\n"
Run = Callable[[str, Path], str]


def pages() -> list[Path]:
    """Return the files whose commands are run, in their order."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Return each command of a page with the output that stands below it."""
    for block in BLOCK.findall(text):
        _, *parts = COMMAND.split(block)
        yield from zip(parts[::2], parts[1::2], strict=True)


def shortened(output: str, like: str) -> str:
    """Return an output, cut to as many lines as another one that ends with ``...``.

    Args:
        output: What a command printed.
        like: What a page has below this command.

    Returns:
        ``output`` itself, unless ``like`` is cut and has fewer lines.
    """
    if not like.endswith(CUT):
        return output
    lines = output.splitlines(keepends=True)
    kept = like.count("\n") - 1
    return output if kept >= len(lines) else "".join(lines[:kept]) + CUT


def filled(text: str, outputs: dict[str, str]) -> str:
    """Return a page with the real output below each of its commands."""

    def fill(block: re.Match[str]) -> str:
        return "".join(
            f"$ {command}\n{shortened(outputs[command], below)}"
            for command, below in commands(f"```console\n{block[0]}```")
        )

    return BLOCK.sub(fill, text)


def run_all(folder: Path, run: Run) -> dict[str, str]:
    """Run every command of all pages once; return what each printed."""
    shutil.copy(ROOT / "dpaudit.toml", folder)
    outputs: dict[str, str] = {}
    for page in pages():
        for command, _ in commands(page.read_text(encoding="utf-8")):
            if command not in outputs:
                outputs[command] = run(command, folder)
    return outputs


def run_here(command: str, folder: Path) -> str:
    """Run one command by this interpreter; return its standard output.

    Raises:
        AssertionError: If the exit code is not 0.
    """
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"{command}: exit code {done.returncode}: {done.stderr}")
    return done.stdout


def main() -> None:
    """Rewrite the pages in place."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = run_all(Path(folder), run_here)
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text, outputs)) != text:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
