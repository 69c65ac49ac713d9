"""Pinned packages of the bench, each set in a folder of its own, never in this environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DONE = "installed"


def missing_here(pins: Sequence[str]) -> list[str]:
    """Return the pins that this environment does not fulfill."""
    return [pin for pin in pins if _installed(pin.partition("==")[0]) != pin.partition("==")[2]]


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def folder_of(pins: Sequence[str], cache: Path) -> Path | None:
    """Install what this environment lacks, without dependencies; None if it lacks nothing.

    Args:
        pins: Requirements with exact versions; dependencies that are needed are among them.
        cache: Folder in which each set has a folder.

    Returns:
        The folder for ``PYTHONPATH``.

    Raises:
        RuntimeError: If pip cannot install a pin; its last lines are in the message.
    """
    needed = missing_here(pins)
    if not needed:
        return None
    folder = cache / hashlib.sha256(" ".join(needed).encode()).hexdigest()[:16]
    if (folder / DONE).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    done = subprocess.run(
        [*command, str(folder), *needed], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = " ".join(done.stderr.splitlines()[-3:])
        raise RuntimeError(f"pip cannot install {', '.join(needed)}: {last}")
    (folder / DONE).write_text("\n".join(needed))
    return folder
